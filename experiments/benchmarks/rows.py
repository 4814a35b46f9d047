"""Whether a row's bits depend on how many rows a batch has, on this machine.

From the top of the repository:

    python -m experiments.benchmarks.rows --threads 2 --dtype float32

Each operation is done on all rows, and on parts of them of every size asked for, at several places;
printed are the sizes with which some row has other bits. `steerlens.engine.padding` relies on there
being none among the multiples of its `ROWS`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from steerlens.engine.padding import ROWS
from steerlens.steering.metrics.likelihood import LENGTHS

Operation = tuple[str, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]
"""Name, what is done, and rows to do it to."""

WIDTHS = (32, 192, 576, 2304)


def products(n: int, largest: int) -> Iterator[Operation]:
    for K, N in itertools.product((*WIDTHS, 9216, 16384), (32, 211, 576, 2304, 8192)):
        if largest < K * N:
            continue
        weight, bias, x = torch.randn(N, K) / K**0.5, torch.randn(N), torch.randn(n, K)
        yield f"linear {K} x {N}", lambda x, w=weight: F.linear(x, w.to(x)), x
        yield (
            f"linear {K} x {N} with bias",
            lambda x, w=weight, b=bias: F.linear(x, w.to(x), b.to(x)),
            x,
        )


def by_row(n: int) -> Iterator[Operation]:
    for width in WIDTHS:
        x = torch.randn(n, width) * 4
        for name, operation in {
            "gelu": F.gelu,
            "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
            "silu": F.silu,
            "exp": torch.exp,
            "tanh": torch.tanh,
            "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
            "root mean square": lambda x: x * torch.rsqrt(x.float().pow(2).mean(-1, True) + 1e-6),
            "softmax": lambda x: x.softmax(-1),
            "log softmax": lambda x: x.float().log_softmax(-1),
            "logsumexp": lambda x: x.float().logsumexp(-1),
            "sum": lambda x: x.sum(-1),
            "norm": lambda x: x.norm(dim=-1),
            "topk": lambda x: x.topk(20, dim=-1).values,
        }.items():
            yield f"{name} {width}", operation, x
        own = torch.randn(n, 21, width)
        yield f"einsum {width}", lambda x: torch.einsum("bd,bkd->bk", x[:, 0], x[:, 1:]), own


def attention(n: int) -> Iterator[Operation]:
    """One query, or as many as keys: keys as a cache has them, and as they come from the layer.

    The latter only at lengths to which texts without a cache are padded: at others, with 6 heads,
    a row's bits depend on whether its place is odd.
    """
    for (n_heads, size), length in itertools.product(((6, 32), (8, 256), (12, 64)), (5, 8, 13, 64)):
        x = torch.randn(n, 3 * length, n_heads, size)
        for queries, cached in itertools.product((1, length), (True, False)):
            if not cached and length % LENGTHS:
                continue

            def attend(
                x: torch.Tensor, queries: int = queries, cached: bool = cached
            ) -> torch.Tensor:
                # Contiguous before the transpose, as three projections give them.
                q, k, v = (part.contiguous().transpose(1, 2) for part in x.chunk(3, dim=1))
                k = k.contiguous() if cached else k
                weights = (q[:, :, :queries] @ k.transpose(2, 3) / x.shape[-1] ** 0.5).softmax(-1)
                return (weights @ v).flatten(1)

            layout = "cached keys" if cached else "keys from the layer"
            yield f"attention {n_heads} x {size}, {queries} of {length}, {layout}", attend, x


def sizes_that_differ(operation: Operation, sizes: Sequence[int]) -> list[int]:
    _, do, x = operation
    whole, differ = do(x), []
    for size in sizes:
        places = {0, 5, len(x) - size}
        parts = ((do(x[at : at + size].clone()), whole[at : at + size]) for at in places)
        if not all(torch.equal(found, expected) for found, expected in parts if len(found) == size):
            differ.append(size)
    return differ


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Do a row's bits depend on the rows beside it?")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=528)
    parser.add_argument("--sizes", type=int, nargs="+", help="default: some multiples of ROWS")
    parser.add_argument("--largest", type=int, default=2304 * 9216, help="numbers in a weight")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = args.sizes or [ROWS * times for times in (1, 2, 3, 5, 7, 16, 17, 32)]
    n, same = args.rows, 0
    for name, do, x in itertools.chain(products(n, args.largest), by_row(n), attention(n)):
        differ = sizes_that_differ((name, do, x.to(getattr(torch, args.dtype))), sizes)
        same += not differ
        if differ:
            print(f"{name}: other bits with {differ} rows", flush=True)
    print(f"{args.dtype}, {args.threads} threads: {same} operations with the same bits")


if __name__ == "__main__":
    main()
