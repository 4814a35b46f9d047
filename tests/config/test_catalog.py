"""What `steerlens list` shows."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest
import yaml

from steerlens.cli.help import help_text
from steerlens.config import catalog
from steerlens.config.entries import conf_dir, known_models, options
from steerlens.config.registry import parts_of
from steerlens.config.schema import STEERED_BY
from steerlens.errors import SteerlensError


def test_every_file_of_conf_is_listed() -> None:
    for group, kind in [
        ("model", "models"), ("sae", "saes"), ("subject", "subjects"),
        ("judge", "judges"), ("concepts", "concepts"), ("corpus", "corpora"),
    ]:  # fmt: skip
        shown = catalog.listing(kind)
        for file in (conf_dir() / group).glob("*.yaml"):
            assert f"{group}={file.stem} " in shown


LENGTH = r"(\d+ h( \d+ min)?|\d+ min( \d+ s)?|\d+ s)"
ON = r"\((\d+ cores?|half a core|a fifth of a core)\)"
DURATIONS = {
    "measured": rf"{LENGTH} {ON}( (of|without) .+)?",
    "estimated": rf"about {LENGTH} {ON}, estimated( (from|for) .+)?",
    "counted": rf"at least {LENGTH} \(H100\), counted for .+",
}


def test_every_experiment_is_listed_with_a_line_and_how_long_it_takes() -> None:
    rows = [re.split(r" {2,}", line) for line in catalog.listing("experiments").splitlines()]
    assert [name for name, *_ in rows] == [f"experiment={name}" for name in options()["experiment"]]
    kinds = set()
    for name, duration, about in rows:
        kind = [kind for kind, form in DURATIONS.items() if re.fullmatch(form, duration)]
        assert len(kind) == 1, f"{name}: {duration}"
        assert about.endswith((".", "?")), name
        kinds.update(kind)
    assert kinds == {*DURATIONS}


def test_every_scoring_method_is_listed_with_its_first_line() -> None:
    shown = catalog.listing("scores")
    assert all(f"score={name} " in shown for name in parts_of("scores"))
    assert "Output score S_out" in shown


def test_every_way_of_steering_toward_concepts_is_listed_and_said() -> None:
    shown = {line.split("  ")[0]: line for line in catalog.listing("methods").splitlines()}
    assert {*STEERED_BY, *parts_of("methods")} == {*shown}
    for line in shown.values():
        assert line.endswith(".")
    assert "trained to prefer" in shown["RePS"]


def test_the_releases_are_those_of_saelens() -> None:
    files = importlib.metadata.files("sae_lens") or []
    (file,) = (file for file in files if file.name == "pretrained_saes.yaml")
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    assert set(catalog.releases()) == set(content)
    shown = {line.split()[0]: line for line in catalog.listing("releases").splitlines()}
    for name, release in content.items():
        assert f" {len(release['saes'])} SAEs" in shown[name]
        assert release["model"] in shown[name]
    assert catalog.read_release("gpt2-small-res-jb") == content["gpt2-small-res-jb"]


def test_a_filter_keeps_the_rows_that_contain_it() -> None:
    shown = catalog.listing("saes", "GEMMA-3-270M").splitlines()
    assert [line.split()[0] for line in shown] == [
        "sae=gemma-scope-2-270m",
        "sae=gemma-scope-2-270m-it",
    ]
    line, _ = catalog.listing("subjects", "gemma-3-270m").splitlines()
    assert line.split()[:3] == [
        "subject=gemma-3-270m",
        "model=gemma-3-270m",
        "sae=gemma-scope-2-270m",
    ]


def test_the_name_of_a_release_lists_its_ids() -> None:
    lines = catalog.listing("releases", "gpt2-small-res-jb").splitlines()
    assert "gpt2-small" in lines[0]
    assert lines[-1] == "blocks.11.hook_resid_post"
    assert len(lines) == 3 + 13


@pytest.mark.parametrize(
    ("kind", "filter", "expected"),
    [
        ("models", "gpt2-smal1", "no models match 'gpt2-smal1'; did you mean 'gpt2-small'"),
        ("releases", "gemma-scope-2b-pt-rez", "did you mean 'gemma-scope-2b-pt-res'"),
        ("scores", "zzz", "try a shorter word"),
        ("modls", "", "unknown list 'modls'; did you mean 'models' or 'methods'?"),
    ],
)
def test_near_names_are_shown_when_nothing_matches(kind: str, filter: str, expected: str) -> None:
    with pytest.raises(SteerlensError) as caught:
        catalog.listing(kind, filter)
    assert expected in str(caught.value)


def test_the_table_is_aligned_and_has_no_trailing_spaces() -> None:
    assert catalog.table([["a", "", "x"], ["bbb", "cc", ""]]) == "a        x\nbbb  cc"


def test_the_help_lists_every_option_of_every_group() -> None:
    words = help_text().split()
    for file in conf_dir().glob("[!h]*/**/*.yaml"):
        group = conf_dir() / file.relative_to(conf_dir()).parts[0]
        assert file.relative_to(group).with_suffix("").as_posix() in words


def test_every_known_name_of_a_model_is_known() -> None:
    assert {"gpt2-small", "openai-community/gpt2", "gpt2", "google/gemma-2-2b"} <= (known_models())
    assert "???" not in known_models()


def test_sae_lens_is_found_without_being_imported() -> None:
    code = (
        "import sys; from steerlens.config.catalog import listing; listing('releases'); "
        "print([name for name in ('torch', 'sae_lens') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
