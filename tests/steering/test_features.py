"""The table of texts of one layer: every combination once, with all columns, kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens.analysis.factors import by_factor, choosing_prompts, halves, next_factors
from steerlens.config.schema import (
    POSITIONS,
    RANDOM_DIRECTION,
    ChoiceConfig,
    GenerationConfig,
    RunConfig,
    SteerConfig,
)
from steerlens.config.settings import SteeringSettings, parse_steering, parse_subject
from steerlens.engine import prompts as engine_prompts
from steerlens.engine.generation import ROW, generate
from steerlens.engine.subject import LoadedModel, Subject
from steerlens.engine.subject.forward import entering_block, hooks_on
from steerlens.errors import SteerlensError
from steerlens.results import GENERATIONS, features_alone
from steerlens.scores import RunContext
from steerlens.steering.features import steer_layer, steer_together, text_rows
from steerlens.steering.measured import SteeredVectors
from steerlens.steering.metrics import (
    MetricRun,
    Texts,
    degeneracy,
    drift,
    likelihood,
    perplexity,
    success,
)
from steerlens.steering.metrics.degeneracy import DegeneracyConfig, repetition
from steerlens.steering.metrics.drift import DriftConfig
from steerlens.steering.metrics.success import SuccessConfig
from steerlens.storage.store import Store
from tests.support.generating import EOS, count_decoded, ids_of
from tests.support.naive_steering import naive_change, naive_logits
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
    assert all(frame["control"].isna().tolist())
    assert not frame.duplicated(list(GENERATIONS.keys)).any()
    assert len(frame) == len(expected) * 3 * 2 * 2
    alone = steer_layer(subject, [9, 5, 30], settings_of(controls=[]), RunContext())
    own = features_alone(frame).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone)


def test_features_are_also_steered_at_once_by_their_weights(subject: Subject) -> None:
    settings = settings_of(controls=[])
    weighted = replace(settings, shares={9: 0.25, 5: -0.75})
    frame = steer_layer(subject, [5, 9], weighted, RunContext())
    at_once = frame.loc[frame["together"].notna()].reset_index(drop=True)
    assert {*zip(at_once["feature"], at_once["together"], strict=True)} == {(9, "5")}
    expected = steer_together(subject, [9, 5], [0.25, -0.75], settings, RunContext())
    pd.testing.assert_frame_equal(at_once, expected)
    alone = steer_layer(subject, [5, 9], settings, RunContext())
    pd.testing.assert_frame_equal(features_alone(frame).reset_index(drop=True), alone)


def test_every_column_but_those_of_other_runs_is_filled(subject: Subject) -> None:
    frame = steer_layer(subject, [5], settings_of(), RunContext())
    empty = {str(name) for name in frame.columns if any(one is pd.NA for one in frame[name])}
    assert empty == {"control", "together", "concept", "concept_success", "drift", "rating"}
    for factor, kl in zip(frame["factor"], frame["first_step_kl"], strict=True):
        assert (kl > 0) == (factor != 0)
    assert min(frame["perplexity"].tolist()) > 1
    assert set(map(len, ids_of(frame))) <= set(range(1, 7))
    with_concept = replace(settings_of(), concept=("experience",))
    counted = steer_layer(subject, [5], with_concept, RunContext())["concept_success"]
    assert min(counted.tolist()) >= 0


def naive_kl_and_dose(subject: Subject, row: dict[str, Any], positions: str) -> tuple[float, float]:
    """From whole forwards with and without steering before each of the text's tokens."""
    prompt = subject.to_tokens(row["prompt"])[0].tolist()
    new = [token for token in row["token_ids"] if token != EOS]
    kls = []
    for length in range(len(new)):
        steered, plain = (
            naive_logits(
                subject, [*prompt, *new[:length]], len(prompt), [row["feature"]], factor, positions
            )
            .double()
            .log_softmax(-1)
            for factor in (row["factor"], 0.0)
        )
        kls.append(float((steered.exp() * (steered - plain)).sum()))
    ids = [*prompt, *row["token_ids"][:-1]]
    # What the layer reads doesn't depend on edits of its own output at earlier positions.
    x_LD = subject.lm.bridge.run_with_cache(torch.tensor([ids]))[1][subject.hook_name][0]
    edited = {
        "last": range(len(prompt) - 1, len(ids)),
        "all": range(len(ids)),
        "generated": range(len(prompt), len(ids)),
        "prompt": range(len(prompt)),
    }[positions]
    new_LD = naive_change(subject, x_LD, x_LD, [row["feature"]], row["factor"])
    dose_L = (new_LD - x_LD).norm(dim=-1) / x_LD.norm(dim=-1)
    return float(np.mean(kls)), float(dose_L[list(edited)].mean())


@pytest.mark.parametrize("positions", POSITIONS)
def test_kl_and_dose_are_those_of_whole_forwards(subject: Subject, positions: str) -> None:
    settings = settings_of(
        positions=positions, factors=[2, -1], prompts=["Note that", "the w40 w41 w42"], samples=1
    )
    frame = steer_layer(subject, [9, 5], settings, RunContext(memory_budget=2**20))
    for row in frame.to_dict("records"):
        if row["factor"] == 0:
            assert (row["kl"], row["relative_dose"]) == (0, 0)
        elif row["control"] is pd.NA:
            kl, dose = naive_kl_and_dose(subject, row, positions)
            assert row["kl"] == pytest.approx(kl, rel=1e-3, abs=2e-6)
            assert row["relative_dose"] == pytest.approx(dose, rel=1e-3)
        else:
            assert row["kl"] > 0
            assert row["relative_dose"] > 0
    assert max(frame["kl"].tolist()) > 1e-3


def test_kl_is_measured_of_texts_that_a_killed_run_has_left(
    subject: Subject, stored: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = steer_layer(subject, [5], settings_of(), RunContext())

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(perplexity, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            steer_layer(subject, [5], settings_of(), stored)
    again = steer_layer(subject, [5], settings_of(), stored)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert again.loc[again["factor"] != 0, "kl"].notna().all()


def made(subject: Subject, run: RunContext | None = None) -> dict[str, Any]:
    """Columns of texts of a feature that have just been generated, and what they were made of."""
    settings, run = GenerationConfig(stop=None), run or RunContext()
    vectors = SteeredVectors(subject, SteerConfig(), settings, run)
    rows = text_rows({(5, "", ""): [0.0, 2.0]}, settings_of(samples=1))
    texts = generate(subject, rows, SteerConfig(), settings, run, vectors=vectors.by_row)
    return {
        "features": texts["feature"].to_numpy(dtype="int64"),
        "prompts": texts["prompt"].tolist(),
        "texts": texts["text"].tolist(),
        "token_ids": ids_of(texts),
        "factors": texts["factor"].tolist(),
        "made_of": lambda: vectors.of(texts),
    }


@pytest.mark.parametrize(
    ("site", "layer"),
    [("resid_pre", 0), ("resid_pre", 1), ("resid_post", 1), ("resid_post", 3), ("mlp_out", 1)],
)
def test_perplexity_goes_on_from_what_generation_has_not_edited(
    tiny_subject: MakeSubject, site: str, layer: int
) -> None:
    subject = tiny_subject("llama", "jumprelu", layer=layer, site=site)
    assert subject.lm.n_layers == 4  # so that 3 is the last
    columns = made(subject)

    def measured(columns: dict[str, Any]) -> tuple[Sequence[float | None], set[tuple[int, int]]]:
        entered: list[int] = []
        left: list[int] = []
        hooks = [
            (entering_block(0), lambda x_BLD, hook: entered.append(len(x_BLD))),
            ("unembed.hook_in", lambda x_BLD, hook: left.append(len(x_BLD))),
        ]
        with hooks_on(subject.lm.bridge, hooks):
            column = perplexity.measure(
                Texts(**columns), subject, perplexity.Config(), MetricRun()
            )["perplexity"]
        return column, {*zip(entered, left, strict=True)}

    whole, rows_of_whole = measured({**columns, "made_of": None})
    going_on, rows = measured(columns)
    assert going_on == pytest.approx(whole, rel=1e-5)
    assert all(n_entered == n_left for n_entered, n_left in rows_of_whole)
    assert any(n_entered == 1 < n_left for n_entered, n_left in rows)


def test_nothing_is_run_for_texts_that_were_not_steered(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = made(subject)
    unsteered = [index for index, factor in enumerate(columns["factors"]) if factor == 0]
    vectors = columns["made_of"]()
    made_of = [vectors[index] for index in unsteered]
    prompts = [subject.to_tokens(columns["prompts"][index])[0].tolist() for index in unsteered]
    texts = [
        [*prompt, *columns["token_ids"][index]]
        for prompt, index in zip(prompts, unsteered, strict=True)
    ]
    asked = (subject.lm, texts, prompts, 2**28, lambda done: None, True)
    expected = likelihood.mean_negative_log_likelihood(*asked)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something is run")

    monkeypatch.setattr(likelihood, "final_vectors", refuse)
    monkeypatch.setattr(engine_prompts, "final_vectors", refuse)
    means, divergences = likelihood.likelihood_and_divergence(*asked, made_of)
    assert means == pytest.approx(expected, rel=1e-5)
    assert divergences == [None] * len(unsteered)


def test_prompts_are_not_run_again_for_what_goes_on_from_them(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunContext()
    columns = made(subject, run)

    def measured(states: Any) -> Mapping[str, Any]:
        metric_run = MetricRun(prompt_states=states)
        return perplexity.measure(Texts(**columns), subject, perplexity.Config(), metric_run)

    expected = measured(None)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a prompt is run again")

    monkeypatch.setattr(engine_prompts, "final_vectors", refuse)
    assert measured(run.cache.prompt_states) == expected  # to the last bit


def test_kl_is_of_the_tokens_that_were_generated_whatever_the_text_is_cut_into(
    subject: Subject,
) -> None:
    columns = made(subject)
    of_texts = columns.pop("texts")

    def measured(of_metric: list[str], done: list[int], states: dict[Any, Any]) -> Any:
        texts = Texts(texts=of_metric, **columns)
        run = MetricRun(progress=done.append, prompt_states=states)
        return perplexity.measure(texts, subject, perplexity.Config(), run)["kl"]

    kl = measured(of_texts, [], {})
    states: dict[Any, Any] = {}
    for other in ("w50", " w50"):
        done: list[int] = []
        states.clear()
        assert measured([other] * len(of_texts), done, states) == pytest.approx(kl, rel=1e-4)
        assert sum(done) == len(of_texts)
    assert len(states) == len(PROMPTS)  # both readings go on from the same
    assert sorted(kl)[:2] == [0, 0]
    assert max(kl) > 1e-3


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


def test_the_search_sees_only_the_prompts_that_choose(subject: Subject) -> None:
    settings = settings_of(factors=[0.3, 0.6, 1.0, 2.0, 3.0, 5.0, 8.0], controls=[], search=True)
    settings = replace(settings, choice=ChoiceConfig(split=True, success_cap=20))
    choosing = choosing_prompts(PROMPTS, settings.choice)

    def factors_of(peaks: Any) -> set[float]:
        """Return the factors searched where the texts of a prompt have most success at its own."""

        def rate(texts: pd.DataFrame) -> pd.DataFrame:
            distance = (texts["factor"] - texts["prompt"].map(peaks)).abs()
            return texts.assign(success_20=(20 / (1 + distance)).astype(int), perplexity=1.0)

        return {*steer_layer(subject, [5], settings, RunContext(), rate=rate)["factor"]}

    peaks = {prompt: 0.6 if prompt in choosing else 8.0 for prompt in PROMPTS}
    assert factors_of(peaks) == factors_of(dict.fromkeys(PROMPTS, 0.6))
    assert factors_of(peaks) != factors_of(dict.fromkeys(PROMPTS, 8.0))
    frame = steer_layer(subject, [5], settings, RunContext())
    first, _ = halves(frame)
    assert {*first["prompt"]} == {*choosing} < {*frame["prompt"]}


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
    assert all(frame["success_20"].isna().tolist())


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
    assert sum(decoded) == len(frame)  # texts are there; what they were made of is made again
    assert min(frame["success_1"].tolist()) >= 0


def test_another_evaluator_measures_anew_and_keeps_the_texts(
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
    assert judged["kl"].tolist() == own["kl"].tolist()
    assert judged["text"].tolist() == own["text"].tolist()
    assert not set(judged["perplexity"]) & set(own["perplexity"])
    assert judged["success_20"].tolist() == own["success_20"].tolist()
    again = steer_layer(subject, [5], settings_of(), stored)
    assert again["perplexity"].tolist() == own["perplexity"].tolist()


def test_what_doesnt_look_at_the_evaluator_is_found_again_with_another(
    subject: Subject, stored: RunContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluators = [
        load_other(subject, save_model(tmp_path / str(seed), "llama", seed=seed)) for seed in (3, 4)
    ]
    fresh = steer_layer(subject, [5], settings_of(), RunContext(), evaluators[0])
    own = steer_layer(subject, [5], settings_of(), RunContext())
    assert fresh["kl"].tolist() == pytest.approx(own["kl"].tolist(), rel=1e-4, abs=1e-6)
    settings = replace(settings_of(), metrics={"drift": DriftConfig(enabled=True)})
    first = steer_layer(subject, [5], settings, stored, evaluators[0])
    for metric in (success, degeneracy, drift):
        monkeypatch.setattr(metric, "measure", None)
    decoded = count_decoded(monkeypatch)
    second = steer_layer(subject, [5], settings, stored, evaluators[1])
    assert decoded == []
    assert not set(first["perplexity"]) & set(second["perplexity"])
    first, second = (frame.drop(columns="perplexity") for frame in (first, second))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


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
