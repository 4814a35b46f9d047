"""How well SAEs reconstruct, against the plain formulas on whole activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steerlens.config.schema import CorpusConfig
from steerlens.data.corpus import texts
from steerlens.data.corpus.sequences import pieces
from steerlens.engine.activations.stream import residuals
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.scores.quality import quality, sae_rows
from steerlens.storage.store import Store

MakeSubject = Callable[..., Subject]


def run_on(folder: Path, text: str, **settings: Any) -> RunContext:
    file = folder / "text.txt"
    file.write_text(text)
    corpus = CorpusConfig(name="text", source="text", path=str(file), context_length=9)
    return RunContext(corpus=corpus, **settings)


@pytest.mark.parametrize("kind", [("llama", "standard"), ("gpt2", "topk")])
def test_measures_equal_the_formulas_on_all_tokens_at_once(
    kind: tuple[str, str], tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    subject = tiny_subject(*kind)
    run = run_on(
        tmp_path, "\n".join(f"w{n} the w{n + 1} In my experience , w{n}" for n in range(9, 90))
    )
    (found,) = quality([subject], 500, run)
    assert run.corpus is not None
    cut = list(pieces(texts(run.corpus), subject.lm.tokenizer, 9, subject.bos, 500))
    (x_BLD,), mask_BL = residuals([subject], cut)
    mask_BL[:, : 0 if subject.bos is None else 1] = False
    with torch.no_grad():
        acts_BLF = subject.sae.encode(x_BLD)
        missed_ND = (subject.sae.decode(acts_BLF) - x_BLD)[mask_BL].double()
    x_ND, acts_NF = x_BLD[mask_BL].double(), acts_BLF[mask_BL]
    variance = (x_ND - x_ND.mean(0)).square().sum()
    assert found["tokens"] == len(x_ND) == 500
    assert found["explained_variance"] == pytest.approx(
        1 - float(missed_ND.square().sum() / variance)
    )
    assert found["l0"] == pytest.approx(float((acts_NF > 0).sum(1).float().mean()))
    assert found["dead_share"] == pytest.approx(float((~(acts_NF > 0).any(0)).float().mean()))


def test_what_is_measured_is_found_again(
    tiny_subject: MakeSubject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = tiny_subject("llama", "topk")
    run = run_on(tmp_path, "the experience , that w60", store=Store(tmp_path / "store"))
    first = sae_rows([subject], 10, run)
    gone = dataclasses.replace(run, task=None)  # type: ignore[arg-type]
    assert sae_rows([subject], 10, gone) == first
    n_read = first[0]["tokens"]
    assert [
        f"has {n_read} tokens, fewer than quality.n_tokens=10" in told for told in caplog.messages
    ] == [True, True]
    assert first[0]["architecture"] == "topk"
    assert first[0]["parameters"] == sum(one.numel() for one in subject.sae.parameters())


def test_without_tokens_nothing_is_read(tiny_subject: MakeSubject) -> None:
    (row,) = sae_rows([tiny_subject("llama", "topk")], None, RunContext())
    assert row["d_sae"] == 48
    assert "l0" not in row


def test_a_corpus_without_text_is_refused(tiny_subject: MakeSubject, tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="no text in it"):
        quality([tiny_subject("llama", "topk")], 10, run_on(tmp_path, ""))


def test_positions_that_the_sae_was_not_trained_on_count_nowhere(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    # Without BOS the first token of each text is at position 0.
    metadata = {"prepend_bos": False, "seqpos_slice": [1, None]}
    subject = tiny_subject("llama", "topk", metadata=metadata)
    assert subject.identity["uncounted_positions"] == 1
    run = run_on(tmp_path, "\n".join(f"the w{n} experience , w{n + 1}" for n in range(20, 90)))
    (found,) = quality([subject], 100, run)
    assert run.corpus is not None
    cut = list(pieces(texts(run.corpus), subject.lm.tokenizer, 9, None))
    assert found["tokens"] == 100 == sum(len(piece) - 1 for piece in cut[:25])
    (x_BLD,), _ = residuals([subject], cut[:25])
    with torch.no_grad():
        decoded_BLD = subject.sae.decode(subject.sae.encode(x_BLD))
    x_ND, decoded_ND = x_BLD[:, 1:].flatten(0, 1), decoded_BLD[:, 1:].flatten(0, 1)
    variance = (x_ND - x_ND.mean(0)).square().sum()
    expected = 1 - float((decoded_ND - x_ND).square().sum() / variance)
    assert found["explained_variance"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("metadata", "n"),
    [
        ({}, 1),
        ({"prepend_bos": False}, 0),
        ({"prepend_bos": False, "seqpos_slice": [None]}, 0),
        ({"prepend_bos": False, "exclude_first_position": True}, 1),
        ({"prepend_bos": True, "seqpos_slice": [5, -5]}, 5),
    ],
)
def test_the_sae_says_which_positions_count(
    tiny_subject: MakeSubject, metadata: dict[str, Any], n: int
) -> None:
    assert tiny_subject("llama", "topk", metadata=metadata).n_uncounted == n
