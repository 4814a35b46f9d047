"""The ratings that the paper's authors have published, read into one table.

Each of their files holds one aspect of one run: `{"layer_feature": {"scores": [0|1|2|null, ...],
"mean_score": number, "best_steering_factor": number, "responses": [text, ...]}}`, with one score
and one response of the judge for each text. What is null, or differs from what the response or the
other files say, is reported and never filled in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.errors import SteerlensError
from steerlens.judges.items import CONCEPT, FLUENCY, INSTRUCTION, VALUES
from steerlens.judges.parse import parse
from steerlens.results import CONCEPTS, EVALUATING, FEATURES, RATINGS
from steerlens.storage.files import parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

NAMES = {CONCEPT: "concept", INSTRUCTION: "instruct", FLUENCY: "fluency"}
"""By aspect, the authors' word for it in a file's name."""
KEYS = ["layer", "feature", "text"]


class Published(NamedTuple):
    """Published ratings."""

    table: pd.DataFrame
    """A row per text, with `layer`, `feature`, `text` (its number), `factor`, and a column per
    aspect whose file is there: 0, 1, 2 or null."""
    aspects: tuple[str, ...]
    absent: tuple[str, ...]
    """Aspects whose file isn't there."""
    findings: list[str]
    """What is wrong with the files, a sentence each."""
    files: tuple[Path, ...] = ()


def read_published(folder: Path, run: str = "gemma2_9b_it_131") -> Published:
    """Return the ratings of `run` in or below `folder`.

    Raises:
        SteerlensError: no file, no such JSON, or files of different features.
    """
    tables, findings, read = {}, [], []
    for aspect, word in NAMES.items():
        files = sorted(Path(folder).rglob(f"{run}_llm_{word}_score_cache.json"))
        if len(files) > 1:
            raise SteerlensError(f"{files[0]} and {files[1]} have the same name; remove one.")
        if files:
            read.append(files[0])
            tables[aspect], sentences = _read(files[0], aspect)
            findings += sentences
    if not tables:
        name = f"{run}_llm_..._score_cache.json"
        raise SteerlensError(f"there are no ratings of {run} in or below {folder}: {name}.")
    merged: pd.DataFrame | None = None
    for aspect, table in tables.items():
        merged = table if merged is None else _joined(merged, table, aspect, findings)
    assert merged is not None
    present = tuple(tables)
    absent = tuple(aspect for aspect in NAMES if aspect not in tables)
    findings += [f"There is no file of the ratings of {aspect}." for aspect in absent]
    table = merged.loc[:, [*KEYS, "factor", *present]]
    return Published(table, present, absent, findings, tuple(read))


def as_tables(published: Published) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return published ratings in our schema: features, concepts and ratings.

    Each feature stands for a concept of its own, and all texts are at its chosen factor.
    """
    import pandas as pd

    subject = {"model": "gemma-2-9b-it", "sae": "gemma-scope-9b-it-res-131k"}
    texts = published.table
    keys = texts[["layer", "feature"]].drop_duplicates(ignore_index=True)
    keys = keys.assign(concept_id=range(len(keys)))
    where = subject | {"hook_name": "blocks." + keys["layer"].astype(str) + ".hook_resid_post"}
    features = keys.drop(columns="concept_id").assign(**where)
    named = keys.assign(method="SAE", rank=0, **where)
    factors: Any = texts.groupby(["layer", "feature"], as_index=False)["factor"].first()
    concepts = named.merge(factors.rename(columns={"factor": "best_factor"}))
    columns = {aspect: f"llm_{aspect}" for aspect in published.aspects}
    ratings: Any = texts.merge(named, on=["layer", "feature"])
    ratings = ratings.rename(columns=columns)
    ratings = ratings.assign(
        split=EVALUATING,
        judge="published",
        prompt="text " + ratings.pop("text").astype(str),
        sample=0,
        concept=ratings["layer"].astype(str) + "_" + ratings.pop("feature").astype(str),
        factor=ratings["factor"].fillna(0.0),
    )
    for column in columns.values():
        absent = ratings[column].isna()
        ratings[f"{column}_missing"] = pd.Series("null", index=ratings.index).where(absent)
    return FEATURES.frame(features), CONCEPTS.frame(concepts), RATINGS.frame(ratings)


def _joined(
    merged: pd.DataFrame, table: pd.DataFrame, aspect: str, findings: list[str]
) -> pd.DataFrame:
    both = merged.merge(table, on=KEYS, how="outer", suffixes=("", "_other"), indicator=True)
    paired = both["_merge"].to_numpy() == "both"
    alone = int((~paired).sum())
    if alone == len(both):
        raise SteerlensError(f"the ratings of {aspect} are of other features than the others.")
    if alone:
        findings.append(f"{alone:,} texts are not in all files: an aspect of theirs is missing.")
    factors = both.loc[paired, ["factor", "factor_other"]].dropna()
    differ = int(factors["factor"].ne(factors["factor_other"]).sum())
    if differ:
        findings.append(f"{differ:,} texts have another factor in the file of {aspect}.")
    both["factor"] = both["factor"].fillna(both["factor_other"])
    both = both.drop(columns=["factor_other", "_merge"])
    return both.sort_values(KEYS, ignore_index=True)


def _read(file: Path, aspect: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of one file, and what is wrong with it."""
    import pandas as pd

    rows, wrong = [], dict.fromkeys(_WRONG, 0)
    for (layer, feature), entry in _entries(file).items():
        scores, factor = entry["scores"], entry.get("best_steering_factor")
        sound = [_value(score, file) for score in scores]
        ratings = [value for value in sound if value is not None]
        wrong["null"] += len(sound) - len(ratings)
        mean = entry.get("mean_score")
        close = ratings and mean is not None and math.isclose(mean, sum(ratings) / len(ratings))
        wrong["mean"] += mean is not None and not close
        responses = entry.get("responses")
        if isinstance(responses, list) and len(responses) == len(sound):
            read = [parse(str(response)).value for response in responses]
            wrong["response"] += sum(a != b for a, b in zip(read, sound, strict=True))
        rows += [(layer, feature, text, factor, value) for text, value in enumerate(sound)]
    table = pd.DataFrame(rows, columns=[*KEYS, "factor", aspect])
    table[aspect] = table[aspect].astype("Int8")
    table = table.sort_values(KEYS, ignore_index=True)
    return table, [f"{file.name}: {n:,} {_WRONG[problem]}." for problem, n in wrong.items() if n]


_WRONG = {
    "null": "ratings are null",
    "mean": "means aren't those of the ratings",
    "response": "ratings aren't what their response says",
}


def _value(score: Any, file: Path) -> int | None:
    if score is None:
        return None
    if isinstance(score, bool) or score not in VALUES:
        raise SteerlensError(f"{file}: {score!r} is no rating of 0, 1 or 2.")
    return int(score)


def _entries(file: Path) -> Mapping[tuple[int, int], dict[str, Any]]:
    """Return the members of a file by layer and feature; Python would keep only the last of
    equal keys.
    """
    try:
        content = parse_json(read_text(file), object_pairs_hook=_unique_keys)
    except (OSError, ValueError) as error:
        raise SteerlensError(f"{file} is no JSON file that can be read ({error}).") from error
    if not isinstance(content, dict) or not content:
        raise SteerlensError(f"{file} holds no ratings.")
    entries = {}
    for key, entry in content.items():
        match = re.fullmatch(r"(\d+)_(\d+)", key)
        if not match or not isinstance(entry, dict) or not isinstance(entry.get("scores"), list):
            raise SteerlensError(f"{file}: {key!r} isn't layer_feature with a list of scores.")
        entries[int(match[1]), int(match[2])] = entry
    return entries


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is there twice")
    return values
