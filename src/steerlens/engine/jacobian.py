"""The mean Jacobian from an SAE's hook to the output of the last block (arXiv 2607.15495).

`J = E[ sum over t' >= t of d h_final,t' / d h_t ]`, the mean over source positions t of a sequence,
the first left out, and over sequences of the corpus. `h` is the value at the hook where the SAE's
edit is written, `h_final` the residual stream after the last block, before the final norm. One
backward pass for each coordinate of `h_final`, from its sum over target positions, serves all
source positions and the hooks of all layers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save

from steerlens.config.belonging import is_other_model
from steerlens.config.sources import FALLBACK
from steerlens.data.corpus import texts
from steerlens.data.corpus.sequences import numbered_pieces
from steerlens.engine.lens_file import read_lens_file
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import final_vectors
from steerlens.engine.subject.site import never_fires
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext

FILE = "jacobians.safetensors"

TOKENS_AT_ONCE = 512
"""Tokens of a batch, in whose rows the same sequence stands for several coordinates."""


class Halves(NamedTuple):
    """Sums of Jacobians (D, W) over every second sequence and over the others, by hook name."""

    n: int
    """How many sequences have been read."""
    sums: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]

    def mean(self, hook_name: str, half: int | None = None) -> torch.Tensor:
        """Return the mean Jacobian of all sequences, or of one half."""
        if half is None:
            return (self.sums[0][hook_name] + self.sums[1][hook_name]) / self.n
        return self.sums[half][hook_name] / ((self.n + 1 - half) // 2)


def jacobian(subject: Subject, ctx: RunContext) -> Halves:
    """Return the Jacobians of the subject's hook, from the file of the lens, or computed.

    What is computed serves all layers of the run, is kept sequence by sequence, and is found again.

    Raises:
        SteerlensError: for a file of another model, site or layer, or a corpus with too little
            text.
    """
    memo = ctx.cache.jacobians
    if subject.site.write not in memo:
        path = ctx.lens.path
        memo[subject.site.write] = (
            _of_file(Path(path), subject) if path else _computed(subject, ctx)
        )
    return memo[subject.site.write]


def hooks_of_layers(subject: Subject, layers: Sequence[int]) -> list[str]:
    """Return the hooks where SAEs of the subject's site write at these layers and its own."""
    inside = subject.site.write.removeprefix(f"blocks.{subject.layer}.")
    return [f"blocks.{layer}.{inside}" for layer in sorted({*layers, subject.layer})]


def _computed(subject: Subject, ctx: RunContext) -> Halves:
    # Without a store it would be computed for each layer anew.
    hook_names = hooks_of_layers(subject, ctx.layers if ctx.store else ())
    key = {
        "jacobian": hook_names,
        **{name: subject.key[name] for name in ("model", "code")},
        "bos": subject.bos,
        "corpus": ctx.corpus_key(),
        "n_prompts": ctx.lens.n_prompts,
        "context_length": ctx.lens.context_length,
    }
    halves = Halves(0, ({}, {}))
    if ctx.store and (content := ctx.store.load(key, FILE)):
        halves = unpacked(load(content))
    if halves.n == ctx.lens.n_prompts:
        return halves
    sequences = sequences_of_corpus(subject, ctx)
    with ctx.task(ctx.lens.n_prompts, "Jacobian lens, all layers", "sequences") as advance:
        advance(halves.n)
        for index in range(halves.n, ctx.lens.n_prompts):
            of_sequence = sequence_jacobian(
                subject, hook_names, sequences[index], ctx.memory_budget
            )
            of_half = halves.sums[index % 2]
            for name, J_DW in of_sequence.items():
                of_half[name] = of_half[name] + J_DW if name in of_half else J_DW
            halves = halves._replace(n=index + 1)
            if ctx.store:
                ctx.store.keep(key, FILE, save(_packed(halves)))
            advance(1)
    return halves


def _packed(halves: Halves) -> dict[str, torch.Tensor]:
    tensors = {
        f"{half}/{name}": sum_DW.contiguous()
        for half, of_half in enumerate(halves.sums)
        for name, sum_DW in of_half.items()
    }
    return {"n": torch.tensor([halves.n]), **tensors}


def unpacked(tensors: dict[str, torch.Tensor]) -> Halves:
    """Return the halves that a run has kept, from the tensors of its file."""
    sums: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for key, tensor in tensors.items():
        half, _, name = key.partition("/")
        if name:
            sums[int(half)][name] = tensor
    return Halves(int(tensors["n"][0]), sums)


def sequences_of_corpus(subject: Subject, ctx: RunContext) -> list[np.ndarray]:
    """Return the lens's sequences of the run's corpus: the first whole one of each document, with
    BOS where the SAE was trained with one.

    Raises:
        SteerlensError: there are too few, or the model takes fewer tokens.
    """
    length, n_ctx = ctx.lens.context_length, int(subject.lm.bridge.cfg.n_ctx)
    if length > n_ctx:
        raise SteerlensError(
            f"lens.context_length={length} is more than the {n_ctx} tokens that "
            f"{subject.lm.name} takes."
        )
    if ctx.corpus is None:
        raise SteerlensError(f"lens=jacobian needs a corpus: corpus={FALLBACK}, say.")
    sequences: list[np.ndarray] = []
    read = -1
    pieces = numbered_pieces(
        texts(ctx.corpus, subject.lm.transcript), subject.lm.tokenizer, length, subject.bos, None,
        subject.n_uncounted,
    )  # fmt: skip
    for document, piece in pieces:
        if document != read and len(piece) == length:
            read = document
            sequences.append(piece)
        if len(sequences) == ctx.lens.n_prompts:
            return sequences
    raise SteerlensError(
        f"the corpus has {len(sequences)} documents of at least {length} tokens, fewer than "
        f"lens.n_prompts={ctx.lens.n_prompts}; lower that or lens.context_length."
    )


def sequence_jacobian(
    subject: Subject, hook_names: Sequence[str], tokens_L: np.ndarray, memory_budget: int
) -> dict[str, torch.Tensor]:
    """Return the Jacobian of one sequence from each hook, (D, W) float32 on the CPU.

    Args:
        subject: the model, and an SAE of its.
        hook_names: hooks of several layers.
        tokens_L: token ids.
        memory_budget: bytes for what the backward passes need.
    """
    lm = subject.lm
    D, L = lm.d_model, len(tokens_L)
    per_token = lm.dtype.itemsize * lm.n_layers * (4 * (lm.bridge.cfg.d_mlp or 4 * D) + 16 * D)
    rows = max(1, min(TOKENS_AT_ONCE // L, memory_budget // (2 * per_token * L), D))
    tokens_BL = torch.from_numpy(np.asarray(tokens_L, dtype=np.int64)).expand(rows, -1)
    sources: dict[str, torch.Tensor] = {}
    final: list[torch.Tensor] = []

    def catch(x: torch.Tensor, hook: Any, name: str) -> torch.Tensor:
        # The first hook is where the graph begins: nothing before it needs a gradient. What others
        # have seen is given back, because the bridge may show a view and go on with the original.
        sources[name] = x if sources else x.detach().requires_grad_()
        return sources[name]

    def catch_final(x_BLD: torch.Tensor, hook: Any) -> None:
        final.append(x_BLD)

    hooks: list[tuple[str, Any]] = [(name, partial(catch, name=name)) for name in hook_names]
    hooks.append((f"blocks.{lm.n_layers - 1}.hook_resid_post", catch_final))
    with torch.enable_grad():
        final_vectors(lm.bridge, tokens_BL.to(lm.device), hooks)
        for name in hook_names:
            if name not in sources:
                raise never_fires(name, lm)
        h_BLD = final[0]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in hook_names}
        for start in range(0, D, rows):
            size = min(rows, D - start)
            weight_BD = torch.zeros(rows, D, dtype=h_BLD.dtype, device=h_BLD.device)
            weight_BD[torch.arange(size), torch.arange(start, start + size)] = 1
            total = (h_BLD[:, 1:].sum(dim=1) * weight_BD).sum()
            gradients = torch.autograd.grad(
                total, list(sources.values()), retain_graph=start + rows < D
            )
            for name, gradient in zip(sources, gradients, strict=True):
                mean_BW = gradient.flatten(2)[:size, 1:].float().mean(dim=1)
                parts[name].append(mean_BW.cpu())
    return {name: torch.cat(parts[name]) for name in hook_names}


def _of_file(path: Path, subject: Subject) -> Halves:
    """Return the Jacobian of a file that others have fitted: of the residual stream after blocks.

    Raises:
        SteerlensError: it can't be read, or is of another model, site or layer.
    """
    file = read_lens_file(path)
    if file.model and is_other_model(file.model, subject.lm.names):
        raise SteerlensError(f"lens.path={path} is of {file.model}, not of {subject.lm.name}.")
    file.refuse_other_width(subject.lm.d_model, subject.lm.name)
    if not subject.site.write.endswith("hook_resid_post"):
        raise SteerlensError(
            f"lens.path={path} is of the residual stream after blocks, but {subject.name} writes "
            f"at {subject.site.write}; leave the file out, so that it is computed."
        )
    J_DD = file.jacobian(subject.layer)
    return Halves(2, ({subject.site.write: J_DD}, {subject.site.write: J_DD}))
