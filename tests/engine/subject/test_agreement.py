"""The bridge's logits are Hugging Face's, or the model is refused: compared at every load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerlens import SteerlensError, load_subject, score_features
from steerlens.engine.subject import Subject
from steerlens.engine.subject.agreement import agree, reference_logits
from steerlens.engine.subject.head import Head
from steerlens.steering.metrics.likelihood import mean_negative_log_likelihood
from tests.support.generating import ids_of, rows_of, texts_of
from tests.support.tiny import MENDED, N_LAYERS, save_model, save_sae

MakeSubject = Callable[..., Subject]

OWN_ATTENTION = {"cohere", "cohere_qk_norm", "falcon_alibi", "hunyuan", "mpt", "phi_qk_norm"}
FROM_START = {"bloom", "falcon_alibi", "falcon_new", "falcon_old", "gpt_bigcode", "opt", "xglm"}
PROMPTS = ("my", "the experience, that w20 w21 w22 w23 w24 w25 w26")


def load(model: Path, cache: Path, **settings: Any) -> Subject:
    sae = save_sae(cache / "sae")
    paths = {"model.path": model, "sae.path": sae, "paths.cache_dir": cache}
    return load_subject("local", "local", "all", **paths, **{"device": "cpu", **settings})


def hugging_face(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def naive_logits(hf_model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(L, V): of one text, without a cache, padding or a bridge."""
    return hf_model(torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def naive_greedy(hf_model: Any, ids: list[int], n: int) -> list[int]:
    new: list[int] = []
    for _ in range(n):
        new.append(int(naive_logits(hf_model, [*ids, *new])[-1].argmax()))
        if new[-1] == 1:  # EOS
            break
    return new


@torch.no_grad()
def naive_steered_logits(
    hf_model: Any, subject: Subject, ids: Sequence[int], feature: int, factor: float
) -> torch.Tensor:
    """(V,): after the last position, whose vector is edited by a hook of PyTorch's."""
    blocks = next(
        module
        for module in hf_model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == N_LAYERS
    )

    def edit(module: Any, inputs: Any, out: Any) -> Any:
        x_BLD = out[0] if isinstance(out, tuple) else out
        acts = subject.sae.encode(x_BLD).clone()
        before = subject.sae.decode(acts)
        acts[..., feature] += factor * acts[0, -1].max()
        change_BLD = subject.sae.decode(acts) - before
        x_BLD = torch.cat([x_BLD[:, :-1], x_BLD[:, -1:] + change_BLD[:, -1:]], dim=1)
        return (x_BLD, *out[1:]) if isinstance(out, tuple) else x_BLD

    handle = blocks[subject.layer].register_forward_hook(edit)
    try:
        return naive_logits(hf_model, ids)[-1]
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", list(MENDED))
def test_types_that_the_bridge_alone_gets_wrong_give_hugging_faces_numbers(
    tmp_path: Path, kind: str
) -> None:
    folder = save_model(tmp_path / "model", kind)
    subject, hf_model = load(folder, tmp_path), hugging_face(folder)
    assert subject.lm.agreement.own_attention == (kind in OWN_ATTENTION)
    assert subject.lm.agreement.rows_from_start == (kind in FROM_START)
    assert subject.lm.agreement.difference < 1e-4
    ids = [subject.to_tokens(prompt)[0].tolist() for prompt in PROMPTS]
    logits_LV = naive_logits(hf_model, ids[1])
    assert torch.allclose(subject.lm.bridge(torch.tensor([ids[1]]))[0], logits_LV, atol=1e-4)
    # Prompts of two lengths in one batch, and then one that is steered.
    rows = rows_of((1,), (0.0,), PROMPTS)
    texts = texts_of(subject, rows, temperature=0.0, max_new_tokens=4, stop=None)
    assert ids_of(texts) == [naive_greedy(hf_model, prompt, 4) for prompt in ids]
    prompt = {"prompt": PROMPTS[1], "factor": 3.0, "null_directions": 0}
    scores = score_features(subject, "output", [1, 5], **prompt)
    for row in scores.to_dict("records"):
        p_V = naive_steered_logits(hf_model, subject, ids[1], row["feature"], 3.0).softmax(-1)
        token = subject.lm.tokenizer(row["output_token"], add_special_tokens=False)["input_ids"]
        assert row["output_probability"] == pytest.approx(float(p_V[token]), rel=1e-4)
        assert row["output_rank"] == int((p_V > p_V[token]).sum())
    nll_L = -logits_LV[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1][1:])[:, None])
    means = mean_negative_log_likelihood(subject.lm, [ids[1]] * 2, [ids[1][:5]] * 2, 2**30)
    assert means == pytest.approx([float(nll_L.mean())] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),  # OPT-350m
        ("gpt_bigcode", {"multi_query": False}),
    ],
)
def test_what_the_bridge_cannot_take_over_is_refused_by_its_type(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    folder = save_model(tmp_path / "model", kind, **settings)
    with pytest.raises(SteerlensError, match=f"is of type {kind}, which TransformerLens") as error:
        load(folder, tmp_path)
    assert "\n" not in str(error.value)


def test_other_logits_are_refused_with_how_far_they_are_apart(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path]
) -> None:
    lm = tiny_subject("gemma2").lm
    reference = reference_logits(hugging_face(tiny_folder("gemma2")), lm.tokenizer, "x")
    found = agree(lm.bridge, Head(lm.bridge), reference, False, "x")
    assert found.difference < 1e-4
    assert not found.own_attention
    assert not found.rows_from_start
    logits_LV = reference.logits[0]
    shift = 0.01 * float(logits_LV.std(dim=-1).mean())
    logits_LV[3, 7] += shift
    with pytest.raises(SteerlensError, match=r"is of type gemma2.* by up to 0\.01 standard dev"):
        agree(lm.bridge, Head(lm.bridge), reference, False, "x")
    logits_LV[3, 7] -= shift
    # A constant is no difference of log-probabilities, which are what processed weights keep.
    moved = replace(reference, logits=tuple(one + 1.0 for one in reference.logits))
    agree(lm.bridge, Head(lm.bridge), moved, True, "x")
    with pytest.raises(SteerlensError, match="other logits than Hugging Face's"):
        agree(lm.bridge, Head(lm.bridge), moved, False, "x")


def test_processed_weights_agree_in_log_probabilities(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    processing = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    kwargs = {"model_from_pretrained_kwargs": dict.fromkeys(processing, True)}
    sae = save_sae(tmp_path / "sae", metadata=kwargs)
    paths: dict[str, Any] = {
        "model.path": tiny_folder("gpt2"), "sae.path": sae, "paths.cache_dir": tmp_path
    }  # fmt: skip
    assert load_subject("local", "local", **paths).lm.agreement.difference < 1e-4


def test_a_comparison_is_paid_once_for_a_model_and_a_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model", "cohere")
    first = load(folder, tmp_path)
    compared: list[str] = []

    def count(hf_model: Any, tokenizer: Any, name: str) -> Any:
        compared.append(str(hf_model.dtype))
        return reference_logits(hf_model, tokenizer, name)

    monkeypatch.setattr("steerlens.engine.subject.model.reference_logits", count)
    again = load(folder, tmp_path)
    assert compared == []
    assert again.lm.agreement == first.lm.agreement
    assert again.key == first.key
    tokens = first.to_tokens(PROMPTS[1])
    assert torch.equal(again.lm.bridge(tokens), first.lm.bridge(tokens))  # also its own attention
    load(folder, tmp_path, dtype="bfloat16")
    assert compared == ["torch.bfloat16"]
    file = next(
        file for file in (tmp_path / "agreement").iterdir()
        if json.loads(file.read_text())["difference"] == first.lm.agreement.difference
    )  # fmt: skip
    file.write_text("{}")
    assert load(folder, tmp_path).lm.agreement == first.lm.agreement
    assert compared == ["torch.bfloat16", "torch.float32"]


def test_logits_that_overflow_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "cohere", logit_scale=1e6)
    with pytest.raises(SteerlensError, match="NaN or infinite in float16; use dtype=float32"):
        load(folder, tmp_path, dtype="float16")
