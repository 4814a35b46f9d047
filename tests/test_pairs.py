from __future__ import annotations

from itertools import combinations, product

from tests.support.pairs import pairs, some_slow


def test_every_two_values_meet_in_fewer_cases() -> None:
    values = [range(6), "abcdefg", [True, False], [0.3, 10.0]]
    cases = pairs(*values)
    for (i, first), (j, second) in combinations(enumerate(values), 2):
        assert {(case[i], case[j]) for case in cases} == set(product(first, second))
    assert len(cases) < 6 * 7 * 2 * 2 / 3
    assert cases == pairs(*values)


def test_every_value_is_in_a_case_that_is_not_slow() -> None:
    kinds, sites = "abcdef", [1, 2, 3]
    cases = some_slow(product(kinds, sites))
    assert len(cases) == 18
    slow = [case for case in cases if hasattr(case, "marks")]
    often = [case for case in cases if case not in slow]
    assert len(often) == 6
    assert {kind for kind, _ in often} == set(kinds)
    assert {site for _, site in often} == set(sites)
    assert {mark.name for case in slow for mark in case.marks} == {"slow"}
    assert {*often, *(case.values for case in slow)} == set(product(kinds, sites))
