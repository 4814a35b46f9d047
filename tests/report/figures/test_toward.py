"""The figure of words by factor: what is allowed is broad, and what is told is what is drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from steerlens.report.figures.style import look
from steerlens.report.figures.toward import ALLOWED, MOST_WORDS, by_steering_factor
from tests.support.frames import generations
from tests.support.steering import steering


def test_the_factors_that_the_rule_allows_are_drawn_broad() -> None:
    texts = generations(1, (0.0, 0.5, 2.0, 8.0), layers=(0,), concept="sun")
    chosen = {"concept": "sun", "best_factor": 2.0}
    for columns, drawn in (
        ({"safe_factor_low": 0.5, "safe_factor_high": 2.0}, [0.5, 2.0]),
        ({"safe_factor_low": 2.0, "safe_factor_high": 2.0}, [2.0]),
        ({}, []),
    ):
        rows = steering((0,), 1, **chosen, **columns)
        with look():
            figure = by_steering_factor(rows, texts.assign(concept_success=texts["success_20"]))
        assert figure is not None
        for axes in figure.axes:
            broad = [line for line in axes.lines if line.get_linewidth() == ALLOWED["lw"]]
            assert [np.asarray(line.get_xdata()).tolist() for line in broad] == [drawn]


def test_the_headline_counts_what_is_drawn_and_the_best_is_named_first() -> None:
    texts_of, rows_of = [], []
    for at in range(MOST_WORDS + 1):
        texts = generations(2, (0.0, 2.0), prompts=("p",), layers=(at,), concept=f"w{at}")
        texts_of.append(texts.assign(concept_success=texts["success_20"]))
        success = {
            "concept_success": [1.0, 3.0, 9.0, 9.0],  # and controls
            "concept_success_unsteered": 0.0,
        }
        rows_of.append(steering((at,), 2, concept=f"w{at}", best_factor=2.0, **success))
    with look():
        figure = by_steering_factor(pd.concat(rows_of, ignore_index=True), pd.concat(texts_of))
    assert figure is not None
    told = figure.texts[1].get_text()
    assert f"the first {MOST_WORDS} of {MOST_WORDS + 1} words" in told
    assert f"{2 * MOST_WORDS} features" in told
    assert f"{4 * MOST_WORDS} texts" in told
    assert "broad" not in told
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text()[-1] for text in legend.get_texts()] == ["1", "0"]
