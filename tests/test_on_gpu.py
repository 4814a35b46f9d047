"""What a GPU computes equals what the CPU does, on tiny subjects in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.gpu import llama, stack
from experiments.smollm2.step import Settings
from experiments.smollm2.train import RELEASES
from steerlens import load_subject
from steerlens.engine.activations.stream import activations
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext, output
from tests.support.generating import GREEDY, SAMPLED, ids_of, mixed_rows, texts_of
from tests.support.tiny import save_sae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SUBJECTS = [("llama", "topk"), ("gemma2", "jumprelu"), ("gpt2", "standard"), ("neox", "gated")]


@pytest.fixture(params=SUBJECTS, ids=str)
def both(
    request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> tuple[Subject, Subject]:
    """The same subject on the CPU and on the GPU."""
    kind, architecture = request.param
    sae = save_sae(tmp_path / "sae", architecture)
    paths = {"model.path": tiny_folder(kind), "sae.path": sae, "paths.cache_dir": tmp_path}
    cpu, gpu = (
        load_subject("local", "local", "all", **paths, device=device) for device in ("cpu", "cuda")
    )
    assert gpu.lm.device.type == gpu.sae.W_dec.device.type == "cuda"
    return cpu, gpu


def test_output_scores(both: tuple[Subject, Subject]) -> None:
    features, config = np.arange(both[0].d_sae), output.Config()
    cpu, gpu = (output.score(subject, features, config, RunContext()) for subject in both)
    for name in ("output_score", "output_score_delta", "output_probability"):
        np.testing.assert_allclose(np.array(gpu[name]), np.array(cpu[name]), 1e-3, 1e-5)
    assert list(gpu["output_token"]) == list(cpu["output_token"])


def test_corpus_pass(both: tuple[Subject, Subject]) -> None:
    draw = np.random.default_rng(0)
    pieces = [
        np.concatenate([[0], draw.integers(3, 200, size)]).astype(np.int32)
        for size in draw.integers(5, 30, 60)
    ]
    cpu, gpu = (activations([subject], pieces, 10, 2**28)[0] for subject in both)
    assert gpu.n_tokens == cpu.n_tokens
    for name in ("fired_F", "sum_F"):
        np.testing.assert_allclose(getattr(gpu, name), getattr(cpu, name), rtol=1e-2, atol=1e-2)


def test_greedy_texts(both: tuple[Subject, Subject]) -> None:
    cpu, gpu = (texts_of(subject, mixed_rows(), **GREEDY) for subject in both)
    assert ids_of(gpu) == ids_of(cpu)


def test_a_sampled_row_does_not_depend_on_the_rows_beside_it(both: tuple[Subject, Subject]) -> None:
    rows = mixed_rows()
    together = ids_of(texts_of(both[1], rows, **SAMPLED))
    apart = [ids_of(texts_of(both[1], rows.iloc[[i]], **SAMPLED))[0] for i in range(len(rows))]
    assert apart == together


def test_texts_from_replayed_graphs(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "sample", lambda logits_BV: logits_BV.argmax(dim=-1))
    prompts = [[5], [7, 8, 9, 10, 11], [3, 4]]
    rows = []
    for device in ("cpu", "cuda"):
        lm = llama.load(tiny_folder("llama"), torch.device(device), torch.float32)
        rows.append(llama.Sampler(lm, len(prompts), 150).write(prompts).tolist())
    assert rows[0] == rows[1]


def test_replayed_graphs_draw_other_texts_each_time(tiny_folder: Callable[[str], Path]) -> None:
    lm = llama.load(tiny_folder("llama"), torch.device("cuda"), torch.bfloat16)
    sampler = llama.Sampler(lm, 4, 70)
    torch.manual_seed(1)
    one, two = sampler.write([[5]] * 4), sampler.write([[5]] * 4)
    torch.manual_seed(1)
    assert torch.equal(sampler.write([[5]] * 4), one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("release", list(RELEASES))
def test_training_steps(release: str) -> None:
    torch.manual_seed(0)
    acts_LND = torch.randn(2, 120, 16)
    settings: Settings = replace(RELEASES[release], d_sae=48, k=4, half=False)
    weights = []
    for device in ("cpu", "cuda"):
        x_LND = acts_LND.to(device)
        stacked = stack.new_stack(settings, x_LND, seed=0)
        stacked.steps_since_fired_LF[:, :9] = settings.dead_steps + 1
        adam = stack.optimiser(stacked, 1e-2)
        for x_LBD in x_LND.split(40, dim=1):
            stack.take_step(stacked, adam, x_LBD)
        weights.append([p.detach().cpu() for p in stacked.parameters])
    for cpu, gpu in zip(*weights, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-3)
