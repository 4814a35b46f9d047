"""Batch sizes from a memory budget, halved when memory runs out all the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch


def rows_that_fit(budget: int, bytes_per_row: int, at_most: int) -> int:
    """Number of rows of `bytes_per_row` bytes that fit in `budget` bytes: 1 to `at_most`."""
    return max(1, min(at_most, budget // max(1, bytes_per_row)))


def batches(n: int, size: int, run: Callable[[slice], None]) -> Iterator[int]:
    """Calls `run` on slices that cover `range(n)`, `size` rows at a time.

    When a slice runs out of memory, the size is halved and the slice tried again, down to one
    row. Yields the number of rows after each finished slice. Halving keeps results, because `run`
    must not depend on how rows are grouped.
    """
    start = 0
    while start < n:
        stop = min(n, start + size)
        try:
            run(slice(start, stop))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or stop - start == 1:
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


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
