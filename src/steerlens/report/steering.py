"""What the report says of steering, in Markdown.

The paper's Tables 2-4 show features of each role with their texts, its Table 5 success tokens
beside the first logit-lens token; the same things are shown here, of our own features and texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from steerlens.analysis.pmi import by_role
from steerlens.analysis.roles import (
    Continuation,
    SteeredExample,
    best_steered,
    examples,
    factor_cell,
)
from steerlens.analysis.steering_summary import (
    COMPARED,
    curve_rows,
    payoff_rows,
)
from steerlens.results.folder import RunTables
from steerlens.results.pmi import Pmi
from steerlens.results.text import (
    interval_of,
    markdown,
    markdown_table,
    number,
    visible,
    visible_token,
    visible_tokens,
    with_interval,
)

if TYPE_CHECKING:
    import pandas as pd

FEATURE = ["layer", "feature", "S_in", "S_out"]

ROLE_TITLES = {"input": "Input features", "output": "Output features", "hybrid": "Hybrid features"}
"""The paper's Tables 2-4."""


def steering_sections(tables: RunTables, summary: Mapping[str, Any]) -> list[str]:
    """Return the report's parts on steering, from the part of `summary.json` on it."""
    steered = (tables.steering, tables.generations)
    titled = {
        "Best steered features": best_steered_table(*steered),
        "What selecting by S_out buys": payoff_table(summary),
        "Success by threshold of S_out": curve_table(summary),
        "What to select features by": criteria_table(summary["criteria"]),
        **{title: role_table(*steered, role) for role, title in ROLE_TITLES.items()},
        "Success tokens and the first logit-lens token": pmi_part(tables.pmi),
    }
    return [
        "## Steering",
        *(part for title, table in titled.items() if table for part in (f"### {title}", table)),
    ]


def payoff_table(summary: Mapping[str, Any]) -> str | None:
    """Return the payoff pooled, beside as many features of each layer, and layer by layer.

    None of nothing.
    """
    rows = [
        [
            f"{row['threshold']:g}",
            row["layer"],
            f"{row['selected']:,} of {row['features']:,}",
            interval_of(row, "success"),
            *(number(row[name], ".2f") for name in ("unfiltered", "random")),
            interval_of(row, "payoff"),
        ]
        for row in payoff_rows(summary)
    ]
    header = ["S_out >=", "layer", "features", "success@20", "of all", "as many at random", "times"]
    return markdown_table(header, rows) if rows else None


def curve_table(summary: Mapping[str, Any]) -> str | None:
    """Return the success of the features above each threshold, and as many at random.

    None of nothing.
    """
    rows = [
        [
            f"{row['threshold']:g}",
            f"{row['selected']:,}",
            f"{row['undecided']:,}",
            interval_of(row, "success"),
            *(
                number(row[name], ".2f")
                for name in ("success_decided", "random", "random_within_layers")
            ),
            *(interval_of(row, name) for name in ("payoff", "payoff_within_layers")),
        ]
        for row in curve_rows(summary)
    ]
    header = ["S_out >=", "features", "undecided", "success@20", "without undecided"]
    header += ["as many at random", "as many of each layer"]
    return markdown_table([*header, "times", "times within layers"], rows) if rows else None


def criteria_table(summary: Mapping[str, Any]) -> str | None:
    """Return every score as a guide to steering: success of the features that it puts first.

    A score that guides the better the lower it is has a second row. None if there is no score.
    """
    header = ["selected by", "features", "rank correlation with success@20"]
    header += [f"success@20 of {share:.0%}" for share in summary["shares"]]
    header.append(f"times within layers, of {summary['shares'][COMPARED]:.0%}")
    rows = []
    for score in summary["scores"]:
        name = markdown(visible(score["score"]))
        start = [f"{score['scored']:,}", _estimate(score["spearman"])]
        for end in ("highest", *(["lowest"] if score["better_reversed"] else [])):
            selected = name if end == "highest" else f"{name}, lowest first"
            within = (score[end][COMPARED] or {}).get("over_unfiltered_within_layers")
            successes = [_estimate(payoff["success"] if payoff else None) for payoff in score[end]]
            rows.append([selected, *start, *successes, _estimate(within)])
    return markdown_table(header, rows) if rows else None


def role_table(
    steering: pd.DataFrame, generations: pd.DataFrame, role: str, n: int = 5, prompts: int = 2
) -> str | None:
    """Return tables 2-4: the clearest features of `role`, unsteered, weakly and strongly steered.

    One row per text, with its success tokens in bold. None if no such feature was steered.
    """
    rows = [
        [
            *_feature(example),
            _tokens(example),
            markdown(visible(passage.prompt)),
            f"{text.factor:g}",
            marked(text),
        ]
        for example in examples(steering, generations, role, n, prompts)
        for passage in example.passages
        for text in passage.continuations
    ]
    header = [*FEATURE, "logit lens", "prompt", "factor", "continuation"]
    return markdown_table(header, rows) if rows else None


def pmi_part(pmi: Pmi | None) -> str | None:
    """Return what was counted, by role, and pairs of Table 5.

    None if there was no pair to count.
    """
    if pmi is None or not (len(pmi.pairs) or any(pmi.dropped.values())):
        return None
    reasons = [f"{n:,} {reason}" for reason, n in pmi.dropped.items() if n]
    left_out = f" Left out: {', '.join(reasons)}." if reasons else ""
    sentence = (
        f"PMI (in bits) of {len(pmi.pairs):,} pairs of a generated success token and the feature's "
        f"first logit-lens token, in {pmi.windows:,} windows of the corpus.{left_out}"
    )
    return "\n\n".join(part for part in (sentence, pmi_summary(pmi), pmi_table(pmi)) if part)


def pmi_table(pmi: Pmi, n: int = 5) -> str | None:
    """Return table 5: for every role the `n` pairs with the highest and the `n` with the lowest
    PMI.
    """
    rows = []
    for role in by_role(pmi.pairs):
        order = ["pmi", "layer", "feature", "token"]
        pairs = pmi.pairs.loc[pmi.pairs["role"] == role]
        pairs = pairs.sort_values(order, ascending=[False, True, True, True]).to_dict("records")
        for pair in [*pairs[:n], *pairs[n:][-n:]]:
            words = [markdown(visible_token(pair[name])) for name in ("token", "top_token")]
            counts = [f"{pair[name]:,}" for name in ("times", "together")]
            feature = [str(pair["layer"]), str(pair["feature"])]
            rows.append([role, *feature, *words, *counts, f"{pair['pmi']:.2f}"])
    header = ["role", "layer", "feature", "success token", "first logit-lens token"]
    header += ["times generated", "windows with both", "PMI (bits)"]
    return markdown_table(header, rows) if rows else None


def pmi_summary(pmi: Pmi) -> str | None:
    """Return the PMI by role: pairs, features, quartiles, the mean and its interval (Figure 8's
    numbers).
    """
    rows = []
    for role, statistics in by_role(pmi.pairs).items():
        numbers = [f"{statistics[name]:.2f}" for name in ("q25", "median", "q75", "mean")]
        interval = statistics["mean_interval"]
        between = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"
        rows.append(
            [role, f"{statistics['pairs']:,}", f"{statistics['features']:,}", *numbers, between]
        )
    header = ["role", "pairs", "features", "PMI q25", "median", "q75", "mean", "95 % interval"]
    return markdown_table(header, rows) if rows else None


def best_steered_table(
    steering: pd.DataFrame, generations: pd.DataFrame, n: int = 20, prompts: int = 3
) -> str | None:
    """Return the features with the highest success@20: their texts at the best factor, beside
    unsteered.

    None if no feature has one.
    """
    rows = [
        [
            *_feature(feature),
            factor_cell(feature),
            feature.safe_range,
            number(feature.success, ".2f"),
            number(feature.perplexity, ".4g"),
            _tokens(feature),
            _beside(feature, steered=False),
            _beside(feature, steered=True),
        ]
        for feature in best_steered(steering, generations, n, prompts)
    ]
    header = [*FEATURE, "best factor", "allowed", "success@20", "perplexity", "logit lens"]
    return markdown_table([*header, "unsteered", "steered"], rows) if rows else None


def marked(text: Continuation) -> str:
    """Return a continuation as Markdown, its success tokens in bold."""
    # HTML, because Markdown's ** makes nothing bold that begins with a space.
    parts, at = [], 0
    for start, end in text.successes:
        parts += [_plain(text.text[at:start]), f"<strong>{_plain(text.text[start:end])}</strong>"]
        at = end
    return "".join([*parts, _plain(text.text[at:])])


def _plain(text: str) -> str:
    return markdown(visible(text))


def _feature(example: SteeredExample) -> list[str]:
    scores = [number(example.input_score, ".2f"), number(example.output_score, ".4f")]
    return [str(example.layer), str(example.feature), *scores]


def _tokens(example: SteeredExample) -> str:
    return markdown(visible_tokens(example.tokens, 8))


def _beside(example: SteeredExample, steered: bool) -> str:
    """Return the prompts with their continuations, one below the other in one cell."""
    texts: Iterable[str] = (
        f"{_plain(passage.prompt)} … {marked(text)}"
        for passage in example.passages
        for text in passage.continuations
        if (text.factor > 0) == steered
    )
    return "<br>".join(texts)


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    return with_interval(**estimate) if estimate else "-"
