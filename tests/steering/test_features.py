"""The table of texts of one layer: every combination once, with all columns, kept in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.analysis.factors import by_factor, next_factors
from steerlens.config.schema import RANDOM_DIRECTION, GenerationConfig, RunConfig, SteerConfig
from steerlens.config.settings import SteeringSettings, parse_steering, parse_subject
from steerlens.engine.generation import ROW
from steerlens.engine.subject import LoadedModel, Subject
from steerlens.errors import SteerlensError
from steerlens.results import GENERATIONS, features_alone
from steerlens.scores import RunContext
from steerlens.steering.features import steer_layer, text_rows
from steerlens.steering.metrics import Texts, perplexity
from steerlens.steering.metrics.degeneracy import DegeneracyConfig, repetition
from steerlens.steering.metrics.success import SuccessConfig
from steerlens.storage.store import Store
from tests.support.generating import count_decoded, ids_of
from tests.support.tiny import save_model

MakeSubject = Callable[..., Subject]
PROMPTS = ["Note that", "In my experience,"]


def settings_of(**settings: Any) -> SteeringSettings:
    """A small run; settings of `steer` and of `generation` in any order."""
    edit = {name: settings.pop(name) for name in list(settings) if name in vars(SteerConfig())}
    config = RunConfig(
        steer=SteerConfig(**{"factors": [0.5, 3], "controls": [RANDOM_DIRECTION], **edit}),
        generation=GenerationConfig(
            **{"prompts": PROMPTS, "samples": 2, "max_new_tokens": 6, "stop": None, **settings}
        ),
    )
    return parse_steering(config)


@pytest.fixture
def subject(tiny_subject: MakeSubject) -> Subject:
    return tiny_subject("llama", "jumprelu")


@pytest.fixture
def stored(tmp_path: Path) -> RunContext:
    return RunContext(store=Store(tmp_path / "kept"))


def test_every_combination_is_one_row_with_all_columns(subject: Subject) -> None:
    frame = steer_layer(subject, [9, 5], settings_of(), RunContext())
    assert list(frame.columns) == list(GENERATIONS.columns)
    assert len(frame) == 2 * 2 * 3 * 2 * 2
    assert not frame.duplicated(list(GENERATIONS.keys)).any()
    assert set(frame["feature"]) == {5, 9}
    assert sum(control is pd.NA for control in frame["control"]) == len(frame) // 2
    assert set(frame["control"].dropna()) == {RANDOM_DIRECTION}
    assert set(frame["factor"]) == {0.0, 0.5, 3.0}
    assert set(frame["prompt"]) == set(PROMPTS)
    assert set(frame["sample"]) == {0, 1}
    for name, value in (
        ("model", subject.lm.name),
        ("sae", subject.name),
        ("hook_name", "blocks.2.hook_resid_post"),
        ("layer", 2),
    ):
        assert set(frame[name]) == {value}


def test_the_best_features_are_also_steered_together(subject: Subject) -> None:
    settings = settings_of(together=[2, 3, 4], controls=[])
    frame = steer_layer(subject, [9, 5, 30], settings, RunContext())
    steered = frame[["feature", "together"]].drop_duplicates().fillna("")
    expected = {(9, ""), (5, ""), (30, ""), (9, "5"), (9, "5+30")}  # there is no fourth
    assert {*steered.itertuples(index=False, name=None)} == expected
    assert frame["control"].isna().all()
    assert not frame.duplicated(list(GENERATIONS.keys)).any()
    assert len(frame) == len(expected) * 3 * 2 * 2
    alone = steer_layer(subject, [9, 5, 30], settings_of(controls=[]), RunContext())
    own = features_alone(frame).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone)


def test_every_column_but_those_of_other_runs_is_filled(subject: Subject) -> None:
    frame = steer_layer(subject, [5], settings_of(), RunContext())
    empty = {str(name) for name in frame.columns if any(one is pd.NA for one in frame[name])}
    assert empty == {"control", "together", "concept", "concept_success"}
    for factor, kl in zip(frame["factor"], frame["first_step_kl"], strict=True):
        assert (kl > 0) == (factor != 0)
    assert min(frame["perplexity"].tolist()) > 1
    assert set(map(len, ids_of(frame))) <= set(range(1, 7))
    with_concept = replace(settings_of(), concept=("experience",))
    counted = steer_layer(subject, [5], with_concept, RunContext())["concept_success"]
    assert min(counted.tolist()) >= 0


def test_0_comes_along_once_and_factors_rise() -> None:
    settings = settings_of(factors=[8, 0, 0.5, 0.5, -1])
    rows = text_rows({(5, "", ""): [0.0, *settings.factors]}, settings)
    assert rows["factor"].drop_duplicates().tolist() == [0.0, -1.0, 0.5, 8.0]
    assert not rows.duplicated(list(ROW)).any()
    assert list(rows.columns) == list(ROW)


def test_the_search_gives_the_same_texts_at_fewer_factors(subject: Subject) -> None:
    factors, features = [0.3, 0.6, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0], [2, 5, 9, 30]
    every = steer_layer(subject, features, settings_of(factors=factors, controls=[]), RunContext())
    settings = settings_of(factors=factors, controls=[], search=True)
    found = steer_layer(subject, features, settings, RunContext())
    keys = ["feature", "control", "factor", "prompt", "sample"]
    assert len(found) < len(every)
    again = found[keys].merge(every, on=keys)
    assert again["text"].tolist() == found["text"].tolist()
    assert all(min(rows["factor"]) == 0 for _, rows in found.groupby("feature"))
    means = by_factor(every)
    for feature in features:
        rows = means.loc[means["feature"] == feature]
        known = {
            row["factor"]: (row["success_20"], row["perplexity"]) for row in rows.to_dict("records")
        }
        asked: dict[float, tuple[float, float]] = {}
        while wanted := next_factors([0.0, *factors], asked):
            asked |= {factor: known[factor] for factor in wanted}
        assert set(found.loc[found["feature"] == feature, "factor"]) == set(asked)


def test_the_table_survives_its_file(subject: Subject, tmp_path: Path) -> None:
    frame = steer_layer(subject, [5], settings_of(), RunContext())
    GENERATIONS.write(frame, tmp_path)
    pd.testing.assert_frame_equal(GENERATIONS.read(tmp_path), frame)


def test_texts_and_metrics_are_kept(
    subject: Subject, stored: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steer_layer(subject, [5, 9], settings_of(), RunContext())
    measured: list[int] = []
    real = perplexity.measure

    def counted(texts: Texts, *rest: Any) -> Any:
        measured.append(len(texts))
        return real(texts, *rest)

    monkeypatch.setattr(perplexity, "measure", counted)
    decoded = count_decoded(monkeypatch)
    steer_layer(subject, [5], settings_of(), stored)
    assert sum(decoded) == sum(measured) == 24
    for _ in range(2):
        frame = steer_layer(subject, [5, 9], settings_of(), stored)
        assert sum(decoded) == sum(measured) == 48
        pd.testing.assert_frame_equal(frame, whole, rtol=1e-4, atol=1e-6)


def test_a_metric_of_other_settings_measures_anew_and_generates_nothing(
    subject: Subject, stored: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(max_new_tokens=12)
    usual = steer_layer(subject, [5], settings, stored)
    decoded = count_decoded(monkeypatch)
    metrics = {"degeneracy": DegeneracyConfig(max_period=1), "success": SuccessConfig(k=[1, 2])}
    frame = steer_layer(subject, [5], replace(settings, metrics=metrics), stored)
    assert decoded == []
    whole = frame.loc[frame["stopped_by"] == "length"]  # none ends with a token that isn't counted
    assert whole["repetition"].tolist() == [repetition(ids, 1) for ids in ids_of(whole)]
    assert frame["success_1"].tolist() == usual["success_1"].tolist()
    assert "success_2" in frame
    assert frame["success_20"].isna().all()


def test_a_kill_between_texts_and_metrics_loses_no_text(
    subject: Subject, stored: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(perplexity, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            steer_layer(subject, [5], settings_of(), stored)
    decoded = count_decoded(monkeypatch)
    frame = steer_layer(subject, [5], settings_of(), stored)
    assert decoded == []
    assert min(frame["success_1"].tolist()) >= 0


def test_another_evaluator_measures_anew_and_generates_nothing(
    subject: Subject,
    stored: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    own = steer_layer(subject, [5], settings_of(), stored)
    decoded = count_decoded(monkeypatch)
    other = load_other(subject, save_model(tmp_path / "judge", "llama", seed=3))
    judged = steer_layer(subject, [5], settings_of(), stored, other)
    assert decoded == []
    assert judged["text"].tolist() == own["text"].tolist()
    assert not set(judged["perplexity"]) & set(own["perplexity"])
    assert judged["success_20"].tolist() == own["success_20"].tolist()
    again = steer_layer(subject, [5], settings_of(), stored)
    assert again["perplexity"].tolist() == own["perplexity"].tolist()


def load_other(subject: Subject, folder: Path) -> LoadedModel:
    from steerlens.config.compose import compose
    from steerlens.steering.metrics.perplexity import load_evaluator

    words = ["model@evaluator=local", f"evaluator.path={folder}"]
    config = compose(["model=local", f"model.path={folder}", *words, "device=cpu", "dtype=float32"])
    assert config.evaluator is not None
    return load_evaluator(config.evaluator, parse_subject(config))


def test_a_text_of_nothing_but_eos_has_all_its_metrics(subject: Subject) -> None:
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = list(range(subject.lm.head.d_vocab))
    frame = steer_layer(subject, [5], settings_of(), RunContext())
    assert set(frame["stopped_by"]) == {"eos"}
    assert set(map(len, ids_of(frame))) == {1}
    assert set(frame["text"]) == {""}
    for name, value in (("success_20", 0), ("degeneracy", 0), ("repetition", 0), ("distinct_1", 1)):
        assert set(frame[name]) == {value}
    assert min(frame["perplexity"].tolist()) > 1  # of the prompt


def test_a_prompt_without_room_is_one_sentence(subject: Subject) -> None:
    settings = settings_of(prompts=["Note that", " ".join(["the"] * 60)])
    with pytest.raises(
        SteerlensError, match=r"^the prompt 'the the .*max_new_tokens=6 more"
    ) as one:
        steer_layer(subject, [5], settings, RunContext())
    assert "\n" not in str(one.value)
