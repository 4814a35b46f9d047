"""The Python interface: load a subject, score and find features, write texts. Needs no Hydra run.

What is wrong is told as in the command, in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from numbers import Integral
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError, refuses_misfits, unknown

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.config.schema import CorpusConfig, LensConfig
    from steerlens.config.settings import SteeringSettings
    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject
    from steerlens.scores import ScoreConfig

FACTORS = (0.5, 1.0, 2.0, 4.0)
"""Steering factors of `generate` unless others are given."""


@refuses_misfits
def load_subject(
    model: str = "smollm2-135m-instruct",
    sae: str = "smollm2-topk",
    layer: int | str = "all",
    **settings: Any,
) -> Subject:
    """Return a model and the SAE of one of its layers.

    Args:
        model: an entry of `steerlens list models`.
        sae: an entry of `steerlens list saes`.
        layer: the layer; `"all"` where the SAE is a single one.
        **settings: any other key of the configuration, e.g. `device="cpu"` or
            `**{"model.path": "DIR"}`.

    Raises:
        SteerlensError: in one sentence, if anything doesn't exist or doesn't fit together.
    """
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override
    from steerlens.config.settings import parse_subject
    from steerlens.engine.subject import load_subjects

    overrides = [override(key, value) for key, value in {"layer": layer, **settings}.items()]
    config = compose([f"model={model}", f"sae={sae}", *overrides])
    subjects = load_subjects(parse_subject(config))
    subject = next(subjects)
    if not isinstance(layer, int) and next(subjects, None) is not None:
        raise SteerlensError(
            f"{sae} has SAEs of several layers; choose one: layer={subject.layer}, say."
        )
    return subject


@refuses_misfits
def score_features(
    subject: Subject,
    method: str = "output",
    features: Iterable[int] | None = None,
    logit_lens_k: int = 20,
    memory_budget: int | str = 2 * 1024**3,
    seed: int = 0,
    corpus: str | Mapping[str, Any] | None = None,
    lens: str | Mapping[str, Any] = "logit",
    **settings: Any,
) -> pd.DataFrame:
    """Score features of `subject`: one row each, with the columns of `features.parquet`.

    Args:
        subject: from `load_subject`.
        method: an entry of `steerlens list scores`.
        features: feature ids; None = all.
        logit_lens_k: number of logit-lens tokens in the table.
        memory_budget: bytes that scoring may use beyond the weights, or `"2GiB"`.
        seed: for methods that draw.
        corpus: for methods that need texts: an option of the `corpus` group, or its name and keys,
            e.g. `{"name": "text", "path": "FILE"}`; None = the examples that ship with the SAE,
            and where there are none, `embedded`.
        lens: what tells the tokens that a feature promotes: logit, jacobian (from the file that
            ships with the SAE, if neither corpus nor keys are given) or effect, or its name and
            keys, e.g. `{"name": "jacobian", "n_prompts": 8}`.
        **settings: the method's own settings, e.g. `factor=10`.

    Raises:
        SteerlensError: for what doesn't exist or has no meaning, in one sentence.
    """
    from steerlens.config.compose import typed_settings
    from steerlens.config.parse import parse_ids
    from steerlens.config.registry import load_part
    from steerlens.config.sources import resolve_lens
    from steerlens.config.steering import check_lens
    from steerlens.engine.subject import refuse_no_subject
    from steerlens.results import FEATURES
    from steerlens.scores.scoring import score_layer

    refuse_no_subject(subject)
    config_class = load_part("scores", str(method)).Config
    _refuse_unknown(settings, score_features, f"score {method}", config_class)
    config: ScoreConfig = typed_settings(config_class, settings, f" of score {method}")
    k = _integer("logit_lens_k", logit_lens_k, least=1)
    ids = range(subject.d_sae)
    if features is not None:
        ids = parse_ids(features, subject.d_sae, where="features")
    shipped = subject.examples if corpus is None else None
    config.resolve_source(shipped, subject.examples)
    config.check()
    of_lens = _lens(lens)
    if corpus is None:
        resolve_lens(of_lens, subject.jacobians)
    check_lens(of_lens, {str(method): config})
    computes = of_lens.name == "jacobian" and not of_lens.path
    reads = config.corpus_pass() is not None or computes
    is_named = reads or corpus is not None
    texts = _corpus("embedded" if corpus is None else corpus) if is_named else None
    ctx = _context(memory_budget, seed, texts if reads else None, shipped)
    ctx = replace(ctx, lens=of_lens)
    return FEATURES.frame(score_layer(subject, ids, {str(method): config}, k, ctx))


@refuses_misfits
def find(
    subject: Subject,
    concept: str | Sequence[str],
    top_k: int = 20,
    examples: str | Sequence[str] = (),
    memory_budget: int | str = 2 * 1024**3,
) -> pd.DataFrame:
    """Find the features that may stand for a concept, those that steer toward it most first.

    Candidates are features that have a token of the concept among their logit-lens tokens, or fire
    on sentences about it. Each has its output score toward the concept's tokens.

    Args:
        subject: from `load_subject`.
        concept: a word or a phrase, or several for the same.
        top_k: how many logit-lens tokens of a feature are compared with the concept's.
        examples: sentences about the concept.
        memory_budget: bytes that work may use beyond the weights, or `"2GiB"`.

    Returns:
        Rows of `features.parquet`, with `concept_score`; none where nothing stands for the concept.

    Raises:
        SteerlensError: no token of the vocabulary stands for the concept; names the nearest.
    """
    from steerlens.config.parse import parse_concept
    from steerlens.engine.subject import refuse_no_subject
    from steerlens.results import FEATURES
    from steerlens.scores.concept import ConceptScoreConfig
    from steerlens.scores.concepts import candidates, concept_tokens
    from steerlens.scores.scoring import score_layer

    refuse_no_subject(subject)
    names = parse_concept(concept)
    tokens = concept_tokens(subject.lm.tokenizer, names)
    ctx = _context(memory_budget)
    k = _integer("top_k", top_k, least=1)
    sentences = [examples] if isinstance(examples, str) else _listed("examples", examples)
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise SteerlensError(f"examples: {sentence!r} is no text; give sentences.")
    of_concept = candidates(subject, tokens, ctx, k, examples=sentences)
    ids = [candidate.feature for candidate in of_concept]
    config = ConceptScoreConfig(concept=names)
    frame = FEATURES.frame(
        score_layer(subject, ids, {config.method: config}, k, ctx) if ids else []
    )
    return frame.sort_values("concept_score", ascending=False, kind="stable", ignore_index=True)


@refuses_misfits
def generate(
    subject: Subject,
    features: int | Iterable[int],
    factors: float | Iterable[float] = FACTORS,
    prompts: str | Iterable[str] | None = None,
    *,
    weights: Sequence[float] | None = None,
    concept: str | Sequence[str] | None = None,
    seed: int = 0,
    memory_budget: int | str = 2 * 1024**3,
    **settings: Any,
) -> pd.DataFrame:
    """Write texts with features steered, and measure them: a row for each text, with the columns of
    `generations.parquet`.

    They are the texts of `steerlens steer=grid` with the same settings and seed.

    Args:
        subject: from `load_subject`.
        features: ids, each steered with alone, or with `weights` all at once.
        factors: steering factors; 0, the unsteered text, always comes along.
        prompts: beginnings of texts, or inside a chat template requests; None = 50 neutral ones.
        weights: of each feature; its share of the factor is its part of their sum.
        concept: what is steered toward, for the column `concept_success`.
        seed: what texts are drawn from.
        memory_budget: bytes that work may use beyond the weights, or `"2GiB"`.
        **settings: any key of the groups `steer` and `generation`: `operator="clamp"`,
            `max_new_tokens=40`, `chat_template=True`.

    Raises:
        SteerlensError: for what doesn't exist or has no meaning, in one sentence.
    """
    from steerlens.config.parse import parse_ids
    from steerlens.config.steering import shares_of
    from steerlens.engine.subject import refuse_no_subject
    from steerlens.runs.models import steering_of
    from steerlens.steering.features import steer_layer, steer_together

    refuse_no_subject(subject)
    ids = parse_ids(features, subject.d_sae, where="features")
    steering = steering_of(subject.lm, _steering(factors, prompts, concept, settings))
    ctx = _context(memory_budget, seed, _corpus("embedded"), subject.examples)
    if weights is None:
        return steer_layer(subject, ids, steering, ctx)
    shares = shares_of(_listed("weights", weights), len(ids))
    return steer_together(subject, ids, shares, steering, ctx)


def _steering(
    factors: Any, prompts: Any, concept: Any, settings: Mapping[str, Any]
) -> SteeringSettings:
    from steerlens.config.compose import typed_settings
    from steerlens.config.parse import parse_concept
    from steerlens.config.schema import ChoiceConfig, GenerationConfig, SteerConfig
    from steerlens.config.settings import SteeringSettings
    from steerlens.config.steering import (
        check_generation,
        check_steer,
        parse_factors,
        parse_prompts,
    )

    of_steer, of_generation = (
        {field.name for field in fields(kind)} for kind in (SteerConfig, GenerationConfig)
    )
    _refuse_unknown(settings, generate, "steer and generation", SteerConfig, GenerationConfig)
    steer = typed_settings(SteerConfig, {key: settings[key] for key in settings.keys() & of_steer})
    generation = typed_settings(
        GenerationConfig, {key: settings[key] for key in settings.keys() & of_generation}
    )
    generation.prompts = prompts if isinstance(prompts, str | None) else _listed("prompts", prompts)
    check_steer(steer)
    check_generation(generation)
    of_factors = factors if isinstance(factors, int | float | str) else _listed("factors", factors)
    return SteeringSettings(
        factors=tuple(parse_factors(of_factors)),
        steer=steer,
        generation=generation,
        prompts=tuple(parse_prompts(generation)),
        choice=ChoiceConfig(),
        concept=() if concept is None else tuple(parse_concept(concept)),
    )


def _context(
    memory_budget: Any,
    seed: Any = 0,
    corpus: CorpusConfig | None = None,
    examples: str | None = None,
) -> RunContext:
    from steerlens.config.parse import parse_memory
    from steerlens.engine.run_context import RunContext

    # Few bytes only make small batches: the least that a run may be given is no limit here.
    is_bytes = isinstance(memory_budget, int) and not isinstance(memory_budget, bool)
    if is_bytes and memory_budget < 1:
        raise SteerlensError(f"memory_budget={memory_budget} is no memory; write '2GiB', say.")
    budget = memory_budget if is_bytes else parse_memory(memory_budget)
    return RunContext(budget, _integer("seed", seed), corpus=corpus, examples=examples)


def _refuse_unknown(
    settings: Mapping[str, Any], function: Callable[..., Any], whose: str, *kinds: Any
) -> None:
    """Refuse a setting that neither `function` nor the dataclasses `kinds` have."""
    valid = {field.name for kind in kinds for field in fields(kind)}
    arguments = [name for name in signature(function).parameters if name != "settings"]
    for key in [key for key in settings if key not in valid]:
        raise unknown(f"setting of {whose}", key, valid.union(arguments))


def _integer(name: str, value: Any, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise SteerlensError(f"{name}={value!r} is not an integer.")
    if least is not None and value < least:
        raise SteerlensError(f"{name}={value} is less than {least}.")
    return int(value)


def _listed(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping):
        raise SteerlensError(f"{name}={values!r} is no list.")
    return list(values)


def _lens(lens: str | Mapping[str, Any]) -> LensConfig:
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override
    from steerlens.config.schema import LensConfig

    if lens == "logit":
        return LensConfig()
    if not isinstance(lens, str | Mapping):
        raise SteerlensError(
            f'lens={lens!r} is no lens: give a name, or its name and keys, {{"name": "jacobian"}}.'
        )
    keys = {"name": lens} if isinstance(lens, str) else dict(lens)
    name = keys.pop("name", "logit")
    overrides = [override(f"lens.{key}", value) for key, value in keys.items()]
    return compose([f"lens={name}", *overrides, "sae.jacobians=null"]).lens


def _corpus(corpus: str | Mapping[str, Any]) -> CorpusConfig:
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override

    if not isinstance(corpus, str | Mapping):
        raise SteerlensError(
            f"corpus={corpus!r} is no corpus: give the name of an option of the group corpus, or "
            'its name and keys, {"name": "text", "path": "FILE"}.'
        )
    keys = {"name": corpus} if isinstance(corpus, str) else dict(corpus)
    name = keys.pop("name", "embedded")
    overrides = [override(f"corpus.{key}", value) for key, value in keys.items()]
    return compose([f"corpus={name}", *overrides]).corpus
