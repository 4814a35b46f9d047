"""Concept score: the output score toward a concept's tokens instead of the feature's own.

Paper Eq. 9 with the tokens that stand for the concept in place of the top-k logit-lens tokens, as
in the paper's Figure 1, where a candidate is judged by tokens that represent the concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from steerlens.config.parse import parse_concept
from steerlens.scores import RunContext, output

if TYPE_CHECKING:
    from steerlens.engine.subject import Subject


@dataclass
class ConceptScoreConfig(output.PromptConfig):
    """Settings of the concept score; `top_k` has no part in it."""

    method: str = "concept"
    concept: Any = None
    """A word or a phrase, or several for the same."""

    FILLS: ClassVar[Sequence[str]] = ("concept_score",)

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.concept is None:
            raise self.refusal("concept", "names nothing; give a word or a phrase")
        parse_concept(self.concept)


Config = ConceptScoreConfig


def score(
    subject: Subject, features: np.ndarray, config: ConceptScoreConfig, ctx: RunContext
) -> Mapping[str, np.ndarray | Sequence[str]]:
    """Score `features`, shape (n,).

    Returns:
        `concept_score`, and the `concept_token` that is likeliest when the feature is amplified.

    Raises:
        SteerlensError: if no token stands for the concept, and as the output score.
    """
    import torch

    from steerlens.scores.concepts import concept_tokens

    ids_F = torch.tensor(np.asarray(features, dtype=np.int64))
    tokens = concept_tokens(subject.lm.tokenizer, parse_concept(config.concept))
    tokens_FK = torch.tensor(list(tokens.texts)).expand(len(ids_F), -1)
    columns = output.score_toward(subject, ids_F, tokens_FK, config, ctx)
    return {"concept_score": columns["output_score"], "concept_token": columns["output_token"]}
