"""A part of every kind from another package: one file, and its numbers stand in a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens import SteerlensError
from steerlens.analysis.factors import choose_factors
from steerlens.analysis.series import Series
from steerlens.config.registry import KINDS, load_part, loadable_parts, parts_of
from steerlens.config.schema import (
    ChoiceConfig,
    ConceptsConfig,
    GenerationConfig,
    JudgeConfig,
    PathsConfig,
    RunConfig,
    SteerConfig,
    StudyConfig,
)
from steerlens.config.settings import parse_steering
from steerlens.engine.subject import Subject
from steerlens.judges import load_judge
from steerlens.judges.session import RatingSession
from steerlens.report.studies import write_answer
from steerlens.scores import ScoreRun
from steerlens.scores.scoring import score_layer
from steerlens.steering.concepts import steer_concepts
from steerlens.steering.features import steer_layer
from steerlens.storage.store import Store
from tests.support.concepts import tiny_concepts

FILES = {
    "scores": '''"""Mine: twice the feature's id."""
from dataclasses import dataclass
from steerlens.scores import ScoreConfig

@dataclass
class Config(ScoreConfig):
    method: str = "mine_scores"

def score(subject, features, config, run):
    return {"mine": [2.0 * feature for feature in features]}
''',
    "metrics": '''"""Mine: letters of a text."""
from dataclasses import dataclass

@dataclass
class Config:
    pass

def measure(texts, subject, config, run):
    return {"letters": [float(len(text)) for text in texts.texts]}
''',
    "methods": '''"""Mine: the first axis, for every concept."""
from dataclasses import dataclass
import torch
from steerlens.steering.methods.directions import Directions

READS_TEXTS = False

@dataclass
class Config:
    pass

def fit(task, config, seed):
    rows = torch.zeros(len(task), task.subject.sae.cfg.d_in)
    rows[:, 0] = 1
    return Directions(rows)
''',
    "judges": '''"""Mine: everything is plainly there."""
from steerlens.judges import Rated, Rating
from steerlens.judges.cost import Estimate
from steerlens.judges.items import aspects_of

class Judge:
    name = "mine_judges"

    def check(self):
        pass

    def estimate(self, items):
        return Estimate(3 * len(items), 0, 0, 0, 0, 0.0, 0.0)

    def rate(self, items, progress=lambda n: None, spent_usd=0.0):
        return Rated(self.name, "llm", [dict.fromkeys(aspects_of(i), Rating(2)) for i in items])

def check(config):
    pass

def load(settings, lexicon):
    return Judge()
''',
    "studies": '''"""Mine: how many results there are."""
from steerlens.report.studies import Answer

def answer(series, config):
    return Answer([f"There are {len(series)}."])
''',
    "operators": '''def mine_operators(acts, goal_BLN, share_B1N):
    """Twice what is asked for."""
    return 2 * goal_BLN
''',
    "units": '''def mine_units(encoded, out_BLD, targets):
    """A half."""
    return encoded.acts_BLF.new_full((), 0.5)
''',
    "rules": '''def mine_rules(success, perplexity, blind, unsteered, choice):
    """The first."""
    return 1.0
''',
}
CONCEPTS = tiny_concepts(n=2, n_texts=(4, 4))


def install(folder: Path, kind: str, source: str) -> str:
    """Put a distribution with one part into `folder`; its name in the registry."""
    name = f"mine_{kind}"
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    address = f"{name}:{name}" if KINDS[kind].is_functions else name
    (info / "entry_points.txt").write_text(f"[steerlens.{kind}]\n{name} = {address}\n")
    return name


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a part of every kind."""
    for kind, source in FILES.items():
        install(tmp_path, kind, source)
        monkeypatch.delitem(sys.modules, f"mine_{kind}", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def settings_of(**steer: Any) -> RunConfig:
    return RunConfig(
        steer=SteerConfig(**{"factors": [1.0, 4.0], **steer}),
        generation=GenerationConfig(prompts=["Note that"], max_new_tokens=4, stop=None),
        concepts=ConceptsConfig("tiny", "embedded", methods=["mine_methods"]),
        judge=JudgeConfig("mine_judges"),
        paths=PathsConfig("unused", "unused"),
    )


def test_every_kind_takes_a_part_of_another_package(installed: Path) -> None:
    assert set(FILES) == set(KINDS)
    for kind in KINDS:
        assert f"mine_{kind}" in parts_of(kind)
        assert load_part(kind, f"mine_{kind}").__doc__


def test_a_score_stands_in_the_table_of_features(
    installed: Path, tiny_subject: Callable[..., Subject]
) -> None:
    config = load_part("scores", "mine_scores").Config()
    columns = score_layer(tiny_subject(), [3, 1], {"mine": config}, 5, ScoreRun())
    assert columns["mine"].to_pylist() == [6.0, 2.0]


def test_a_metric_an_operator_a_unit_and_a_rule_stand_in_the_tables_of_steering(
    installed: Path, tiny_subject: Callable[..., Subject]
) -> None:
    subject = tiny_subject()
    config = settings_of(operator="mine_operators", unit="mine_units")
    run = ScoreRun(store=Store(installed / "store"))
    texts = steer_layer(subject, [5], parse_steering(config), run)
    assert texts["letters"].tolist() == [len(text) for text in texts["text"]]
    again = steer_layer(subject, [5], parse_steering(config), run)
    pd.testing.assert_frame_equal(again, texts)
    # Twice the goal at half the unit is the goal at unit 1.
    plain = steer_layer(subject, [5], parse_steering(settings_of(unit="raw")), ScoreRun())
    assert plain["text"].tolist() == texts["text"].tolist()
    best = choose_factors(texts, ChoiceConfig(rule="mine_rules"))
    assert best["best_factor"].tolist() == [1.0]
    at_best = texts.loc[texts["factor"] == 1.0, "letters"]
    assert best["letters"].tolist() == [at_best.mean()]


def test_a_method_and_a_judge_stand_in_the_tables_of_concepts(
    installed: Path, tiny_subject: Callable[..., Subject]
) -> None:
    config = settings_of(unit="raw")
    assert config.concepts is not None
    concepts = replace(
        CONCEPTS, concepts=tuple(replace(one, feature=None) for one in CONCEPTS.concepts)
    )
    judge = load_judge(config)
    tables = steer_concepts(
        tiny_subject(), concepts, config.concepts, parse_steering(config), ScoreRun(),
        RatingSession(judge), lambda: None,
    )  # fmt: skip
    ratings = tables.ratings.loc[tables.ratings["method"] == "mine_methods"]
    assert len(ratings) > 0
    assert set(ratings["llm_concept"]) == {2}
    assert set(ratings["judge"]) == {"mine_judges"}
    assert ratings["letters"].notna().all()


def test_a_study_answers(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: Any = type("Tables", (), {"study": StudyConfig(name="mine_studies")})()
    summary, _ = write_answer([Series("a", [], tables)], installed)
    assert summary is not None
    assert summary["sentences"] == ["There are 1."]


@pytest.mark.parametrize("fault", ["raise SystemExit(3)", "import nothing_of_the_name", "x = 1"])
def test_a_part_that_fails_at_import_is_named_and_left_out(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "metrics", fault)
    monkeypatch.delitem(sys.modules, "mine_metrics", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SteerlensError, match="mine_metrics"):
        load_part("metrics", "mine_metrics")
    assert "mine_metrics" not in loadable_parts("metrics")
    assert "mine_metrics" in caplog.text
