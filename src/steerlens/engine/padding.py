"""How many rows a batch is computed as, so that no row's numbers depend on the rows beside it.

Which rows share a batch changes with batch size, sharding, and what a cache has already; their
numbers must not, to the last bit. Libraries of matrix products compute the last rows of a batch in
another order of additions than the others, and numbers at the end of a vector by another `exp`. On
a CPU that goes by remainders: with a multiple of 4 rows every row has the same bits, in whatever
place and among however many (float32 and bfloat16, 1 and 2 threads; whether it is so on a machine,
`tests/runs/test_same_bits.py` looks). So batches are padded to a multiple of `ROWS`. A GPU's
library may choose another product for every number of rows: there a batch is always padded to its
full size.
"""

from __future__ import annotations

import math

import torch

ROWS = 16


def padded(n: int, full: int, device: torch.device, length: int = 1) -> int:
    """Return how many rows `n` of them are computed as, where a full batch has `full`.

    With `length` positions each, all of which are a matrix product's rows, fewer do.
    """
    if device.type != "cpu":
        return max(n, full)
    return next_multiple(n, ROWS // math.gcd(ROWS, length))


def next_multiple(n: int, of: int) -> int:
    """Return the least multiple of `of` that isn't less than `n`."""
    return -(-n // of) * of


def with_rows(x: torch.Tensor, n: int) -> torch.Tensor:
    """Return `x` with `n` rows: its own, then its first one again."""
    if len(x) == n:
        return x
    return torch.cat([x, x[:1].expand(n - len(x), *x.shape[1:])])


def rows_at_once(bytes_at_once: int, bytes_per_row: int) -> int:
    """Return the number of rows that fit in `bytes_at_once`, at least 1: a power of two, so that
    a padded batch is cut into parts of that many rows or of a multiple of `ROWS`.
    """
    return 1 << (max(1, bytes_at_once // bytes_per_row).bit_length() - 1)
