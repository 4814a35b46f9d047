"""What stands on features' cards, against the definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from steerlens.engine import examples
from steerlens.engine.examples import Examples
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores.cards import NEIGHBOURS_OF_ONE, SUPPRESSED, card_rows
from tests.support.tiny import D_SAE

MakeSubject = Callable[..., Subject]
FEATURES = [40, 3, 17]
GIB = 1024**3


@pytest.mark.parametrize("memory_budget", [1, GIB])  # a feature at a time, and all together
@torch.no_grad()
def test_a_card_has_the_logit_lens_and_the_nearest_directions(
    tiny_subject: MakeSubject, memory_budget: int
) -> None:
    subject = tiny_subject("gemma2")
    rows = card_rows(subject, FEATURES, 5, RunContext(memory_budget=memory_budget))
    bridge, decode = subject.lm.bridge, subject.lm.tokenizer.decode
    unit_FD = torch.nn.functional.normalize(subject.sae.W_dec, dim=-1)
    assert rows.cards["feature"].tolist() == FEATURES
    for at, feature in enumerate(FEATURES):
        logits_V = bridge.unembed(bridge.ln_final(subject.sae.W_dec[feature][None, None]))[0, 0]
        rising = logits_V.argsort().tolist()
        lens, lowest = logits_V[rising[::-1][:5]], logits_V[rising[:SUPPRESSED]]
        assert rows.cards["logit_lens_logits"][at] == pytest.approx(lens.tolist(), rel=1e-4)
        assert rows.cards["suppressed_logits"][at] == pytest.approx(lowest.tolist(), rel=1e-4)
        texts = [decode([token]) for token in rising[:SUPPRESSED]]
        assert rows.cards["suppressed_tokens"][at] == texts

        cosine_F = unit_FD @ unit_FD[feature]
        nearest = [n for n in cosine_F.argsort(descending=True).tolist() if n != feature]
        part = slice(at * NEIGHBOURS_OF_ONE, (at + 1) * NEIGHBOURS_OF_ONE)
        columns = {
            name: rows.neighbours[name][part] for name in ("feature", "rank", "neighbour", "cosine")
        }
        assert columns["feature"] == [feature] * NEIGHBOURS_OF_ONE
        assert columns["rank"] == list(range(NEIGHBOURS_OF_ONE))
        assert columns["neighbour"] == nearest[:NEIGHBOURS_OF_ONE]
        expected = cosine_F[nearest[:NEIGHBOURS_OF_ONE]].tolist()
        assert columns["cosine"] == pytest.approx(expected, rel=1e-4)
    assert len(rows.neighbours["cosine"]) == len(FEATURES) * NEIGHBOURS_OF_ONE


def test_a_card_has_the_texts_that_ship_with_the_sae(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()
    every = np.arange(D_SAE)
    columns = {
        "activation_frequency": every / 100,
        "histogram": [[feature, 1] for feature in every],
        "histogram_range": 2.0**every,
        "window_tokens": [[[5, feature], [7]] if feature == 3 else [] for feature in every],
        "window_activations": [[[51, 255], [255]] if feature == 3 else [] for feature in every],
        "window_max": [[2.0, 1.0] if feature == 3 else [] for feature in every],
        "window_position": [[1, 0] if feature == 3 else [] for feature in every],
    }
    shipped = Examples({}, pa.table(columns))
    monkeypatch.setattr(examples, "read_examples", lambda path, subject: shipped)
    rows = card_rows(subject, FEATURES, 5, RunContext(examples="shipped.parquet"))
    assert rows.cards["activation_frequency"].tolist() == [0.4, 0.03, 0.17]
    assert [each.tolist() for each in rows.cards["activation_histogram"]] == [
        [feature, 1] for feature in FEATURES
    ]
    assert rows.cards["activation_histogram_range"].tolist() == [2.0**40, 8.0, 2.0**17]
    decode = subject.lm.tokenizer.decode
    assert rows.examples["feature"] == [3, 3]
    assert rows.examples["example"] == [0, 1]
    assert rows.examples["tokens"] == [[decode([5]), decode([3])], [decode([7])]]
    assert rows.examples["activations"] == [[pytest.approx(0.4), 2.0], [1.0]]
