"""The factors that the rule allows are broad in the figure of a word by factor."""

from __future__ import annotations

import numpy as np

from steerlens.report.figures.style import look
from steerlens.report.figures.toward import ALLOWED, by_steering_factor
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
