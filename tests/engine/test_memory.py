"""Batches that follow a memory budget and survive running out of memory."""

from __future__ import annotations

import pytest
import torch

from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.padding import ROWS


def test_rows_are_as_many_as_fit_and_nothing_to_be_padded() -> None:
    assert rows_that_fit(1000, 20, at_most=100) == 48
    assert rows_that_fit(1000, 10, at_most=80) == 80
    assert rows_that_fit(1000, 5000, at_most=50) == ROWS


def test_slices_cover_everything_once_and_in_order() -> None:
    seen: list[int] = []
    told: list[int] = []

    def run(rows: slice, size: int) -> None:
        seen.extend(range(rows.start, rows.stop))
        told.append(size)

    assert list(batches(10, 4, run)) == [4, 4, 2]
    assert seen == list(range(10))
    assert told == [4, 4, 4]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    seen: list[int] = []

    def run(rows: slice, size: int) -> None:
        if rows.stop - rows.start > 3:
            raise error
        seen.extend(range(rows.start, rows.stop))

    assert sum(batches(10, 10, run)) == 10
    assert seen == list(range(10))


def test_one_row_that_does_not_fit_is_an_error() -> None:
    def run(rows: slice, size: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(batches(4, 4, run))


def test_other_errors_are_not_taken_for_memory() -> None:
    def run(rows: slice, size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(batches(4, 4, run))
