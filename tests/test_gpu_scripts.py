"""What runs on a GPU once there is one, tried on the CPU: training, sampling, packing, results."""

from __future__ import annotations

import json
import os
import subprocess
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from experiments.gpu import llama, pack, receive, results, stack, train
from experiments.smollm2 import step
from experiments.smollm2.activations import residuals as hooked_residuals
from experiments.smollm2.step import Settings
from steerlens.config.compose import compose

D_IN, D_SAE, K = 16, 48, 4
CPU = torch.device("cpu")


@pytest.mark.parametrize("n_dead", [(0, 0), (20, 3), (7, 0)], ids=str)
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_stacked_steps_equal_those_of_one_layer(architecture: str, n_dead: tuple[int, int]) -> None:
    """Dead latents differ between layers; half of `D_IN`, the most that help, is 8."""
    torch.manual_seed(0)
    acts_LND = torch.randn(2, 120, D_IN) * torch.tensor([3.0, 7.0])[:, None, None] + 1
    settings = Settings(architecture, D_SAE, K, half=False)
    stacked = stack.new_stack(settings, acts_LND, seed=0)
    with torch.no_grad():
        stacked.W_dec_LFD.mul_(torch.rand(2, D_SAE, 1) * 10 + 1)
        stacked.W_enc_LFD.add_(torch.randn(2, D_SAE, D_IN) * 0.1)
    for layer, n in enumerate(n_dead):
        stacked.steps_since_fired_LF[layer, :n] = settings.dead_steps + 1
    alone = [stack.trainee(stacked, layer) for layer in range(2)]
    before = [[p.detach().clone() for p in sae.parameters] for sae in alone]

    adam, adams = stack.optimiser(stacked, 1e-2), [step.optimiser(sae, 1e-2) for sae in alone]
    for x_LBD in acts_LND.split(40, dim=1):
        stack.take_step(stacked, adam, x_LBD)
        for layer, sae in enumerate(alone):
            step.take_step(sae, adams[layer], x_LBD[layer])

    for layer, sae in enumerate(alone):
        ours = stack.trainee(stacked, layer)
        for mine, theirs, first in zip(ours.parameters, sae.parameters, before[layer], strict=True):
            assert (mine - first).abs().max() > 1e-3
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.steps_since_fired, sae.steps_since_fired)
        assert ours.threshold == pytest.approx(sae.threshold, rel=1e-4)
        for key in ("explained", "dead"):
            assert stacked.metrics[key][layer].item() == pytest.approx(sae.metrics[key], rel=1e-4)
        written = step.inference_weights(ours)
        for name, tensor in step.inference_weights(sae).items():
            torch.testing.assert_close(written[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.fixture
def tiny_llama(tiny_folder: Callable[[str], Path]) -> llama.Llama:
    return llama.load(tiny_folder("llama"), CPU, torch.float32)


def test_residuals_equal_transformers(
    tiny_llama: llama.Llama, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.smollm2.activations.LAYERS", (1, 3))
    base = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).eval().model
    ids = torch.randint(1, 200, (3, 20))
    ours = llama.residuals(tiny_llama, ids, (1, 3))
    torch.testing.assert_close(ours, hooked_residuals(base, ids), rtol=1e-4, atol=1e-4)


def test_texts_equal_transformers_greedy_ones(
    tiny_llama: llama.Llama, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over more than one span, prompts of several lengths; a row that has ended stays so."""
    hf_model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).eval()
    prompts = [[5], [7, 8, 9, 10, 11], [3, 4]]
    expected = []
    for prompt in prompts:
        row = list(prompt)
        while len(row) < 80:
            ended = row[-1] == llama.END_ID
            logits = hf_model(torch.tensor([row])).logits[0, -1]
            row.append(llama.END_ID if ended else int(logits.argmax()))
        expected.append(row)
    monkeypatch.setattr(llama, "sample", lambda logits_BV: logits_BV.argmax(dim=-1))
    sampler = llama.Sampler(tiny_llama, len(prompts), 80)
    sampler.write([[2]] * 3)  # what an earlier batch left behind changes nothing
    assert sampler.write(prompts).tolist() == expected

    first_sampled = expected[0][1]
    monkeypatch.setattr(llama, "END_ID", first_sampled)
    assert sampler.write(prompts)[0].tolist() == [5] + [first_sampled] * 79


def test_sampling_follows_the_probabilities_above_min_p() -> None:
    torch.manual_seed(0)
    probability = torch.tensor([0.6, 0.3, 0.07, 0.03 - 1e-3, 1e-3])
    tokens = llama.sample(probability.log().expand(20_000, -1))
    share = torch.bincount(tokens, minlength=5) / 20_000
    assert share[3:].tolist() == [0, 0]  # below 0.05 * 0.6
    torch.testing.assert_close(share[:3], probability[:3] / 0.97, rtol=0, atol=0.02)


def test_rows_are_taken_all_once_before_any_twice() -> None:
    rows = np.arange(10)[:, None]
    taken = np.concatenate([train.take_rows(rows, first, 3) for first in range(0, 30, 3)])[:, 0]
    for epoch in taken.reshape(3, 10):
        assert sorted(epoch) == list(range(10))
    assert taken[:10].tolist() != taken[10:20].tolist()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "tokens").mkdir()
    tokens = np.random.default_rng(0).integers(1, 200, 40 * 255).astype(np.uint16)
    np.save(tmp_path / "tokens" / "bible.npy", tokens)
    (tmp_path / "nouns.txt").write_text("house\nriver")
    return tmp_path


def test_training_stops_resumes_and_comes_back(
    scratch: Path,
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, target = tiny_folder("llama"), scratch / "saes"
    small = {name: replace(settings, d_sae=64, k=8) for name, settings in train.RELEASES.items()}
    monkeypatch.setattr(train, "RELEASES", small)
    monkeypatch.setattr(train, "SAVE_ROUNDS", 1)
    monkeypatch.setattr(train, "prompts", lambda *_: ["the experience", "Note that"] * 4)
    monkeypatch.setattr(llama, "END_ID", 210)  # a random model would end nearly every text

    def run(n_steps: int) -> None:
        paths = ["--model", model, "--scratch", scratch, "--target", target]
        limits = ["--seconds", 600, "--steps", n_steps, "--rows", 8, "--batch", 500]
        options = map(str, [*paths, *limits, "--layers", 1, 2, "--device", "cpu"])
        monkeypatch.setattr("sys.argv", ["train", *options])
        train.main()

    run(5)
    stacks, _, caps, progress = train.load_checkpoint(target / "checkpoint.safetensors", 1e-3, CPU)
    assert progress.steps == 5
    assert progress.tokens == 2500
    assert caps.shape == (2, 1, 1)
    run(8)
    later, _, _, progress = train.load_checkpoint(target / "checkpoint.safetensors", 1e-3, CPU)
    assert progress.steps == 8
    assert not torch.equal(stacks["smollm2-topk"].W_dec_LFD, later["smollm2-topk"].W_dec_LFD)

    out = scratch / "out"
    results.split(target, out, 0, 100)
    back = scratch / "back"
    results.join(out, back)
    capsys.readouterr()
    assert not (back / "checkpoint.safetensors").exists()
    assert np.load(back / "written.npy").shape[1] == 256
    for index, layer in enumerate((1, 2)):
        folder = back / "smollm2-topk" / f"layer_{layer}"
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
        assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
        assert sae.cfg.metadata.training_tokens == 4000
        expected = step.inference_weights(stack.trainee(later["smollm2-topk"], index))
        for name, tensor in expected.items():
            torch.testing.assert_close(sae.state_dict()[name], tensor, rtol=1e-2, atol=1e-2)
    assert json.loads((back / "training.json").read_text())["tokens"] == 4000


def test_a_checkpoint_has_all_that_the_next_step_needs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    acts_LND = torch.randn(2, 80, D_IN)
    stacks, adams = {}, {}
    for release in train.RELEASES:
        settings = replace(train.settings_of(release, CPU), d_sae=D_SAE, k=K)
        stacks[release] = stack.new_stack(settings, acts_LND, seed=0)
        adams[release] = stack.optimiser(stacks[release], 1e-2)
        stack.take_step(stacks[release], adams[release], acts_LND[:, :40])
    progress = train.Progress(rounds=3, steps=1, tokens=40, seconds=2.5)
    train.save_checkpoint(tmp_path / "c", stacks, adams, torch.ones(2, 1, 1), progress)
    loaded, loaded_adams, caps, read = train.load_checkpoint(tmp_path / "c", 1e-2, CPU)
    assert read == progress
    assert caps.tolist() == torch.ones(2, 1, 1).tolist()
    for release in train.RELEASES:
        loaded[release].settings = stacks[release].settings
        for one, adam in ((stacks, adams), (loaded, loaded_adams)):
            stack.take_step(one[release], adam[release], acts_LND[:, 40:])
        pairs = zip(stacks[release].parameters, loaded[release].parameters, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(stacks[release].threshold_L, loaded[release].threshold_L)


def test_files_go_into_the_first_call_with_room() -> None:
    assert pack.into_calls([40, 7, 24, 24, 24, 22], 55) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(SystemExit, match="doesn't fit"):
        pack.into_calls([56 * pack.MIB], 55 * pack.MIB)


def test_parts_make_the_file_again_or_say_that_they_are_not_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "PART", 1000)
    content = np.random.default_rng(0).bytes(3500)
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    folder = tmp_path / "gguf"
    assert receive.whole_file(folder) is None
    made = list(pack.parts(file, folder))
    assert [part.name for part in made[:-1]] == [f"model.gguf.{number:03d}" for number in range(4)]
    last = made[3].read_bytes()
    made[3].unlink()
    assert receive.whole_file(folder) is None
    made[3].write_bytes(last[:-1] + b"x")
    with pytest.raises(SystemExit, match="isn't the file"):
        receive.whole_file(folder)
    made[3].write_bytes(last)
    whole = receive.whole_file(folder)
    assert whole is not None
    assert whole.read_bytes() == content


def test_staged_files_are_moved_and_the_work_tree_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "STAGE", tmp_path / ".gpu")
    for call, name in ((1, "tokens/a.npy"), (2, "nouns.txt")):
        file = tmp_path / ".gpu" / f"call_{call}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    assert receive.move(tmp_path / "there") == 2
    assert (tmp_path / "there" / "tokens" / "a.npy").read_text() == "tokens/a.npy"
    assert (tmp_path / "there" / "nouns.txt").read_text() == "nouns.txt"
    assert "pyproject.toml" in pack.work_tree()


def test_results_with_a_missing_part_give_the_files_that_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "PART", 4096)
    source: dict[str, bytes] = {
        f"folder/{name}": np.random.default_rng(seed).bytes(3000) for seed, name in enumerate("abc")
    }
    for name, content in source.items():
        (tmp_path / "saes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "saes" / name).write_bytes(content)
    (tmp_path / "saes" / "checkpoint.safetensors").write_bytes(b"large")
    results.split(tmp_path / "saes", tmp_path / "one", 0, 2)
    results.join(tmp_path / "one", tmp_path / "some")
    assert "missing: results.002" in capsys.readouterr().out
    assert [file.name for file in sorted((tmp_path / "some" / "folder").iterdir())] == ["a", "b"]
    results.split(tmp_path / "saes", tmp_path / "one" / "rest", 2, 9)
    results.join(tmp_path / "one", tmp_path / "all")
    brought: dict[str, Any] = {
        str(file.relative_to(tmp_path / "all")): file.read_bytes()
        for file in (tmp_path / "all").rglob("*")
        if file.is_file()
    }
    assert brought == source
    (tmp_path / "one" / "results.001").write_bytes(b"x" * 4096)
    with pytest.raises(SystemExit, match="aren't of one archive"):
        results.join(tmp_path / "one", tmp_path / "none")


PYTHON = """#!/bin/sh
{ printf '%s\\t' "$@"; echo; } >> "$CALLS"
for word; do
  case $word in paths.output_dir=*)
    mkdir -p "${word#*=}"
    echo '{"state": "done"}' > "${word#*=}/status.json"
    echo '{}' > "${word#*=}/summary.json";;
  esac
done
"""
"""A python3 that writes down how it is called, and leaves finished runs."""


def studies(folder: Path, seconds: int) -> list[list[str]]:
    """How `studies.sh` calls python3 where there is time for so much, word by word."""
    python, calls = folder / "bin" / "python3", folder / "calls"
    python.parent.mkdir(exist_ok=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.write_text("")
    env = {"SCRATCH": str(folder), "CALLS": str(calls), "HOME": str(folder)}
    env["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    script = [*("bash", "experiments/gpu/studies.sh"), str(folder / "out"), str(seconds)]
    subprocess.run(script, check=True, env=env, cwd=pack.ROOT, capture_output=True)
    return [line.rstrip("\t").split("\t") for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("is_sent", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_study_composes_and_what_has_ended_is_left_alone(
    is_sent: bool, tmp_path: Path
) -> None:
    if is_sent:
        (tmp_path / "site" / "steerlens_smollm2" / "smollm2-topk").mkdir(parents=True)
    calls = studies(tmp_path, 1000)
    runs = [words[2:] for words in calls if words[:2] == ["-m", "steerlens"]]
    *of_default, planned = runs
    names = [word.partition("=")[2] for words in runs for word in words if "experiment=" in word]
    assert names[:4] == ["criteria", "criteria", "criteria", "factors"]  # the most wanted first
    assert {"table1_smollm2", "lenses", "capability", "filter", "one_release"} <= {*names}
    for words in of_default:
        config = compose(words)
        assert config.model.path == str(tmp_path / "model")
        of_release = Path(str(config.sae.path))
        assert of_release.name in ("smollm2-topk", "smollm2-batchtopk")
        assert of_release.is_relative_to(tmp_path) is not is_sent
    assert compose(planned).plan is True
    assert ("experiments.gpu.text" in {words[1] for words in calls}) is not is_sent
    stored = [words[-1] for words in calls if words[1] == "experiments.tables"]
    folders = {
        word.partition("=")[2] for words in of_default for word in words if "output_dir" in word
    }
    assert {Path(folder).name for folder in stored} == {Path(folder).name for folder in folders}
    again = [words for words in studies(tmp_path, 1000) if words[:2] == ["-m", "steerlens"]]
    assert [words[2:] for words in again] == [planned]


def test_without_time_left_no_study_begins(tmp_path: Path) -> None:
    begun = [words for words in studies(tmp_path, 10) if words[:2] == ["-m", "steerlens"]]
    assert [words[-1] for words in begun] == ["plan=true"]
    assert "criteria_0: no time left" in (tmp_path / "out" / "studies.log").read_text()


def test_the_package_of_the_default_travels_to_where_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "STAGE", tmp_path / ".gpu")
    monkeypatch.setattr(pack, "common_nouns", lambda: ["house"])
    (package := tmp_path / "steerlens_smollm2" / "smollm2-topk").mkdir(parents=True)
    (package / "cfg.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    arguments = Namespace(
        model=tmp_path / "model", gguf=tmp_path / "model.gguf", scratch=tmp_path,
        wheels=tmp_path, shipped=package.parent,
    )  # fmt: skip
    names = [name for _, name in pack.payload(arguments)]
    assert names[-1] == "site/steerlens_smollm2/smollm2-topk/cfg.json"
    arguments.shipped = None
    assert not [name for _, name in pack.payload(arguments) if name.startswith("site/")]
