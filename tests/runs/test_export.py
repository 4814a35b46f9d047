"""Exports, loaded back by plain Transformers, against the same edit in steerlens' own model."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerlens import SteerlensError
from steerlens.engine.steered import SteeredPrompt
from steerlens.engine.subject import Subject
from steerlens.runs.export import SteeringVector, measured_a_max, steering_vector
from steerlens.runs.export.lm_eval import export_lm_eval
from steerlens.runs.export.tensors import export_safetensors, export_snippet, load_safetensors
from steerlens.scores import RunContext

pytestmark = pytest.mark.slow

PROMPT, PROMPTS = "From my experience ,", ("From my experience ,", "Note that")
FACTOR, A_MAX = 3.0, 1.5
SITES = ("resid_pre", "resid_post", "resid_mid", "attn_out", "mlp_out", "attn.hook_z")


def steer_py(folder: Path) -> Any:
    """The exported snippet as a module."""
    export_snippet(folder / "steer.py")
    spec = importlib.util.spec_from_file_location("exported_steer", folder / "steer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def added_everywhere(subject: Subject, features: Sequence[int]) -> torch.Tensor:
    """Logits (L, V) with `factor * a_max` decoder rows added at every position, by the bridge."""
    change_D = sum(FACTOR * A_MAX * subject.sae.W_dec[feature] for feature in features)

    def edit(out: torch.Tensor, hook: Any) -> torch.Tensor:
        return out + torch.as_tensor(change_D).reshape(out.shape[2:])

    return subject.lm.bridge.run_with_hooks(
        subject.to_tokens(PROMPT), fwd_hooks=[(subject.site.write, edit)]
    )[0]


@torch.no_grad()
def as_lm_eval_loads_it(model: Any, path: Path, tokens_1L: torch.Tensor) -> torch.Tensor:
    """What lm_eval/models/hf_steered.py (0.4.13) makes of the file, for the action `add`."""

    def hook(module: Any, args: Any, output: Any, vector_D: torch.Tensor) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector_D, *output[1:])
        return output + vector_D

    handles = []
    for hookpoint, about in torch.load(path, weights_only=True).items():
        assert about["action"] == "add"
        assert about["bias"] is None
        assert about["head_index"] is None
        vector_D = about["steering_vector"] * float(about["steering_coefficient"])
        module = dict(model.base_model.named_modules())[hookpoint]
        handles.append(module.register_forward_hook(partial(hook, vector_D=vector_D)))
    logits = model(tokens_1L).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def vectors_of(subject: Subject, *features: int) -> list[SteeringVector]:
    return [steering_vector(subject, feature, FACTOR, A_MAX) for feature in features]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "neox"])
def test_every_export_gives_the_logits_of_the_edit_it_claims(
    tiny_subject: Callable[..., Subject],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    kind: str,
    site: str,
) -> None:
    if kind == "neox" and site == "resid_mid":
        pytest.skip("attention and MLP are parallel")
    subject = tiny_subject(kind, site=site)
    expected = added_everywhere(subject, [3, 40])
    vectors = vectors_of(subject, 3, 40)
    model, tokens_1L = plain_model(tiny_folder(kind)), subject.to_tokens(PROMPT)
    plain = model(tokens_1L).logits[0]
    assert (expected - plain).abs().max() > 0.1

    file = tmp_path / "two.safetensors"
    export_safetensors(file, vectors)
    with torch.no_grad(), steer_py(tmp_path).steered(model, file):
        steered = model(tokens_1L).logits[0]
    assert torch.allclose(steered, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(tokens_1L).logits[0], plain)  # no hook is left behind

    export_lm_eval(tmp_path / "two.pt", vectors)
    steered = as_lm_eval_loads_it(model, tmp_path / "two.pt", tokens_1L)
    assert torch.allclose(steered, expected, rtol=1e-4, atol=1e-4)


def test_lm_eval_itself_gives_those_logits(
    tiny_subject: Callable[..., Subject], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    hf_steered = pytest.importorskip("lm_eval.models.hf_steered")
    subject = tiny_subject()
    export_lm_eval(tmp_path / "one.pt", vectors_of(subject, 3))
    model = hf_steered.SteeredModel(
        pretrained=str(tiny_folder("llama")),
        steer_path=str(tmp_path / "one.pt"),
        device="cpu",
        dtype="float32",
    )
    logits = model._model_call(subject.to_tokens(PROMPT))[0]
    assert torch.allclose(logits, added_everywhere(subject, [3]), rtol=1e-4, atol=1e-4)


def test_the_first_blocks_input_is_steered_by_the_snippet_and_refused_for_lm_eval(
    tiny_subject: Callable[..., Subject], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = tiny_subject("gpt2", layer=0, site="resid_pre")
    vectors = vectors_of(subject, 3)
    export_safetensors(tmp_path / "one.safetensors", vectors)
    model = plain_model(tiny_folder("gpt2"))
    with torch.no_grad(), steer_py(tmp_path).steered(model, tmp_path / "one.safetensors"):
        steered = model(subject.to_tokens(PROMPT)).logits[0]
    assert torch.allclose(steered, added_everywhere(subject, [3]), rtol=1e-4, atol=1e-4)
    with pytest.raises(SteerlensError, match="changes outputs of modules only"):
        export_lm_eval(tmp_path / "one.pt", vectors)
    assert not list(tmp_path.glob("one.pt*"))


def test_a_site_inside_a_module_is_refused(
    tiny_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject(site="mlp_out")
    # As in Granite, whose block scales the MLP's output before it adds it.
    point = subject.lm.bridge.hook_dict[subject.site.write]
    monkeypatch.setattr(point, "name", "blocks.2.hook_mlp_out")
    with pytest.raises(SteerlensError, match="neither the output nor the input of a module"):
        vectors_of(subject, 3)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("standard", {}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("transcoder", {"site": "mlp_in"}),
    ],
)
def test_at_the_last_position_of_the_measured_prompt_it_is_the_papers_edit(
    tiny_subject: Callable[..., Subject],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    architecture: str,
    settings: dict[str, Any],
) -> None:
    subject = tiny_subject("llama", architecture, **settings)
    a_max = measured_a_max(subject, [PROMPT])
    vector = steering_vector(subject, 3, FACTOR, a_max, [PROMPT])
    export_safetensors(tmp_path / "one.safetensors", [vector])
    model = plain_model(tiny_folder("llama"))
    steer = steer_py(tmp_path)
    with torch.no_grad(), steer.steered(model, tmp_path / "one.safetensors", last_only=True):
        steered = model(subject.to_tokens(PROMPT)).logits[0, -1]
    seen: list[torch.Tensor] = []
    SteeredPrompt(subject, PROMPT).run(
        torch.tensor([3]), FACTOR, RunContext(), 1, lambda rows, h_BD: seen.append(h_BD)
    )
    head = subject.lm.head
    expected = head.finish(head.logits(seen[0]))[0]
    assert torch.allclose(steered, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_were_processed_for_the_sae_need_no_processing_in_the_plain_model(
    tiny_subject: Callable[..., Subject], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    kwargs = {"fold_ln": True, "center_writing_weights": True}
    subject = tiny_subject("gpt2", metadata={"model_from_pretrained_kwargs": kwargs})
    export_safetensors(tmp_path / "one.safetensors", vectors_of(subject, 3))
    model = plain_model(tiny_folder("gpt2"))
    with torch.no_grad(), steer_py(tmp_path).steered(model, tmp_path / "one.safetensors"):
        steered = model(subject.to_tokens(PROMPT)).logits[0].log_softmax(-1)
    expected = added_everywhere(subject, [3]).log_softmax(-1)
    assert torch.allclose(steered, expected, rtol=1e-4, atol=1e-4)


def test_a_max_is_the_mean_over_prompts(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject()
    each = [SteeredPrompt(subject, prompt).a_max.item() for prompt in PROMPTS]
    assert measured_a_max(subject, PROMPTS) == pytest.approx(sum(each) / 2)
    with pytest.raises(SteerlensError, match="at least one prompt"):
        measured_a_max(subject, [])


def test_the_card_tells_everything_and_comes_back(
    tiny_subject: Callable[..., Subject], tmp_path: Path
) -> None:
    subject = tiny_subject("llama", site="resid_pre")
    vectors = [steering_vector(subject, feature, FACTOR, A_MAX, PROMPTS) for feature in (3, 7)]
    export_safetensors(tmp_path / "two.safetensors", vectors)
    back = load_safetensors(tmp_path / "two.safetensors")
    assert [vector.card for vector in back] == [vector.card for vector in vectors]
    for got, vector in zip(back, vectors, strict=True):
        assert torch.equal(got.vector_D, vector.vector_D)
    card = back[0].card
    assert (card.hook_name, card.layer) == ("blocks.2.hook_resid_pre", 2)
    assert (card.module, card.side) == ("model.layers.1", "output")
    assert len(card.logit_lens_tokens) == 20
    text = (tmp_path / "two.safetensors.json").read_text(encoding="utf-8")
    assert "a constant" in text
    assert str(tmp_path) not in text


def test_the_snippet_needs_only_torch_transformers_and_safetensors(
    tiny_subject: Callable[..., Subject], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    steer_py(tmp_path)
    imported = set()
    for node in ast.walk(ast.parse((tmp_path / "steer.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0] for name in names or [node.module or ""]}  # type: ignore[union-attr]
    assert imported - sys.stdlib_module_names == {"safetensors", "transformers"}

    export_safetensors(tmp_path / "one.safetensors", vectors_of(tiny_subject(), 3))
    arguments = ["steer.py", "one.safetensors", str(tiny_folder("llama")), PROMPT]
    run = [sys.executable, *arguments, "--max-new-tokens", "3"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert PROMPT in done.stdout


@pytest.mark.parametrize(
    ("export", "name"), [(export_safetensors, "x.safetensors"), (export_lm_eval, "x.pt")]
)
def test_what_a_file_cannot_hold_is_refused(
    tiny_subject: Callable[..., Subject], tmp_path: Path, export: Any, name: str
) -> None:
    vectors = vectors_of(tiny_subject(), 3)
    with pytest.raises(SteerlensError, match="must end with"):
        export(tmp_path / "x.bin", vectors)
    with pytest.raises(SteerlensError, match="no vector"):
        export(tmp_path / name, [])
    with pytest.raises(SteerlensError, match="feature_3 twice"):
        export(tmp_path / name, vectors * 2)
    assert not list(tmp_path.glob("x.*"))


def test_bad_numbers_and_features_are_refused(tiny_subject: Callable[..., Subject]) -> None:
    subject = tiny_subject()
    with pytest.raises(SteerlensError, match="no feature 48"):
        steering_vector(subject, 48, FACTOR, A_MAX)
    with pytest.raises(SteerlensError, match="isn't finite"):
        steering_vector(subject, 3, FACTOR, float("nan"))


def test_broken_files_are_refused(tiny_subject: Callable[..., Subject], tmp_path: Path) -> None:
    file, card = tmp_path / "one.safetensors", tmp_path / "one.safetensors.json"
    with pytest.raises(SteerlensError, match="missing or no whole safetensors"):
        load_safetensors(file)
    export_safetensors(file, vectors_of(tiny_subject(), 3))
    whole = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({"vectors": {}}), encoding="utf-8")
    with pytest.raises(SteerlensError, match="another file"):
        load_safetensors(file)
    for broken in ([], {**whole, "vectors": {"a": {"model": "x"}}}):
        card.write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(SteerlensError, match="no card"):
            load_safetensors(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SteerlensError, match="no whole safetensors"):
        load_safetensors(file)
