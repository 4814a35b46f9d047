"""Batches from inside: who is run, for how long, and how far steering moves the first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from steerlens import SteerlensError, load_subject
from steerlens.config.schema import POSITIONS
from steerlens.engine.generation.decoding import decode
from steerlens.engine.generation.sampling import Sampling
from steerlens.engine.generation.stopping import Stopping
from steerlens.engine.intervention import Operation, feature_targets
from steerlens.engine.intervention.hooks import SteeringHooks
from steerlens.engine.padding import ROWS, next_multiple
from steerlens.engine.prompts import LENGTHS, _state_bytes
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext
from tests.support.generating import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    assert_equal_texts,
    ids_of,
    mixed_rows,
    rows_of,
    texts_of,
)
from tests.support.naive_steering import naive_logits
from tests.support.tiny import save_sae

MakeSubject = Callable[..., Subject]


def kl(steered_V: torch.Tensor, plain_V: torch.Tensor) -> float:
    p, q = (logits_V.double().log_softmax(-1) for logits_V in (steered_V, plain_V))
    return float((p.exp() * (p - q)).sum())


def naive_kl(subject: Subject, row: dict[str, Any], positions: str) -> float:
    """From whole forwards, with and without steering, of the first step that is edited."""
    prompt = subject.to_tokens(row["prompt"])[0].tolist()
    ids = [*prompt, row["token_ids"][0]] if positions == "generated" else prompt
    settings = (len(prompt), [row["feature"]])
    steered = naive_logits(subject, ids, *settings, row["factor"], positions)
    return kl(steered, naive_logits(subject, ids, *settings, 0.0, positions))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", ["jumprelu", "temporal"])
def test_first_step_kl_is_of_the_first_steered_step(
    tiny_subject: MakeSubject, architecture: str, positions: str
) -> None:
    subject = tiny_subject("gemma2", architecture)
    rows = mixed_rows(100.0 if architecture == "temporal" else 1.0)
    texts = texts_of(subject, rows, positions=positions, **GREEDY)
    assert min(map(len, ids_of(texts))) > 1
    for row in texts.to_dict("records"):
        if row["factor"] == 0:
            assert row["first_step_kl"] == 0
        else:
            expected = naive_kl(subject, row, positions)
            assert expected > 1e-3
            assert row["first_step_kl"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_generated_measures_no_step_of_a_text_of_one_token(subject: Subject) -> None:
    settings = {**GREEDY, "max_new_tokens": 1}
    texts = texts_of(subject, mixed_rows(), positions="generated", **settings)
    unsteered = texts_of(subject, mixed_rows().assign(factor=0.0), **settings)
    assert max(texts["first_step_kl"].tolist()) < 1e-6
    assert ids_of(texts) == ids_of(unsteered)


def test_finished_rows_are_not_run_any_more(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()
    rows = rows_of(factors=[0.7], samples=10)
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = list(range(1, 211, 5))
    sizes: list[int] = []
    bridge_type: Any = type(subject.lm.bridge)
    real = bridge_type.forward

    def counted(bridge: Any, tokens_BL: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tokens_BL.shape[1] == 1 and kwargs["past_key_values"].get_seq_length() >= n_prompt:
            sizes.append(len(tokens_BL))
        return real(bridge, tokens_BL, *args, **kwargs)

    n_prompt = LENGTHS  # no prompt here is longer
    monkeypatch.setattr(bridge_type, "forward", counted)
    texts = texts_of(subject, rows, **SAMPLED)
    lengths = [len(ids) for ids in ids_of(texts)]
    alive = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert sizes == [next_multiple(n, ROWS) for n in alive]
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("positions", ["last", "all"])
def test_prompts_that_come_again_are_not_run_again_and_give_the_same_bits(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch, positions: str
) -> None:
    subject = tiny_subject()
    forwards: list[tuple[int, ...]] = []
    bridge_type: Any = type(subject.lm.bridge)
    real = bridge_type.forward

    def noted(bridge: Any, tokens_BL: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        forwards.append(tuple(tokens_BL.shape))
        return real(bridge, tokens_BL, *args, **kwargs)

    monkeypatch.setattr(bridge_type, "forward", noted)
    run = RunContext()

    def forwards_of(factor: float, run: RunContext) -> tuple[int, pd.DataFrame]:
        forwards.clear()
        rows = mixed_rows().assign(factor=lambda rows: rows["factor"] * factor)
        texts = texts_of(subject, rows, run, positions=positions, **SAMPLED)
        return len(forwards), texts

    prompts = mixed_rows()["prompt"].unique().tolist()
    texts_of(subject, rows_of(prompts=prompts[:1]), run, positions=positions, **SAMPLED)
    n_beside_another, texts = forwards_of(2.0, run)
    n_again, texts_again = forwards_of(2.0, run)
    n_alone, expected = forwards_of(2.0, RunContext())
    of_prompt = 2 if positions == "last" else 1
    assert n_beside_another == n_alone - of_prompt
    assert n_again == n_alone - of_prompt * len(prompts)
    for frame in (texts, texts_again):
        pd.testing.assert_frame_equal(frame, expected, check_exact=True)


def test_states_of_prompts_take_no_more_memory_than_they_may(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    run = RunContext(memory_budget=80_000)
    assert run.prompt_bytes == 10_000
    n_prompts = []
    for prompt in PROMPTS:
        rows = rows_of(prompts=[prompt])
        again = texts_of(subject, rows, run, **SAMPLED)
        pd.testing.assert_frame_equal(again, texts_of(subject, rows, **SAMPLED))
        states = run.cache.prompt_states.values()
        assert sum(map(_state_bytes, states)) <= 10_000
        n_prompts.append(len(states))
    assert 0 < max(n_prompts) < len(PROMPTS)
    run = RunContext(memory_budget=0)
    texts_of(subject, rows_of(), run, **SAMPLED)
    assert not run.cache.prompt_states


def test_progress_counts_every_token(subject: Subject) -> None:
    given, seen = [[0, 3, 5], [0, 9]], []
    targets = feature_targets(subject.sae, torch.tensor([[5], [6], [7]]), torch.ones(3))
    hooks = SteeringHooks(subject, Operation(), targets)
    stopping = Stopping(subject.lm.tokenizer, range(1, 211, 3), [], 5)
    texts = decode(
        subject, given, torch.tensor([1, 0, 1]), hooks, [1, 2, 3], Sampling(1.0), stopping,
        seen.append,
    )  # fmt: skip
    assert sum(seen) == sum(len(text.token_ids) for text in texts)
    assert seen[0] == 3


def test_the_model_is_as_before(subject: Subject) -> None:
    tokens = torch.tensor([[0, 3, 5, 6]])
    plain = subject.lm.bridge(tokens)
    texts_of(subject, mixed_rows(), positions="all", **SAMPLED)
    assert torch.equal(subject.lm.bridge(tokens), plain)


def test_padding_does_not_reach_what_is_written(subject: Subject) -> None:
    long = " ".join(["w60"] * 40)
    rows = mixed_rows()
    padded = pd.concat([rows, rows_of([5], [1.0], [long])], ignore_index=True)
    for positions in POSITIONS:
        alone = texts_of(subject, rows, positions=positions, **SAMPLED)
        together = texts_of(subject, padded, positions=positions, **SAMPLED)
        assert_equal_texts(together.iloc[: len(rows)], alone)
        assert together["first_step_kl"].tolist()[:-1] == alone["first_step_kl"].tolist()


def test_running_out_of_memory_halves_the_batch_and_changes_no_text(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(factors=[0.0, 1.0], prompts=PROMPTS)
    whole = texts_of(subject, rows, **SAMPLED)
    sizes: list[int] = []

    def scarce(subject: Subject, prompts: Sequence[Any], prompt_B: torch.Tensor, *rest: Any) -> Any:
        if len(prompt_B) > 3:
            raise torch.OutOfMemoryError
        sizes.append(len(prompt_B))
        return decode(subject, prompts, prompt_B, *rest)

    monkeypatch.setattr("steerlens.engine.generation.row_batches.decode", scarce)
    assert_equal_texts(texts_of(subject, rows, **SAMPLED), whole)
    assert sum(sizes) == len(rows)
    assert max(sizes) <= 3


def test_a_model_that_remembers_otherwise_is_refused(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject()

    class Other:
        def __init__(self, config: Any) -> None:
            self.layers = [object()]

    monkeypatch.setattr("transformers.DynamicCache", Other)
    with pytest.raises(SteerlensError, match=r"of type llama remembers its past by more than"):
        texts_of(subject, mixed_rows(), **SAMPLED)


def test_overflow_is_refused_with_the_factor_that_was_too_large(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = {"model.path": tiny_folder("llama"), "sae.path": save_sae(tmp_path / "sae")}
    subject = load_subject(
        "local", "local", **paths, **{"paths.cache_dir": tmp_path, "dtype": "float16"}
    )
    fine = texts_of(subject, rows_of((1,), (0.0, 1.0)), **SAMPLED)
    assert np.isfinite(fine["first_step_kl"]).all()
    with pytest.raises(SteerlensError, match="float16 when it is steered with a factor that is"):
        texts_of(subject, rows_of((1,), (1.0, 1e6)), **SAMPLED)
