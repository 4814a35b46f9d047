"""Generation success: how many generated tokens are among the feature's logit-lens tokens.

Generation success@k (paper Eq. 7) of one text is the number of its tokens that are among the k
logit-lens tokens of the feature; every occurrence counts. There are two countings:

- `success_k`: of the tokens that the continuation alone is tokenised into again, as published;
- `success_k_ids`: of the tokens that were generated.

They differ where the tokenizer writes the same text with other tokens. Special tokens (BOS, EOS)
count in neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steerlens.errors import SteerlensError
from steerlens.steering.metrics.texts import MetricRun, Texts

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.subject import Subject

NEEDS_FEATURE = True
USES_EVALUATOR = False

SHOWN = (1, 5, 20)
"""Numbers of logit-lens tokens whose success tables and figures show."""


@dataclass
class SuccessConfig:
    """Settings of the success."""

    k: list[int] = field(default_factory=lambda: [*SHOWN])
    """Numbers of logit-lens tokens, two columns each; 1, 5 and 20, which tables and figures show,
    and others beside them."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise SteerlensError(f"metrics.success.k={self.k} must be numbers of at least 1.")

    def check(self) -> None:
        """Refuse to leave out what tables and figures show."""
        if missing := [k for k in SHOWN if k not in self.k]:
            raise SteerlensError(
                f"metrics.success.k={self.k} lacks {missing[0]}, which tables and figures show; "
                f"write metrics.success.k={sorted({*SHOWN, *self.k})}."
            )


Config = SuccessConfig


def measure(
    texts: Texts, subject: Subject, config: SuccessConfig, run: MetricRun
) -> Mapping[str, Sequence[int]]:
    """Return columns `success_k` and `success_k_ids`, for every k of the settings.

    `concept_success`, where the run has a concept: the tokens of the continuation, tokenised again,
    that stand for it.
    """
    import numpy as np
    import torch

    from steerlens.engine.logit_lens import logit_lens
    from steerlens.scores.concepts import concept_tokens

    assert texts.features is not None
    features_F, feature_index = np.unique(texts.features, return_inverse=True)
    lens_FK = logit_lens(
        subject, torch.from_numpy(features_F), max(config.k), run.memory_budget
    ).numpy()
    tokenizer = subject.lm.tokenizer
    again = (
        tokenizer(list(texts.texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    )
    special = np.array(tokenizer.all_special_ids, dtype=np.int64)
    columns: dict[str, list[int]] = {}
    for suffix, tokens in (("", again), ("_ids", texts.token_ids)):
        for k in config.k:
            hits = _hits(tokens, feature_index, lens_FK[:, :k], special)
            columns[f"success_{k}{suffix}"] = hits.tolist()
    if run.concept:
        ids_1K = np.array([list(concept_tokens(tokenizer, run.concept).texts)])
        hits = _hits(again, np.zeros_like(feature_index), ids_1K, special)
        columns["concept_success"] = hits.tolist()
    run.progress(len(texts))
    return columns


def _hits(
    tokens: Sequence[Sequence[int]],
    feature_index: np.ndarray,
    lens_FK: np.ndarray,
    special: np.ndarray,
) -> np.ndarray:
    """Return how many tokens of each text are in its row of `lens_FK`, and not `special`: (n,)."""
    import numpy as np

    text_T = np.repeat(np.arange(len(tokens)), [len(ids) for ids in tokens])
    token_T = np.fromiter((token for ids in tokens for token in ids), np.int64, len(text_T))
    # One number for a feature and a token, so that all texts are looked up at once.
    wanted_FK = (np.arange(len(lens_FK))[:, None] << 32) + lens_FK
    hit_T = np.isin((feature_index[text_T] << 32) + token_T, wanted_FK) & ~np.isin(token_T, special)
    return np.bincount(text_T[hit_T], minlength=len(tokens))
