"""The command and the Python that write again what was asked for on the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from steerlens.config.compose import compose, literal
from steerlens.config.entries import needed_keys
from steerlens.config.overrides import override, parse
from steerlens.config.schema import RunConfig
from steerlens.config.settings import SteeringSettings
from steerlens.errors import SteerlensError
from steerlens.report.play.requests import Writing


def repeated(
    writing: Writing, settings: SteeringSettings, words: Sequence[str] | None
) -> dict[str, str | None]:
    """Return the command and the Python that write the same texts; None where there is none: of a
    subject that is no entry, and the command without a factor.
    """
    if words is None:
        return {"command": None, "python": None}
    generation, steer = settings.generation, settings.steer
    of_request: dict[str, Any] = {
        "layer": writing.layer,
        "features.ids": list(writing.features),
        "steer.factors": list(writing.factors),
        "steer.operator": writing.operator,
        "steer.positions": writing.positions,
        "generation.prompts": [writing.prompt],
        "generation.chat_template": writing.chat_template,
        "generation.max_new_tokens": writing.max_new_tokens,
        "generation.temperature": writing.temperature,
        "seed": writing.seed,
    }
    if len(writing.features) > 1:
        of_request["steer.weights"] = list(writing.weights)
    overrides = [*words, "steer=grid", *(_word(*item) for item in of_request.items())]
    command = shlex.join(["steerlens", *overrides]) if writing.factors else None
    chosen = {
        "operator": writing.operator,
        "positions": writing.positions,
        **{name: getattr(steer, name) for name in ("unit", "keep_error")},
        **{name: getattr(generation, name) for name in ("max_new_tokens", "temperature", "stop")},
        **{name: getattr(generation, name) for name in ("top_k", "top_p", "chat_template")},
        "default_max_activation": steer.default_max_activation,
        "seed": writing.seed,
    }
    usual = {"top_k": None, "top_p": None, "default_max_activation": None}
    keywords = {
        **({"weights": list(writing.weights)} if len(writing.features) > 1 else {}),
        **{name: value for name, value in chosen.items() if usual.get(name, ...) != value},
    }
    arguments = [repr(list(writing.features)), repr(list(writing.factors)), repr([writing.prompt])]
    arguments += [f"{name}={value!r}" for name, value in keywords.items()]
    lines = [
        "import steerlens",
        "",
        f"subject = steerlens.load_subject(layer={writing.layer}, {_as_python(words)})",
        "texts = steerlens.generate(",
        *(f"    {argument}," for argument in ["subject", *arguments]),
        ")",
        'print(texts[["factor", "text", "success_20", "perplexity"]])',
    ]
    return {"command": command, "python": "\n".join(lines)}


def _as_python(words: Sequence[str]) -> str:
    """Return the overrides that choose a subject as arguments of `load_subject`."""
    chosen = {
        parsed.key_or_group: parsed.value()
        for parsed in parse(words)
        if not parsed.key_or_group.startswith(("steer.", "generation."))
    }
    names = ", ".join(f"{name}={chosen.pop(name)!r}" for name in ("model", "sae"))
    return f"{names}, **{chosen!r}" if chosen else names


def subject_words(config: RunConfig) -> list[str] | None:
    """Return overrides that choose the subject of `config`, and what of steering and texts a
    request leaves as it is; None where its model or SAE is no entry any more.
    """
    names = [_word("model", config.model.name), _word("sae", config.sae.name)]
    try:
        for group, entry in (("model", config.model), ("sae", config.sae)):
            for key in needed_keys(group, entry.name):
                names.append(_word(key, attrgetter(key)(config)))
        usual = asdict(compose([*names, "steer=grid"]))
    except (SteerlensError, OSError):
        return None
    of_request = {
        "steer": ("factors", "operator", "positions", "search", "controls", "together", "weights"),
        "generation": (
            *("prompts", "n_prompts", "samples", "chat_template", "max_new_tokens"),
            *("temperature", "batch_size"),
        ),
    }
    words = list(names)
    settings = asdict(config)
    for group in ("model", "sae", "steer", "generation"):
        for name, value in settings[group].items():
            if name not in of_request.get(group, ()) and usual[group][name] != value:
                words.append(_word(f"{group}.{name}", value))
    for name in ("device", "dtype", "device_map"):
        if settings[name] != usual[name]:
            words.append(_word(name, settings[name]))
    return words


def _word(key: str, value: Any) -> str:
    """Return an override, of plain names without the quotes that they don't need."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value)
    if is_name and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{key}={value}"
    return override(key, literal(value))
