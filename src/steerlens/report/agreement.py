"""What is said of how far two tables of features agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steerlens.analysis.agreement import CLOSE, Agreement
from steerlens.analysis.ratings import JudgesAgreement
from steerlens.results.text import markdown, markdown_table, visible


def judges_lines(found: Mapping[str, JudgesAgreement]) -> list[str]:
    """How far two judges agree, a sentence for each aspect."""
    said = []
    for aspect, one in found.items():
        measures = [
            f"{name} {estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
            for name, estimate in (
                ("equal ratings", one.exact),
                ("weighted kappa", one.kappa),
                ("Spearman", one.spearman),
            )
            if estimate and estimate.low is not None
        ]
        said.append(
            f"The judges on {aspect}: {', '.join(measures) or 'nothing can be said'}; "
            f"{one.texts:,} texts that both have rated."
        )
    return said


def agreement_lines(found: Sequence[Agreement]) -> list[str]:
    """A sentence for each score."""
    return [_sentence(one) for one in found]


def _sentence(one: Agreement) -> str:
    n = f"{one.features:,} feature{'s' * (one.features != 1)}"
    if not one.largest:
        return f"{one.score}: equal in all {n}."
    correlation = _spearman(one)
    worst = one.largest[0]
    return (
        f"{one.score}: {n} in both, {correlation}{one.close:.1%} within {CLOSE:g}, median "
        f"difference {one.median_difference:.2g}, largest {abs(worst.one - worst.other):.3g} "
        f"(layer {worst.layer}, feature {worst.feature}: {worst.one:.4g} and {worst.other:.4g})."
    )


def _spearman(one: Agreement) -> str:
    if one.spearman is None:
        return ""
    value, low, high = one.spearman
    between = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
    return f"Spearman {value:.4f}{between}, "


def agreement_table(found: Sequence[Agreement]) -> str | None:
    """The largest differences, in Markdown. None where there are none."""
    rows = [
        [
            markdown(visible(one.score)),
            *(str(number) for number in (worst.layer, worst.feature)),
            *(f"{number:.4g}" for number in (worst.one, worst.other)),
            f"{abs(worst.one - worst.other):.3g}",
        ]
        for one in found
        for worst in one.largest
    ]
    header = ["score", "layer", "feature", "one", "other", "difference"]
    return markdown_table(header, rows) if rows else None
