"""The page's part on scores: all features with their numbers, by layer, and what selecting buys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steerlens.analysis.payoff import first_selective
from steerlens.analysis.ranking import ranking
from steerlens.analysis.steering_summary import curve_rows
from steerlens.report.page.contents import (
    FeatureTable,
    LayerScores,
    NumberColumn,
    ThresholdPoint,
    plain,
)
from steerlens.results import FEATURES, SCORES, Score
from steerlens.results.folder import RunTables
from steerlens.results.text import visible, visible_token

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 200
"""Characters of a label or a token that are shown in the table."""

PROMOTED = 10
"""Promoted tokens of every feature; its card has all that the table has."""


def feature_table(tables: RunTables, lens: str | None = None) -> FeatureTable | None:
    """All features with their numbers and promoted tokens; None where there is no feature.

    Args:
        tables: of the run.
        lens: the run's, where it isn't the logit lens.
    """
    frame = tables.features
    if not len(frame):
        return None
    by = ranking(frame)
    names = [name for name in (by, *SCORES, *_other_numbers(frame)) if name]
    filled = [name for name in dict.fromkeys(names) if name in frame and _is_filled(frame[name])]
    tokens, promoted = _promoted(frame)
    steered = set(map(tuple, tables.steering[["layer", "feature"]].to_numpy().tolist()))
    keys = list(zip(frame["layer"].tolist(), frame["feature"].tolist(), strict=True))
    has_labels = "label" in frame and _is_filled(frame["label"])
    return FeatureTable(
        layer=unsigned(frame["layer"].to_numpy()),
        feature=unsigned(frame["feature"].to_numpy()),
        numbers=[_number_column(frame, name) for name in filled],
        tokens=tokens,
        promoted=promoted,
        n_promoted=PROMOTED,
        labels=[
            _cut(visible(label)) if isinstance(label, str) else None
            for label in frame["label"].tolist()
        ]
        if has_labels
        else None,
        steered=unsigned([row for row, key in enumerate(keys) if key in steered]),
        lens=lens,
    )


def unsigned(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """Give whole numbers from 0 on in 16 bits each, or in 32 where they need them."""
    array_N = np.asarray(values, dtype=np.uint32)
    return array_N.astype(np.uint16) if array_N.max(initial=0) < 2**16 else array_N


def _other_numbers(frame: pd.DataFrame) -> list[str]:
    """Numbers of other people's methods."""
    return [
        str(name)
        for name in frame.columns
        if name not in FEATURES.columns and getattr(frame[name].dtype, "kind", "") in "iuf"
    ]


def _is_filled(column: Any) -> bool:
    return bool(column.notna().any())


def _number_column(frame: pd.DataFrame, name: str) -> NumberColumn:
    score = SCORES.get(name) or Score(visible(name), visible(name))
    value_N = frame[name].to_numpy(dtype=float, na_value=np.nan)
    value_N = np.where(np.isfinite(value_N), value_N, np.nan)
    with np.errstate(over="ignore", under="ignore"):
        single_N = value_N.astype(np.float32)
    # An id or a count is a whole number to its last digit, a score isn't.
    tolerance = 0.0 if frame[name].dtype.kind in "iu" else 1e-6
    is_same = np.allclose(single_N, value_N, rtol=tolerance, atol=0, equal_nan=True)
    return NumberColumn(name, score.title, score.meaning, single_N if is_same else value_N)


class EncodedTokens(NamedTuple):
    """A column of lists of tokens, each different token once."""

    visible_tokens: Sequence[str]
    """The different tokens, as they are shown."""
    index: np.ndarray
    """(all tokens of all rows,), indices into `visible_tokens`"""
    starts: np.ndarray
    """(rows,), where each row's tokens start in `index`"""
    ends: np.ndarray
    """(rows,), where they end; a null has none."""


def encode_tokens(column: Any) -> EncodedTokens:
    """Give the tokens of `column` with each different one looked at once."""
    tokens = pa.array(column, pa.list_(pa.string()))
    array = pa.concat_arrays(tokens.chunks) if isinstance(tokens, pa.ChunkedArray) else tokens
    encoded = array.flatten().dictionary_encode()
    visible_tokens = [visible_token(token) for token in encoded.dictionary.to_pylist()]
    lengths = pc.call_function("list_value_length", [array]).fill_null(0).to_numpy(False)
    ends = np.cumsum(lengths, dtype=np.int64)
    return EncodedTokens(visible_tokens, encoded.indices.to_numpy(), ends - lengths, ends)


def _promoted(frame: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Give the different promoted tokens, and of every feature the first as indices into them."""
    visible_tokens, index, starts, ends = encode_tokens(frame["logit_lens_tokens"])
    at_NP = starts[:, None] + np.arange(PROMOTED)
    is_there_NP = at_NP < ends[:, None]
    # Numbered in the order in which features have them.
    first = index[at_NP[is_there_NP]]
    different, position, inverse = np.unique(first, return_index=True, return_inverse=True)
    order = np.argsort(position)
    promoted_NP = np.full(at_NP.shape, len(different))
    promoted_NP[is_there_NP] = np.argsort(order)[inverse]
    return [_cut(visible_tokens[int(token)]) for token in different[order]], unsigned(
        promoted_NP.ravel()
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def layer_scores(tables: RunTables) -> list[LayerScores]:
    """Every score by layer, with that of random directions as `null`."""
    columns = {
        "output_score": (tables.features, "output_score"),
        "null": (tables.null_scores, "output_score"),
        "input_score": (tables.features, "input_score"),
    }
    return [
        scores
        for name, (frame, column) in columns.items()
        if len(frame) and column in frame
        for scores in _by_layer(frame, column, name)
    ]


def _by_layer(frame: pd.DataFrame, column: str, name: str) -> Iterator[LayerScores]:
    numbers = frame.loc[frame[column].notna(), ["layer", column]]
    layer_N = numbers["layer"].to_numpy()
    score_N = numbers[column].to_numpy(dtype=float)
    for layer in np.unique(layer_N).tolist():
        values = score_N[layer_N == layer]
        statistics = (values.mean(), np.quantile(values, 0.9), (values >= 0.01).mean())
        mean, p90, at_least_001 = (float(f"{value:.4g}") for value in statistics)
        at_least_01 = float(f"{(values >= 0.1).mean():.4g}")
        yield LayerScores(layer, name, len(values), mean, p90, at_least_001, at_least_01)


def threshold_points(steering: Mapping[str, Any] | None) -> Sequence[ThresholdPoint]:
    """Success and payoff by threshold, from where a threshold leaves something out."""
    if not steering:
        return []
    rows = curve_rows(steering)
    first = first_selective([row["selected"] for row in rows])
    names = ThresholdPoint.__dataclass_fields__
    return [
        ThresholdPoint(**{name: plain(row.get(name)) for name in names})  # type: ignore[arg-type]
        for row in rows[first:]
        if row["selected"]
    ]
