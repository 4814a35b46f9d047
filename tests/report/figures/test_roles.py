from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from steerlens.analysis.roles import Continuation, Passage, SteeredExample
from steerlens.report.figures.roles import (
    CHAR,
    COLUMNS,
    LEFT,
    draw_hybrids,
    draw_input_and_output,
    draw_pmi,
    pmi_by_role,
    shown_cells,
    steered_texts,
    wrap,
)
from steerlens.report.figures.style import look
from steerlens.results.pmi import Pmi
from tests.support.frames import NASTY, found_pmi, of_every_role


@pytest.mark.slow
def test_figures_of_texts_and_pmi_are_written_the_same_each_time(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that the font lacks is only a warning
        for folder in (tmp_path / "a", tmp_path / "b"):
            paths = [
                *draw_input_and_output(*of_every_role(), folder),
                *draw_hybrids(*of_every_role(), folder),
                *draw_pmi(found_pmi(), folder),
            ]
            assert [path.suffix for path in paths] == [".png", ".pdf"] * 3
    for path in paths:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_without_such_features_there_is_no_figure_and_no_folder(tmp_path: Path) -> None:
    nothing = of_every_role(input_score=None)
    empty = Pmi(found_pmi().pairs.head(0), windows=0, dropped={})
    assert draw_input_and_output(*nothing, tmp_path / "f") == []
    assert draw_hybrids(*nothing, tmp_path / "f") == []
    assert draw_pmi(empty, tmp_path / "f") == []
    assert list(tmp_path.iterdir()) == []


def test_a_character_takes_its_place_whatever_it_is() -> None:
    nasty = "".join(NASTY) + "日本\u05d0\U0001f600e\u0301 fine\u00e9"
    shown = "".join(part for part, _ in shown_cells(nasty, []))
    assert shown.isprintable()
    assert "\\u65e5\\u672c\\u05d0" in shown
    assert shown.endswith("e\\u0301 fine\u00e9")
    figure = texts_figure("".join(["$x_1$ \\alpha", nasty]), ())
    with look():
        figure.draw_without_rendering()


def test_cells_know_the_success_token_that_they_belong_to() -> None:
    cells = shown_cells("a the\nb", [(1, 5), (5, 6)])
    assert cells == [("a", None), *((char, 0) for char in " the"), ("\\n", 1), ("b", None)]


@pytest.mark.parametrize("width", [1, 5, 12, 1000])
def test_lines_hold_the_text_and_break_at_spaces(width: int) -> None:
    text = "in the beginning was\n a verylongwordindeed and so on  "
    lines = ["".join(part for part, _ in line) for line in wrap(shown_cells(text), width)]
    assert "".join(lines) == text.replace("\n", "\\n")
    assert all(len(line) <= max(width, 2) for line in lines)
    for line, following in itertools.pairwise(lines):
        assert line.endswith(" ") or " " not in line
        assert len(line) + len(following.split(" ")[0]) >= width or line.endswith(" ")
    assert list(wrap([], width)) == []


def texts_figure(text: str, successes: tuple[tuple[int, int], ...]) -> Figure:
    passage = Passage("Note $that", (Continuation(0.0, text, successes),))
    example = SteeredExample(1, 2, 0.5, None, None, None, None, ("\n", " a"), (passage,))
    with look():
        figure = steered_texts({"a feature": example}, "title", "a $b_c$ model")
    assert figure is not None
    return figure


def test_a_mark_lies_behind_its_token() -> None:
    text = "word " * 30 + "the sea"
    start = text.index("sea")
    figure = texts_figure(text, ((start, start + 3),))
    marks = [artist for artist in figure.get_children() if isinstance(artist, Rectangle)]
    marks = [mark for mark in marks if mark is not figure.patch]
    shown = [one for one in figure.texts if one.get_text() == "sea"]
    assert len(marks) == len(shown) == 1
    x, y = shown[0].get_position()
    assert marks[0].get_x() == pytest.approx(x, abs=0.01)
    assert marks[0].get_y() < y < marks[0].get_y() + marks[0].get_height()
    assert marks[0].get_width() == pytest.approx(3 * CHAR, abs=0.02)
    column = (x - LEFT) / CHAR
    assert column == pytest.approx(round(column))
    assert column < COLUMNS


def test_tokens_and_scores_are_written_above_the_texts() -> None:
    texts = [one.get_text() for one in texts_figure("", ()).texts]
    heading = "a feature: layer 1, feature 2   S_in 0.50   S_out -   best factor -"
    assert heading in texts
    assert "\\n ␣a" in texts
    how = "the clearest are shown; success tokens are marked"
    assert f"a $b_c$ model  ·  {how}" in texts


def test_every_group_is_drawn_with_its_numbers() -> None:
    found = found_pmi()
    with look():
        figure = pmi_by_role(found)
        assert figure is not None
        figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    assert [label[0] for label in labels] == ["input", "hybrid", "neither"]
    strips = [one for one in axes.collections if isinstance(one, PathCollection)]
    for (role, pairs, features), points in zip(labels, strips, strict=True):
        rows = found.pairs.query(f"role == '{role}'")
        assert pairs == f"{len(rows)} pairs"
        assert features == f"{rows['feature'].nunique()} features"
        drawn = np.asarray(points.get_offsets())[:, 1]
        np.testing.assert_allclose(drawn, rows["pmi"].to_numpy(float))
    assert "7 pairs left out" in figure.texts[1].get_text().replace("\n", " ")
