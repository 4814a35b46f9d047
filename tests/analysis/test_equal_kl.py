"""Success at the same KL, between the factors that were tried."""

from __future__ import annotations

import numpy as np
import pytest

from steerlens.analysis.equal_kl import success_at_kl
from tests.support.frames import generations


def test_success_lies_on_the_line_between_the_factors_around_the_kl() -> None:
    """Feature 0 reaches a KL of 1 between factors 2 and 8, feature 1 never; in the others one
    factor has it exactly.
    """
    texts = generations(3, (0.0, 2.0, 8.0), ("Note that", "In the"), (4,))
    kl = {0: {0: 0.0, 2: 0.5, 8: 2.5}, 1: {0: 0.0, 2: 0.1, 8: 0.9}, 2: {0: 0.0, 2: 1.0, 8: 3.0}}
    success = {0: 0.0, 2: 1.0, 8: 5.0}
    texts["kl"] = [kl[f][k] for f, k in zip(texts["feature"], texts["factor"], strict=True)]
    sign_N = np.where(texts["prompt"] == "In the", 0.5, -0.5)
    texts["success_20"] = [success[k] for k in texts["factor"]] + sign_N
    at_kl = success_at_kl(texts, 1.0, "success_20").set_index("feature")["outcome"]
    assert at_kl.to_dict() == {0: pytest.approx(1 + 4 * 0.25), 2: pytest.approx(1.0)}
