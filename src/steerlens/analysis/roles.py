"""What features are for, by their two scores, and texts that show it.

The paper (Section 5) calls a feature an input feature, an output feature or a hybrid by which of
S_in and S_out is at least 0.1. Its Figure 2, Figure 7 and Tables 2-4 show texts steered by such
features; `examples` finds ours. Features are chosen by their scores and prompts by their order,
never by how the texts turned out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.analysis.summary import HYBRID
from steerlens.results import FEATURES, features_alone
from steerlens.results.table import number_or_none
from steerlens.results.text import safe_range

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("input", "output", "hybrid", "neither")

TOP_K = 20
"""A generated token is a success if it is among the feature's first 20 logit-lens tokens (Eq. 7).
"""

Span = tuple[int, int]
"""Start and end of a part of a text."""


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt, and which parts of it are success tokens."""

    factor: float
    text: str
    successes: tuple[Span, ...]


@dataclass(frozen=True)
class Passage:
    """Continuations of one prompt: the unsteered one (factor 0), then from weak to strong."""

    prompt: str
    continuations: tuple[Continuation, ...]


@dataclass(frozen=True)
class SteeredExample:
    """A feature with texts that it steered; what wasn't measured is None."""

    layer: int
    feature: int
    input_score: float | None
    output_score: float | None
    best_factor: float | None
    success: float | None
    """Mean success@20 at the best factor."""
    perplexity: float | None
    """Mean perplexity at the best factor."""
    tokens: tuple[str, ...]
    """Logit-lens tokens, best first."""
    passages: tuple[Passage, ...]
    undecided: bool = False
    """Whether the best factor is only the smallest, as none has any success."""
    safe_range: str = "-"
    """The tried factors around the best one that the rule allows."""


def with_roles(steering: pd.DataFrame) -> pd.DataFrame:
    """Return the features that have both scores (controls left out) with their `role` and `margin`.

    The margin says how clear the role is: the high score less the low one, the lower score of a
    hybrid, and minus the higher score of a feature that is neither.
    """
    scored = steering["input_score"].notna() & steering["output_score"].notna()
    with_scores = features_alone(steering.loc[scored])
    score_in, score_out = (
        with_scores[name].to_numpy(dtype=float) for name in ("input_score", "output_score")
    )
    high_in, high_out = score_in >= HYBRID, score_out >= HYBRID
    cases = [high_in & high_out, high_in, high_out]
    margins = [np.minimum(score_in, score_out), score_in - score_out, score_out - score_in]
    return with_scores.assign(
        role=np.select(cases, ["hybrid", "input", "output"], "neither"),
        margin=np.select(cases, margins, -np.maximum(score_in, score_out)),
    )


def examples(
    steering: pd.DataFrame, generations: pd.DataFrame, role: str, n: int = 3, prompts: int = 1
) -> list[SteeredExample]:
    """Return the `n` clearest features of `role` that have texts, each with its first `prompts`
    prompts.

    Every prompt has the unsteered text, one of weak and one of strong steering: weak is the best
    factor, or the smallest if there is no best one below the largest; strong is the largest.
    """
    of_role = with_roles(steering)
    of_role = of_role.loc[of_role["role"] == role]
    clearest = of_role.sort_values(["margin", "layer", "feature"], ascending=[False, True, True])
    return _with_texts(clearest, generations, n, prompts, weak_and_strong)


def best_steered(
    steering: pd.DataFrame, generations: pd.DataFrame, n: int = 10, prompts: int = 3
) -> list[SteeredExample]:
    """Return the `n` features with the highest success@20, with texts at their best factor."""
    steered = features_alone(steering).dropna(subset="success_20")
    best = steered.sort_values(["success_20", "layer", "feature"], ascending=[False, True, True])

    def only_best(factors: Iterable[float], best_factor: float | None) -> list[float]:
        return [factor for factor in factors if factor == best_factor]

    return _with_texts(best, generations, n, prompts, only_best)


def weak_and_strong(factors: Iterable[float], best_factor: float | None) -> list[float]:
    """Return a weak and a strong one of the positive `factors`; one or none if there are no
    more.
    """
    positive = sorted(factor for factor in factors if factor > 0)
    if not positive:
        return []
    smallest, largest = positive[0], positive[-1]
    below = best_factor is not None and best_factor in positive and best_factor < largest
    return list(dict.fromkeys([best_factor if below and best_factor else smallest, largest]))


def success_tokens(token_ids: Any, lens_ids: Any, lens_tokens: Any) -> list[str]:
    """Return the generated tokens that are logit-lens tokens, as texts, in the order of the text.

    None where a table lacks what this needs.
    """
    if not all(isinstance(ids, Sequence) for ids in (token_ids, lens_ids, lens_tokens)):
        return []
    text_of = dict(zip(lens_ids[:TOP_K], lens_tokens[:TOP_K], strict=False))
    return [text_of[token] for token in token_ids if token in text_of]


def success_spans(text: str, tokens: Iterable[str]) -> tuple[Span, ...]:
    """Return where the success tokens `tokens`, given in their order, stand in `text`.

    The tables hold no positions and no tokenizer, so tokens are aligned by their texts: of all
    ways to find them in this order, the one that finds most, and of these the one in which most
    are whole words, so that a generated ` in` isn't marked in ` into` while ` in` follows. A token
    whose text isn't in `text` as it is (part of a character) stays unmarked.
    """
    # Where the next token may start -> (found, whole words, spans) of the best way to get there.
    # The earliest whole and the earliest other place are enough: a later one never allows more.
    ways: dict[int, tuple[int, int, tuple[Span, ...]]] = {0: (0, 0, ())}
    for token in tokens:
        visible = token if token in text else token.strip()  # some tokenizers drop a leading space
        if not visible:
            continue
        extended = dict(ways)
        for start, (n_tokens, n_whole, spans) in ways.items():
            for end, is_whole in _places(text, visible, start):
                way = (n_tokens + 1, n_whole + is_whole, (*spans, end))
                if end[1] not in extended or way[:2] > extended[end[1]][:2]:
                    extended[end[1]] = way
        ways = extended
    return max(ways.values(), key=lambda way: way[:2])[2]


def _places(text: str, token: str, start: int) -> list[tuple[Span, bool]]:
    """Return the first place of `token` as a whole word, and the first of all, with whether it
    is one.
    """
    before = r"\b" if re.match(r"\w", token) else ""
    after = r"\b" if re.search(r"\w\Z", token) else ""
    match = re.compile(before + re.escape(token) + after).search(text, start)
    first = text.find(token, start)
    places = [(match.span(), True)] if match else []
    if first >= 0 and not (match and match.start() == first):
        places.append(((first, first + len(token)), False))
    return places


def _with_texts(
    rows: pd.DataFrame,
    generations: pd.DataFrame,
    n: int,
    prompts: int,
    choose: Callable[[Iterable[float], float | None], list[float]],
) -> list[SteeredExample]:
    keys = list(FEATURES.keys)
    of_features = features_alone(generations).dropna(subset="text")
    to_read = of_features.loc[(of_features["text"] != "").astype(bool)]
    chosen = rows.merge(to_read[keys].drop_duplicates(), on=keys).head(n)
    texts = dict(iter(of_features.merge(chosen[keys], on=keys).groupby(keys, sort=False)))
    return [
        _example(row, texts[tuple(row[key] for key in keys)], prompts, choose)
        for row in chosen.to_dict("records")
    ]


def _example(
    row: dict[Any, Any],
    texts: pd.DataFrame,
    prompts: int,
    choose: Callable[[Iterable[float], float | None], list[float]],
) -> SteeredExample:
    tokens, ids = row["logit_lens_tokens"], row["logit_lens_token_ids"]
    best_factor = number_or_none(row["best_factor"])
    factors = [0.0, *choose(texts["factor"].unique().tolist(), best_factor)]
    first = texts.sort_values("sample", kind="stable").drop_duplicates(["prompt", "factor"])
    by_place = {(text["prompt"], text["factor"]): text for text in first.to_dict("records")}

    def continuation(text: dict[Any, Any]) -> Continuation:
        matches = success_tokens(text["token_ids"], ids, tokens)
        return Continuation(text["factor"], text["text"], success_spans(text["text"], matches))

    passages = [
        Passage(
            prompt,
            tuple(
                continuation(by_place[prompt, factor])
                for factor in factors
                if (prompt, factor) in by_place
            ),
        )
        for prompt in texts["prompt"].drop_duplicates().tolist()[:prompts]
    ]
    return SteeredExample(
        layer=row["layer"],
        feature=row["feature"],
        input_score=number_or_none(row["input_score"]),
        output_score=number_or_none(row["output_score"]),
        best_factor=best_factor,
        success=number_or_none(row["success_20"]),
        perplexity=number_or_none(row["perplexity"]),
        tokens=tuple(tokens) if isinstance(tokens, Sequence) else (),
        passages=tuple(passages),
        undecided=bool(row["undecided"] is True),
        safe_range=safe_range(row),
    )


def factor_cell(example: SteeredExample) -> str:
    """Return the best factor as tables and figures show it, with a word where it is undecided."""
    if example.best_factor is None:
        return "-"
    return f"{example.best_factor:g}{' (undecided)' if example.undecided else ''}"
