"""What is said of how far two tables of features agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steerlens.analysis.agreement import CLOSE, Agreement
from steerlens.analysis.ratings import JudgesAgreement
from steerlens.results.text import markdown, markdown_table, visible, with_interval


def judges_lines(by_aspect: Mapping[str, JudgesAgreement]) -> list[str]:
    """Return how far two judges agree, a sentence for each aspect."""
    sentences = []
    for aspect, agreement in by_aspect.items():
        measures = [
            f"{name} {with_interval(*estimate)}"
            for name, estimate in (
                ("equal ratings", agreement.exact),
                ("weighted kappa", agreement.kappa),
                ("Spearman", agreement.spearman),
            )
            if estimate and estimate.low is not None
        ]
        sentences.append(
            f"The judges on {aspect}: {', '.join(measures) or 'nothing can be said'}; "
            f"{agreement.texts:,} texts that both have rated."
        )
    return sentences


def agreement_lines(agreements: Sequence[Agreement]) -> list[str]:
    """Return a sentence for each score."""
    return [_sentence(agreement) for agreement in agreements]


def _sentence(agreement: Agreement) -> str:
    n = f"{agreement.features:,} feature{'s' * (agreement.features != 1)}"
    if not agreement.largest:
        return f"{agreement.score}: equal in all {n}."
    correlation = _spearman(agreement)
    worst = agreement.largest[0]
    return (
        f"{agreement.score}: {n} in both, {correlation}{agreement.close:.1%} within {CLOSE:g}, "
        f"median difference {agreement.median_difference:.2g}, largest "
        f"{abs(worst.value - worst.other_value):.3g} (layer {worst.layer}, "
        f"feature {worst.feature}: {_exact(worst.value)} and {_exact(worst.other_value)})."
    )


def _exact(value: float) -> str:
    """Give a rank or a count, of which neighbours differ by 1, to its last digit."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def _spearman(agreement: Agreement) -> str:
    if agreement.spearman is None:
        return ""
    return f"Spearman {with_interval(*agreement.spearman, spec='.4f', is_named=True)}, "


def agreement_table(agreements: Sequence[Agreement], names: Sequence[str]) -> str | None:
    """Return the largest differences between the two sides of these names, in Markdown. None where
    there are none.
    """
    rows = [
        [
            markdown(visible(agreement.score)),
            *(str(number) for number in (worst.layer, worst.feature)),
            *(_exact(number) for number in (worst.value, worst.other_value)),
            f"{abs(worst.value - worst.other_value):.3g}",
        ]
        for agreement in agreements
        for worst in agreement.largest
    ]
    header = ["score", "layer", "feature", *names, "difference"]
    return markdown_table(header, rows) if rows else None
