"""Which rule should choose the steering factor, on how many texts, and does a feature need a factor
of its own?

All from the texts of one run at all factors, chosen on some prompts and counted on others:

- success at equal damage: each rule with the limit at which it does as much damage (mean KL;
  perplexity over the unsteered one) as the others, beside the same factor for all, and how far
  the texts repeat themselves (degeneracy), which neither damage sees;
- prompts: success of the factors that a rule chooses on 5, 10 and 20 prompts, on all others, as a
  share of the most that the rule allows there, and how many of them it still allows;
- common: one factor, one relative dose or one KL for all features of a layer, chosen by its other
  features, beside a factor of each feature's own, by the merit of the run's rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.factor_rules import (
    DAMAGES,
    LIMIT_OF_RULE,
    SAME_FACTOR,
    AtDamage,
    Common,
    OnPrompts,
    common_to_layers,
    held_out,
    success_at_equal_damage,
)
from steerlens.analysis.resampling import FEWEST, Estimate
from steerlens.analysis.series import Series
from steerlens.analysis.text_grid import text_grid
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import features_alone
from steerlens.results.text import with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_PROMPTS = 2

DAMAGE_TITLES = {
    "kl": "KL from the unsteered model (nats a token)",
    "perplexity_ratio": "perplexity over the unsteered",
}


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return what the rules make of the same texts; of the first result if several.

    Raises:
        SteerlensError: there are no texts, too few prompts, or texts without what rules weigh.
    """
    tables = series[0].tables
    texts: Any = features_alone(tables.generations)
    if texts.empty or tables.choice is None:
        raise SteerlensError("it takes texts of features at several factors: add steer=grid.")
    if texts["prompt"].nunique() < FEWEST_PROMPTS:
        raise SteerlensError("it takes at least two prompts, to choose on one and count on others.")
    for column in ("kl", "relative_dose", "perplexity"):
        if not any(texts[column].notna().tolist()):
            raise SteerlensError(f"it takes texts with {column}, which these don't have.")
    choice = tables.choice
    grid = text_grid(texts, choice.success)
    if np.isnan(grid.success_FKP).all(axis=2).any():
        raise SteerlensError(
            "it takes texts of every feature at the same factors: leave steer.search out."
        )
    n = len(grid.layers_F)
    damage = [*success_at_equal_damage(grid, choice)]
    prompts = [*held_out(grid, choice, list(LIMIT_OF_RULE))]
    common = [*common_to_layers(grid, choice)]
    notes = [f"Only {series[0].label} is looked at."] if len(series) > 1 else []
    if n < FEWEST:
        few = f"{n} feature{'s' * (n != 1)}"
        sentences = [f"{few} can't say which rule chooses better: it takes at least {FEWEST}."]
    else:
        sentences = [
            *_damage_sentences(damage),
            *_prompt_sentences(prompts),
            *_common_sentences(common, choice.rule),
        ]
    rows = {"factors_damage": damage, "factors_prompts": prompts, "factors_common": common}
    return Answer(
        sentences=[*sentences, *notes],
        tables={name: _table(of_table) for name, of_table in rows.items() if of_table},
        figures={"factors": partial(_draw, damage)} if any(row.success for row in damage) else {},
    )


def _table(rows: Sequence[AtDamage | OnPrompts | Common]) -> pd.DataFrame:
    """Return the rows with their estimates as columns of numbers."""
    plain: list[dict[str, Any]] = []
    for row in rows:
        plain.append({})
        for name, value in row._asdict().items():
            is_estimate = value is None or isinstance(value, Estimate)
            plain[-1] |= interval_columns(name, value) if is_estimate else {name: value}
    return pd.DataFrame(plain)


def _damage_sentences(rows: Sequence[AtDamage]) -> list[str]:
    """Say what the rules have at the first level of each damage that most of them reach."""
    sentences = []
    for damage, levels in DAMAGES.items():
        at_level = {
            level: [row for row in rows if (row.damage, row.level) == (damage, level)]
            for level in levels
        }
        reached = {
            level: [row for row in of_level if row.success] for level, of_level in at_level.items()
        }
        most = max(map(len, reached.values()))
        if not most:
            sentences.append(f"No rule reaches a level of {damage} that others do.")
            continue
        level = next(level for level in levels if len(reached[level]) == most)
        ordered = sorted(
            reached[level], key=lambda row: row.success.value if row.success else 0, reverse=True
        )
        numbers = "; ".join(
            f"{row.rule} {with_interval(*row.success) if row.success else '-'}"
            + ("" if row.degeneracy is None else f", degeneracy {row.degeneracy:.2f}")
            for row in ordered
        )
        better = [
            row.rule
            for row in ordered
            if (gain := row.over_same_factor) and gain.low is not None and gain.low > 0
        ]
        compared = [row for row in ordered if row.rule != SAME_FACTOR]
        surely = (
            f"surely more than with the same factor for all: {', '.join(better)}"
            if better
            else f"none of {len(compared)} rules has surely more than the same factor for all"
        )
        title = "a mean KL of {:g} nat" if damage == "kl" else "{:g} times the perplexity"
        sentences.append(f"Success at {title.format(level)}: {numbers}; {surely}.")
    return sentences


def _prompt_sentences(rows: Sequence[OnPrompts]) -> list[str]:
    """Say of every size how well the rules' factors hold on other prompts."""
    sentences = []
    for size in dict.fromkeys(row.prompts for row in rows):
        of_size = [row for row in rows if row.prompts == size]
        numbers = ", ".join(
            f"{row.rule} {row.success.value:.0%}"
            + (f" ({row.still_allowed.value:.0%} still allowed)" if row.still_allowed else "")
            for row in of_size
            if row.success
        )
        n_counted = of_size[0].prompts_counted
        if numbers:
            sentences.append(
                f"Factors chosen on {size} prompts have on {n_counted} others, of the most success "
                f"that the rule allows there: {numbers}."
            )
    return sentences or ["There are too few prompts to choose on 5 and count on others."]


def _common_sentences(rows: Sequence[Common], rule: str) -> list[str]:
    """Say over the layers how far a common value goes; of too few features a layer nothing."""
    enough = [row for row in rows if row.features >= FEWEST and row.merit]
    if not enough:
        return [
            f"No layer has {FEWEST} features or more, so nothing is said of whether one value fits "
            "all of a layer."
        ]
    sentences = []
    for common in dict.fromkeys(row.common for row in enough):
        merits = [row.merit for row in enough if row.common == common and row.merit]
        shares = [merit.value for merit in merits]
        worse = sum(merit.high is not None and merit.high < 1 for merit in merits)
        name = {"factor": "factor", "relative_dose": "relative dose", "kl": "KL"}[common]
        spread = f" ({min(shares):.0%} to {max(shares):.0%})" if len(shares) > 1 else ""
        sentences.append(
            f"One {name} for all features of a layer keeps {np.mean(shares):.0%}{spread} of the "
            f"merit (choice.rule={rule}) of a factor of each feature's own on other prompts; it is "
            f"surely less in {worse} of {len(merits)} layer{'s' * (len(merits) != 1)}."
        )
    return sentences


def _draw(rows: Sequence[AtDamage]) -> Figure:
    """Return success against damage, a panel for each kind, a line for each rule."""
    from steerlens.report.figures import style

    colors = dict(
        zip(
            [SAME_FACTOR, *LIMIT_OF_RULE],
            (style.MUTED, style.BLUE, style.ORANGE, style.GREEN, style.RED),
            strict=True,
        )
    )
    figure = style.new_figure(9.0, 4.2)
    panels = figure.subplots(1, len(DAMAGES), sharey=True)
    for axes, (damage, title) in zip(panels, DAMAGE_TITLES.items(), strict=True):
        levels = list(DAMAGES[damage])
        for at, (rule, color) in enumerate(colors.items()):
            of_rule = {
                row.level: row.success for row in rows if (row.rule, row.damage) == (rule, damage)
            }
            points = [(level, of_rule[level]) for level in levels if of_rule.get(level)]
            if not points:
                continue
            x = np.array([level for level, _ in points]) * (1 + 0.02 * (at - 2))
            y = np.array([success.value for _, success in points if success])
            reach = np.array(
                [
                    [success.value - success.low, success.high - success.value]
                    if success and success.low is not None and success.high is not None
                    else [0.0, 0.0]
                    for _, success in points
                ]
            ).T
            axes.errorbar(x, y, np.maximum(reach, 0), color=color, marker="o", lw=1.4, label=rule)
        axes.set_xscale("log")
        axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.minorticks_off()
        axes.set_xlabel(title)
    panels[0].set_ylabel("success on other prompts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    style.headline(
        figure,
        "Success at equal damage",
        style.n_of([row.features for row in rows], "feature"),
        "means over features on half of the prompts, factors chosen on the other half; 95 % "
        "intervals over features within layers",
    )
    return figure
