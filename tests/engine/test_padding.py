"""How many rows a batch is computed as."""

from __future__ import annotations

import pytest
import torch

from steerlens.engine.padding import ROWS, next_multiple, padded, rows_at_once, with_rows

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_on_a_cpu_rows_are_padded_to_a_multiple_and_on_a_gpu_to_a_full_batch() -> None:
    assert [padded(n, 512, CPU) for n in (1, 16, 17, 512)] == [16, 16, 32, 512]
    assert [padded(n, 512, GPU) for n in (1, 16, 17, 512)] == [512] * 4


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 12, 16, 40])
def test_positions_of_rows_are_a_multiple_and_no_more_than_needed(length: int) -> None:
    n = padded(1, 512, CPU, length)
    assert n * length % ROWS == 0
    assert all(fewer * length % ROWS for fewer in range(1, n))
    assert padded(n + 1, 512, CPU, length) == 2 * n


def test_added_rows_are_the_first_one_again() -> None:
    x = torch.arange(6).view(3, 2)
    assert with_rows(x, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]]
    assert with_rows(x, 3) is x


def test_a_padded_batch_has_no_part_that_is_not_padded() -> None:
    for bytes_per_row in (1, 3, 50, 70, 1000):
        at_once = rows_at_once(1000, bytes_per_row)
        assert at_once * bytes_per_row <= 1000 or at_once == 1
        assert ROWS % at_once == 0 or at_once % ROWS == 0
    assert rows_at_once(1000, 5000) == 1
    assert next_multiple(0, 4) == 0
