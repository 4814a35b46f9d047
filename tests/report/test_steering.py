from __future__ import annotations

import re

import numpy as np
import pandas as pd

from steerlens.analysis.roles import Continuation, examples
from steerlens.analysis.steering_summary import COMPARED, steering_summary
from steerlens.report.steering import (
    best_steered_table,
    criteria_table,
    curve_table,
    marked,
    payoff_table,
    pmi_part,
    pmi_summary,
    pmi_table,
    role_table,
)
from steerlens.results.folder import RunTables
from steerlens.results.pmi import Pmi
from tests.support.frames import NASTY, frame, generations, of_every_role
from tests.support.markdown import plain
from tests.support.steering import steering


def found_pmi(values: list[float]) -> Pmi:
    n = len(values)
    pairs = {
        "model": "m",
        "sae": "s",
        "hook_name": "h",
        "layer": 3,
        "feature": range(n),
        "role": "hybrid",
        "token": [f"word{i}" for i in range(n)],
        "top_token": "_top_",
        "times": 1234,
        "together": 5,
        "pmi": values,
    }
    return Pmi(pd.DataFrame(pairs), windows=10, dropped={})


def cells(table: str | None) -> list[list[str]]:
    """The rows of a table without its header, as a reader sees them."""
    assert table is not None
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[plain(cell).strip() for cell in row] for row in rows]


def test_tables_of_roles_have_a_row_for_every_text() -> None:
    features, texts = of_every_role()
    for role in ("input", "output", "hybrid"):
        found = examples(features, texts, role, 2, 3)
        rows = cells(role_table(features, texts, role, 2, 3))
        assert len(rows) == 2 * 3 * 3
        assert [row[:2] for row in rows[::9]] == [[str(e.layer), str(e.feature)] for e in found]
        assert [row[6] for row in rows[:3]] == ["0", "2", "8"]


def test_the_payoff_is_shown_pooled_within_layers_and_by_layer() -> None:
    summary = steering_summary(RunTables(frame(), generations(), steering()), (0.01, 0.9))
    assert summary is not None
    rows = cells(payoff_table(summary))
    layers = ["all", "within layers", "0", "1", "2", "3"]
    assert [row[:2] for row in rows] == [[t, layer] for t in ("0.01", "0.9") for layer in layers]
    found = summary["payoff"]["0.01"]
    for row, ratio in zip(rows, ("over_unfiltered", "over_unfiltered_within_layers"), strict=False):
        value, low, high = (found[ratio][key] for key in ("value", "low", "high"))
        assert row[-1] == f"{value:.2f} ({low:.2f} to {high:.2f})"
    # Of a few features of a layer there is no interval, of none nothing.
    few = [row for row in rows[8:] if 0 < int(row[2].split()[0]) < 8]
    assert few
    assert all("to" not in row[-1] and "to" not in row[3] for row in few)
    curve = cells(curve_table(summary))
    assert curve[-1][0] == "0.9"
    assert len(curve) == len([one for one in summary["threshold_curve"] if one["selected"]])
    shown = cells(criteria_table(summary["criteria"]))
    within = summary["criteria"]["scores"][0]["highest"][COMPARED]["over_unfiltered_within_layers"]
    assert shown[0][-1].startswith(f"{within['value']:.2f} (")
    nothing = RunTables(frame(), generations(), steering(best_factor=None, success_20=None))
    summary = steering_summary(nothing, (0.01,))
    assert summary is not None
    assert payoff_table(summary) is curve_table(summary) is None


def test_success_tokens_are_bold_and_all_is_escaped() -> None:
    text = Continuation(1.0, "a <b>|* the\nsea\x1b[0m", ((7, 11), (12, 15)))
    shown = marked(text)
    assert "\x1b" not in shown
    assert "|" not in shown
    assert set(re.findall(r"<[^>]*>", shown)) == {"<strong>", "</strong>"}
    assert plain(shown) == ("a <b>|*<strong> the</strong>\\n<strong>sea</strong>\\x1b[0m")
    assert marked(Continuation(1.0, "", ())) == ""


def test_nasty_texts_and_prompts_cannot_break_the_tables() -> None:
    features, texts = of_every_role(logit_lens_token_ids=[list(range(len(NASTY)))] * 8)
    texts = texts.assign(prompt="a | \n`b` <i>", text="".join(NASTY))
    for table in (role_table(features, texts, "hybrid"), best_steered_table(features, texts)):
        assert table is not None
        assert table.replace("\n", "").isprintable()
        assert {line.count("|") for line in table.splitlines()} == {
            table.splitlines()[0].count("|")
        }
        tags = set(re.findall(r"<[^>]*>", table))
        assert tags <= {"<strong>", "</strong>", "<br>"}
        assert not re.search(r"(?<!\\)`", table)


def test_the_best_steered_features_stand_beside_unsteered_texts() -> None:
    features, texts = of_every_role(success_20=[0.5, 2.0, 1.0, None] * 2, best_factor=2.0)
    rows = cells(best_steered_table(features, texts, n=3, prompts=2))
    assert [row[:2] for row in rows] == [["0", "1"], ["1", "1"], ["0", "2"]]
    assert rows[0][2:8] == ["0.00", "0.9000", "2", "-", "2.00", "30"]
    ranged = features.assign(safe_factor_low=0.5, safe_factor_high=[8.0, 4.0, 0.5, 2.0] * 2)
    assert [row[5] for row in cells(best_steered_table(ranged, texts, n=3))] == [
        *("0.5 to 4", "0.5 to 4", "0.5")
    ]
    for row in rows:
        assert all(cell.count("<br>") == 1 and "Note that …" in cell for cell in row[-2:])


def test_pairs_with_the_highest_and_the_lowest_pmi_are_shown() -> None:
    found = found_pmi(np.linspace(3, -3, 7).tolist())
    rows = cells(pmi_table(found, n=2))
    assert [row[-1] for row in rows] == ["3.00", "2.00", "-2.00", "-3.00"]
    assert rows[0] == ["hybrid", "3", "0", "word0", "_top_", "1,234", "5", "3.00"]
    assert len(cells(pmi_table(found, n=5))) == 7
    assert "_top_" not in str(pmi_table(found))


def test_pmi_is_summarised_by_role() -> None:
    values = [1.0, 2.0, 3.0] * 3
    rows = cells(pmi_summary(found_pmi(values)))
    assert rows[0][:7] == ["hybrid", "9", "9", "1.00", "2.00", "3.00", "2.00"]
    low, _, high = rows[0][7].split()
    assert float(low) < 2 < float(high)
    assert cells(pmi_summary(found_pmi(values[:7])))[0][7] == "-"


def test_tables_without_rows_are_none() -> None:
    features, texts = of_every_role(input_score=None, success_20=None)
    assert role_table(features, texts, "input") is None
    assert best_steered_table(features, texts) is None
    empty = Pmi(found_pmi([1.0]).pairs.head(0), windows=0, dropped={})
    assert pmi_table(empty) is None
    assert pmi_summary(empty) is None
    assert pmi_part(empty) is None
    assert pmi_part(None) is None


def test_what_pmi_leaves_out_is_told_even_if_that_is_all() -> None:
    dropped = {"no word": 1200, "same word": 0, "rare word": 2}
    part = pmi_part(Pmi(found_pmi([1.0]).pairs.head(0), windows=1000, dropped=dropped))
    assert part is not None
    assert part.endswith("in 1,000 windows of the corpus. Left out: 1,200 no word, 2 rare word.")
    part = pmi_part(found_pmi([1.0]))
    assert part is not None
    assert "Left out" not in part
    assert part.count("| --- ") == 8 + 8
