"""Texts as a steered model would leave them, for the tiny tokenizer's words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerlens.engine.subject import Subject
from steerlens.steering.metrics import Texts
from tests.support.tiny import D_SAE, D_VOCAB

EOS = 1
PROMPTS = ("In my experience,", "Note that", "the", "From the experience, that", "In my experience")


def random_texts(subject: Subject, n: int = 40, seed: int = 0, longest: int = 12) -> Texts:
    """Texts of 0 to `longest` words after one of `PROMPTS`, some of them closed by an EOS."""
    rng = np.random.default_rng(seed)
    token_ids = [rng.integers(3, D_VOCAB, rng.integers(0, longest + 1)).tolist() for _ in range(n)]
    token_ids = [[*ids, EOS] if rng.random() < 0.3 else ids for ids in token_ids]
    return Texts(
        features=rng.integers(0, D_SAE, n),
        prompts=[PROMPTS[i] for i in rng.integers(0, len(PROMPTS), n)],
        texts=[text_of(subject, ids) for ids in token_ids],
        token_ids=token_ids,
    )


def text_of(subject: Subject, ids: Sequence[int]) -> str:
    words = str(subject.lm.tokenizer.decode(list(ids), skip_special_tokens=True))
    return f" {words}" if words else ""


def chosen(texts: Texts, indices: Sequence[int]) -> Texts:
    """Some of `texts`, in the order of `indices`."""
    assert texts.features is not None
    return Texts(
        features=texts.features[list(indices)],
        prompts=[texts.prompts[i] for i in indices],
        texts=[texts.texts[i] for i in indices],
        token_ids=[texts.token_ids[i] for i in indices],
    )
