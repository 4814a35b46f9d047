"""Batch sizes from a memory budget, halved when memory runs out all the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from steerlens.engine.padding import ROWS


def rows_that_fit(budget: int, bytes_per_row: int, at_most: int) -> int:
    """Return the number of rows of `bytes_per_row` bytes that fit in `budget` bytes, up to
    `at_most`: a multiple of `ROWS`, and at least that many, since fewer are padded to it.
    """
    fit = min(at_most, budget // max(1, bytes_per_row))
    return max(ROWS, fit // ROWS * ROWS)


def batches(n: int, size: int, run: Callable[[slice, int], None]) -> Iterator[int]:
    """Call `run` on slices that cover `range(n)`, `size` rows at a time, and with that size.

    When a slice runs out of memory, the size is halved and the slice tried again, down to one
    row. Yields the number of rows after each finished slice. Halving keeps results, because `run`
    must not depend on how rows are grouped (see `padding`; on a GPU, but for rounding).
    """
    start = 0
    while start < n:
        stop = min(n, start + size)
        try:
            run(slice(start, stop), size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or stop - start == 1:
                raise
            size = (stop - start + 1) // 2
        else:
            yield stop - start
            start = stop
            continue
        # Outside the handler, so that the failed batch's tensors are no longer referenced.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
