"""P-values corrected for their number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from steerlens.analysis.resampling import adjusted_p_values


@pytest.mark.parametrize("n", [1, 2, 40, 4096])
def test_p_values_are_adjusted_as_scipy_does(n: int) -> None:
    p_N = np.random.default_rng(n).integers(1, 501, n) / 500  # with ties, as of a null's ranks
    np.testing.assert_array_equal(adjusted_p_values(p_N), false_discovery_control(p_N))


def test_none_are_adjusted_to_none() -> None:
    assert len(adjusted_p_values([])) == 0
