from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.resampling import Estimate
from steerlens.errors import SteerlensError
from steerlens.report.figures import (
    BESIDE_NULL,
    FIGURES,
    draw_all,
    input_output,
    output_score,
    rated,
)
from steerlens.report.figures.rated import Curve, References
from steerlens.report.figures.style import INK, headline, look, new_figure, short_labels
from steerlens.results import FEATURES, WORDS
from steerlens.results.folder import RunTables
from tests.support.drawing import coarse
from tests.support.frames import frame, null_scores
from tests.support.pairs import some_slow

LAYERS = ((20,), (3, 20), tuple(range(8)), tuple(range(42)))


def zeros(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=0.0)


def equal(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=0.5)


def ones(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=1.0)


def half_null(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=table["output_score"].where(table["feature"] % 2 == 0))


def half_zero(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(output_score=table["output_score"].where(table["feature"] % 2 == 0, 0.0))


@pytest.mark.parametrize(
    ("layers", "change"),
    some_slow(product(LAYERS, [zeros, equal, ones, half_null, half_zero])),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_kind_of_table_can_be_drawn(
    layers: tuple[int, ...], change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    table = change(frame(layers, 3))
    for name, draw in FIGURES.items():
        with look():
            figure = draw(table)
            assert (figure is None) == (len(layers) == 1 and name.endswith("by_layer"))
            if figure is not None:
                figure.draw_without_rendering()


@pytest.mark.slow
def test_figures_are_written_as_png_and_pdf_the_same_each_time(tmp_path: Path) -> None:
    first = draw_all(RunTables(frame()), tmp_path / "a")
    assert set(first) == set(FIGURES)
    names = {path.name for path in (tmp_path / "a" / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    png = first["output_score_by_layer"][0].read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") > 900  # pixels wide
    second = draw_all(RunTables(frame()), tmp_path / "b")
    for name, paths in first.items():
        for path, other in zip(paths, second[name], strict=True):
            assert path.read_bytes() == other.read_bytes()


def test_a_table_without_scores_gives_no_figure_and_no_folder(tmp_path: Path) -> None:
    table = FEATURES.frame(
        {"model": "m", "sae": "s", "hook_name": "h", "layer": 0, "feature": [1, 2]}
    )
    assert draw_all(RunTables(table), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with coarse():
        draw_all(RunTables(frame()), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_a_median_of_every_layer_stands_at_its_layer() -> None:
    table = frame([2, 5, 9], 11)
    figure = output_score.by_layer(table)
    assert figure is not None
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median")
    expected = table.groupby("layer")["output_score"].median()
    np.testing.assert_array_equal(median.get_xdata(), expected.index)
    np.testing.assert_allclose(np.asarray(median.get_ydata(), float), expected.to_numpy(float))


def test_shares_above_the_thresholds_are_drawn_and_told() -> None:
    table = frame([0, 1], 4, output_score=[0.0, 0.05, 0.2, 0.009] * 2)
    figure = output_score.by_layer(table)
    assert figure is not None
    shares = [float(np.asarray(line.get_ydata())[0]) for line in figure.axes[1].lines]
    assert shares == [0.5, 0.25]
    figure = output_score.distribution(table)
    assert figure is not None
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert [str(label).split()[0] for label in labels] == ["50.0%", "25.0%"]


@pytest.mark.parametrize(
    ("layers", "change"),
    some_slow(product(LAYERS[:3], [zeros, ones, half_zero])),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_random_directions_can_be_drawn_beside_every_kind_of_table(
    layers: tuple[int, ...], change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    for null in (null_scores(layers, 5), null_scores(layers, 5, output_score=0.0)):
        for name, draw in BESIDE_NULL.items():
            with look():
                figure = draw(change(frame(layers, 3)), null=null)
                assert (figure is None) == (len(layers) == 1 and name.endswith("by_layer"))
                if figure is not None:
                    figure.draw_without_rendering()


def test_where_medians_are_zero_means_and_90th_percentiles_are_drawn() -> None:
    table = frame([2, 5, 9], 10, input_score=[0.0] * 7 + [0.2, 0.4, 0.9] + [0.0] * 20)
    figure = input_output.by_layer(table)
    assert figure is not None
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["mean (the median is 0)"], [0.15, 0, 0])
    np.testing.assert_allclose(lines["90th percentile"], [0.45, 0, 0])


def test_random_directions_are_drawn_in_the_distribution_as_shares() -> None:
    null = null_scores([0], 4, output_score=[0.5, 0.5, 0.001, 0.5])
    figure = output_score.distribution(frame([0], 3), null)
    assert figure is not None
    (line,) = [line for line in figure.axes[1].lines if line.get_label() == "random directions"]
    share = np.interp(0.1, np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
    assert share == 0.75


def test_an_axis_of_scores_begins_where_scores_are() -> None:
    scores = [0.0, *np.geomspace(1e-4, 1, 999)]
    figure = output_score.distribution(frame([0], 1000, output_score=scores))
    assert figure is not None
    assert figure.axes[0].get_xlim()[0] == pytest.approx(1e-4)
    assert "0.1 % are lower" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["a=1, sae=x", "a=2, sae=y"], ["a=1", "a=2"]),
        (["file=x.parquet, sae=x", "file=y.parquet, sae=y"], ["x", "y"]),
        (["a=1, b=1", "a=1, b=2", "a=2, b=1"], ["a=1, b=1", "a=1, b=2", "a=2, b=1"]),
        (["sae=x, a=1", "this run"], ["sae=x, a=1", "this run"]),
        (["sae=x"], ["x"]),
    ],
)
def test_labels_say_in_what_results_differ(labels: list[str], short: list[str]) -> None:
    assert short_labels(labels) == short


def test_a_subtitle_breaks_between_its_parts() -> None:
    with look():
        figure = new_figure(4, 4)
        headline(figure, "title", "a" * 30, "  ·  ".join(["b" * 30, "c" * 10]))
    assert figure.texts[1].get_text().split("\n") == ["a" * 30, "b" * 30 + "  ·  " + "c" * 10]


def test_a_method_has_one_colour_in_all_figures() -> None:
    level = [Estimate(0.5, None, None)]
    curves = [Curve(name, [], level) for name in ("Prompt", "SAE (no filter)", "LAT", "Mine")]
    none = References("", {})
    figures = [
        rated.draw_by_threshold({3: of_figure}, "20 concepts", "mine", none)
        for of_figure in (curves, curves[1:])
    ]
    colors = [
        {line.get_label(): line.get_color() for line in figure.axes[0].lines} for figure in figures
    ]
    for name in ("SAE (no filter)", "LAT"):
        assert colors[0][name] == colors[1][name]
    assert colors[0]["SAE (no filter)"] != colors[0]["Prompt"]


def test_no_method_has_the_colour_of_no_steering() -> None:
    looks = {name: rated._look(name, []) for name in rated.METHODS}
    assert [name for name, look in looks.items() if look["color"] == INK] == ["No steering"]
    assert len({(look["color"], look["marker"], look["dashes"]) for look in looks.values()}) == len(
        looks
    )


def test_published_ratings_are_lines_with_their_names_judge_and_model() -> None:
    curves = [Curve("SAE", [0.5, 1, 2], [Estimate(value, None, None) for value in (0.2, 1, 0.4)])]
    published = References("of a model, by a judge", {"A": 0.9, "B": 0.895, "C": 0.3})
    figure = rated.draw_by_factor({3: curves, 7: curves}, "20 concepts", "mine", published)
    for axes in figure.axes:
        heights = [line.get_ydata() for line in axes.lines if np.size(line.get_xdata()) == 2]
        assert sorted(float(np.asarray(height)[0]) for height in heights) == [0.3, 0.895, 0.9]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
        [],
        ["C 0.30", "B 0.90; A 0.90"],
    ]
    assert "Grey: of a model, by a judge" in " ".join(figure.texts[1].get_text().split())


def test_random_directions_stand_beside_the_features_of_their_layer() -> None:
    table, null = frame([2, 5, 9], 11), null_scores([1, 2, 5])
    figure = output_score.by_layer(table, null)
    assert figure is not None
    top, bottom = figure.axes
    median = next(line for line in top.lines if line.get_label() == "random directions")
    of_layer = null.groupby("layer")["output_score"]
    np.testing.assert_array_equal(median.get_xdata(), [2, 5])  # layer 1 has no features
    expected = of_layer.median().loc[[2, 5]].to_numpy(float)
    np.testing.assert_allclose(np.asarray(median.get_ydata(), float), expected)
    share = bottom.lines[3]  # of the features, random directions, features, random directions
    expected = of_layer.apply(lambda scores: (scores >= 0.1).mean()).loc[[2, 5]].to_numpy(float)
    np.testing.assert_allclose(np.asarray(share.get_ydata(), float), expected)
    without = output_score.by_layer(table, null.head(0))
    assert without is not None
    labels = [str(line.get_label()) for axes in without.axes for line in axes.lines]
    assert not any("random" in label for label in labels)


@pytest.mark.parametrize("words", [[], [{"word": "water", "reason": "no feature"}]])
def test_a_run_with_random_directions_shows_them(tmp_path: Path, words: list[Any]) -> None:
    tables = RunTables(frame(), words=WORDS.frame(words))
    with coarse():
        with_null = draw_all(replace(tables, null_scores=null_scores()), tmp_path / "a")
        without = draw_all(tables, tmp_path / "b")
    assert set(with_null) == set(without) == set(FIGURES)
    changed = {
        name
        for name, paths in with_null.items()
        if paths[0].read_bytes() != without[name][0].read_bytes()
    }
    assert changed == set(BESIDE_NULL)


def test_every_feature_is_in_the_histogram_also_zeros_and_ones() -> None:
    table = frame([0], 5, output_score=[0.0, 1e-15, 1e-6, 0.5, 1.0])
    figure = output_score.distribution(table)
    assert figure is not None
    heights = [patch.get_height() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert sum(heights) == pytest.approx(1)
    assert sorted(heights)[-3:] == pytest.approx([0.2, 0.4, 0.4])


def test_the_headline_says_model_sae_and_number_of_features() -> None:
    table = frame(range(3), 5, model="a $b_c$ model", sae="some sae")
    figure = output_score.by_layer(table)
    assert figure is not None
    texts = [text.get_text() for text in figure.texts]
    assert texts[1].startswith("a $b_c$ model  ·  some sae  ·  3 layers  ·  15 features")
    figure.draw_without_rendering()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "figures").touch()
    with pytest.raises(SteerlensError, match="can't write"):
        draw_all(RunTables(frame()), tmp_path)
