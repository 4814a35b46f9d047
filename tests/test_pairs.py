from __future__ import annotations

from itertools import combinations, product

from tests.support.pairs import pairs


def test_every_two_values_meet_in_fewer_cases() -> None:
    values = [range(6), "abcdefg", [True, False], [0.3, 10.0]]
    cases = pairs(*values)
    for (i, first), (j, second) in combinations(enumerate(values), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(first, second))
    assert len(cases) < 6 * 7 * 2 * 2 / 3
    assert cases == pairs(*values)
