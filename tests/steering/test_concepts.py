"""Concepts steered toward by every method and rated, against plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from steerlens.config.schema import (
    ConceptsConfig,
    FeaturesConfig,
    GenerationConfig,
    JudgeConfig,
    ModelConfig,
    PathsConfig,
    RunConfig,
    SteerConfig,
)
from steerlens.config.settings import Settings, parse_settings, parse_steering
from steerlens.engine import generation
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.judges import load_judge
from steerlens.judges.session import RatingSession
from steerlens.results import CHOOSING, EVALUATING, RATINGS
from steerlens.runs.concepts import concepts_before_loading, refuse_lacking_texts
from steerlens.runs.plan import concepts as plan_concepts
from steerlens.scores import RunContext, output, token_confidence
from steerlens.steering import concepts as concept_steering
from steerlens.steering.concepts import Steered, score_named_features, steer_concepts
from steerlens.steering.methods import arms
from steerlens.steering.methods import fitted_io as kept
from steerlens.steering.methods.arms import UNSTEERED, SteeringMethod, learn_arms
from steerlens.steering.methods.fitting import Fitted
from steerlens.steering.methods.prompt import prompted
from steerlens.storage.store import Store
from tests.support.axbench import save_concepts, save_instructions
from tests.support.concepts import tiny_concepts
from tests.support.frames import assert_identical
from tests.support.generating import count_decoded
from tests.support.judge_server import JudgeServer
from tests.support.scoring import scored

MakeSubject = Callable[..., Subject]
METHODS = ["SAE", "SAE together", "DiffMean", "LoReFT", "Prompt", "Random"]
FACTORS = [1.0, 4.0]
SCORES: dict[str, Any] = {"o": output.Config(), "t": token_confidence.Config()}
SMALL = {
    "LoReFT": {"layers": [1], "rank": 2, "epochs": 1},
    "LoRA": {"layers": [1], "rank": 2, "epochs": 1},
}
CONCEPTS = tiny_concepts(n=3, n_texts=(12, 12))


def config_of(folder: Path, methods: list[str] = METHODS, **settings: Any) -> RunConfig:
    concepts = {"features": 2, "together": 2, "settings": SMALL, **settings}
    return RunConfig(
        score=output.Config(),
        concepts=ConceptsConfig("tiny", "embedded", methods=methods, **concepts),
        judge=JudgeConfig("lexical"),
        steer=SteerConfig(factors=FACTORS, unit="max_activation", positions="all"),
        generation=GenerationConfig(max_new_tokens=8, stop=None),
        paths=PathsConfig("unused", str(folder)),
    )


def unnamed() -> Any:
    """The concepts without features of their own."""
    alone = tuple(replace(one, feature=None) for one in CONCEPTS.concepts)
    return replace(CONCEPTS, concepts=alone)


def steered(subject: Subject, config: RunConfig, concepts: Any = None, store: bool = True) -> Any:
    assert config.concepts is not None
    run = RunContext(store=Store(Path(config.paths.cache_dir) / "scores") if store else None)
    weights = subject.lm.names[2]
    return steer_concepts(
        subject, concepts or unnamed(), config.concepts, parse_steering(config), run,
        RatingSession(None),
        lambda: AutoModelForCausalLM.from_pretrained(weights, attn_implementation="eager"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    from steerlens import load_subject
    from tests.support.tiny import save_sae

    folder = tmp_path_factory.mktemp("concepts")
    paths = {"model.path": tiny_folder("llama"), "sae.path": save_sae(folder / "sae", "topk")}
    return load_subject("local", "local", "all", **paths, **{"paths.cache_dir": folder})


@pytest.fixture(scope="module")
def whole(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Steered, Path]:
    folder = tmp_path_factory.mktemp("cache")
    return steered(subject, config_of(folder)), folder


def test_every_arm_is_tried_at_all_factors_and_rated_at_the_chosen_one(
    whole: tuple[Steered, Path],
) -> None:
    ratings: Any = whole[0].ratings
    arms = {(m, 0) for m in METHODS} | {("SAE", 1), (UNSTEERED, 0)}
    assert set(zip(ratings["method"], ratings["rank"], strict=True)) == arms
    assert not ratings.duplicated(list(RATINGS.keys)).any()
    for (method, rank, id), rows in ratings.groupby(["method", "rank", "concept_id"]):
        concept = next(one for one in CONCEPTS.concepts if one.id == id)
        grid = {"LoReFT": [1.0], "Prompt": [0.0], UNSTEERED: [0.0]}.get(str(method), FACTORS)
        tried = rows.loc[rows["split"] == CHOOSING]
        assert sorted(set(tried["factor"])) == grid
        assert set(tried["prompt"]) == set(concept.choosing)
        shown = rows.loc[rows["split"] == EVALUATING]
        assert set(shown["prompt"]) == set(concept.evaluating)
        means = {factor: naive_number(of_factor) for factor, of_factor in tried.groupby("factor")}
        best = max(means.values())
        least = min(factor for factor, number in means.items() if number == best)
        assert set(shown["factor"]) == {least}, (method, rank, id)
        if method != UNSTEERED:
            about = whole[0].concepts
            row = about.loc[
                (about["method"] == method) & (about["rank"] == rank) & (about["concept_id"] == id)
            ]
            assert row["best_factor"].tolist() == [least]


def naive_number(rows: pd.DataFrame) -> float:
    found = []
    for pair in zip(rows["lexical_concept"], rows["lexical_fluency"], strict=True):
        found.append(0.0 if 0 in pair else 2 / sum(1 / one for one in pair))
    return mean(found)


def test_only_sae_arms_name_features_and_all_of_them_are_scored(
    whole: tuple[Steered, Path], subject: Subject
) -> None:
    about: Any = whole[0].concepts
    features: Any = score_named_features(subject, about, SCORES, 20, RunContext())
    named = about.loc[about["feature"].notna()]
    assert set(named["method"]) == {"SAE"}
    assert sorted(set(named["feature"])) == features["feature"].tolist()
    assert features["output_score"].notna().all()
    assert features["token_confidence_delta"].notna().all()
    first, second = (named.loc[named["rank"] == rank] for rank in (0, 1))
    assert (first["feature"].to_numpy() != second["feature"].to_numpy()).all()


def test_what_a_method_was_learnt_from_is_told(whole: tuple[Steered, Path]) -> None:
    about: Any = whole[0].concepts
    told = {
        method: tuple(
            set(rows[name].fillna(0))
            for name in ("train_texts", "epochs", "train_rows", "train_steps")
        )
        for method, rows in about.groupby("method")
    }
    n = len(CONCEPTS.concepts[0].positives)
    assert told == {
        **dict.fromkeys(("SAE", "SAE together", "DiffMean"), ({n}, {0}, {0}, {0})),
        "LoReFT": ({n}, {1}, {n}, {-(-n // 18)}),
        **dict.fromkeys(("Prompt", "Random"), ({0}, {0}, {0}, {0})),
    }


def test_a_rerun_makes_no_text_and_learns_nothing(
    whole: tuple[Steered, Path], subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = count_decoded(monkeypatch)
    monkeypatch.setattr("steerlens.steering.methods.arms.fit_concepts", None)
    monkeypatch.setattr("steerlens.steering.methods.loreft.learn", None)
    again = steered(subject, config_of(whole[1]))
    assert sizes == []
    for name in ("concepts", "ratings"):
        assert_identical(getattr(again, name), getattr(whole[0], name))


@pytest.mark.parametrize(
    ("method", "learner"),
    [("SSV", "fit_concepts"), ("LoReFT", "loreft.learn"), ("LoRA", "lora.learn")],
)
def test_a_killed_run_learns_only_the_concepts_that_are_left(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, learner: str
) -> None:
    config = ConceptsConfig("tiny", "embedded", methods=[method], settings=SMALL)

    def learn(run: RunContext) -> dict[str, torch.Tensor]:
        weights = AutoModelForCausalLM.from_pretrained(subject.lm.names[2])
        (arm,) = learn_arms(subject, unnamed(), config, run, lambda: weights)
        assert arm.learnt is not None
        return kept.tensors_of(arm.learnt)

    together = learn(RunContext())
    monkeypatch.setattr(arms, "PART_ON_CPU", 1)
    begun: list[int] = []
    module: Any = arms if learner == "fit_concepts" else getattr(arms, learner.split(".")[0])
    fit = getattr(module, learner.split(".")[-1])

    def killed_at_the_second(*args: Any, **kwargs: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(module, learner.split(".")[-1], killed_at_the_second)
    bars: list[list[int]] = []

    @contextmanager
    def task(total: int, *_: Any, **__: Any) -> Iterator[Callable[..., None]]:
        bars.append([total, 0])

        def advance(n: int) -> None:
            bars[-1][1] += n

        yield advance

    run = RunContext(store=Store(tmp_path), task=task)
    with pytest.raises(KeyboardInterrupt):
        learn(run)
    found = learn(run)
    assert len(begun) == 1 + 1 + (len(CONCEPTS) - 1)
    n_left = len(CONCEPTS) - 1
    assert bars == [[len(CONCEPTS), 1], [n_left, n_left]]  # what is in the store isn't waited for
    learn(run)
    assert len(bars) == 2
    for name, tensor in together.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_without_a_store_or_with_small_batches_all_is_the_same(
    whole: tuple[Steered, Path], subject: Subject
) -> None:
    config = config_of(whole[1])
    config.generation.batch_size = 16
    again = steered(subject, config, store=False)
    assert_identical(again.ratings, whole[0].ratings)


@torch.no_grad()
def naive_texts(subject: Subject, vector_D: torch.Tensor, ids: list[int], n: int) -> list[int]:
    """Greedy, the whole text run again for every token, the vector added at every position."""
    ids, start = list(ids), len(ids)

    def add(x_BLD: torch.Tensor, hook: Any) -> torch.Tensor:
        return x_BLD + vector_D.to(x_BLD)

    for _ in range(n):
        logits = subject.lm.bridge.run_with_hooks(
            torch.tensor([ids]), fwd_hooks=[(subject.hook_name, add)], return_type="logits"
        )
        ids.append(int(logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("method", ["SAE", "SAE together", "DiffMean", "Random"])
def test_what_an_arm_adds_is_factor_times_largest_activation_times_direction(
    subject: Subject, method: str
) -> None:
    config = ConceptsConfig("tiny", "embedded", methods=["SAE", method], features=3, together=3)
    config.methods = list(dict.fromkeys(config.methods))
    learnt = learn_arms(subject, unnamed(), config, RunContext(), lambda: None)
    arm = next(one for one in learnt if one.method == method)
    assert isinstance(arm.learnt, Fitted)
    steer = SteerConfig(unit="max_activation", positions="all")
    settings = GenerationConfig(temperature=0.0, max_new_tokens=5, stop=None)
    ids = [one.id for one in CONCEPTS.concepts]
    rows = pd.DataFrame(
        [(id, factor, "Note that my", 0) for id in ids for factor in (0.5, 3.0)],
        columns=["concept_id", *generation.TEXT],
    )
    texts = generation.generate(
        subject, rows, steer, settings, RunContext(), arm.steering(subject, ids)
    )
    prompt = subject.to_tokens("Note that my")[0].tolist()
    for row in texts.to_dict("records"):
        place = ids.index(row["concept_id"])
        if method == "SAE together":
            features = [one.feature(place) for one in learnt if one.method == "SAE"]
            largest = [one.learnt.detection.max_activation_C[place]  # type: ignore[union-attr]
                       for one in learnt if one.method == "SAE"]  # fmt: skip
            vector_D = sum(largest[k] / 3 * subject.sae.W_dec[features[k]] for k in range(3))
        else:
            largest_one = arm.learnt.detection.max_activation_C[place]
            vector_D = largest_one * arm.learnt.directions.vectors_CD[place]
        expected = naive_texts(subject, row["factor"] * vector_D, prompt, 5)
        assert list(row["token_ids"]) == expected[: len(row["token_ids"])]


def test_a_prompt_asks_and_is_rated_without_the_words_that_ask(
    whole: tuple[Steered, Path], subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = concept_steering.generate_groups

    def generate_groups(
        subject: Subject, groups: Any, *rest: Any, **others: Any
    ) -> list[pd.DataFrame]:
        seen.extend(prompt for rows, _ in groups for prompt in rows["prompt"])
        return real(subject, groups, *rest, **others)

    monkeypatch.setattr(concept_steering, "generate_groups", generate_groups)
    found = steered(subject, config_of(whole[1], ["Prompt"])).ratings
    asked = {prompted(one, p, False) for one in CONCEPTS.concepts for p in one.choosing}
    assert asked <= set(seen)
    assert not set(found["prompt"]) & asked


def test_lora_learns_on_the_plain_model_and_steers(subject: Subject, tmp_path: Path) -> None:
    found = steered(subject, config_of(tmp_path, ["LoRA"])).ratings
    changed = found.loc[found["method"] == "LoRA", "text"]
    assert set(changed) - set(found.loc[found["method"] == UNSTEERED, "text"])


def test_the_budget_of_a_run_is_that_of_all_its_ratings(subject: Subject, tmp_path: Path) -> None:
    config = config_of(tmp_path, ["Random"])
    with JudgeServer() as server:
        config.judge = JudgeConfig(
            "openai", model="judge-small", base_url=f"{server.url}/v1", concurrency=1,
            usd_per_million_input=1e3, usd_per_million_output=1e3, budget_usd=4.0,
            max_tokens=20,
        )  # fmt: skip
        run = RunContext(store=Store(tmp_path / "scores"))
        assert config.concepts is not None
        session = RatingSession(load_judge(config))
        found = steer_concepts(
            subject, unnamed(), config.concepts, parse_steering(config), run, session, lambda: None
        ).ratings
    found = cast(Any, found)
    assert session.stopped is not None
    assert "judge.budget_usd=4 is reached" in session.stopped
    assert session.cost.usd is not None
    assert 0 < session.cost.usd <= 4
    assert session.sentence() == (
        f"openai:judge-small: {session.cost.requests} answers, 0 of them kept from before, "
        f"{session.cost.usd:.2f} USD, {session.cost.usd:.2f} of it now."
    )
    missing = found["llm_concept"].isna()
    assert 0 < missing.sum() < len(found)
    assert set(found.loc[missing, "llm_concept_missing"]) == {"budget"}


def test_what_cannot_work_is_told(subject: Subject, tmp_path: Path) -> None:
    no_texts = replace(CONCEPTS, concepts=(replace(CONCEPTS.concepts[0], positives=()),))
    with pytest.raises(SteerlensError, match=r"concept 10 \('concept 0'\) of tiny has no positive"):
        steered(subject, config_of(tmp_path, ["DiffMean"]), no_texts)
    unknown_setting = config_of(tmp_path, ["DiffMean"], settings={"DiffMean": {"epoch": 2}})
    with pytest.raises(SteerlensError, match="DiffMean has no setting 'epoch'"):
        steered(subject, unknown_setting)


def refuse(settings: Settings) -> None:
    refuse_lacking_texts(settings, concepts_before_loading(settings, 2))


@pytest.mark.parametrize(
    ("n_texts", "methods", "judge", "told"),
    [
        (1, ["SAE"], "lexical", "at least two texts with it and two without; there are 1 and 1 of"),
        (0, ["DiffMean"], "openai", "has no positives to train on"),
        (0, ["SAE", "Prompt", "Random"], "openai", None),
        (2, ["SAE", "DiffMean"], "lexical", None),
    ],
)
def test_concepts_that_lack_texts_are_told_without_a_model(
    n_texts: int, methods: list[str], judge: str, told: str | None, tmp_path: Path
) -> None:
    folder = save_concepts(tmp_path / "concepts", 2, n_texts=max(n_texts, 1))
    if not n_texts:
        (folder / "train_data.parquet").unlink()
    save_instructions(tmp_path / "text.jsonl")
    config = config_of(tmp_path, methods)
    source = {"source": "folder", "path": str(folder), "instructions": "genre"}
    concepts = replace(config.concepts, **source, instructions_path=str(tmp_path), n_prompts=4)  # type: ignore[type-var]
    asked = replace(
        config,
        concepts=concepts,
        judge=JudgeConfig(judge),
        model=ModelConfig("local", path=str(tmp_path)),
    )
    if told is None:
        refuse(parse_settings(asked))
        return
    with pytest.raises(SteerlensError, match=told):
        refuse(parse_settings(asked))


def test_too_few_unsteered_texts_are_told_without_a_model(tmp_path: Path) -> None:
    folder = save_concepts(tmp_path / "concepts", 2, n=2)
    save_instructions(tmp_path / "text.jsonl")
    config = config_of(tmp_path)
    source = {"source": "folder", "path": str(folder), "instructions": "genre"}
    concepts = replace(config.concepts, **source, instructions_path=str(tmp_path), n_prompts=2)  # type: ignore[type-var]
    asked = replace(config, concepts=concepts, model=ModelConfig("local", path=str(tmp_path)))
    with pytest.raises(SteerlensError, match=r"needs 5 of them with a perplexity; there are 4\."):
        refuse(parse_settings(asked))


def test_a_concept_without_a_token_is_told_before_the_model_is_loaded(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlens.engine.subject.load_subjects", lambda *_: pytest.fail("loads"))
    config = RunConfig(
        model=ModelConfig("local", path=str(tiny_folder("llama"))),
        features=FeaturesConfig(concept="xylophone"),
        score=output.Config(),
        paths=PathsConfig("unused", str(tmp_path)),
    )
    with pytest.raises(SteerlensError, match="no token of the vocabulary stands for 'xylophone'"):
        scored(config, tmp_path / "out")


def test_a_plan_has_the_texts_and_ratings_that_are_made(
    whole: tuple[Steered, Path], subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlens.data.concept_sets.load.load_concepts", lambda *_: unnamed())
    config = config_of(whole[1])
    planned = plan_concepts.planned_concepts(parse_settings(config), subject.layer, 1)
    n = len(whole[0].ratings)
    rating = f"{2 * n} by judge=lexical, for nothing"
    assert planned == (3, len(METHODS) + 1, n, rating, ("LoReFT",))
    config.judge = JudgeConfig("openai", model="gpt-4o-mini")
    priced = plan_concepts.planned_concepts(parse_settings(config), subject.layer, 2)
    assert priced.texts == 2 * n
    assert f"{4 * n} by gpt-4o-mini, about " in priced.rating
    config.judge, lacking = JudgeConfig("lexical"), tiny_concepts(n=3, n_texts=(1, 12))
    assert config.concepts is not None
    config.concepts.source = "folder"  # whose texts a plan reads
    monkeypatch.setattr("steerlens.data.concept_sets.load.load_concepts", lambda *_: lacking)
    with pytest.raises(SteerlensError, match="at least two texts with it and two without"):
        plan_concepts.planned_concepts(parse_settings(config), subject.layer, 1)


def test_nothing_of_the_model_is_changed(subject: Subject, whole: tuple[Steered, Path]) -> None:
    ids = subject.to_tokens("Note that my")
    with torch.no_grad():
        before = subject.lm.bridge(ids, return_type="logits")
    steered(subject, config_of(whole[1], ["Random"]))
    with torch.no_grad():
        assert torch.equal(subject.lm.bridge(ids, return_type="logits"), before)


def test_arms_are_kept_under_their_names() -> None:
    assert [SteeringMethod("SAE", rank).name for rank in range(2)] == ["SAE", "SAE 2"]
