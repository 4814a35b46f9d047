"""Values with several spellings, parsed once into plain ones. Every refusal is one sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from steerlens.config.registry import ScoreConfig, load_part
from steerlens.errors import SteerlensError, unknown
from steerlens.storage.files import parse_json, read_text

LAYER_WORDS = ("all", "late")
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def layer_numbers(spec: Any) -> list[int] | None:
    """Return the layers that `spec` counts up, in rising order; None for `all` and `late`."""
    if isinstance(spec, str) and spec.isdecimal():
        spec = int(spec)
    if isinstance(spec, str):
        if spec not in LAYER_WORDS:
            raise SteerlensError(
                f"layer={spec} is unknown; give a number, a list ('layer=[3,5]'), all or late."
            )
        return None
    numbers = spec if isinstance(spec, list | tuple) else [spec]
    if not numbers:
        raise SteerlensError("layer=[] names no layer; give a number, a list, all or late.")
    for number in numbers:
        if not _is_integer(number) or number < 0:
            raise SteerlensError(
                f"layer {number!r} is not a layer; layers are counted 0, 1, 2, ..."
            )
    _refuse_duplicates("layer", numbers)
    return sorted(int(number) for number in numbers)


def parse_layers(spec: Any, n_layers: int, late_from: int | None = None) -> list[int]:
    """Return the layers that `spec` means in a model of `n_layers`, in rising order.

    `late` begins at `late_from`, by default at round(0.6 n_layers).
    """
    numbers = layer_numbers(spec)
    if numbers is None:
        first = 0
        if spec == "late":
            first = round(0.6 * n_layers) if late_from is None else late_from
            if not 0 <= first < n_layers:
                raise SteerlensError(
                    f"model.late_from={first} is not one of the layers 0 to {n_layers - 1}."
                )
        return list(range(first, n_layers))
    if numbers[-1] >= n_layers:
        raise SteerlensError(
            f"layer {numbers[-1]} doesn't exist; the model has layers 0 to {n_layers - 1}."
        )
    return numbers


def layers_told(layers: Iterable[int], nearest_to: int) -> str:
    """Return `layers` in words, with those next to `nearest_to`, which isn't among them."""
    layers = sorted(layers)
    beside = [
        *[layer for layer in layers if layer < nearest_to][-1:],
        *[layer for layer in layers if layer > nearest_to][:1],
    ]
    nearest = f"; nearest: {' and '.join(map(str, beside))}" if len(layers) > 2 else ""
    return ", ".join(map(str, layers)) + nearest


def parse_dtype(dtype: str, device_type: str, device_map: Any = None) -> str:
    """Return the name of the weights' dtype: `auto` is float32 on the CPU alone, else bfloat16.

    Args:
        dtype: the setting, `auto` or a name.
        device_type: cpu, cuda or another of torch's.
        device_map: the setting; anything but None puts parts on other devices.
    """
    if dtype != "auto":
        return dtype
    return "float32" if device_type == "cpu" and device_map is None else "bfloat16"


def parse_ids(value: Any, d_sae: int | None = None, where: str = "features.ids") -> list[int]:
    """Return feature ids in the given order: integers, each once, below `d_sae` if that is
    known.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        if not _is_integer(value):
            raise SteerlensError(
                f"{where} must be a list of integers, as in '{where}=[1,2,3]', not {value!r}."
            )
        value = [value]
    ids = list(value)
    if not ids:
        raise SteerlensError(f"{where} is empty; name at least one feature.")
    for number in ids:
        if not _is_integer(number):
            raise SteerlensError(f"{where}: {number!r} is not an integer.")
        if number < 0 or (d_sae is not None and number >= d_sae):
            valid = "count from 0" if d_sae is None else f"are 0 to {d_sae - 1}"
            raise SteerlensError(
                f"{where}: there is no feature {number}; the SAE's features {valid}."
            )
    _refuse_duplicates(where, ids)
    return [int(number) for number in ids]


def parse_shard(value: str | None) -> tuple[int, int]:
    """Return (i, n) from `i/n`; (0, 1), everything, if there is none."""
    if value is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", value)
    if match is None:
        raise SteerlensError(f"shard={value} is no part; write shard=0/4 for the first of four.")
    index, of = int(match[1]), int(match[2])
    if index >= of:
        valid = f"0/{of} to {of - 1}/{of}" if of else "0/1, 0/2, 1/2, ..."
        raise SteerlensError(f"shard={value} is out of range; shards are {valid}.")
    return index, of


def parse_concept(value: Any) -> list[str]:
    """Return the names of one concept: a word or a phrase, or several for the same."""
    values = value if isinstance(value, list | tuple) else [value]
    names = [str(name).strip() for name in values if name is not None]
    is_text = all(isinstance(name, str | int | float) for name in values if name is not None)
    if not names or not is_text or not all(re.search(r"\w", name) for name in names):
        raise SteerlensError(f"concept={value!r} names nothing; write concept=WORD.")
    return list(dict.fromkeys(names))


def parse_words(value: Any, key: str = "coverage.words") -> list[str]:
    """Return the words of the setting `key`, a list or a file with a word a line; [] for null."""
    if value is None:
        return []
    form = f"write '{key}=[network,date]', or name a file with a word a line"
    where = key
    if isinstance(value, str):
        where = f"{key}={value}"
        try:
            value = read_text(Path(value)).split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise SteerlensError(f"{where} can't be read ({reason}); {form}.") from error
        value = [line for line in value if line.strip()]
    if not isinstance(value, list | tuple):
        raise SteerlensError(f"{where}={value!r} is no list of words; {form}.")
    if not value:
        raise SteerlensError(f"{where} has no word; {form}.")
    for word in value:
        if not isinstance(word, str):
            raise SteerlensError(f"{where}: {word!r} is no text; {form}.")
        if not re.search(r"\w", word):
            raise SteerlensError(f"{where}: {word!r} is no word; {form}.")
    words = [word.strip() for word in value]
    _refuse_duplicates(where, [word.lower() for word in words])
    return words


def parse_memory(value: Any) -> int:
    """Return bytes: an integer, or a text such as `2GiB` or `512 MB`."""
    if _is_integer(value):
        size = int(value)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?b)\s*", str(value).lower())
        if match is None:
            raise SteerlensError(f"memory_budget={value} is no amount of memory; write 2GiB, say.")
        size = int(float(match[1]) * UNITS[match[2]])
    if size < 2**20:
        raise SteerlensError(f"memory_budget={value} is less than 1 MiB; write 2GiB, say.")
    return size


def parse_feature_file(path: str | Path, d_sae: int | None = None) -> dict[int, list[int]]:
    """Return the features of each layer from a JSON file `{"layer": [ids]}`."""
    form = 'expected {"layer": [ids]}, for example {"3": [0, 17]}'
    try:
        content = parse_json(read_text(Path(path)), object_pairs_hook=_unique_keys)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SteerlensError(f"features.file={path} can't be read ({reason}).") from error
    except ValueError as error:
        raise SteerlensError(
            f"features.file={path} is not valid JSON ({error}); {form}."
        ) from error
    if not isinstance(content, dict) or not content:
        raise SteerlensError(f"features.file={path} has another form; {form}.")
    features = {}
    for key, ids in content.items():
        if not re.fullmatch(r"0|[1-9]\d*", key):
            raise SteerlensError(f"features.file={path}: {key!r} is not a layer; {form}.")
        if not isinstance(ids, list):
            raise SteerlensError(f"features.file={path}: layer {key} has no list of ids; {form}.")
        features[int(key)] = parse_ids(ids, d_sae, where=f"features.file={path}, layer {key}")
    return dict(sorted(features.items()))


def parse_scores(score: Any) -> dict[str, ScoreConfig]:
    """Return the settings of every scoring method to run, by name.

    `score` is one method's settings (they have a `method`), or several by name.
    """
    if isinstance(score, ScoreConfig):
        return {score.method: score}
    if not isinstance(score, Mapping) or not score:
        raise SteerlensError("score names no method; `steerlens list scores` shows them.")
    if "method" in score:
        settings = _method_settings(score)
        return {settings.method: settings}
    configs: dict[str, ScoreConfig] = {}
    for name, settings in score.items():
        if isinstance(settings, Mapping) and "method" in settings:
            settings = _method_settings(settings)
        if not isinstance(settings, ScoreConfig):
            methods = [key for key, value in score.items() if isinstance(value, ScoreConfig)]
            raise unknown("scoring method under score", str(name), [*configs, *methods])
        configs[str(name)] = settings
    return configs


def _method_settings(settings: Mapping[Any, Any]) -> ScoreConfig:
    """Return settings that came without a schema, as the method's own `Config`."""
    kind = load_part("scores", str(settings["method"])).Config
    names = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in names:
            raise unknown(f"setting of score {settings['method']}", str(key), names)
    return kind(**{str(key): value for key, value in settings.items()})


def _is_integer(value: Any) -> bool:
    # Integral includes numpy's integers, and Python's bool.
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refuse_duplicates(where: str, values: Iterable[Any]) -> None:
    values_seen = set()
    for value in values:
        if value in values_seen:
            raise SteerlensError(f"{where}: {value} is there twice.")
        values_seen.add(value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; Python would quietly keep only the last of two equal keys."""
    _refuse_duplicates("features.file", [key for key, _ in pairs])
    return dict(pairs)
