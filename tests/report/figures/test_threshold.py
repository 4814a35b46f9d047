from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.payoff import threshold_curve
from steerlens.report.figures import STEERING_FIGURES, draw_steering, style
from steerlens.report.figures.style import look
from steerlens.report.figures.threshold import MOST, by_criterion, by_threshold
from tests.support.drawing import coarse, undrawn
from tests.support.pairs import some_slow
from tests.support.steering import steering


def no_success(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(success_20=0.0)


def equal_scores(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=0.5)


def half_null(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=table["output_score"].where(table["feature"] % 2 == 0))


def many_methods(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{f"$method {i}_$": np.arange(len(table)) % (i + 2) for i in range(9)})


def features_only(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[table["control"].isna()]


@pytest.mark.parametrize(
    ("layers", "change"),
    some_slow(
        product(
            [(5,), (0, 1, 2, 3)],
            [no_success, equal_scores, half_null, many_methods, features_only],
        )
    ),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_kind_of_table_can_be_drawn(
    layers: tuple[int, ...], change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    table = change(steering(layers, 8))
    for draw in STEERING_FIGURES.values():
        with look():
            figure = draw(table)
            assert figure is not None
            figure.draw_without_rendering()


def test_the_curve_is_drawn_as_it_was_computed() -> None:
    table = steering()
    figure = by_threshold(table)
    assert figure is not None
    top, middle, bottom = figure.axes
    points = [point for point in threshold_curve(table) if point.success]
    thresholds = [point.threshold for point in points]
    np.testing.assert_array_equal(top.lines[0].get_xdata(), thresholds)
    success = [point.success.value for point in points if point.success]
    np.testing.assert_array_equal(top.lines[0].get_ydata(), success)
    counts = {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in bottom.lines}
    assert counts["selected"] == [point.selected for point in points]
    assert counts["left out: no best factor"] == [point.without_factor for point in points]
    assert top.get_xscale() == "log"
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in top.lines}
    at_random = [point.random_within_layers.mean for point in points if point.random_within_layers]
    np.testing.assert_array_equal(drawn["as many of each layer"], at_random)
    times = {str(line.get_label()): np.asarray(line.get_ydata()) for line in middle.lines}
    within = [point.over_unfiltered_within_layers for point in points]
    np.testing.assert_array_equal(
        times["beside as many of each layer"], [one.value for one in within if one]
    )
    assert (times["beside all"][1:] > times["beside as many of each layer"][1:]).all()


def test_of_one_layer_nothing_is_drawn_within_layers() -> None:
    figure = by_threshold(steering([5], 40))
    assert figure is not None
    labels = [str(line.get_label()) for axes in figure.axes for line in axes.lines]
    assert "beside all" in labels
    assert not any("each layer" in label for label in labels)


def test_a_criterion_that_works_reversed_is_drawn_both_ways() -> None:
    figure = by_criterion(steering(n=60))
    assert figure is not None
    labels = [str(line.get_label()) for line in figure.axes[0].lines]
    assert "input score, lowest first" in labels
    assert "output score, lowest first" not in labels
    assert any(label.startswith("output score (rank correlation 0.") for label in labels)


def test_of_many_criteria_the_best_have_colours_and_the_others_are_grey() -> None:
    rng, table = np.random.default_rng(0), steering((0,), 80)
    names = ("mean_logit", "gradient", "f1", "max_activation", "effect_stability", "mine")
    success = rng.random(len(table))
    table = table.assign(success_20=success, output_score=success)
    table = table.assign(**{name: rng.random(len(table)) for name in names})
    figure = by_criterion(table)
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[2].startswith("output score (rank correlation 1.00)")  # after what is no score
    assert re.fullmatch(r"\d+ others", labels[-1])
    grey = [line for line in figure.axes[0].lines if line.get_color() == style.GREY]
    assert labels[-1] == f"{len(grey)} others"
    assert len(labels) == 2 + MOST + 1


def test_late_layers_are_drawn_once_more_by_themselves(tmp_path: Path) -> None:
    table = steering(range(4), 8)
    with coarse():
        both = draw_steering(table, tmp_path / "both", late_from=2)
        late = draw_steering(table.loc[table["layer"] >= 2], tmp_path / "late")
    names = {*STEERING_FIGURES, *(f"{name}_late_layers" for name in STEERING_FIGURES)}
    assert set(both) == names
    files = {path.name for path in (tmp_path / "both" / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    alone, again = late["success_by_threshold"][0], both["success_by_threshold_late_layers"][0]
    assert alone.read_bytes() == again.read_bytes()
    with undrawn():
        for late_from in (None, 0, 9):  # unknown, all late, none late
            assert set(draw_steering(table, tmp_path, late_from)) == {*STEERING_FIGURES}


def test_without_best_factors_there_is_no_figure_and_no_folder(tmp_path: Path) -> None:
    assert draw_steering(steering(best_factor=None, success_20=None), tmp_path) == {}
    assert draw_steering(steering().head(0), tmp_path, late_from=2) == {}
    assert list(tmp_path.iterdir()) == []
