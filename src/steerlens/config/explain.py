"""Every way in which composing can fail, in one sentence that names the nearest valid words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from steerlens.config.entries import options as known_options
from steerlens.config.overrides import quoted
from steerlens.config.registry import parts_of
from steerlens.config.schema import RunConfig, key_fields
from steerlens.config.score_keys import chosen_scores, is_flat, method_keys
from steerlens.errors import SteerlensError, nearest, unknown

GROUPS = (
    "model",
    "sae",
    "features",
    "score",
    "corpus",
    "lens",
    "concepts",
    "judge",
    "tracking",
    "paths",
    "subject",
    "experiment",
)


PLUGINS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
    "ray_aws": "ray",
    "optuna": "optuna",
}
"""Hydra's launchers and sweepers that have a package of their own: our extra that installs it."""

RENAMED = {
    ("model", "embedded"): "smollm2-135m-instruct",
    ("sae", "embedded-topk"): "smollm2-topk",
    ("sae", "embedded-batchtopk"): "smollm2-batchtopk",
    ("subject", "embedded"): "smollm2",
}
"""Options of earlier versions, and what has taken their place."""


NEEDED = {
    "concept": "concept names nothing; write concept=WORD, a word or a phrase.",
    "features.ids": "features.ids is empty; name features: 'features.ids=[1,2,3]'.",
    "features.file": "features=file needs features.file=FILE, JSON of the form "
    '{"layer": [ids]}, for example {"3": [0, 17]}.',
    "judge.model": "judge=local needs judge.model=NAME, a Hugging Face model or a folder.",
    "reference.ratings": "experiment=paper/table1_published needs reference.ratings=DIR, the "
    "folder with the ratings that the authors have published.",
}
"""What to say of a value that has to be given, where there is more to say than its key."""
REPHRASED = (
    (r"Value '(.*)' of type '\w+' could not be converted to Integer", r"'\1' is no whole number"),
    (r"Value '(.*)' of type '\w+' could not be converted to Float", r"'\1' is no number"),
    (r"Value '(.*)' is not a valid bool.*", r"'\1' is neither true nor false"),
    (r"Invalid value assigned: \w+ is not a ListConfig.*", "needs a list, like [a,b]"),
    (r"Cannot assign \w+ to Dict.*", "needs keys and values, like {a:1}"),
    (r"Cannot convert '(?:list|dict)' to string: '(.*)'", r"\1 is no single text"),
    (r"field '.*' is not Optional", "it can't be null"),
)
"""OmegaConf's reasons, as patterns, and what is said in their place."""


def failure(
    error: Exception, parsed: Sequence[Override], broken: Mapping[str, str]
) -> SteerlensError:
    """Return what Hydra's `error` means for the user who typed the `parsed` overrides.

    `broken` says which scoring methods can't be imported, and why.
    """
    for override in parsed:
        sentence = _group_misuse(override)
        if sentence:
            return sentence
    if isinstance(error, MissingConfigException):
        return _missing_option(error, broken)
    cause = _omegaconf_cause(error)
    for override in parsed:
        if override.key_or_group.startswith("evaluator.") and "NoneType" in str(error):
            return SteerlensError(
                f"{override.input_line!r}: there is no evaluator yet; choose a model for it with "
                "model@evaluator=NAME."
            )
        if override.key_or_group.startswith("judge.") and "NoneType" in str(error):
            return SteerlensError(
                f"{override.input_line!r}: there is no judge yet; choose one with "
                f"judge={'|'.join(parts_of('judges'))}."
            )
        if override.key_or_group.startswith("concepts.") and "NoneType" in str(error):
            return SteerlensError(
                f"{override.input_line!r}: there are no concepts yet; choose some with "
                f"concepts={'|'.join(known_options()['concepts'])}."
            )
    file = re.search(r"In '([^']+)'", str(error))
    where = f" in {file[1]}.yaml" if file and file[1] != "config" else ""
    if cause is None:
        lines = (line.strip() for line in str(error).splitlines())
        return SteerlensError(" ".join(filter(None, lines)) or type(error).__name__)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        siblings: list[str] = []
        if isinstance(cause.parent_node, DictConfig):
            kind = OmegaConf.get_type(cause.parent_node)
            siblings = [*map(str, cause.parent_node)]
            if kind is not None and dataclasses.is_dataclass(kind):
                siblings = [field.name for field in key_fields(kind)]
        key = str(cause.full_key)
        if key.startswith("score.") and key.count(".") == 1:
            return _unknown_score_key(key, siblings, where)
        return _unknown_key(key, siblings, where)
    key = _as_typed(str(cause.full_key or ""), parsed)
    option = re.search(r"str is not a subclass of (\w+)Config\. value: (.+)", _first_line(cause))
    if option:
        group, name = option[1].lower(), option[2]
        return SteerlensError(
            f"'{group}: {name}'{where} is no set of values; to choose an option write "
            f"'- override /{group}: {name}' under 'defaults:'."
        )
    original = _first_line(cause)
    message = f"{key or 'configuration'}{where}: {reason(cause)}"
    for override in parsed:
        if "'dict'" in original and override.key_or_group.startswith(f"{key}."):
            return _unknown_key(override.key_or_group, [], where)
        if override.key_or_group == key and ("string" in original or "Optional" in original):
            text = override.get_value_string()
            return SteerlensError(f"{message}; if a text is meant, write {quoted(key, text)}")
    return SteerlensError(message + ".")


def refuse_extra_keys(tree: DictConfig) -> None:
    """Refuse keys that `+key=value` added to a part of the configuration that has a schema."""
    for path, node in _typed_nodes("", tree):
        fields = _field_names(OmegaConf.get_type(node))
        for key in node:
            if key not in fields and not (path == "" and key == "hydra"):
                raise _unknown_key(f"{path}{key}", fields, "")


def refuse_changed_texts(tree: DictConfig, parsed: Sequence[Override]) -> None:
    """Refuse unquoted texts that wouldn't arrive as typed: ` x` as `x`, `1e3` as `1000.0`."""
    last = {override.key_or_group: override for override in parsed}
    for key, override in last.items():
        value = override.value()
        if override.is_delete() or not isinstance(value, str | bool | int | float):
            continue
        text = override.get_value_string()
        changed = value == text.strip() if isinstance(value, str) else True
        names = chosen_scores(tree)
        if is_flat(override) and len(names) == 1:
            key_of_score = key.partition(".")[2]
            target = OmegaConf.select(
                tree, f"score.{names[0]}.{key_of_score}", throw_on_resolution_failure=False
            )
        else:
            target = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
        if str(value) != text and changed and isinstance(target, str):
            raise SteerlensError(
                f"{key} would become {str(value)!r}; to keep {text!r}, write {quoted(key, text)}"
            )


def missing(key: str, tree: DictConfig) -> SteerlensError:
    """Return the error for a mandatory value that nobody gave."""
    if key in NEEDED:
        return SteerlensError(NEEDED[key])
    if key == "corpus.path":
        is_hub = OmegaConf.select(tree, "corpus.source") == "hub"
        value = "ORGANISATION/NAME" if is_hub else "FILE"
        name = OmegaConf.select(tree, "corpus.name")
        return SteerlensError(f"corpus={name} needs corpus.path={value}.")
    group, _, last = key.partition(".")
    option = OmegaConf.select(tree, f"{group}.name", throw_on_missing=False)
    of = f"{group}={option} " if last and isinstance(option, str) else ""
    return SteerlensError(f"{of}needs a value for {key}: add {key}=VALUE.")


def unresolved(error: OmegaConfBaseException) -> SteerlensError:
    """Return the error for an interpolation that leads nowhere, or a value that a schema
    refuses.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SteerlensError):  # by one of our resolvers
            return cause
        cause = cause.__cause__ or cause.__context__
    message = f"{error.full_key or 'the configuration'}: {reason(error)}"
    if "nterpolation" in type(error).__name__ or "Grammar" in type(error).__name__:
        return SteerlensError(f"{message} (a literal ${{ is written \\${{).")
    return SteerlensError(f"{message}.")


def _missing_option(error: MissingConfigException, broken: Mapping[str, str]) -> SteerlensError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    method = name.removesuffix("_schema")
    if name != method:
        if method in broken:
            return SteerlensError(broken[method])
        return unknown("scoring method", method, parts_of("scores"))
    if group in ("hydra/launcher", "hydra/sweeper") and name in PLUGINS:
        return SteerlensError(
            f"{group}={name} needs a plugin that isn't installed: "
            f"pip install -c constraints.txt -e '.[{PLUGINS[name]}]' in a checkout of steerlens."
        )
    options = [option for option in error.options or [] if not option.endswith("_schema")]
    root, _, path = (error.missing_cfg_file or "").partition("/")
    if in_folders := [option for option in known_options().get(root, []) if "/" in option]:
        group, name, options = root, path, [*options, *in_folders]
    file = re.search(r"In '([^']+)'", str(error))
    by_itself = file is None or file[1] in ("config", "hydra/config")
    where = "" if file is None or by_itself else f" (chosen in {file[1]}.yaml)"
    if new := RENAMED.get((group, name)):
        return SteerlensError(f"{group}={name} is gone{where}; its successor is {group}={new}.")
    options = options or known_options().get(group, [])
    return unknown(group or "file", name + where if where else name, options)


def _group_misuse(override: Override) -> SteerlensError | None:
    """Return a group that doesn't exist, or one used in a way that Hydra has no sentence for."""
    line, name = override.input_line, override.key_or_group
    root = name.split("/")[0]
    if "/" in name or override.package is not None:
        if root not in (*GROUPS, "hydra"):
            return unknown("group", root, GROUPS)
        return None
    options = known_options()
    if name in options and not override.is_delete() and isinstance(override.value(), bool | float):
        return unknown(name, override.get_value_string(), options[name])
    if name in GROUPS and override.is_add() and override.value_type is not None:
        return SteerlensError(f"write {str(line).lstrip('+')!r}, without the +.")
    if name == "evaluator" and not override.is_delete() and isinstance(override.value(), str):
        return SteerlensError(
            f"{line!r}: an evaluator is a model; choose it with model@evaluator={override.value()}."
        )
    if override.is_delete() and name.split(".")[0] not in _field_names(RunConfig):
        return _unknown_key(name, _field_names(RunConfig), "")
    is_list_of_scores = name == "score" and isinstance(override.value(), list)
    if (
        name in GROUPS
        and not (override.is_delete() or is_list_of_scores)
        and not isinstance(override.value(), str | dict)
    ):
        return SteerlensError(
            f"{line!r}: {name} is a group, so its value is the name of one option; "
            f"`steerlens --help` lists them."
        )
    return None


def _unknown_key(full_key: str, siblings: Iterable[str], where: str) -> SteerlensError:
    parent, _, last = full_key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    siblings = [name for name in siblings if name != "hydra"]
    if parent.startswith("hydra."):
        return SteerlensError(
            f"{full_key} isn't known to Hydra (valid: {', '.join(siblings)}); if a plugin takes "
            f"it, add it with +{full_key}=VALUE."
        )
    if not parent and last in GROUPS:
        return SteerlensError(
            f"{last!r}{where} is a group without keys; choose an option with {last}=NAME, or in a "
            f"file with '- override /{last}: NAME' under 'defaults:'."
        )
    if not parent:
        siblings += [name for name in GROUPS if name not in siblings]
    near = (
        _elsewhere(full_key)
        or [
            f"{prefix}{name}.{last}"
            for name in siblings
            if parent == "score" and last in method_keys(name)
        ]
        or [prefix + name for name in nearest(last, siblings)]
    )
    if near:
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?"
    elif siblings:
        hint = f"valid: {', '.join(prefix + name for name in siblings)}."
    else:
        hint = f"{parent!r} is a plain value, without keys of its own."
    return SteerlensError(f"unknown key {full_key!r}{where}; {hint}")


def unknown_score_key(
    key: str, tree: DictConfig, parsed: Sequence[Override] = ()
) -> SteerlensError:
    """Return the error for `score.KEY` that no chosen score has, or that several could mean."""
    typed = {override.key_or_group for override in parsed}
    experiment = OmegaConf.select(tree, "hydra.runtime.choices.experiment")
    in_file = experiment and f"score.{key}" not in typed
    where = f" in experiment/{experiment}.yaml" if in_file else ""
    return _unknown_score_key(f"score.{key}", chosen_scores(tree), where)


def _unknown_score_key(full_key: str, names: Sequence[str], where: str) -> SteerlensError:
    last = full_key.rpartition(".")[2]
    if last in parts_of("scores"):
        both = ",".join([*names, last])
        return SteerlensError(
            f"unknown key {full_key!r}{where}; score={last} isn't chosen: add 'score=[{both}]'."
        )
    if len(names) == 1 and last not in method_keys(names[0]):
        keys = [key for key in method_keys(names[0]) if key != "method"]
        return _unknown_key(full_key, [*keys, *names], where)
    return _unknown_key(full_key, names, where)


def _as_typed(key: str, parsed: Sequence[Override]) -> str:
    """Return `score.NAME.KEY` as `score.KEY`, if that is what was typed."""
    flat = f"score.{key.rpartition('.')[2]}"
    typed = {override.key_or_group for override in parsed}
    return flat if key.startswith("score.") and key not in typed and flat in typed else key


def _elsewhere(full_key: str) -> list[str]:
    """Return where a key belongs that was given without its group, such as `score.prompt` for
    `prompt`, and `score.gradient` for the method's own settings.
    """
    if "." in full_key:
        return []
    if full_key in parts_of("scores"):
        return [f"score.{full_key}"]
    groups = {
        field.name: [inner.name for inner in dataclasses.fields(field.default_factory)]
        for field in key_fields(RunConfig)
        if dataclasses.is_dataclass(field.default_factory)
    }
    for method in parts_of("scores"):
        groups["score"] = groups.get("score", []) + method_keys(method)
    return [f"{group}.{full_key}" for group, keys in groups.items() if full_key in keys]


def _typed_nodes(path: str, node: DictConfig) -> Iterable[tuple[str, DictConfig]]:
    """Yield the nodes with a schema, each with the prefix of its keys."""
    if dataclasses.is_dataclass(OmegaConf.get_type(node)):
        yield path, node
    for key, child in node.items_ex(resolve=False):
        if (path, key) == ("", "hydra"):
            continue
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _typed_nodes(f"{path}{key}.", child)


def _field_names(kind: type | None) -> list[str]:
    assert kind is not None
    assert dataclasses.is_dataclass(kind)
    return [field.name for field in key_fields(kind)]


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            return error
        error = error.__cause__ or error.__context__
    return None


def reason(error: OmegaConfBaseException) -> str:
    """Return why OmegaConf refuses a value, in words that don't speak of its own types."""
    first_line = _first_line(error)
    for pattern, words in REPHRASED:
        if match := re.fullmatch(pattern, first_line):
            return match.expand(words)
    return first_line


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
