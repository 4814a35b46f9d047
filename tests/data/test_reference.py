"""The authors' caches in our schema: read, malformed, beside an own run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerlens.cli import main
from steerlens.config.compose import compose
from steerlens.config.schema import ReferenceConfig
from steerlens.data.reference import check_reference, read_reference
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.runs.preflight import check
from steerlens.storage.files import read_json

pytestmark = pytest.mark.usefixtures("undrawn_figures")

LISTED = {"0": [7, 3], "5": [3, 11]}
INPUT = {"0_7": 0.5, "0_3": 0.0, "5_3": 0.25, "5_11": 1.0}
OUTPUT = {"0_7": 1e-9, "0_3": 0.01, "5_3": 0.5, "5_11": 0.9}


def save(folder: Path, model: str = "llama31", **files: Any) -> ReferenceConfig:
    """Caches of `model`, each in a folder of its own; texts are written as they are."""
    contents = {"features": LISTED, "input_scores": INPUT, "output_scores": OUTPUT, **files}
    for name, content in contents.items():
        if content is None:
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name / f"{model}_{name}.json").write_text(text)
    return ReferenceConfig(path=str(folder), model=model)


def test_rows_are_the_listed_features_in_their_order(tmp_path: Path) -> None:
    config = save(tmp_path, best_steering_factors={"5_3": 2.0, "0_7": 0.2, "0_3": 20, "5_11": 4})
    found = read_reference(config)
    table = found.table
    assert list(zip(table["layer"], table["feature"], strict=True)) == [
        *((0, 7), (0, 3), (5, 3), (5, 11))
    ]
    assert table["input_score"].tolist() == [0.5, 0.0, 0.25, 1.0]
    assert table["output_score"].tolist() == [1e-9, 0.01, 0.5, 0.9]
    assert table["best_factor"].tolist() == [0.2, 20, 2.0, 4]
    assert table["model"].unique().tolist() == ["llama-3.1-8b"]
    assert table["hook_name"].tolist()[-1] == "blocks.5.hook_resid_post"
    assert found.findings == []


def test_scores_of_unlisted_features_are_counted_not_kept(tmp_path: Path) -> None:
    found = read_reference(save(tmp_path, output_scores=OUTPUT | {"9_9": 0.5, "9_8": 0.5}))
    assert len(found.table) == 4
    assert "llama31_output_scores.json: 2 scores are of features that aren't listed." in (
        found.findings
    )
    assert "There is no file of factors." in found.findings


@pytest.mark.parametrize(
    ("text", "told", "scores"),
    [
        ('{"0_7": 0.1, "0_7": 0.2, "5_3": 0.5}', "1 listed features have two", [None, None, 0.5]),
        ('{"0_7": 0.1, "0_7": 0.1}', "1 keys are there again", [0.1, None, None]),
        ('{"0_7": NaN, "0_3": 0.5}', "1 listed features have no finite", [None, 0.5, None]),
        ('{"0_7": Infinity, "5_3": 0.5}', "1 listed features have no finite", [None, None, 0.5]),
        ('{"0_7": 1.5, "0_3": 0.5}', "1 listed features have a number outside", [None, 0.5, None]),
        ('{"0_7": -0.5, "0_3": 0.5}', "1 listed features have a number outside", [None, 0.5, None]),
        ('{"0_7": "x", "0_3": 0.5}', "1 listed features have something else", [None, 0.5, None]),
        ('{"0_7": true, "0_3": 0.5}', "1 listed features have something else", [None, 0.5, None]),
        ('{"0-7": 0.5, "0_3": 0.5}', "1 keys are no layer_feature", [None, 0.5, None]),
        ('{"0_3": 0.5}', "3 listed features are left without a number", [None, 0.5, None]),
    ],
)
def test_malformed_scores_are_told_and_not_averaged_over(
    tmp_path: Path, text: str, told: str, scores: list[float | None]
) -> None:
    found = read_reference(save(tmp_path, output_scores=text))
    (sentence,) = [one for one in found.findings if told in one]
    assert sentence.startswith("llama31_output_scores.json: ")
    column = found.table["output_score"].astype(object)
    assert column.where(column.notna(), None).tolist()[:3] == scores


def test_a_feature_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    found = read_reference(save(tmp_path, features={"0": [7, 3, 7], "5": [3, 11]}))
    assert len(found.table) == 4
    assert found.findings[0] == "1 features are listed twice: each counts once."


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"features": {"40": [1]}}, "has 32 layers: it is of another model"),
        ({"features": {"0": [40000]}}, "has 32,768 features: it is of another model"),
        ({"output_scores": {"9_9": 0.5}}, "no score of a listed feature"),
        ({"features": {}}, "lists no feature"),
        ({"features": [1, 2]}, "is no JSON object"),
        ({"features": {"a": [1]}}, "has another form"),
        ({"features": {"0": {"1": 2}}}, "in layer 0 is no feature"),
        ({"features": {"0": ["1"]}}, "'1' in layer 0 is no feature"),
        ({"features": '{"0": ['}, "is no JSON file that can be read"),
        ({"output_scores": "[0.5]"}, "is no JSON object"),
    ],
)
def test_files_that_are_of_something_else_are_refused(
    tmp_path: Path, files: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SteerlensError, match=expected):
        read_reference(save(tmp_path, **files))


def test_a_folder_of_another_model_is_refused_with_what_it_has(tmp_path: Path) -> None:
    save(tmp_path)
    for model, expected in (
        ("gemma2_2b", r"no gemma_2b_features.json; it has files of llama31\."),
        ("llama3", "did you mean 'llama31'"),
        (None, "needs reference.model=NAME"),
    ):
        with pytest.raises(SteerlensError, match=expected):
            check_reference(ReferenceConfig(path=str(tmp_path), model=model))
    for folder in (tmp_path / "empty", tmp_path / "nothing"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SteerlensError, match=r"give reference\.feat|there is no folder"):
            check_reference(ReferenceConfig(path=str(folder), model="llama31"))


def test_a_file_can_be_given_by_path_and_decides_between_two(tmp_path: Path) -> None:
    config = save(tmp_path)
    (tmp_path / "copy").mkdir()
    other = tmp_path / "copy" / "llama31_output_scores.json"
    other.write_text(json.dumps(dict.fromkeys(OUTPUT, 0.125)))
    with pytest.raises(SteerlensError, match=r"choose one with reference\.output_scores=FILE"):
        read_reference(config)
    config.output_scores = str(other)
    assert read_reference(config).table["output_score"].tolist() == [0.125] * 4
    config.output_scores = str(tmp_path / "no.json")
    with pytest.raises(SteerlensError, match=r"reference\.output_scores: there is no file"):
        check_reference(config)


def test_the_published_scores_alone_are_a_run_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "caches", output_scores=OUTPUT | {"9_9": 0.5})
    out = tmp_path / "out"
    words = ["experiment=paper/reference", f"reference.path={tmp_path / 'caches'}"]
    words += ["reference.model=llama31", "tracking.mode=disabled", f"paths.output_dir={out}"]
    with pytest.raises(SystemExit) as ended:
        main([*words, f"paths.cache_dir={tmp_path / 'cache'}"])
    assert not ended.value.code
    table = FEATURES.read(out)
    assert table["output_score"].tolist() == [1e-9, 0.01, 0.5, 0.9]
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert {"input_output_by_layer", "input_against_output"} <= figures
    provenance = read_json(out / "provenance.json")
    assert {len(file["sha256"]) for file in provenance["reference"]} == {64}
    told = "1 scores are of features that aren't listed"
    printed = capsys.readouterr()
    assert told in printed.out
    begin = "paper_reference, from published numbers, without a model ..."
    assert printed.err.startswith(begin)
    assert "aren't listed" in (out / "report.md").read_text()
    assert told in read_json(out / "summary.json")["reference"]["findings"][0]


def test_the_listed_features_are_scored_with_features_reference(tmp_path: Path) -> None:
    save(tmp_path)
    words = [f"reference.path={tmp_path}", "reference.model=llama31", "features=reference"]
    config = compose([*words, "model=llama-3.1-8b", "sae=llama-scope-8x", "layer=[0,5]"])
    check(config)
    assert config.features.file == str(tmp_path / "features" / "llama31_features.json")
    with pytest.raises(
        SteerlensError, match=r"belongs to the model llama-3\.1-8b, not to smollm2-135m"
    ):
        check(compose(words))
    with pytest.raises(SteerlensError, match=r"features=reference needs reference\.path=DIR"):
        compose(["features=reference"])


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_an_own_run_beside_the_published_scores_says_whether_they_are_reproduced(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    same: bool,
) -> None:
    from steerlens.runs.run import run
    from tests.support.tiny import save_sae

    words = ["model=local", f"model.path={tiny_folder('llama')}", "sae=local"]
    words += [f"sae.path={save_sae(tmp_path / 'sae', layer=2)}", "model.aliases=[llama-3.1-8b]"]
    words += ["layer=2", "tracking.mode=disabled", f"paths.cache_dir={tmp_path / 'cache'}"]
    run(compose([*words, f"paths.output_dir={tmp_path / 'own'}"]))
    own = FEATURES.read(tmp_path / "own")
    scores = own["output_score"].to_numpy(dtype=float)
    published = scores if same else np.random.default_rng(0).permutation(scores)
    caches = save(
        tmp_path / "caches",
        features={"2": own["feature"].tolist()},
        input_scores=None,
        output_scores={f"2_{n}": published[n] for n in own["feature"].tolist()},
    )
    words += [f"reference.path={caches.path}", "reference.model=llama31", "features=reference"]
    capsys.readouterr()
    config = compose([*words, f"paths.output_dir={tmp_path / 'out'}"])
    check(config)
    run(config)
    found = read_json(tmp_path / "out" / "summary.json")["reference"]
    assert found["reproduced"] == {"output_score": same}
    assert f"output_score is {'' if same else 'not '}reproduced" in capsys.readouterr().out
    assert (tmp_path / "out" / "figures" / "score_distributions.png").is_file()
    assert "Beside the published scores" in (tmp_path / "out" / "report.md").read_text()
