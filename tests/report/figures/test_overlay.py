"""Several results in the same figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steerlens.analysis.series import Series
from steerlens.report.figures import overlay, style
from steerlens.results.folder import RunTables
from tests.support.drawing import coarse
from tests.support.frames import frame
from tests.support.steering import steering


def series(n: int) -> list[Series]:
    return [
        Series(f"$n={i}$ [red]\x1b[31m", [str(i)], RunTables(frame(), steering=steering()))
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [2, 7, pytest.param(30, marks=pytest.mark.slow)])
def test_every_result_is_drawn_and_named(n: int) -> None:
    with style.look():
        for draw in (overlay.by_layer, overlay.distributions, overlay.by_threshold):
            figure = draw(series(n))
            assert figure is not None
            labels = [text.get_text() for text in figure.legends[0].get_texts()]
            assert len(labels) == n
            assert labels[0] == "$n=0$ [red]\\x1b[31m"
            lines = [np.asarray(line.get_xdata()) for line in figure.axes[0].get_lines()]
            assert sum(line.size > 2 for line in lines) == n


def test_medians_are_those_of_the_layers() -> None:
    with style.look():
        figure = overlay.by_layer(series(2))
        assert figure is not None
        drawn = figure.axes[1].get_lines()[0].get_ydata()
    medians = frame().groupby("layer")["output_score"].median().to_numpy(dtype=float)
    assert np.asarray(drawn).tolist() == pytest.approx(medians.tolist())


def test_each_model_has_panels_of_its_own() -> None:
    both = [*series(1), Series("other", [], RunTables(frame(model="another")))]
    with style.look():
        figure = overlay.by_layer(both)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes[:2]] == ["toy", "another"]


def test_what_nobody_has_is_not_drawn(tmp_path: Path) -> None:
    empty = Series("empty", [], RunTables(frame(output_score=None, input_score=None)))
    assert overlay.draw_overlay([empty, empty], tmp_path) == {}
    only_output = Series("one", [], RunTables(frame(input_score=None)))
    drawn = overlay.draw_overlay([only_output, empty], tmp_path)
    assert set(drawn) == {"scores_by_layer", "score_distributions"}


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    with coarse():
        for folder in ("a", "b"):
            overlay.draw_overlay(series(2), tmp_path / folder)
    for file in (tmp_path / "a" / "figures").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "figures" / file.name).read_bytes()
