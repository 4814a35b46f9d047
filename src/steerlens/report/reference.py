"""What is said of a run beside published scores."""

from __future__ import annotations

from steerlens.analysis.agreement import REPRODUCED, agreement, reproduced
from steerlens.report.agreement import agreement_lines, agreement_table
from steerlens.results.folder import RunTables
from steerlens.results.text import markdown, visible


def reference_lines(tables: RunTables) -> list[str]:
    """Return what is wrong with the published files, how far ours agree, and whether that is
    enough.
    """
    theirs = tables.reference
    if theirs is None:
        return []
    lines = [f"Published scores ({theirs.model}): {len(theirs.table):,} listed features."]
    lines += theirs.findings
    if theirs.alone:
        return lines
    agreements = agreement(tables.features, theirs.table)
    if not agreements:
        return [*lines, "No listed feature is among this run's with a score."]
    for agreement_of_score, sentence in zip(agreements, agreement_lines(agreements), strict=True):
        lines.append(sentence)
        is_reproduced, criterion = (
            reproduced(agreement_of_score),
            REPRODUCED.get(agreement_of_score.score),
        )
        if is_reproduced is None or criterion is None:
            continue
        close = f" and {criterion.close:.0%} within 1e-3" if criterion.close else ""
        lines.append(
            f"{agreement_of_score.score} is {'' if is_reproduced else 'not '}reproduced: that "
            f"takes a Spearman correlation of {criterion.spearman:g}{close}; {criterion.why}."
        )
    return lines


def reference_section(tables: RunTables) -> list[str]:
    """Return the same as a part of the report, with the largest differences."""
    lines = reference_lines(tables)
    if not lines or tables.reference is None:
        return []
    parts = [
        "## Beside the published scores",
        "\n".join(f"- {markdown(visible(line))}" for line in lines),
    ]
    if not tables.reference.alone:
        table = agreement_table(
            agreement(tables.features, tables.reference.table), ["this run", "published"]
        )
        parts += [table] if table else []
    return parts
