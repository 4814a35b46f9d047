"""Steering toward the concepts of a set by every method, rated by a judge (AxBench).

Half of a concept's prompts choose the factor of each arm, the one whose texts have the highest mean
rating; on the other half its texts are rated for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.rated_arms import best_factors, changed_texts
from steerlens.engine.generation import TEXT, generate_groups, text_key
from steerlens.judges.items import Item, Rated
from steerlens.judges.lexical import LexicalJudge, Lexicon, fit_reading
from steerlens.judges.vocabulary import fit_vocabularies
from steerlens.results import CHOOSING, CONCEPTS, EVALUATING, FEATURES, RATINGS
from steerlens.scores.scoring import score_layer
from steerlens.steering.measured import SteeredVectors, measure_groups, texts_at_once
from steerlens.steering.methods.arms import PROMPT, UNSTEERED, SteeringMethod, learn_arms
from steerlens.steering.methods.prompt import prompted

if TYPE_CHECKING:
    from steerlens.config.registry import ScoreConfig
    from steerlens.config.schema import ConceptsConfig
    from steerlens.config.settings import SteeringSettings
    from steerlens.data.concept_sets import ConceptSet, LabelledText
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import LoadedModel, Subject
    from steerlens.judges.session import RatingSession

ARM = ["method", "rank", "concept_id"]

ROW_OF_CONCEPT = ("concept_id", *TEXT)
"""What identifies a text of an arm."""


@dataclass(frozen=True)
class ArmFactors:
    """Texts that are wanted of an arm."""

    arm: SteeringMethod
    factors: Mapping[int, Sequence[float]]
    """Of each concept, by its id."""
    splits: Sequence[str]
    """Which of a concept's prompts are continued."""


@dataclass(frozen=True)
class Steered:
    """The tables of one subject."""

    concepts: pd.DataFrame
    ratings: pd.DataFrame


def steer_concepts(
    subject: Subject,
    concepts: ConceptSet,
    methods: ConceptsConfig,
    settings: SteeringSettings,
    ctx: RunContext,
    session: RatingSession,
    load_weights: Callable[[], Any],
    evaluator: LoadedModel | None = None,
) -> Steered:
    """Steer one subject toward all `concepts` by all methods, and have the texts rated.

    Args:
        subject: model and SAE.
        concepts: with texts and prompts.
        methods: what steers, and its settings.
        settings: factors and edit, and how texts go on.
        ctx: memory, seed, progress and store.
        session: the run's judge.
        load_weights: loads the plain model, on which LoRA trains.
        evaluator: the model whose perplexity is measured; None = the subject's own.

    Raises:
        SteerlensError: a concept lacks what a method or the judge needs, or nothing answers.
    """
    chat = bool(settings.generation.chat_template)
    arms = learn_arms(subject, concepts, methods, ctx, load_weights, chat)
    texts_of = partial(texts_of_arms, subject, concepts, settings, ctx, evaluator)
    ids = [concept.id for concept in concepts.concepts]
    grid = settings.factors
    # All together, so that batches are full.
    unsteered, *tried = texts_of(
        [
            ArmFactors(
                SteeringMethod(UNSTEERED), dict.fromkeys(ids, (0.0,)), (CHOOSING, EVALUATING)
            ),
            *(ArmFactors(arm, dict.fromkeys(ids, arm.factors(grid)), (CHOOSING,)) for arm in arms),
        ]
    )
    judge = session.judge or LexicalJudge(_lexicon(concepts, unsteered))

    def rated(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
        texts = pd.concat(parts)
        where = f"layer {subject.layer}"
        return with_ratings(
            texts, session.rate(judge, items_of(texts, concepts), ctx, where), concepts
        )

    choosing = rated([unsteered, *tried])
    best = best_factors(choosing.loc[choosing["split"] == CHOOSING])
    chosen: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in best.to_dict("records"):
        of_arm = chosen.setdefault((row["method"], row["rank"]), {})
        of_arm[row["concept_id"]] = [row["factor"]]
    chosen_texts = texts_of(
        [
            ArmFactors(arm, chosen[arm.method, arm.rank], (EVALUATING,))
            for arm in arms
            if (arm.method, arm.rank) in chosen
        ]
    )
    parts = [choosing, *([rated(chosen_texts)] if chosen_texts else [])]
    about = _about(arms, concepts)
    about = about.merge(best.rename(columns={"factor": "best_factor"}), how="left", on=ARM)
    rated_texts = pd.concat(parts)
    evaluated = rated_texts.loc[rated_texts["split"] == EVALUATING]
    changed = changed_texts(evaluated, ARM, ["concept_id", "prompt", "sample"])
    about = about.merge(changed, how="left", on=ARM)
    of_subject = {"model": subject.lm.name, "sae": subject.name, "hook_name": subject.hook_name}
    where = {**of_subject, "layer": subject.layer}
    return Steered(
        CONCEPTS.frame(about.assign(**where)),
        RATINGS.frame(pd.concat(parts, ignore_index=True).assign(**where)),
    )


def _about(arms: Sequence[SteeringMethod], concepts: ConceptSet) -> pd.DataFrame:
    """Return what each arm is for each concept, and how well it detects it."""
    rows = []
    for arm in arms:
        for index, concept in enumerate(concepts.concepts):
            auroc, largest = arm.detection(index)
            budget = arm.budget(len(concept.positives), len(concept.negatives))
            rows.append(
                {
                    **dict(zip(ARM, (arm.method, arm.rank, concept.id), strict=True)),
                    "concept": concept.name,
                    "genre": concept.genre,
                    "feature": arm.feature(index),
                    "auroc": auroc,
                    "max_activation": largest,
                    "train_texts": len(concept.positives) if arm.reads_texts else None,
                    "epochs": budget.epochs,
                    "train_rows": budget.rows,
                    "train_steps": budget.steps,
                    "vectors_measured": budget.vectors,
                }
            )
    counts = ("feature", "train_texts", "epochs", "train_rows", "train_steps", "vectors_measured")
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


def score_named_features(
    subject: Subject,
    about: pd.DataFrame,
    scores: Mapping[str, ScoreConfig],
    logit_lens_k: int,
    ctx: RunContext,
) -> pd.DataFrame:
    """Score the features that stand for concepts, each once, so that they can be filtered by it.

    Args:
        subject: model and SAE.
        about: the table of concepts, whose column `feature` names them.
        scores: the scoring methods by name.
        logit_lens_k: number of logit-lens tokens in the table.
        ctx: memory, seed, progress and store.
    """
    features = sorted(set(about["feature"].dropna().tolist()))
    if not features:
        return FEATURES.frame([])
    name = f"layer {subject.layer}"
    with ctx.task(len(features), name, "features", each=len(scores)) as advance:
        own_ctx = replace(ctx, progress=advance)
        return FEATURES.frame(score_layer(subject, features, scores, logit_lens_k, own_ctx))


def _lexicon(concepts: ConceptSet, unsteered: pd.DataFrame) -> Lexicon:
    """Return what judge=lexical knows: the concepts' words, and how unsteered texts read."""

    def texts_of(examples: Sequence[LabelledText]) -> list[str]:
        return [example.prompt + example.text for example in examples]

    training = {
        concept.name: (texts_of(concept.positives), texts_of(concept.negatives))
        for concept in concepts.concepts
    }
    reading = fit_reading(unsteered["perplexity"].tolist(), unsteered["degeneracy"].tolist())
    return Lexicon(fit_vocabularies(training), reading)


def texts_of_arms(
    subject: Subject,
    concepts: ConceptSet,
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None,
    arm_factors: Sequence[ArmFactors],
) -> list[pd.DataFrame]:
    """Make the texts of each arm toward the concepts at its factors, and measure them, together as
    many as memory has room for.

    Args:
        subject: model and SAE.
        concepts: what is steered toward.
        settings: the edit, and how texts go on.
        ctx: memory, seed, progress, and where finished texts are kept.
        evaluator: the model whose perplexity is measured; None = the subject's own.
        arm_factors: arms, and which texts of them.
    """
    at_once = texts_at_once(subject, settings.generation, ctx.memory_budget)
    parts: list[list[tuple[ArmFactors, pd.DataFrame]]] = []
    n_texts = at_once
    for of_arm in arm_factors:
        rows = _rows(of_arm, concepts, settings.generation.samples)
        if n_texts + len(rows) > at_once:
            parts.append([])
            n_texts = 0
        parts[-1].append((of_arm, rows))
        n_texts += len(rows)
    return [
        texts
        for part in parts
        for texts in _texts_together(subject, concepts, settings, ctx, evaluator, part)
    ]


def _texts_together(
    subject: Subject,
    concepts: ConceptSet,
    settings: SteeringSettings,
    ctx: RunContext,
    evaluator: LoadedModel | None,
    arms_and_rows: Sequence[tuple[ArmFactors, pd.DataFrame]],
) -> list[pd.DataFrame]:
    arms = [of_arm.arm for of_arm, _ in arms_and_rows]
    rows = [of_rows for _, of_rows in arms_and_rows]
    steer, generation = settings.steer, settings.generation
    ids = [concept.id for concept in concepts.concepts]
    steerings = [arm.steering(subject, ids) for arm in arms]
    text_rows = [
        _with_words(arm, of_rows, concepts).drop(columns="split")
        for arm, of_rows in zip(arms, rows, strict=True)
    ]
    # A prompted text goes on from another prompt than it is measured by, and nothing is edited.
    vectors = [
        None if arm.method == PROMPT else SteeredVectors(subject, steer, generation, ctx, steering)
        for arm, steering in zip(arms, steerings, strict=True)
    ]
    texts = generate_groups(
        subject,
        [*zip(text_rows, steerings, strict=True)],
        steer,
        generation,
        ctx,
        vectors=[each and each.by_row for each in vectors],
    )
    # What a text is measured and judged by is the prompt without the words that ask.
    texts = [
        of_arm.assign(prompt=of_rows["prompt"]) for of_arm, of_rows in zip(texts, rows, strict=True)
    ]
    keys = [text_key(subject, steer, generation, ctx, steering) for steering in steerings]
    measured = measure_groups(
        subject,
        [*zip(texts, keys, strict=True)],
        ctx,
        settings.metrics,
        evaluator=evaluator,
        chat_template=bool(generation.chat_template),
        by=ROW_OF_CONCEPT,
        vectors=vectors,
    )
    return [
        of_measured.assign(method=arm.method, rank=arm.rank, split=of_rows["split"])
        for of_measured, arm, of_rows in zip(measured, arms, rows, strict=True)
    ]


def _rows(of_arm: ArmFactors, concepts: ConceptSet, samples: int) -> pd.DataFrame:
    """Return what identifies each text of an arm, and the split of its prompt."""
    return pd.DataFrame(
        [
            (concept.id, factor, prompt, sample, split)
            for concept in concepts.concepts
            for split in of_arm.splits
            for factor in of_arm.factors.get(concept.id, ())
            for prompt in dict.fromkeys(getattr(concept, split))
            for sample in range(samples)
        ],
        columns=[*ROW_OF_CONCEPT, "split"],
    )


def _with_words(arm: SteeringMethod, rows: pd.DataFrame, concepts: ConceptSet) -> pd.DataFrame:
    """Return the rows with the prompts that the model is given, of the method Prompt with words
    that ask for the concept.
    """
    if arm.method != PROMPT:
        return rows
    of_id = {concept.id: concept for concept in concepts.concepts}
    prompts = [
        prompted(of_id[id], prompt, concepts.are_instructions)
        for id, prompt in zip(rows["concept_id"], rows["prompt"], strict=True)
    ]
    return rows.assign(prompt=prompts)


def items_of(texts: pd.DataFrame, concepts: ConceptSet) -> list[Item]:
    """Return what a judge is asked about texts: with the prompt in front, unless they are
    answers.
    """
    named = {concept.id: concept.name for concept in concepts.concepts}
    answers = concepts.are_instructions
    return [
        Item(
            text=row["text"] if answers else row["prompt"] + row["text"],
            concept=named[row["concept_id"]],
            instruction=row["prompt"] if answers else None,
            perplexity=row["perplexity"],
            degeneracy=row["degeneracy"],
        )
        for row in texts.to_dict("records")
    ]


def with_ratings(texts: pd.DataFrame, rated: Rated, concepts: ConceptSet) -> pd.DataFrame:
    """Return the texts with the judge's columns, and the names of their concepts."""
    named = {concept.id: concept.name for concept in concepts.concepts}
    columns = {name: pd.array(values) for name, values in rated.columns().items()}
    concept = [named[id] for id in texts["concept_id"]]
    return texts.reset_index(drop=True).assign(**columns, judge=rated.judge, concept=concept)
