"""Figures about words that features steer toward: which features do, and at which factor."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from steerlens.analysis.factors import by_factor
from steerlens.analysis.toward import best_toward
from steerlens.report.figures import style
from steerlens.report.figures.output_score import subtitle
from steerlens.results import features_alone

if TYPE_CHECKING:
    import pandas as pd

MOST_WORDS = 6
LEAST_SCORE = 1e-5
"""Lower scores are drawn here."""
HARDLY = 0.01
"""Below this output score a feature hardly steers (the paper's threshold)."""
RING: dict[str, Any] = {"s": 90, "facecolor": "none", "lw": 1.6, "zorder": 3}
ALLOWED: dict[str, Any] = {"lw": 7, "alpha": 0.25, "marker": "o", "markersize": 7, "mew": 0}
COLORS = (style.RED, style.BLUE, style.GREEN, style.ORANGE, style.MUTED)


def by_steering_factor(steering: pd.DataFrame, generations: pd.DataFrame) -> Figure | None:
    """Return tokens of the word a text, and perplexity, of every feature at every factor, word
    by word.
    """
    words = steering["concept"].dropna().drop_duplicates().tolist()
    drawn_words = words[:MOST_WORDS]
    if not drawn_words:
        return None
    figure = style.new_figure(max(2.9 * len(drawn_words), 5.0), 5.4)
    axes = figure.subplots(2, len(drawn_words), squeeze=False, sharex=True, sharey="row")
    drawn: list[Any] = [
        best_toward(steering.loc[(steering["concept"] == word).fillna(value=False)])[: len(COLORS)]
        for word in drawn_words
    ]
    texts_of = [generations.loc[_are_of(generations, rows)] for rows in drawn]
    for column, (word, rows, texts) in enumerate(zip(drawn_words, drawn, texts_of, strict=True)):
        _word(axes[:, column], rows, texts)
        axes[0, column].set_title(word, parse_math=False)
        axes[1, column].set_xlabel("steering factor")
    axes[0, 0].set_ylabel("tokens of the word a text")
    axes[1, 0].set(ylabel="perplexity", yscale="log")
    axes[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes[1, 0].yaxis, axes[1, 0].xaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    rows = steering.loc[[at for of_word in drawn for at in of_word.index]]
    parts = [subtitle(rows), style.n_of([sum(map(len, texts_of))], "text")]
    if len(words) > len(drawn_words):
        parts.insert(0, f"the first {len(drawn_words)} of {len(words):,} words")
    how = "means over prompts; dashed: unsteered; ring: the factor that is chosen"
    if "safe_factor_low" in rows and rows["safe_factor_low"].notna().any():
        how += "; broad: those around it that the rule allows"
    style.headline(figure, "Steering toward a word, by factor", style.SEPARATOR.join(parts), how)
    return figure


def _are_of(generations: pd.DataFrame, rows: Any) -> list[bool]:
    """Say which texts are of the features in `rows` alone, steered toward the word of each."""
    names = ["layer", "feature", "concept"]
    of_rows = set(rows[names].itertuples(index=False, name=None))
    alone = generations.index.isin(features_alone(generations).index)
    keys = generations[names].itertuples(index=False, name=None)
    return [bool(is_alone) and key in of_rows for is_alone, key in zip(alone, keys, strict=True)]


def _word(axes: np.ndarray, rows: pd.DataFrame, texts: pd.DataFrame) -> None:
    means = by_factor(texts)
    of_features = list(zip(rows.to_dict("records"), COLORS, strict=False))
    for row, color in reversed(of_features):  # the best above the others
        of_feature = means.loc[
            (means["layer"] == row["layer"]) & (means["feature"] == row["feature"])
        ]
        steered = of_feature.loc[of_feature["factor"] > 0]
        label = f"layer {row['layer']}, feature {row['feature']}"
        for panel, name in zip(axes, ("concept_success", "perplexity"), strict=True):
            values = steered[name].to_numpy(dtype=float)
            panel.plot(steered["factor"], values, "o-", color=color, label=label)
            chosen = steered.loc[steered["factor"] == row["best_factor"], name]
            at = [row["best_factor"]] * len(chosen)
            factors = steered["factor"].to_numpy(dtype=float)
            # Between which factors the rule allows all that were tried, if any.
            ends = [row.get(f"safe_factor_{end}") for end in ("low", "high")]
            low, high = ends if all(isinstance(end, float) for end in ends) else (nan, nan)
            allowed = (factors >= low) & (factors <= high)
            panel.plot(factors[allowed], values[allowed], color=color, **ALLOWED)
            panel.scatter(at, chosen.to_numpy(dtype=float), edgecolor=color, **RING)
            without = of_feature.loc[of_feature["factor"] == 0, name].to_numpy(dtype=float)
            panel.axhline(float(without.mean()), color=color, lw=1, ls="--", alpha=0.6)
    axes[0].set_xscale("log")
    factors = sorted({factor for factor in means["factor"].tolist() if factor > 0})
    axes[0].set_xticks(factors[:: max(1, len(factors) // 6)])
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[::-1], labels[::-1], loc="upper left", fontsize=8)


def score_by_layer(features: pd.DataFrame) -> Figure | None:
    """Return the output score toward the concept of every candidate, by layer."""
    scored = features.loc[features["concept_score"].notna()]
    if scored.empty:
        return None
    scores = scored["concept_score"].to_numpy(dtype=float).clip(LEAST_SCORE)
    layers = scored["layer"].to_numpy(dtype=int)
    figure = style.new_figure(6.4, 4.2)
    axes = figure.subplots()
    beside = np.random.default_rng(0).uniform(-0.2, 0.2, len(scores))
    axes.scatter(layers + beside, scores, s=22, color=style.BLUE, alpha=0.6, lw=0)
    axes.axhline(HARDLY, color=style.MUTED, lw=1, ls="--", label="below: hardly steers")
    best = scored.sort_values("concept_score", ascending=False).iloc[0]
    at = int(np.argmax(scores))
    point = (layers[at] + beside[at], scores[at])
    text: dict[str, Any] = {"textcoords": "offset points", "ha": "right"}
    axes.annotate(f"feature {best['feature']}", point, (-6, 4), **text)
    ticks = np.unique(layers)
    axes.set_xticks(ticks)
    axes.set(yscale="log", xlabel="layer", ylabel="output score toward the concept")
    axes.set(xlim=(ticks.min() - 0.8, ticks.max() + 0.8), ylim=(LEAST_SCORE / 2, 2))
    style.legend_above(axes)
    how = "a point each, beside each other at random"
    style.headline(figure, "Candidates for the concept", subtitle(scored), how)
    return figure
