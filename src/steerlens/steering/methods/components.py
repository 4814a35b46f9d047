"""The first principal component of many vectors, without their covariance where that is large.

A covariance costs T x D x D and its eigenvectors D x D x D, for every concept anew. Where both T
and D are large, the component alone is found from a few products with the vectors themselves: the
largest Ritz vector of a block Krylov space, until its residual says that it is an eigenvector.
"""

from __future__ import annotations

import torch

BLOCK = 4
"""Vectors that are multiplied at once: reading `x_TD` costs more than multiplying it."""

ROWS_AT_ONCE = 512
"""Rows that are read once for both products, small enough to stay in a CPU's cache."""

MOST_STEPS = 60

SMALL = 512
"""Products of all pairs of so many rows or columns cost less than a Krylov space."""


@torch.no_grad()
def first_component(
    x_TD: torch.Tensor, generator: torch.Generator, tolerance: float = 1e-4
) -> torch.Tensor:
    """Return, as (D,), the unit direction in which `x_TD` varies most, float32.

    Its sign is scikit-learn's: the entry with the largest absolute value is positive.

    Args:
        x_TD: T vectors, not centred.
        generator: of the starting block.
        tolerance: length of the residual of the eigenvector, relative to its eigenvalue.
    """
    if min(x_TD.shape) <= SMALL:
        return _signed(_direct(x_TD - x_TD.mean(dim=0)))
    return _signed(_krylov(x_TD, generator, tolerance))


def _signed(vector_D: torch.Tensor) -> torch.Tensor:
    vector_D = vector_D / vector_D.norm().clamp(min=torch.finfo(vector_D.dtype).tiny)
    return vector_D * vector_D[vector_D.abs().argmax()].sign()


def _direct(x_TD: torch.Tensor) -> torch.Tensor:
    """Return the eigenvector of all products of pairs, in float64."""
    if len(x_TD) < x_TD.shape[1]:
        vectors_TT = torch.linalg.eigh((x_TD @ x_TD.T).double()).eigenvectors
        return x_TD.T @ vectors_TT[:, -1].to(x_TD)
    return torch.linalg.eigh((x_TD.T @ x_TD).double()).eigenvectors[:, -1].to(x_TD)


def _krylov(x_TD: torch.Tensor, generator: torch.Generator, tolerance: float) -> torch.Tensor:
    mean_D = x_TD.mean(dim=0)
    D = x_TD.shape[1]
    block_DK = torch.randn(D, min(BLOCK, D), generator=generator).to(x_TD)
    basis_DK = torch.linalg.qr(block_DK).Q
    image_DK = _covariance_times(x_TD, mean_D, basis_DK)
    newest_DK = image_DK
    vector_D = basis_DK[:, 0]
    for _ in range(MOST_STEPS):
        ritz_KK = basis_DK.T.double() @ image_DK.double()
        value_K, weights_KK = torch.linalg.eigh((ritz_KK + ritz_KK.T) / 2)
        weights_K = weights_KK[:, -1].to(basis_DK)
        vector_D = basis_DK @ weights_K
        residual_D = image_DK @ weights_K - value_K[-1].to(basis_DK) * vector_D
        room = D - basis_DK.shape[1]
        if residual_D.norm() <= tolerance * value_K[-1] or room == 0:
            break
        fresh_DK = newest_DK
        for _ in range(2):  # once leaves what rounding has brought back
            fresh_DK = torch.linalg.qr(fresh_DK - basis_DK @ (basis_DK.T @ fresh_DK)).Q
        fresh_DK = fresh_DK[:, :room]
        newest_DK = _covariance_times(x_TD, mean_D, fresh_DK)
        basis_DK = torch.cat([basis_DK, fresh_DK], dim=1)
        image_DK = torch.cat([image_DK, newest_DK], dim=1)
    return vector_D


def _covariance_times(
    x_TD: torch.Tensor, mean_D: torch.Tensor, block_DK: torch.Tensor
) -> torch.Tensor:
    """Return the centred covariance (times T) times a block, in one reading of `x_TD`."""
    out_DK = torch.zeros_like(block_DK)
    shift_K = mean_D @ block_DK
    for rows_BD in x_TD.split(ROWS_AT_ONCE):
        out_DK.addmm_(rows_BD.T, rows_BD @ block_DK - shift_K)
    return out_DK
