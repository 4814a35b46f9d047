"""Steering toward the concepts of a set by every method, rated by a judge (AxBench).

Half of a concept's prompts choose the factor of each arm, the one whose texts have the highest mean
rating; on the other half its texts are rated for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.rated_arms import best_factors
from steerlens.config.folders import has_chat_template
from steerlens.config.steering import parse_factors
from steerlens.engine.generation import generate, text_key
from steerlens.judges import load_judge
from steerlens.judges.cost import Cost
from steerlens.judges.items import Item, Judge, Rated
from steerlens.judges.lexical import Lexicon, fit_reading, refuse_too_few_unsteered
from steerlens.judges.vocabulary import fit_vocabularies, refuse_too_few
from steerlens.results import CHOOSING, CONCEPTS, EVALUATING, FEATURES, RATINGS
from steerlens.scores.scoring import score_layer
from steerlens.scores.selection import part
from steerlens.steering.features import measure_texts
from steerlens.steering.methods.arms import PROMPT, SAE, UNSTEERED, Arm, learn_arms
from steerlens.steering.methods.prompt import prompted

if TYPE_CHECKING:
    from steerlens.config.registry import ScoreConfig
    from steerlens.config.schema import RunConfig
    from steerlens.data.concept_sets import ConceptSet, Example
    from steerlens.engine.run_context import ScoreRun
    from steerlens.engine.subject import LoadedModel, Subject

METRICS = ("perplexity", "degeneracy")
ARM = ["method", "rank", "concept_id"]

Factors = Mapping[int, Sequence[float]]
"""Factors of each concept, by its id."""


@dataclass
class Judging:
    """The judge of a run, and what it has taken so far."""

    config: RunConfig
    judge: Judge | None = None
    """None for judge=lexical, which first has to see unsteered texts."""
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    """Why ratings are missing that weren't asked for."""

    def __post_init__(self) -> None:
        assert self.config.judge is not None
        if self.config.judge.name != "lexical":
            self.judge = load_judge(self.config)
            self.judge.check()

    def sentence(self) -> str | None:
        """What was asked and paid for; None if no model was asked."""
        if not self.cost.requests or self.judge is None:
            return None
        money = "at an unknown price" if self.cost.usd is None else f"{self.cost.usd:,.2f} USD"
        now = "" if self.cost.usd_now is None else f", {self.cost.usd_now:,.2f} of it now"
        return (
            f"{self.judge.name}: {self.cost.requests:,} answers, {self.cost.kept:,} of them kept "
            f"from before, {money}{now}."
        )

    def rate(self, judge: Judge, items: Sequence[Item], run: ScoreRun, where: str) -> Rated:
        """Rates `items` with what is left of the budget."""
        estimate = judge.estimate(items)
        if estimate.requests:
            print(f"{where}, {judge.name}: {estimate.sentence()}")
        with run.task(estimate.ratings, f"{where}: {judge.name}", "ratings") as advance:
            rated = judge.rate(items, advance, self.cost.usd or 0.0)
        self.stopped = self.stopped or rated.stopped
        for name, value in vars(rated.cost).items():
            so_far = getattr(self.cost, name)
            setattr(self.cost, name, None if value is None or so_far is None else so_far + value)
        return rated


@dataclass(frozen=True)
class Steered:
    """The tables of one subject."""

    features: pd.DataFrame
    """Of the SAE's features that stand for concepts."""
    concepts: pd.DataFrame
    ratings: pd.DataFrame


def refuse_lacking_texts(config: RunConfig, layer: int) -> None:
    """Refuse concepts that lack texts for a method or for judge=lexical, without a model.

    Args:
        config: its `concepts`, `judge` and `generation` say what is needed.
        layer: whose concepts they are.

    Raises:
        SteerlensError: a concept can't be learnt, or there would be too few unsteered texts.
    """
    from steerlens.data.concept_sets.load import load_concepts

    assert config.concepts is not None
    assert config.judge is not None
    chat = config.generation.chat_template
    if chat is None:
        chat = has_chat_template(config.model)
    concepts = load_concepts(config.concepts, layer, config.seed, bool(chat))
    concepts = replace(concepts, concepts=tuple(part(concepts.concepts, config.shard)))
    named = all(concept.feature is not None for concept in concepts.concepts)
    need_none = {PROMPT, "Random", *([SAE] if named else [])}
    if not need_none.issuperset(config.concepts.methods):
        concepts.check_texts()
    if config.judge.name == "lexical":
        for concept in concepts.concepts:
            refuse_too_few(len(concept.positives), len(concept.negatives), concept.name)
        prompts = sum(
            len((*concept.choosing, *concept.evaluating)) for concept in concepts.concepts
        )
        refuse_too_few_unsteered(prompts * config.generation.samples)


def steer_concepts(
    subject: Subject,
    concepts: ConceptSet,
    config: RunConfig,
    scores: Mapping[str, ScoreConfig],
    run: ScoreRun,
    judging: Judging,
    load_weights: Callable[[], Any],
    evaluator: LoadedModel | None = None,
) -> Steered:
    """Steers one subject toward all `concepts` by all methods, and has the texts rated.

    Args:
        subject: model and SAE.
        concepts: with texts and prompts.
        config: its `concepts`, `steer`, `generation` and `judge` say what is done.
        scores: those of the features, by which they can be filtered afterwards.
        run: memory, seed, progress and store.
        judging: the run's judge.
        load_weights: loads the plain model.
        evaluator: the model whose perplexity is measured; None = the subject's own.

    Raises:
        SteerlensError: a concept lacks what a method or the judge needs, or nothing answers.
    """
    assert config.concepts is not None
    chat = config.generation.chat_template
    arms = learn_arms(subject, concepts, config.concepts, run, load_weights, chat)
    about = _about(arms, concepts)
    features = _score(subject, about, config, scores, run)
    work = _Work(subject, concepts, config, run, evaluator)
    ids = [concept.id for concept in concepts.concepts]
    unsteered = work.texts(Arm(UNSTEERED), dict.fromkeys(ids, (0.0,)), (CHOOSING, EVALUATING))
    judge = judging.judge or load_judge(config, _lexicon(concepts, unsteered))
    grid = parse_factors(config.steer.factors)
    tried = [work.texts(arm, dict.fromkeys(ids, arm.factors(grid)), (CHOOSING,)) for arm in arms]
    rated = work.rated(pd.concat([unsteered, *tried]), judge, judging)
    best = best_factors(rated.loc[rated["split"] == CHOOSING])
    chosen: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in best.to_dict("records"):
        of_arm = chosen.setdefault((row["method"], row["rank"]), {})
        of_arm[row["concept_id"]] = [row["factor"]]
    chosen_texts = [
        work.texts(arm, chosen[arm.method, arm.rank], (EVALUATING,))
        for arm in arms
        if (arm.method, arm.rank) in chosen
    ]
    parts = [
        rated,
        *([work.rated(pd.concat(chosen_texts), judge, judging)] if chosen_texts else []),
    ]
    about = about.merge(best.rename(columns={"factor": "best_factor"}), how="left", on=ARM)
    of_subject = {"model": subject.lm.name, "sae": subject.name, "hook_name": subject.hook_name}
    where = {**of_subject, "layer": subject.layer}
    return Steered(
        features,
        CONCEPTS.frame(about.assign(**where)),
        RATINGS.frame(pd.concat(parts, ignore_index=True).assign(**where)),
    )


def _about(arms: Sequence[Arm], concepts: ConceptSet) -> pd.DataFrame:
    """What each arm is for each concept, and how well it detects it."""
    rows = []
    for arm in arms:
        for index, concept in enumerate(concepts.concepts):
            auroc, largest = arm.detection(index)
            rows.append(
                {
                    **dict(zip(ARM, (arm.method, arm.rank, concept.id), strict=True)),
                    "concept": concept.name,
                    "genre": concept.genre,
                    "feature": arm.feature(index),
                    "auroc": auroc,
                    "max_activation": largest,
                    "train_texts": len(concept.positives) if arm.reads_texts else None,
                    "epochs": arm.n_epochs,
                }
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(("feature", "train_texts", "epochs"), "Int64"))


def _score(
    subject: Subject,
    about: pd.DataFrame,
    config: RunConfig,
    scores: Mapping[str, ScoreConfig],
    run: ScoreRun,
) -> pd.DataFrame:
    """The scores of the features that stand for concepts, each feature once."""
    features = sorted(about["feature"].dropna().unique().tolist())
    if not features:
        return FEATURES.frame([])
    name = f"layer {subject.layer}"
    with run.task(len(features), name, "features", each=len(scores)) as advance:
        own_run = replace(run, progress=advance)
        return FEATURES.frame(score_layer(subject, features, scores, config.logit_lens_k, own_run))


def _lexicon(concepts: ConceptSet, unsteered: pd.DataFrame) -> Lexicon:
    """What judge=lexical knows: the concepts' words, and how unsteered texts read."""

    def texts_of(examples: Sequence[Example]) -> list[str]:
        return [example.prompt + example.text for example in examples]

    training = {
        concept.name: (texts_of(concept.positives), texts_of(concept.negatives))
        for concept in concepts.concepts
    }
    reading = fit_reading(unsteered["perplexity"].tolist(), unsteered["degeneracy"].tolist())
    return Lexicon(fit_vocabularies(training), reading)


@dataclass(frozen=True)
class _Work:
    """Texts of arms, and their ratings, of one subject."""

    subject: Subject
    concepts: ConceptSet
    config: RunConfig
    run: ScoreRun
    evaluator: LoadedModel | None

    def texts(self, arm: Arm, factors: Factors, splits: Sequence[str]) -> pd.DataFrame:
        """Texts toward each concept at its factors, from the prompts of `splits`, measured."""
        subject, steer, settings = self.subject, self.config.steer, self.config.generation
        steering = arm.steering(subject, steer, [concept.id for concept in self.concepts.concepts])
        rows = pd.DataFrame(
            [
                (concept.id, factor, prompt, sample, split)
                for concept in self.concepts.concepts
                for split in splits
                for factor in factors.get(concept.id, ())
                for prompt in dict.fromkeys(getattr(concept, split))
                for sample in range(self.config.generation.samples)
            ],
            columns=[*steering.row, "split"],
        )
        wanted_rows = rows.loc[:, list(steering.row)]
        if arm.method == PROMPT:
            of_id = {concept.id: concept for concept in self.concepts.concepts}
            wanted_rows["prompt"] = [
                prompted(of_id[id], prompt, self.concepts.are_instructions)
                for id, prompt in zip(rows["concept_id"], rows["prompt"], strict=True)
            ]
        texts = generate(subject, wanted_rows, steer, settings, self.run, steering)
        # What a text is measured and judged by is the prompt without the words that ask.
        texts["prompt"] = rows["prompt"]
        key = text_key(subject, steer, settings, self.run, steering)
        measured = measure_texts(
            subject, texts, key, self.run, (), self.evaluator, METRICS, settings.chat_template,
            by=steering.row,
        )  # fmt: skip
        return measured.assign(method=arm.method, rank=arm.rank, split=rows["split"])

    def rated(self, texts: pd.DataFrame, judge: Judge, judging: Judging) -> pd.DataFrame:
        """The texts with the judge's columns."""
        named = {concept.id: concept.name for concept in self.concepts.concepts}
        answers = self.concepts.are_instructions
        items = [
            Item(
                text=row["text"] if answers else row["prompt"] + row["text"],
                concept=named[row["concept_id"]],
                instruction=row["prompt"] if answers else None,
                perplexity=row["perplexity"],
                degeneracy=row["degeneracy"],
            )
            for row in texts.to_dict("records")
        ]
        rated = judging.rate(judge, items, self.run, f"layer {self.subject.layer}")
        columns = {name: pd.array(values) for name, values in rated.columns().items()}
        concept = [named[id] for id in texts["concept_id"]]
        return texts.reset_index(drop=True).assign(**columns, judge=rated.judge, concept=concept)
