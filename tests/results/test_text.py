from __future__ import annotations

import csv
import io
import unicodedata

import numpy as np
import pandas as pd
import pytest

from steerlens.results.text import (
    csv_text,
    interval_of,
    markdown,
    visible,
    visible_token,
    visible_tokens,
    with_interval,
)
from tests.support.frames import NASTY
from tests.support.markdown import rendered


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a b", "a b"),
        ("\n", "\\n"),
        ("\\n", "\\\\n"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eabc", "\\u202eabc"),
        ("\u2028", "\\u2028"),
        ("\u0301", "\\u0301"),
        ("e\u0301", "e\u0301"),
        ("\ud83d", "\\ud83d"),
        ("\U000e0041", "\\U000e0041"),
        ("日本語", "日本語"),
    ],
)
def test_what_cannot_be_seen_is_written_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_every_character_of_unicode_becomes_printable() -> None:
    shown = "".join(visible(chr(code)) for code in range(0x20000))
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def test_a_token_with_a_space_differs_from_one_without() -> None:
    assert (visible_token(" the"), visible_token("the")) == ("␣the", "the")


def test_missing_tokens_are_a_dash_and_an_empty_one_is_quoted() -> None:
    assert [visible_token(None), visible_tokens(None), visible_tokens([])] == ["-", "-", "-"]
    assert visible_token("") == "''"


def test_markdown_shows_tokens_as_they_are_also_in_a_table_cell() -> None:
    signs = np.random.default_rng(0).choice([*"\\`*_{}[]()<>&|~$#!:@\"'-+=.1a b/w\n"], (2000, 6))
    made_up = ["".join(row) for row in signs]
    for token in (*NASTY, "-x", "1. a", "# a", "&amp;", "<b>", "a_b", "__init__", *made_up):
        shown = visible(token)
        for before, after in (("", ""), ("x ", " y"), ("| |\n| --- |\n| ", " |")):
            words = rendered(f"{before}{markdown(shown)}{after}").split()
            assert words == f"{before[-2:].strip('| ')} {shown} {after.strip('| ')}".split()


def test_markdown_can_be_read_as_it_stands() -> None:
    for text in ("output_score_p <= 0.05 (5% by chance)", 'isn\'t S_out: "x", \\n!', "-0.5", "-"):
        assert markdown(text) == text
    assert markdown("a_ *c*") == "a\\_ \\*c\\*"


def test_no_cell_of_csv_is_a_formula_and_numbers_stay() -> None:
    texts = ["=1+2", "+cmd|x", "-x", "@sum", "\tx", "\r=x", "plain", "-3.5e-2", "+7", "'=x", None]
    table = pd.DataFrame({"=name": texts, "n": [-1.5, *range(10)]})
    header, *rows = csv.reader(io.StringIO(csv_text(table), newline=""))
    assert header == ["'=name", "n"]
    assert [row[0] for row in rows] == [
        *("'=1+2", "'+cmd|x", "'-x", "'@sum", "'\tx", "'\n=x", "plain", "-3.5e-2", "+7", "'=x", "")
    ]
    assert rows[0][1] == "-1.5"
    assert csv_text(pd.DataFrame(columns=pd.Index(["a", "b"]))).strip() == "a,b"


def test_a_number_stands_with_its_interval_where_it_has_one() -> None:
    assert with_interval(0.5, 0.4, 0.6) == "0.50 (0.40 to 0.60)"
    named = with_interval(1234.5, 0.44444, 2e4, ".3g", " times", is_named=True)
    assert named == "1.23e+03 times (95 % interval 0.444 to 2e+04)"
    assert with_interval(np.float64(2), None, None, ".3g", " times", is_named=True) == "2 times"
    assert with_interval(2, 1, float("nan")) == "2.00"
    for null in (None, pd.NA, float("nan")):
        assert with_interval(null, 1, 2, unit=" times") == "-"
    row = {"success": 1.5, "success_low": 1, "success_high": 2}
    assert interval_of(row, "success", ".1f") == "1.5 (1.0 to 2.0)"
    assert interval_of(row, "success", ".1f", is_named=True) == "1.5 (95 % interval 1.0 to 2.0)"
