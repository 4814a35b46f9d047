"""Gradient: how much a feature that fires makes the model's own next token more likely.

GradSAE (arXiv 2505.08080): activation times gradient of the output with respect to it. Output is
the log-probability of the model's greedy next token after each of the texts in which the feature
fires; one backward pass a text gives the gradients of all features at all positions. The score is
the mean over the positions where the feature fires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from steerlens.engine.examples import N_WINDOWS
from steerlens.errors import SteerlensError, unknown
from steerlens.scores import RunContext
from steerlens.scores.sources import ReadsTexts

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject

OUTPUTS = ("last", "every")
NEXT, PROMOTED = "next", "promoted"


@dataclass
class GradientConfig(ReadsTexts):
    """Settings of the gradient score."""

    method: str = "gradient"
    target: str = NEXT
    """next (the log-probability of the model's own next token), or promoted (the mean logit of the
    feature's own tokens, through the Jacobian lens, which takes no backward pass)."""
    top_k: int = 20
    """target=promoted: number of tokens that stand for the feature."""
    outputs: str = "last"
    """target=next: of the greedy token after the text (last), or the sum over the greedy
    token after each of its positions (every)."""
    min_examples: int = 3
    """A feature that fires in fewer of its texts has no score (null)."""
    max_examples: int = 5
    """Texts of each feature, those in which it fires hardest."""

    AT_ONCE: ClassVar[int] = 64

    FILLS: ClassVar[Sequence[str]] = ("gradient",)

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.target not in (NEXT, PROMOTED):
            raise unknown(f"target of score {self.method}", self.target, (NEXT, PROMOTED))
        if self.outputs not in OUTPUTS:
            raise unknown(f"outputs of score {self.method}", self.outputs, OUTPUTS)
        if self.max_examples < self.min_examples:
            raise self.refusal("max_examples", f"is less than min_examples={self.min_examples}")
        if self.source == "shipped" and not self.enough_ships():
            raise self.refusal(
                "max_examples",
                f"is more than the {N_WINDOWS} texts that ship whole; for more, choose "
                "source=corpus",
            )

    def enough_ships(self) -> bool:
        """Say whether the SAE's examples are enough for these settings."""
        return super().enough_ships() and self.max_examples <= N_WINDOWS

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return self.target == PROMOTED

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ("corpus",) if self.target == PROMOTED else super().uses()

    def corpus_pass(self) -> tuple[int | None, int] | None:
        """Return what the method needs of a pass over the corpus: (context length, examples)."""
        return (self.context_length, self.max_examples) if self.reads_corpus() else None


Config = GradientConfig


def score(
    subject: Subject, features: np.ndarray, config: GradientConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,): `gradient`, in nats (target=promoted: in logits); NaN for a
    feature that fires in too few texts.

    Raises:
        SteerlensError: for a corpus without text, or NaN gradients.
    """
    import torch

    from steerlens.engine.gradients import greedy_attribution, text_activations
    from steerlens.engine.lens import promoted_slopes, promoted_tokens

    features = np.asarray(features, dtype=np.int64)
    slope_F = torch.zeros(len(features), dtype=torch.float64)
    if config.target == PROMOTED:
        ids_F = torch.from_numpy(features)
        tokens_FK = promoted_tokens(subject, ids_F, config.top_k, ctx)
        slope_F = promoted_slopes(subject, ids_F, tokens_FK, ctx).double().mean(dim=-1)
    texts_of = _texts(subject, features, config, ctx)
    # Features that share a text share its backward pass.
    readers: dict[bytes, list[tuple[int, int]]] = {}
    for row, texts in enumerate(texts_of):
        for rank, tokens_L in enumerate(texts):
            readers.setdefault(tokens_L.tobytes(), []).append((row, rank))
    sum_FN = np.zeros((len(features), config.max_examples))
    fired_FN = np.zeros_like(sum_FN)
    unread_F = np.array([len(texts) for texts in texts_of])
    ctx.progress(int((unread_F == 0).sum()))
    for text in readers:
        rows, ranks = (list(column) for column in zip(*readers[text], strict=True))
        tokens_L = np.frombuffer(text, dtype=np.int64).copy()
        ids_n = torch.from_numpy(features[rows])
        if config.target == PROMOTED:
            acts_Ln = text_activations(subject, tokens_L, ids_n).double().numpy()
            gradient_Ln = np.broadcast_to(slope_F[rows].numpy(), acts_Ln.shape)
        else:
            attribution = greedy_attribution(subject, tokens_L, ids_n, config.outputs == "every")
            acts_Ln, gradient_Ln = (x.double().numpy() for x in attribution)
        fires_Ln = acts_Ln > 0
        fires_Ln[: subject.n_uncounted] = False
        sum_FN[rows, ranks] = np.where(fires_Ln, acts_Ln * gradient_Ln, 0).sum(axis=0)
        fired_FN[rows, ranks] = fires_Ln.sum(axis=0)
        np.subtract.at(unread_F, rows, 1)
        ctx.progress(int((unread_F[np.unique(rows)] == 0).sum()))
    if not np.isfinite(sum_FN).all():
        raise SteerlensError(
            f"layer {subject.layer} gives NaN scores in {subject.lm.dtype}; use dtype=float32."
        )
    enough_F = (fired_FN > 0).sum(axis=1) >= config.min_examples
    total_F = sum_FN.sum(axis=1)
    fired_F = fired_FN.sum(axis=1)
    nan_F = np.full(len(features), np.nan)
    return {"gradient": np.divide(total_F, fired_F, out=nan_F, where=enough_F)}


def _texts(
    subject: Subject, features: np.ndarray, config: GradientConfig, ctx: RunContext
) -> list[list[np.ndarray]]:
    """Return the token ids, int64 with BOS, of the texts in which each feature fires hardest."""
    if config.source == "shipped":
        from steerlens.engine.examples import read_examples

        examples = read_examples(Path(str(config.path)), subject)
        bos = [] if subject.bos is None else [subject.bos]
        return [
            [
                np.array([*bos, *window.tokens], dtype=np.int64)
                for window in examples.windows(feature)[: config.max_examples]
            ]
            for feature in features
        ]
    if not config.reads_corpus():
        raise config.unknown_source()
    from steerlens.engine.corpus_pass import activations_of

    activations = activations_of(subject, config.context_length, ctx)
    return [
        [
            activations.pieces[piece].astype(np.int64)
            for value, piece in zip(
                activations.value_FN[feature, : config.max_examples],
                activations.piece_FN[feature, : config.max_examples],
                strict=True,
            )
            if value > 0
        ]
        for feature in features
    ]
