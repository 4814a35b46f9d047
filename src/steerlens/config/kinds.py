"""What kind of run a configuration asks for, and which settings that kind reads.

A setting that the run would ignore is refused: whoever writes it believes that it changes the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steerlens.config.overrides import as_typed
from steerlens.config.schema import JUDGE, JudgeConfig, ModelConfig, RunConfig
from steerlens.config.steering import parse_factors
from steerlens.errors import SteerlensError

EVERY = frozenset(
    {"name", "plan", "debug", "paths", "tracking", "study", "objective", "reference", "chosen"}
    | {"seed", "device", "dtype", "device_map", "memory_budget", "model"}
)
"""What every run reads: where results go, what they are laid beside, and on what machine."""

SCORING = EVERY | {"sae", "layer", "score", "corpus", "lens", "logit_lens_k", "shard"}

STEERING = {"steer", "generation", "evaluator", "metrics"}


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    name: str
    does: str
    """What such a run does, to go on after "this run"."""
    reads: frozenset[str]
    """The groups and settings that it reads, a group's single settings as `group.key`."""


SCORES = Kind(
    "scores",
    "scores features and steers with none, because steer.factors is null",
    SCORING | {"features", "labels", "quality"},
)
FEATURES = Kind(
    "features",
    "steers with features, and toward no word",
    SCORES.reads
    | STEERING
    | {"selection", "choice", "judge", "pmi", "coverage", "concept", "evaluate"},
)
CONCEPT = Kind(
    "concept",
    "steers with the features that may stand for a word (features.concept)",
    SCORES.reads | STEERING | {"selection", "choice", "judge", "coverage", "concept", "evaluate"},
)
WORDS = Kind(
    "words",
    "steers toward one word of toward.words after the other",
    SCORES.reads | STEERING | {"toward", "choice", "judge", "coverage"},
)
CONCEPTS = Kind(
    "concepts",
    "compares methods on the concepts of a set",
    SCORING
    | {"concepts", "judge", "evaluator", "metrics"}
    | {f"steer.{key}" for key in ("factors", "operator", "unit", "keep_error", "positions")}
    | {f"generation.{key}" for key in ("samples", "max_new_tokens", "temperature", "top_k")}
    | {f"generation.{key}" for key in ("top_p", "stop", "chat_template", "batch_size")},
)
PUBLISHED = Kind("published", "shows published numbers and loads no model", EVERY)

KINDS = (SCORES, FEATURES, CONCEPT, WORDS, CONCEPTS, PUBLISHED)


def kind_of(config: RunConfig) -> Kind:
    """Return the kind of run that `config` asks for; the first of these that holds decides:
    published numbers alone, concepts, no factors, words, a concept's features.
    """
    if config.reference.alone or config.reference.ratings:
        return PUBLISHED
    if config.concepts is not None:
        return CONCEPTS
    if not parse_factors(config.steer.factors):
        return SCORES
    if config.toward.words is not None:
        return WORDS
    return FEATURES if config.features.concept is None else CONCEPT


CONDITIONS: Mapping[str, tuple[Callable[[RunConfig], bool], str]] = {
    "features.top_k": (
        lambda config: config.features.concept is not None or config.toward.words is not None,
        "features.concept or toward.words",
    ),
    "features.per_word": (lambda config: config.toward.words is not None, "toward.words"),
    "features.examples": (
        lambda config: config.features.concept is not None,
        "features.concept",
    ),
    "steer.default_max_activation": (
        lambda config: config.steer.unit == "max_activation",
        "steer.unit=max_activation",
    ),
    "lens.n_prompts": (lambda config: config.lens.name != "logit", "lens=jacobian or lens=effect"),
    "lens.context_length": (lambda config: config.lens.name == "jacobian", "lens=jacobian"),
    "lens.path": (lambda config: config.lens.name == "jacobian", "lens=jacobian"),
    "lens.factor": (lambda config: config.lens.name == "effect", "lens=effect"),
    "choice.success_cap": (lambda config: config.choice.rule == "paper", "choice.rule=paper"),
    "choice.perplexity_budget": (
        lambda config: config.choice.rule == "budget" or config.coverage.words is not None,
        "choice.rule=budget or coverage.words",
    ),
    "choice.perplexity_ratio": (
        lambda config: config.choice.rule == "perplexity_ratio",
        "choice.rule=perplexity_ratio",
    ),
    "choice.kl_budget": (lambda config: config.choice.rule == "kl", "choice.rule=kl"),
    "choice.dose_budget": (lambda config: config.choice.rule == "dose", "choice.rule=dose"),
    **{
        f"evaluate.{key}": (lambda config: bool(config.evaluate.tasks), "evaluate.tasks")
        for key in ("folder", "n_items", "num_fewshot")
    },
    "judge": (
        lambda config: config.choice.rule == JUDGE or config.concepts is not None,
        "choice.rule=judge or concepts=NAME",
    ),
    "coverage.top_k": (lambda config: config.coverage.words is not None, "coverage.words"),
    "coverage.threshold": (lambda config: config.coverage.words is not None, "coverage.words"),
}
"""Settings that their group reads only beside another: when, and what that other is."""


def ignored_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that the run would ignore, by their whole key, where they have another
    value than the schema's.
    """
    usual = _flat(RunConfig())
    return {
        key: value
        for key, value in _flat(config).items()
        if value != usual.get(key) and not _reads(config, key)
    }


def refuse_ignored(
    config: RunConfig, usual_values: Callable[[RunConfig], tuple[RunConfig, RunConfig | None]]
) -> None:
    """Refuse a setting that the run would ignore, if somebody has asked for it.

    Nobody has where it has the schema's value, the one that the chosen subject brings for all runs
    with it, or the one of the chosen experiment, whose own kind reads it: `experiment=filter
    steer=none` leaves that experiment's controls behind. So it makes no difference whether a value
    comes from the command line, a sweep, a file of one's own, or a list of overrides in Python;
    and an experiment's file that sets what its own kind ignores is refused, too. `to_config`
    decides it of everything that is composed, so that it stands in `RunConfig.chosen`, where
    `preflight.check` finds it; whoever then replaces fields in Python is not asked again.

    Args:
        config: what is asked for.
        usual_values: composes what the subject alone and the experiment alone give; called only if
            a setting is ignored, because that takes its time.

    Raises:
        SteerlensError: which kind of run it is, and what to do.
    """
    ignored = ignored_settings(config)
    if not ignored:
        return
    subject, experiment = usual_values(config)
    of_subject = _flat(subject)
    of_experiment = {} if experiment is None else _flat(experiment)
    for key, value in ignored.items():
        by_experiment = key in of_experiment and of_experiment[key] == value
        if by_experiment and experiment is not None and _reads(experiment, key):
            continue
        if of_subject.get(key) != value:
            raise SteerlensError(_refusal(key, value, config))


def _reads(config: RunConfig, key: str) -> bool:
    """Return whether the run reads the setting `key`, `group.key` or a whole group."""
    if key == "concept" and _refers_to_concept(config):
        return True
    is_of_kind = bool(kind_of(config).reads & {key, key.partition(".")[0]})
    return is_of_kind and (key not in CONDITIONS or CONDITIONS[key][0](config))


def _refusal(key: str, value: Any, config: RunConfig) -> str:
    kind, group = kind_of(config), key.partition(".")[0]
    if key == f"{group}.name":
        setting = f"{group}={getattr(config, group).name}"
    elif isinstance(value, ModelConfig | JudgeConfig):
        setting = f"{'model@evaluator' if key == 'evaluator' else key}={value.name}"
    elif key == "score":
        setting = f"score={','.join(value)}"
    else:
        setting = f"{key}={as_typed(value)}"
    if kind.reads & {group, key}:
        return f"{setting} is read only beside {CONDITIONS[key][1]}; add that, or leave it out."
    return f"{setting} would be ignored: this run {kind.does}; {_remedy(kind, group)}."


def _remedy(kind: Kind, group: str) -> str:
    """Say what to do about a setting of `group` that runs of `kind` ignore."""
    readers = [
        reader for reader in KINDS if any(key.partition(".")[0] == group for key in reader.reads)
    ]
    if group == "judge":
        return (
            "a judge rates the texts of concepts=NAME, or of features with choice.rule=judge: add "
            "that, or leave the judge out"
        )
    if group == "toward":
        return "these settings are for toward.words: add that, or leave it out"
    if group == "concept":
        return (
            "for a run about that word add experiment=concept, or in a file features: concept "
            "under its defaults, or leave it out"
        )
    if kind is SCORES and FEATURES in readers:
        return "add steer=grid or other factors, or leave it out"
    if kind is CONCEPTS and group == "features":
        return "its features are those of the concepts (concepts.features), so leave it out"
    if kind is CONCEPTS and group == "generation":
        return "its prompts are those of the concepts (concepts.n_prompts), so leave it out"
    if kind is CONCEPTS and FEATURES in readers:
        return "leave it out, or leave out the concepts (concepts=null judge=null)"
    return "leave it out"


def _flat(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its whole key; of groups that may be null, the whole group."""
    groups_of_schema = RunConfig()
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(getattr(groups_of_schema, field.name)):
            of_group = dataclasses.fields(value)
            flat |= {f"{field.name}.{key.name}": getattr(value, key.name) for key in of_group}
        elif field.name == "metrics":
            for name, metric in value.items():
                of_metric = dataclasses.asdict(metric)
                flat |= {f"metrics.{name}.{key}": setting for key, setting in of_metric.items()}
        else:
            flat[field.name] = value
    return flat


def _refers_to_concept(config: RunConfig) -> bool:
    """Return whether features or a score are those of the run's `concept` (`${concept}`)."""
    scores = config.score.values() if isinstance(config.score, Mapping) else [config.score]
    referring = [config.features.concept, *(getattr(score, "concept", None) for score in scores)]
    return config.concept is not None and config.concept in referring
