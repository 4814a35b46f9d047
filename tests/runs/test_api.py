"""The Python interface, as the README shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerlens
from steerlens import SteerlensError
from steerlens.engine.subject import Subject
from tests.support.tiny import D_SAE, save_sae
from tests.support.trained import trained_subject

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_five_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the tests' own subject: README's needs a model that may not be on this machine.
    monkeypatch.setattr(steerlens, "load_subject", lambda *names, **layer: trained_subject())
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 5
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    frame = names["frame"]
    assert len(frame) == 100  # type: ignore[arg-type]
    assert frame["output_score"].between(0, 1).all()  # type: ignore[index]
    exec(blocks[1], names)


@pytest.fixture(scope="module")
def api_subject(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("api")
    save_sae(folder / "sae")
    paths: dict[str, Any] = {"model.path": tiny_folder("llama"), "sae.path": folder / "sae"}
    paths["paths.cache_dir"] = folder
    return steerlens.load_subject("local", "local", **paths)


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, steerlens; assert 'torch' not in sys.modules; print(steerlens.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_misspelt_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_subjet"):
        _ = steerlens.load_subjet  # type: ignore[attr-defined]


def test_all_features_are_scored_without_a_choice(tiny_subject: Callable[..., Subject]) -> None:
    frame = steerlens.score_features(tiny_subject())
    assert frame["feature"].tolist() == list(range(D_SAE))


def test_of_saes_of_several_layers_one_must_be_chosen(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for layer in (1, 3):
        save_sae(tmp_path / f"layer_{layer}", layer=layer)
    paths: dict[str, Any] = {"model.path": tiny_folder("llama"), "sae.path": tmp_path}
    with pytest.raises(SteerlensError, match="choose one: layer=1, say"):
        steerlens.load_subject("local", "local", **paths)


def test_an_unknown_setting_of_a_score_is_refused_with_the_nearest(
    tiny_subject: Callable[..., Subject],
) -> None:
    with pytest.raises(SteerlensError, match="'promt'; did you mean 'prompt'"):
        steerlens.score_features(tiny_subject(), promt="In my experience,")


def test_an_unknown_method_is_refused_with_the_nearest(
    tiny_subject: Callable[..., Subject],
) -> None:
    with pytest.raises(SteerlensError, match="'outputs'; did you mean 'output'"):
        steerlens.score_features(tiny_subject(), "outputs")


def test_features_out_of_range_are_refused(tiny_subject: Callable[..., Subject]) -> None:
    with pytest.raises(SteerlensError, match="no feature 48"):
        steerlens.score_features(tiny_subject(), features=[48])


def test_features_for_a_concept_come_the_best_first(tiny_subject: Callable[..., Subject]) -> None:
    frame = steerlens.find(tiny_subject(), "w60")
    assert len(frame)
    assert frame["concept_score"].is_monotonic_decreasing
    assert all(any(t.strip() == "w60" for t in row) for row in frame["logit_lens_tokens"])


def test_weights_steer_several_features_at_once(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject()
    how: dict[str, Any] = {"max_new_tokens": 6, "stop": None, "temperature": 0.0}
    alone = steerlens.generate(subject, [5, 9], 8, "Note that", **how)
    assert alone["factor"].tolist() == [0, 8, 0, 8]
    equal = steerlens.generate(subject, [5, 9], 8, "Note that", weights=[3, 3], **how)
    group = steerlens.generate(subject, [5, 9], 8, "Note that", together=[2], **how)
    of_group = group.loc[group["together"].notna()]
    assert equal["text"].tolist() == of_group["text"].tolist()
    assert equal["seed"].tolist() == of_group["seed"].tolist()
    of_first = steerlens.generate(subject, [5, 9], 8, "Note that", weights=[1, 0], **how)
    assert of_first["token_ids"].tolist() == alone.head(2)["token_ids"].tolist()
    assert of_first["together"].tolist() == ["9", "9"]


API: Any = steerlens
"""Whose arguments no type checker looks at."""


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: API.generate("s", 5), "must be a subject.*not str"),
        (lambda s: API.generate(s, 48), "no feature 48"),
        (lambda s: API.generate(s, 5, "much"), "'much' is not a number"),
        (lambda s: API.generate(s, 5, [None]), "None is not a number"),
        (lambda s: API.generate(s, 5, prompts=7), "prompts=7 is no list"),
        (lambda s: API.generate(s, 5, prompts=[""]), "'' is no text"),
        (lambda s: API.generate(s, 5, oprator="add"), "'oprator'; did you mean 'operator'"),
        (lambda s: API.generate(s, 5, operator="ad"), "'ad'; did you mean 'add'"),
        (
            lambda s: API.generate(s, 5, max_new_tokens="x"),
            "max_new_tokens: 'x' is no whole",
        ),
        (lambda s: API.generate(s, 5, seed="x"), "seed='x' is not an integer"),
        (lambda s: API.generate(s, 5, memory_budget="much"), "no amount of memory"),
        (lambda s: API.generate(s, [5, 9], weights=[1]), "1 numbers for 2 features"),
        (lambda s: API.generate(s, [5, 9], weights=[0, 0]), "weights are all 0"),
        (lambda s: API.generate(s, [5, 9], weights=[1, "x"]), "weights: 'x' is not a number"),
        (lambda s: API.find(s, ""), "names nothing"),
        (lambda s: API.find(s, "w60", top_k="x"), "top_k='x' is not an integer"),
        (lambda s: API.find(7, "w60"), "must be a subject.*not int"),
        (lambda s: API.score_features(7), "must be a subject.*not int"),
        (lambda s: API.score_features(s, factor="x"), "factor of score output: 'x' is no number"),
        (lambda s: API.score_features(s, features="x"), "must be a list of integers"),
        (lambda s: API.score_features(s, "activation", corpus=7), "corpus=7 is no corpus"),
        (lambda s: API.steer(s, 5, factor="x").__enter__(), "factor='x' is not a number"),
        (lambda s: API.steer(s, 5, weights=["x"]).__enter__(), "weights='x' is not"),
    ],
)
def test_wrong_arguments_are_told_in_sentences(
    api_subject: Subject, call: Callable[[Any], object], sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence) as refused:
        call(api_subject)
    assert "\n" not in str(refused.value)


def test_a_subject_is_one_line_and_the_interface_is_listed(api_subject: Subject) -> None:
    assert repr(api_subject) == f"<{api_subject.lm.name} with sae, layer 2: {D_SAE} features>"
    assert {"find", "generate", "load_run", "load_subject", "steer"} <= {*dir(steerlens)}
    assert all(getattr(steerlens, name) for name in dir(steerlens))
