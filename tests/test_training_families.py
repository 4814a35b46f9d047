"""What `experiments/embedded` can train besides the embedded default: other architectures."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import steerlens
from steerlens.config.compose import compose
from tests.support.embedded import needs_embedded
from tests.support.tiny import save_sae

FOLDER = Path(__file__).parents[1] / "experiments" / "embedded"
FAMILIES = ("llama", "gpt_neox", "gpt2", "gemma2")
TIED = {"gpt2", "gemma2"}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports by name from the folder; nothing is compiled, so no C++ compiler is needed."""
    monkeypatch.syspath_prepend(FOLDER)
    with torch.compiler.set_stance("force_eager"):
        yield importlib.import_module


def tiny_settings(module: Any, family: str, **changes: Any) -> Any:
    settings = module("settings").family_settings(family, tokens=1024)
    shape = replace(settings.model, d_model=32, n_layers=2, n_heads=2, d_mlp=64, context=32)
    return replace(settings, model=shape, **changes)


def tiny_model(module: Any, family: str) -> Any:
    return module("lm").build_model(tiny_settings(module, family)).eval()


def rows() -> torch.Tensor:
    return torch.randint(3, 8192, (3, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chunked_loss_and_its_gradient_are_those_of_the_model(module: Any, family: str) -> None:
    model = tiny_model(module, family)
    for parameter in model.parameters():  # far from uniform, so that a soft cap would show
        parameter.data.mul_(3)
    module("lm").loss_of(model, model.base_model, rows(), bf16=False).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model(input_ids=rows(), labels=rows(), use_cache=False).loss
    loss.backward()
    again = module("lm").loss_of(model, model.base_model, rows(), bf16=False)
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(module: Any, family: str) -> None:
    model = tiny_model(module, family)
    linear, transposed = module("families").block_matrices(model)
    taken = {id(p) for p in linear + transposed}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    inside = module("families").blocks(model).parameters()
    assert taken == {id(p) for p in inside if p.ndim == 2}
    assert not any("norm" in name or "emb" in name or "wpe" in name for name in names)
    assert bool(transposed) == (family == "gpt2")


def test_muon_moves_a_transposed_matrix_as_it_moves_the_matrix(module: Any) -> None:
    muon = module("muon").BatchedMuon
    tall = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    plain, turned = torch.nn.Parameter(tall.clone()), torch.nn.Parameter(tall.T.contiguous())
    plain.grad, turned.grad = grad, grad.T.contiguous()
    muon([plain]).step()
    muon([{"params": [turned], "transposed": True}]).step()
    assert not torch.equal(plain, tall)
    # Newton-Schulz runs in bfloat16.
    torch.testing.assert_close(turned.T, plain, rtol=0, atol=1e-3)


@needs_embedded
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_exported_and_loads_as_a_subject(
    module: Any, family: str, tmp_path: Path
) -> None:
    settings = tiny_settings(module, family, scratch=tmp_path)
    lm, model = module("lm"), tiny_model(module, family)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    optimizers = module("optim").Optimizers(model, settings.training)
    lm.loss_of(model, model.base_model, rows(), bf16=False).backward()
    optimizers.step(0.0)
    lm.save_checkpoint(settings.checkpoint, model, optimizers, {"step": 1})
    assert lm.load_checkpoint(settings.checkpoint, model, optimizers)["step"] == 1
    np.save(tmp_path / "validation.npy", rows().flatten().numpy().astype(np.uint16))
    losses = module("export").export_model(settings, tmp_path / "model")
    assert losses["stored"] == pytest.approx(losses["float32"], abs=1e-2)
    assert losses["float32"] == pytest.approx(
        lm.validation_loss(model, module("prepare").load_rows(settings, "validation")), abs=1e-5
    )
    stored: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    head, embedding = stored.get_output_embeddings(), stored.get_input_embeddings()
    assert (head.weight is embedding.weight) == (family in TIED)

    save_sae(tmp_path / "sae" / "layer_1", "topk", layer=1)
    where = {"model.path": str(tmp_path / "model"), "sae.path": str(tmp_path / "sae")}
    subject = steerlens.load_subject("local", "local", layer=1, **where)
    assert subject.lm.bridge.cfg.n_layers == 2
    tokens = subject.to_tokens("a list of names")
    theirs = stored.float()(tokens).logits
    torch.testing.assert_close(subject.lm.bridge(tokens), theirs, rtol=1e-4, atol=1e-4)


def test_a_short_training_reaches_its_rate_and_decays(module: Any) -> None:
    settings = module("settings")
    for tokens in (100_000, 600_000, 6_000_000):
        chosen = settings.family_settings("llama", tokens).training
        schedule = module("optim").Schedule(chosen, chosen.batch * 256)
        scales = [schedule.scale(step) for step in range(schedule.total)]
        assert max(scales) == 1
        assert scales[-1] < 0.1
        assert chosen.warmup_steps <= settings.TrainingSettings().warmup_steps


def test_the_experiment_on_the_grid_takes_saes_that_the_grid_made(module: Any) -> None:
    made = module("settings").grid_settings((8, 32, 128), (512, 2048), 1)
    config = compose(["experiment=sae_training"])
    assert made.name in config.model.aliases
    assert Path(str(config.sae.path)).name in {one.release for one in made.saes}
