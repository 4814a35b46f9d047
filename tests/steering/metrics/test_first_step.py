"""The first step's divergence against SciPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from steerlens.engine.generation import first_step
from steerlens.engine.generation.first_step import first_step_kl


def logits(rows: int, seed: int, d_vocab: int = 211) -> torch.Tensor:
    return 5 * torch.randn(rows, d_vocab, generator=torch.Generator().manual_seed(seed))


def naive(steered_BV: torch.Tensor, unsteered_BV: torch.Tensor) -> np.ndarray:
    p, q = (softmax(x.double().numpy(), axis=-1) for x in (steered_BV, unsteered_BV))
    return rel_entr(p, q).sum(axis=-1)


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 4 * 211, 2**25])
def test_equals_float64(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(first_step, "CHUNK_BYTES", chunk_bytes)
    steered, unsteered = logits(7, 0), logits(7, 1)
    found = first_step_kl(steered, unsteered)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(naive(steered, unsteered), rel=1e-5)
    one = first_step_kl(steered, unsteered[:1], torch.zeros(7, dtype=torch.int64))
    assert one.numpy() == pytest.approx(naive(steered, unsteered[:1].expand(7, -1)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rows_are_exactly_zero(dtype: torch.dtype) -> None:
    rows = logits(64, 0).to(dtype)
    assert (first_step_kl(rows, rows.clone()) == 0).all()
    shifted = first_step_kl(rows.float() + 3, rows.float())  # the same distributions
    assert (shifted >= 0).all()
    assert (shifted < 1e-5).all()


def test_no_rows() -> None:
    assert len(first_step_kl(logits(0, 0), logits(1, 1))) == 0
