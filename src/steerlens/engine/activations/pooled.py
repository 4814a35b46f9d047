"""The largest activation of each feature in each of some texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from steerlens.engine.activations.stream import (
    TOKENS_ON_CPU,
    TOKENS_ON_GPU,
    bytes_per_token,
    residuals,
    similar_length,
)
from steerlens.engine.memory import batches, rows_that_fit
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError


@torch.no_grad()
def largest_activations(
    subject: Subject,
    pieces: Sequence[np.ndarray],
    first: Sequence[int],
    ids_n: np.ndarray,
    memory_budget: int,
) -> np.ndarray:
    """Return the largest activation of features over the positions of texts: (N, n) float32.

    Args:
        subject: model and SAE.
        pieces: token ids of N texts, with BOS where the SAE was trained with one.
        first: the first position of each text that counts, (N,).
        ids_n: feature ids.
        memory_budget: bytes for one batch's activations.

    Raises:
        SteerlensError: for NaN activations.
    """
    largest_Nn = np.zeros((len(pieces), len(ids_n)), dtype=np.float32)
    device = subject.sae.W_dec.device
    ids = torch.from_numpy(np.asarray(ids_n, dtype=np.int64)).to(device)

    def read(group: list[int], rows: slice, _full: int) -> None:
        texts = group[rows]
        (x_BLD,), mask_BL = residuals([subject], [pieces[index] for index in texts])
        position_L = torch.arange(mask_BL.shape[1])
        mask_BL &= position_L >= torch.tensor([first[index] for index in texts])[:, None]
        acts_BLn = subject.sae.encode(x_BLD.to(device))[..., ids].float()
        acts_BLn = acts_BLn.masked_fill(~mask_BL.to(device)[..., None], 0)
        largest_Nn[texts] = acts_BLn.amax(dim=1).cpu().numpy()

    at_most = TOKENS_ON_CPU if subject.lm.device.type == "cpu" else TOKENS_ON_GPU
    tokens_at_once = rows_that_fit(memory_budget // 2, bytes_per_token([subject]), at_most)
    for group in similar_length(range(len(pieces)), pieces, tokens_at_once):
        for _ in batches(len(group), len(group), functools.partial(read, group)):
            pass
    if not np.isfinite(largest_Nn).all():
        raise SteerlensError(
            f"layer {subject.layer} has NaN activations in {subject.lm.dtype}; use dtype=float32."
        )
    return largest_Nn


def text_pieces(subject: Subject, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Return token ids of texts, cut to `max_tokens` and to what the model takes.

    Raises:
        SteerlensError: for a text without a token of its own.
    """
    n_ctx = min(max_tokens, int(subject.lm.bridge.cfg.n_ctx))
    pieces = []
    for text, ids in zip(
        texts,
        subject.lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"],
        strict=True,
    ):
        if not ids:
            raise SteerlensError(f"the text {text[:40]!r} has no token.")
        bos = [] if subject.bos is None or ids[:1] == [subject.bos] else [subject.bos]
        pieces.append(np.array([*bos, *ids][:n_ctx], dtype=np.int64))
    return pieces
