"""Input score S_in: how often a feature fires hardest on its own logit-lens tokens.

Paper Eq. 8: of the sentences where the feature fires, take each one's maximally activated token;
the score is the share of these tokens that are among the feature's top-k logit-lens tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from steerlens.config.sources import N_TEXTS
from steerlens.errors import SteerlensError
from steerlens.scores import RunContext
from steerlens.scores.sources import ReadsTexts

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class InputScoreConfig(ReadsTexts):
    """Settings of the input score."""

    method: str = "input"
    source: str = "auto"
    """auto (shipped where the SAE has examples and no corpus is given, else corpus), corpus (our
    own pass over the `corpus` group), shipped (the examples in `path`), or neuronpedia (files in
    the folder `path`)."""
    path: str | None = None
    """File of examples, null = `sae.examples`; or folder of Neuronpedia's files."""
    underscore_is_space: bool = False
    """Read `_` in Neuronpedia's tokens as a space, as the authors' code does."""
    min_examples: int = 20
    """With fewer sentences there is no score (null). The paper says 20, the authors' code 10."""
    max_examples: int = 100
    """The sentences with the largest activations are counted, at most so many."""
    top_k: int = 20
    """Number of logit-lens tokens that stand for the feature."""
    show_examples: int = 5
    """Examples of each feature that are kept as text; at most 5 of shipped ones."""

    SOURCES: ClassVar[Sequence[str]] = (*ReadsTexts.SOURCES, "neuronpedia")

    FILLS: ClassVar[Sequence[str]] = ("input_score", "input_score_unique", "input_examples")

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.max_examples < self.min_examples:
            raise self.refusal("max_examples", f"is less than min_examples={self.min_examples}")
        if self.source == "shipped" and not self.enough_ships():
            raise self.refusal(
                "max_examples",
                f"is more than the {N_TEXTS} texts that ship; for more, choose source=corpus",
            )
        if self.source == "neuronpedia":
            if not self.path:
                raise SteerlensError("score.source=neuronpedia needs score.path=DIR.")
            if not Path(self.path).is_dir():
                raise SteerlensError(f"score.path: there is no folder {self.path}.")

    def enough_ships(self) -> bool:
        """Say whether the SAE's examples are enough for these settings."""
        return super().enough_ships() and self.max_examples <= N_TEXTS

    def corpus_pass(self) -> tuple[int | None, int] | None:
        """Return what the method needs of a pass over the corpus: (context length, examples)."""
        return (self.context_length, self.max_examples) if self.reads_corpus() else None

    def files(self) -> Sequence[Path]:
        """Return the files that the numbers depend on."""
        if self.source == "neuronpedia":
            return sorted(Path(str(self.path)).rglob("*.json*"))
        return super().files()

    def uses_lens(self) -> bool:
        """Return whether the numbers depend on the run's lens."""
        return True


Config = InputScoreConfig


def score(
    subject: Subject, features: np.ndarray, config: InputScoreConfig, ctx: RunContext
) -> Mapping[str, Any]:
    """Score `features`, shape (n,).

    Returns:
        `input_score` (a token that tops 30 sentences counts 30 times, as in the published
        numbers), `input_score_unique` (it counts once, as Eq. 8 reads), `input_examples` (number
        of sentences counted), and `input_top_examples` (their text, the token marked «so»).

    Raises:
        SteerlensError: for a corpus without text, or NaN activations.
    """
    import torch

    from steerlens.engine.lens import promoted_tokens

    features = np.asarray(features, dtype=np.int64)
    ids_F = torch.from_numpy(features)
    lens_FK = promoted_tokens(subject, ids_F, config.top_k, ctx).numpy()
    if config.source == "shipped":
        peaks = _shipped_peaks(subject, features, lens_FK, config)
    elif config.source == "neuronpedia":
        peaks = _neuronpedia_peaks(subject, features, lens_FK, config)
    elif config.reads_corpus():
        peaks = _corpus_peaks(subject, features, lens_FK, config, ctx)
    else:
        raise config.unknown_source()
    rows = [input_scores(top, lens_K, config.min_examples) for top, lens_K, _ in peaks]
    ctx.progress(len(features))
    return {
        "input_score": [row[0] for row in rows],
        "input_score_unique": [row[1] for row in rows],
        "input_examples": [row[2] for row in rows],
        "input_top_examples": [texts for _, _, texts in peaks],
    }


Peaks = tuple[np.ndarray, np.ndarray, list[str]]
"""Of one feature: the maximally activated token of each sentence, the feature's own tokens (both
as ids or both as texts), and a few examples to show."""


def _corpus_peaks(
    subject: Subject,
    features: np.ndarray,
    lens_FK: np.ndarray,
    config: InputScoreConfig,
    ctx: RunContext,
) -> list[Peaks]:
    from steerlens.engine.corpus_pass import activations_of

    activations = activations_of(subject, config.context_length, ctx)
    token_FN = activations.token_FN(features)[:, : config.max_examples]
    return [
        (top[top >= 0], lens_K, _texts(subject, activations, feature, config.show_examples))
        for feature, top, lens_K in zip(features, token_FN, lens_FK, strict=True)
    ]


def _shipped_peaks(
    subject: Subject, features: np.ndarray, lens_FK: np.ndarray, config: InputScoreConfig
) -> list[Peaks]:
    from steerlens.engine.examples import read_examples

    examples = read_examples(Path(str(config.path)), subject)
    tokens = examples.lists("peak_tokens", features)
    return [
        (
            top[: config.max_examples],
            lens_K,
            [
                _marked(subject, window.tokens, window.position, 0)
                for window in examples.windows(feature)[: config.show_examples]
            ],
        )
        for feature, top, lens_K in zip(features, tokens, lens_FK, strict=True)
    ]


def _neuronpedia_peaks(
    subject: Subject, features: np.ndarray, lens_FK: np.ndarray, config: InputScoreConfig
) -> list[Peaks]:
    from steerlens.data import neuronpedia

    tokenizer = subject.lm.tokenizer
    underscore = config.underscore_is_space
    exported = neuronpedia.read_activations(
        Path(str(config.path)),
        subject.layer,
        features.tolist(),
        subject.lm.names,
        str(tokenizer.bos_token or ""),
        neuronpedia.source_of_sae(
            subject.sae.cfg.metadata.neuronpedia_id, subject.layer, subject.name
        ),
    )
    peaks = []
    for feature, lens_K in zip(features.tolist(), lens_FK.tolist(), strict=True):
        firing = neuronpedia.firing(exported.get(feature, []))[: config.max_examples]
        names = {
            neuronpedia.plain_token(text, underscore) for text in token_texts(tokenizer, lens_K)
        }
        top = np.array([neuronpedia.peak(example, underscore) for example in firing], dtype=object)
        marked = [neuronpedia.marked(example) for example in firing[: config.show_examples]]
        peaks.append((top, np.array(sorted(names), dtype=object), marked))
    return peaks


def token_texts(tokenizer: Any, token_ids: list[int]) -> set[str]:
    """Return how an export may write these tokens: as their texts, or as the tokenizer's own
    pieces.

    Ids beyond the tokenizer's vocabulary, to which unembeddings are padded, are no tokens.
    """
    texts: set[str] = set()
    for token, piece in zip(token_ids, tokenizer.convert_ids_to_tokens(token_ids), strict=True):
        if piece is None:
            continue
        text = tokenizer.decode([token])
        texts.add(str(piece))
        # Some tokenizers decode `▁the` without its space: that would be another token's text.
        if piece != f"\u2581{text}":
            texts.add(text)
    return texts


def input_scores(
    top_tokens: np.ndarray, own_tokens: np.ndarray, min_examples: int
) -> tuple[float | None, float | None, int]:
    """Return (S_in by sentences, S_in by distinct tokens, number of sentences) of one feature.

    `top_tokens` has the maximally activated token of each sentence, as ids or as texts.
    """
    n = len(top_tokens)
    if n < max(min_examples, 1):
        return None, None, n
    lens_tokens = set(own_tokens.tolist())
    hits = [token in lens_tokens for token in top_tokens.tolist()]
    unique = set(top_tokens.tolist())
    return sum(hits) / n, len(unique & lens_tokens) / len(unique), n


def _texts(subject: Subject, activations: Any, feature: int, n: int) -> list[str]:
    """Return the feature's top examples, a few tokens around the maximally activated one."""
    texts = []
    for value, piece, at in zip(
        activations.value_FN[feature, :n],
        activations.piece_FN[feature, :n],
        activations.position_FN[feature, :n],
        strict=True,
    ):
        if value <= 0:
            break
        texts.append(_marked(subject, activations.pieces[piece], at, subject.n_uncounted))
    return texts


def _marked(subject: Subject, tokens: np.ndarray, at: int, first: int, around: int = 12) -> str:
    """Return a few tokens around the one at `at`, which stands in «marks»; none before `first`."""
    decode = subject.lm.tokenizer.decode
    start = max(at - around, first)
    before, token, after = tokens[start:at], tokens[at : at + 1], tokens[at + 1 :][:around]
    return f"{decode(before)}«{decode(token)}»{decode(after)}"
