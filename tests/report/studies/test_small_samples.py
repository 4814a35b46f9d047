"""Of 1, 2 and 3 features or concepts no study says more than that they are too few; of 8 it may."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steerlens.analysis.resampling import FEWEST, p_of_rank_correlation, sure
from steerlens.analysis.series import Series
from steerlens.analysis.steering_summary import steering_explanation
from steerlens.analysis.summary import explanation, summarise
from steerlens.config.registry import parts_of
from steerlens.config.schema import ChoiceConfig, StudyConfig
from steerlens.report.answer import answer_section
from steerlens.report.studies import write_answer
from steerlens.results.folder import RunTables
from steerlens.storage.files import json_text
from tests.report.studies.test_controls import planted, result
from tests.report.studies.test_releases import release
from tests.support.frames import capability, frame, generations, null_scores, steering
from tests.support.ratings import rated_tables

pytestmark = pytest.mark.usefixtures("quick_figures")

CLAIMS = r"surely (better|rises|falls|more)|separate |is first|gives most|the highest|within 5 %"
"""What only enough features can say."""


def run_of(n: int, **columns: Any) -> RunTables:
    """`n` features in which success goes exactly with two scores, so that a claim would be easy."""
    score = np.linspace(0.1, 0.9, n)
    scores = {
        "output_score": score,
        "input_score": score**2,
        "random_score": score[::-1],
        "output_score_by_prompt": np.stack([score, score + 0.01, score], axis=1).tolist(),
    } | columns
    texts = generations(n, layers=(0,))
    return RunTables(
        frame((0,), n, **scores),
        texts,
        steering((0,), n, **({"success_20": 5 * score} | scores)),
        null_scores=null_scores((0,)),
        choice=ChoiceConfig(),
    )


def of_concepts(n: int) -> RunTables:
    """The tables of a run toward concepts, of `n` of them."""
    tables = rated_tables()
    few = {
        name: getattr(tables, name).loc[getattr(tables, name)["concept_id"] < n]
        for name in ("concepts", "ratings")
    }
    return RunTables(tables.features, **few)


def asked(name: str, n: int) -> list[Series]:
    """What the study `name` is asked of, with `n` features of each result, or `n` concepts."""
    study = StudyConfig(name)
    if name == "releases":
        return [release(label, success, (0,), n) for label, success in (("a", 1.0), ("bb", 3.0))]
    if name == "controls":
        made = [result(planted, n=n, prompts=8)]
    elif name == "table1":
        made = [Series("a", [], of_concepts(n))]
    elif name == "capability":
        answers = capability(n, items=n, layers=(0,))
        made = [Series("a", [], replace(run_of(n), capability=answers))]
    else:
        made = [Series("a", [], run_of(n))]
    if name == "factors":
        tables = made[0].tables
        factor = tables.generations["factor"]
        costs = tables.generations.assign(kl=0.4 * factor, relative_dose=0.1 * factor)
        made = [replace(made[0], tables=replace(tables, generations=costs))]
    return [replace(one, tables=replace(one.tables, study=study)) for one in made]


def intervals(tables: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Every interval of more than one number: its table and column."""
    return [
        (name, key)
        for name, rows in tables.items()
        for row in rows
        for key, value in row.items()
        if key.endswith("_low") and value is not None
    ]


@pytest.mark.parametrize(
    "n", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)), FEWEST]
)
@pytest.mark.parametrize("name", parts_of("studies"))
def test_a_study_of_few_claims_nothing_and_says_that_they_are_few(
    name: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if n in (2, 3):  # as for 1, which takes long enough
        monkeypatch.setattr("steerlens.report.studies._draw", lambda figures, folder: {})
    summary, figures = write_answer(asked(name, n), tmp_path)
    assert summary is not None
    text = " ".join(summary["sentences"])
    assert "has no answer" not in text
    assert not re.search(r"\bnan\b|None", text)
    assert json.loads(json_text(summary)) == summary
    assert all("nan" not in part for part in answer_section(summary))
    if n < FEWEST:
        assert not intervals(summary["tables"])
        assert not re.search(CLAIMS, text)
        assert f"{FEWEST}" in text or "no chosen factor" in text  # how many it takes
    elif name in ("controls", "factors", "sizes", "table1", "capability"):
        assert intervals(summary["tables"])
        assert figures


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_summary_of_few_features_has_no_interval_and_no_claim(n: int) -> None:
    summary = summarise(run_of(n))
    text = " ".join([*explanation(summary), *steering_explanation(summary["steering"])])
    assert "95 %" not in text
    assert not re.search(CLAIMS, text)
    assert summary["prompt_correlations"] is None
    assert summary["hybrids"]["ratio_interval"] is None
    assert {one["spearman"] for one in summary["steering"]["criteria"]["scores"]} == {None}


def test_noise_is_rarely_a_guide_however_many_scores_are_tried() -> None:
    """At 5 % for eight scores together, not each."""
    draw = np.random.default_rng(0)
    claims = 0
    for _ in range(100):
        success = draw.random(FEWEST)
        claims += any(sure([p_of_rank_correlation(draw.random(FEWEST), success) for _ in range(8)]))
    assert claims <= 12
    assert sure([p_of_rank_correlation(success, success), None, 0.04, 0.9]) == [
        *(True, False, False, False),
    ]
