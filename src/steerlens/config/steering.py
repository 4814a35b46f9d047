"""Values of `steer`, `generation` and what follows them: each has one meaning, and a check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from steerlens.config.prompts import PROMPTS, REQUESTS, effect_prompts
from steerlens.config.registry import ScoreConfig, parts_of
from steerlens.config.schema import (
    CONTROLS,
    LENSES,
    OBJECTIVES,
    POSITIONS,
    SUCCESS,
    ChoiceConfig,
    CoverageConfig,
    EvaluateConfig,
    GenerationConfig,
    LensConfig,
    PmiConfig,
    SelectionConfig,
    SteerConfig,
    StudyConfig,
    TowardConfig,
)
from steerlens.errors import SteerlensError, unknown

AUTO = "auto"


def with_template(generation: GenerationConfig, has_template: bool, model: str) -> GenerationConfig:
    """Return `generation` for a model that has a chat template or hasn't: `auto` is decided.

    Raises:
        SteerlensError: if a template is asked of a model without one.
    """
    template = generation.chat_template
    if template is True and not has_template:
        raise SteerlensError(
            f"{model} has no chat template; use generation.chat_template=false or auto."
        )
    return replace(generation, chat_template=has_template if template == AUTO else template)


def check_steer(steer: SteerConfig) -> None:
    """Refuse what can't work, in one sentence."""
    for name, value, valid in (
        ("operator", steer.operator, parts_of("operators")),
        ("unit", steer.unit, parts_of("units")),
        ("positions", steer.positions, POSITIONS),
        *(("controls", control, CONTROLS) for control in steer.controls),
    ):
        if value not in valid:
            raise unknown(f"steer.{name}", value, valid)
    for n in steer.together:
        if n < 2:
            raise SteerlensError(f"steer.together: {n} features together must be at least 2.")
    for name in ("together", "search"):
        if steer.weights and getattr(steer, name):
            raise SteerlensError(f"steer.{name} doesn't go with steer.weights; leave one out.")
    default = steer.default_max_activation
    if default is not None and not (math.isfinite(default) and default > 0):
        raise SteerlensError(f"steer.default_max_activation={default} must be positive.")


def shares_of(
    weights: Iterable[float], n_features: int, name: str = "weights"
) -> tuple[float, ...]:
    """Return each feature's share of the factor, from weights of any sum.

    Raises:
        SteerlensError: as many weights as features aren't given, or they give no share.
    """
    numbers = list(weights)
    for number in numbers:
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise SteerlensError(f"{name}: {number!r} is not a number.")
    if len(numbers) != n_features:
        raise SteerlensError(f"{name} has {len(numbers)} numbers for {n_features} features.")
    total = sum(map(abs, numbers))
    if not total:
        raise SteerlensError(f"{name} are all 0; give a feature another one.")
    if len(set(numbers)) == 1 and numbers[0] > 0:
        return (1 / n_features,) * n_features  # as `steer.together` has it, to the last bit
    return tuple(number / total for number in numbers)


def check_selection(selection: SelectionConfig) -> None:
    """Refuse what can't work, in one sentence."""
    if selection.top_n is not None and selection.top_n < 1:
        raise SteerlensError(f"selection.top_n={selection.top_n} must be at least 1.")
    if selection.threshold is not None and not math.isfinite(selection.threshold):
        raise SteerlensError(f"selection.threshold={selection.threshold} must be a number.")


def check_choice(choice: ChoiceConfig) -> None:
    """Refuse what can't work, in one sentence."""
    if choice.rule not in parts_of("rules"):
        raise unknown("choice.rule", choice.rule, parts_of("rules"))
    if choice.success not in SUCCESS:
        raise unknown("choice.success", choice.success, SUCCESS)
    for name in (
        *("success_cap", "perplexity_budget", "perplexity_ratio"),
        *("kl_budget", "dose_budget"),
    ):
        number = getattr(choice, name)
        if not (math.isfinite(number) and number > 0):
            raise SteerlensError(f"choice.{name}={number} must be positive.")


def check_evaluate(evaluate: EvaluateConfig) -> None:
    """Refuse what can't work, in one sentence; which tasks there are is `data.tasks`' to know."""
    if evaluate.n_items is not None and evaluate.n_items < 1:
        raise SteerlensError(f"evaluate.n_items={evaluate.n_items} must be at least 1.")
    if evaluate.num_fewshot is not None and evaluate.num_fewshot < 0:
        raise SteerlensError(f"evaluate.num_fewshot={evaluate.num_fewshot} must be at least 0.")
    if evaluate.folder is not None and not Path(evaluate.folder).is_dir():
        raise SteerlensError(f"evaluate.folder: there is no folder {evaluate.folder}.")


def check_lens(lens: LensConfig, scores: Mapping[str, ScoreConfig]) -> None:
    """Refuse what can't work, in one sentence.

    Args:
        lens: the group.
        scores: the run's scoring methods.
    """
    if lens.name not in LENSES:
        raise unknown("lens", lens.name, LENSES)
    least = 2 if lens.name == "jacobian" else 1
    if lens.n_prompts < least:
        raise SteerlensError(f"lens.n_prompts={lens.n_prompts} must be at least {least}.")
    if lens.context_length < 2:
        raise SteerlensError(f"lens.context_length={lens.context_length} must be at least 2.")
    if not math.isfinite(lens.factor) or lens.factor == 0:
        raise SteerlensError(f"lens.factor={lens.factor} must be finite, and not 0.")
    if lens.path and not Path(lens.path).is_file():
        raise SteerlensError(f"lens.path: there is no file {lens.path}.")
    for name, score in scores.items():
        if getattr(score, "target", None) == "promoted" and lens.name != "jacobian":
            raise SteerlensError(
                f"target=promoted of score {name} reads through the Jacobian lens; add "
                "lens=jacobian."
            )
    if lens.name != "effect":
        return
    prompts = effect_prompts(lens.n_prompts)
    if lens.n_prompts > len(prompts):
        raise SteerlensError(
            f"lens.n_prompts={lens.n_prompts} is more than the {len(prompts)} neutral prompts that "
            "lens=effect finds tokens on."
        )
    for name, score in scores.items():
        after = [getattr(score, "prompt", None), *(getattr(score, "prompts", None) or ())]
        both = [prompt for prompt in after if prompt in prompts]
        if both and score.uses_lens():
            raise SteerlensError(
                f"score {name} would be taken after {both[0]!r}, on which lens=effect finds its "
                "tokens; give it other prompts, or a smaller lens.n_prompts."
            )


def check_pmi(pmi: PmiConfig) -> None:
    """Refuse what can't work, in one sentence."""
    for name in ("window", "min_count", "min_together"):
        if getattr(pmi, name) < 1:
            raise SteerlensError(f"pmi.{name}={getattr(pmi, name)} must be at least 1.")


def check_study(study: StudyConfig) -> None:
    """Refuse what can't work, in one sentence."""
    if study.name is not None and study.name not in parts_of("studies"):
        raise unknown("study.name", study.name, parts_of("studies"))


def check_coverage(coverage: CoverageConfig, n_words: int, steers: bool, n_prompts: int) -> None:
    """Refuse what can't work, in one sentence.

    Args:
        coverage: the group.
        n_words: how many words it names.
        steers: whether the run has factors.
        n_prompts: how many prompts its texts begin with.
    """
    if not 0 <= coverage.threshold <= 1:
        raise SteerlensError(f"coverage.threshold={coverage.threshold} must be 0 to 1.")
    if coverage.top_k < 1:
        raise SteerlensError(f"coverage.top_k={coverage.top_k} must be at least 1.")
    if not n_words:
        return
    if not steers:
        raise SteerlensError(
            "coverage.words is measured on steered texts: add steer=grid, or other factors."
        )
    if n_prompts < 2:
        raise SteerlensError(
            "coverage.words needs at least two prompts, of which one half chooses the factor and "
            "the other is reported; add some to generation.prompts or generation.n_prompts."
        )


def check_toward(toward: TowardConfig, steers: bool) -> None:
    """Refuse what can't work, in one sentence; `steers` says whether the run has factors."""
    if not 0 <= toward.threshold <= 1:
        raise SteerlensError(f"toward.threshold={toward.threshold} must be 0 to 1.")
    for name in ("n", "top_n"):
        number = getattr(toward, name)
        if number is not None and number < 1:
            raise SteerlensError(f"toward.{name}={number} must be at least 1.")
    if toward.words is not None and not steers:
        raise SteerlensError("toward.words are steered toward: add steer=grid, or other factors.")


def check_objective(objective: str | None, steers: bool) -> None:
    """Refuse what can't work, in one sentence."""
    if objective is None:
        return
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    if OBJECTIVES[objective] and not steers:
        raise SteerlensError(
            f"objective={objective} is measured on steered texts: add steer=grid, or other factors."
        )


def check_generation(generation: GenerationConfig) -> None:
    """Refuse what can't work, in one sentence."""
    parse_stop(generation.stop)
    if not isinstance(generation.chat_template, bool) and generation.chat_template != AUTO:
        raise SteerlensError(
            f"generation.chat_template={generation.chat_template} must be true, false or auto."
        )
    for name in ("samples", "max_new_tokens", "top_k", "batch_size", "n_prompts"):
        number = getattr(generation, name)
        if number is not None and number < 1:
            raise SteerlensError(f"generation.{name}={number} must be at least 1.")
    if not (math.isfinite(generation.temperature) and generation.temperature >= 0):
        raise SteerlensError(
            f"generation.temperature={generation.temperature} must be 0 (greedy) or more."
        )
    if generation.top_p is not None and not 0 < generation.top_p <= 1:
        raise SteerlensError(f"generation.top_p={generation.top_p} must be above 0 and at most 1.")


def parse_factors(value: Any) -> list[float]:
    """Return steering factors in rising order, without 0; none if nothing is to be steered.

    Raises:
        SteerlensError: a list that names none but 0, or what is no number.
    """
    if value is None:
        return []
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers:
        raise SteerlensError("steer.factors=[] names no factor; write 'steer.factors=[0.5,2,8]'.")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise SteerlensError(
                f"steer.factors: {number!r} is not a number; write 'steer.factors=[0.5,2,8]'."
            )
    factors = sorted({float(number) for number in numbers} - {0.0})
    if not factors:
        raise SteerlensError(
            "steer.factors=[0] steers with nothing, and texts without steering are made beside any "
            "others; write 'steer.factors=[0.5,2,8]', or steer.factors=null for no texts."
        )
    return factors


def parse_prompts(generation: GenerationConfig) -> list[str]:
    """Return the beginnings of texts, or with a chat template the requests, each once.

    With `chat_template=auto`, before a model is loaded, as many as there will be.
    """
    neutral = REQUESTS if generation.chat_template is True else PROMPTS
    value = list(neutral) if generation.prompts is None else generation.prompts
    prompts = [value] if isinstance(value, str) else value
    form = """write 'generation.prompts=["Note that","In my experience,"]'."""
    if not isinstance(prompts, list | tuple) or not prompts:
        raise SteerlensError(f"generation.prompts={value!r} is no list of texts; {form}")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise SteerlensError(f"generation.prompts: {prompt!r} is no text; {form}")
    every = list(dict.fromkeys(prompts))
    if generation.prompts is None and (generation.n_prompts or 0) > len(every):
        raise SteerlensError(
            f"generation.n_prompts={generation.n_prompts} is more than the {len(every)} neutral "
            "prompts that there are; give prompts of your own with generation.prompts, or fewer."
        )
    return every[: generation.n_prompts]


def parse_stop(value: Any) -> list[str]:
    """Return the strings that end a text."""
    if value is None:
        return []
    strings = [value] if isinstance(value, str) else value
    for text in strings if isinstance(strings, list | tuple) else [value]:
        if not isinstance(text, str) or not text:
            raise SteerlensError(
                f"generation.stop: {text!r} can't end a text; give a string, a list of strings, or "
                "null for none."
            )
    return list(strings)
