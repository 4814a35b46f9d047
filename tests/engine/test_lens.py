"""The Jacobian lens against autograd, one coordinate at a time, and the effect lens against its
definition."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steerlens import SteerlensError, score_features
from steerlens.config.prompts import PROMPTS
from steerlens.config.schema import CorpusConfig, LensConfig
from steerlens.engine import jacobian as module
from steerlens.engine import lens as lens_module
from steerlens.engine.corpus_pass import activations_of, read_corpus
from steerlens.engine.jacobian import (
    Halves,
    hooks_of_layers,
    jacobian,
    sequence_jacobian,
    sequences_of_corpus,
)
from steerlens.engine.lens import (
    convergence,
    effect_tokens,
    promoted_logits,
    promoted_slopes,
    promoted_tokens,
    promoted_tokens_of_directions,
)
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores import gradient, mean_logit, output
from steerlens.storage.store import Store
from tests.support.naive import naive_steered_logits
from tests.support.tiny import D_MODEL, D_SAE

MakeSubject = Callable[..., Subject]
TOKENS = np.array([0, 20, 31, 4, 77, 140])


def naive_jacobian(subject: Subject, hook: str, tokens_L: np.ndarray) -> torch.Tensor:
    """(D, W): autograd's whole Jacobian, summed over later positions and averaged over sources."""
    bridge, last = subject.lm.bridge, f"blocks.{subject.lm.n_layers - 1}.hook_resid_post"
    tokens_1L = torch.tensor(tokens_L)[None]
    cache = bridge.run_with_cache(tokens_1L)[1]

    def final(x: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hooks: list[Any] = [
            (hook, lambda *_, **__: x),
            (last, lambda out, **_: seen.append(out)),
        ]
        bridge.run_with_hooks(tokens_1L, fwd_hooks=hooks)
        return seen[0][0]

    x = cache[hook]
    J = torch.autograd.functional.jacobian(final, x)  # (L, D, 1, L, ...)
    L = len(tokens_L)
    J = J.reshape(L, D_MODEL, L, -1)
    per_source = [J[t:, :, t].sum(dim=0) for t in range(1, L)]
    return torch.stack(per_source).mean(dim=0)


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("llama", "resid_post"),
        ("gemma2", "mlp_out"),
        ("gpt2", "attn.hook_z"),
        ("neox", "resid_pre"),
    ],
)
def test_one_backward_pass_a_coordinate_gives_autograds_jacobian_of_all_layers(
    tiny_subject: MakeSubject, kind: str, site: str
) -> None:
    subject = tiny_subject(kind, site=site, layer=1)
    hooks = hooks_of_layers(subject, [1, 2, 3])
    assert len(hooks) == 3
    ours = sequence_jacobian(subject, hooks, TOKENS, memory_budget=2_000_000)
    for hook in hooks:
        expected = naive_jacobian(subject, hook, TOKENS)
        torch.testing.assert_close(ours[hook], expected, rtol=1e-3, atol=1e-4)
        assert float(expected.abs().max()) > 0.1
    alone = sequence_jacobian(subject, hooks[-1:], TOKENS, memory_budget=10**9)
    torch.testing.assert_close(alone[hooks[-1]], ours[hooks[-1]], rtol=1e-4, atol=1e-5)


def test_at_the_last_blocks_output_it_is_the_identity(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", layer=3)
    (J_DD,) = sequence_jacobian(subject, [subject.site.write], TOKENS, 2**30).values()
    torch.testing.assert_close(J_DD, torch.eye(D_MODEL))


@pytest.fixture
def lens_ctx(tmp_path: Path) -> RunContext:
    draw = np.random.default_rng(0)
    lines = [" ".join(f"w{n}" for n in draw.integers(12, 211, 9)) for _ in range(6)]
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join([lines[0], "w20 w21", *lines[1:]]))
    return RunContext(
        corpus=CorpusConfig("text", "text", path=str(file)),
        lens=LensConfig("jacobian", n_prompts=4, context_length=8),
        store=Store(tmp_path / "store"),
        layers=(1, 3),
    )


def test_the_mean_over_sequences_goes_on_after_a_kill(
    tiny_subject: MakeSubject, lens_ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject("llama", layer=1)
    sequences = sequences_of_corpus(subject, lens_ctx)
    assert [len(sequence) for sequence in sequences] == [8] * 4
    hook = subject.site.write
    each = [sequence_jacobian(subject, [hook], tokens, 2**30)[hook] for tokens in sequences]
    real, read = module.sequence_jacobian, []

    def counted(*arguments: Any) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sequence_jacobian", counted)
        with pytest.raises(KeyboardInterrupt):
            jacobian(subject, lens_ctx)
        read.clear()
        halves = jacobian(subject, lens_ctx)  # the other two
    torch.testing.assert_close(halves.mean(hook), torch.stack(each).mean(dim=0))
    torch.testing.assert_close(halves.mean(hook, 0), (each[0] + each[2]) / 2)
    torch.testing.assert_close(halves.mean(hook, 1), (each[1] + each[3]) / 2)
    monkeypatch.setattr(module, "sequence_jacobian", None)  # nothing is computed for layer 3
    other = tiny_subject("llama", layer=3)
    torch.testing.assert_close(
        jacobian(other, lens_ctx.for_group()).mean(other.site.write), torch.eye(D_MODEL)
    )


def test_tokens_logits_and_slopes_are_read_through_the_jacobian(
    tiny_subject: MakeSubject, lens_ctx: RunContext
) -> None:
    for kind in ("llama", "gpt2"):  # RMS norm, layer norm
        subject = tiny_subject(kind, layer=1)
        ctx = lens_ctx.for_group()
        J_DD = jacobian(subject, ctx).mean(subject.site.write)
        bridge, features = subject.lm.bridge, torch.arange(0, D_SAE, 5)
        read_nD = subject.sae.W_dec[features] @ J_DD.T
        logits_nV = bridge.ln_final(read_nD[:, None])[:, 0] @ subject.lm.head.weight.T
        tokens = promoted_tokens(subject, features, 7, ctx)
        assert torch.equal(tokens, logits_nV.topk(7).indices)
        torch.testing.assert_close(
            promoted_logits(subject, features, tokens, ctx), logits_nV.topk(7).values
        )
        columns = mean_logit.score(subject, features.numpy(), mean_logit.Config(top_k=7), ctx)
        np.testing.assert_allclose(
            columns["mean_logit"], logits_nV.topk(7).values.mean(dim=-1), rtol=1e-4
        )
        of_rows = promoted_tokens_of_directions(
            subject, features, subject.sae.W_dec[features], 7, ctx
        )
        assert torch.equal(of_rows, tokens)
        # The slope is what a step along the direction adds where the norm's divisor stays put.
        slopes = promoted_slopes(subject, features, tokens, ctx)
        norm = bridge.ln_final.original_component
        centred = read_nD if kind == "llama" else read_nD - read_nD.mean(dim=-1, keepdim=True)
        expected = (centred * norm.weight) @ subject.lm.head.weight.T
        torch.testing.assert_close(slopes, expected.gather(1, tokens), rtol=1e-3, atol=1e-4)
        halves = convergence(subject, features, 7, ctx)
        assert -1 <= halves.cosine <= 1
        assert 0 <= halves.overlap <= 1


def test_slopes_of_promoted_tokens_are_autograds_derivative_of_what_is_read_out(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject("llama", layer=1)
    hook, features = subject.site.write, torch.tensor([3, 9, 40])
    ctx = RunContext(lens=LensConfig("jacobian"))
    of_sequence = sequence_jacobian(subject, [hook], TOKENS, 2**30)
    ctx.cache.jacobians[hook] = Halves(2, (of_sequence, of_sequence))
    tokens = promoted_tokens(subject, features, 4, ctx)
    slopes = promoted_slopes(subject, features, tokens, ctx)
    bridge, tokens_1L = subject.lm.bridge, torch.tensor(TOKENS)[None]
    x_1LD = bridge.run_with_cache(tokens_1L)[1][hook].detach()
    last = f"blocks.{subject.lm.n_layers - 1}.hook_resid_post"
    gain_D = bridge.ln_final.original_component.weight
    for feature, own, expected in zip(features.tolist(), tokens, slopes, strict=True):
        # How far each position is pushed along the decoder row.
        push_L = torch.zeros(len(TOKENS), requires_grad=True)
        pushed = x_1LD + push_L[None, :, None] * subject.sae.W_dec[feature]
        seen: list[torch.Tensor] = []
        hooks: list[Any] = [
            (hook, lambda *_, value=pushed, **__: value),
            (last, lambda out, seen=seen, **_: seen.append(out)),
        ]
        with torch.enable_grad():
            bridge.run_with_hooks(tokens_1L, fwd_hooks=hooks)
            read_V = (seen[0][0, 1:] * gain_D).sum(dim=0) @ subject.lm.head.weight.T
        for token, slope in zip(own.tolist(), expected.tolist(), strict=True):
            (gradient_L,) = torch.autograd.grad(read_V[token], push_L, retain_graph=True)
            assert float(gradient_L[1:].mean()) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_python_takes_a_lens_by_name_and_keys(
    tiny_subject: MakeSubject, lens_ctx: RunContext, tmp_path: Path
) -> None:
    subject = tiny_subject("llama", layer=1)
    assert lens_ctx.corpus is not None
    frame = score_features(
        subject, "mean_logit", [3, 9], top_k=7,
        corpus={"name": "text", "path": lens_ctx.corpus.path},
        lens={"name": "jacobian", "n_prompts": 4, "context_length": 8},
    )  # fmt: skip
    config = mean_logit.Config(top_k=7)
    expected = mean_logit.score(subject, np.array([3, 9]), config, lens_ctx)
    np.testing.assert_allclose(frame["mean_logit"], expected["mean_logit"], rtol=1e-5)
    assert all(frame["promoted_tokens"].notna().tolist())
    # What ships with the SAE, if nothing else is asked for.
    file = tmp_path / "ships.safetensors"
    J_DD = torch.randn(D_MODEL, D_MODEL)
    save_file({"J": J_DD[None], "source_layers": torch.tensor([1])}, file)
    shipped = score_features(
        dataclasses.replace(subject, jacobians=str(file)), "mean_logit", [3, 9], top_k=7,
        lens="jacobian",
    )  # fmt: skip
    ctx = RunContext(lens=LensConfig("jacobian", path=str(file)))
    expected = mean_logit.score(subject, np.array([3, 9]), config, ctx)
    np.testing.assert_allclose(shipped["mean_logit"], expected["mean_logit"], rtol=1e-5)
    with pytest.raises(SteerlensError, match="did you mean 'jacobian'"):
        score_features(subject, "mean_logit", lens="jacobean")


def test_the_gradient_of_promoted_tokens_is_activation_times_slope(
    tiny_subject: MakeSubject, lens_ctx: RunContext
) -> None:
    subject = tiny_subject("llama", "topk", layer=1)
    config = gradient.Config(
        source="corpus", target="promoted", top_k=7, context_length=8, min_examples=1
    )
    read_corpus([subject], [config], lens_ctx)
    texts = activations_of(subject, 8, lens_ctx)
    features = np.arange(D_SAE)
    scores = gradient.score(subject, features, config, lens_ctx)["gradient"]
    ids = torch.from_numpy(features)
    tokens = promoted_tokens(subject, ids, 7, lens_ctx)
    slope_F = promoted_slopes(subject, ids, tokens, lens_ctx).mean(dim=-1)
    checked = 0
    for feature in range(0, D_SAE, 6):
        acts = []
        for value, piece in zip(
            texts.value_FN[feature, :5], texts.piece_FN[feature, :5], strict=True
        ):
            if value > 0:
                tokens_1L = torch.from_numpy(texts.pieces[piece].astype("int64"))[None]
                cache = subject.lm.bridge.run_with_cache(tokens_1L)[1]
                acts_L = subject.sae.encode(cache[subject.hook_name])[0, 1:, feature]
                acts += acts_L[acts_L > 0].tolist()
        if acts:
            checked += 1
            expected = float(np.mean(acts)) * float(slope_F[feature])
            assert scores[feature] == pytest.approx(expected, rel=1e-3)
        else:
            assert np.isnan(scores[feature])
    assert checked > 2


def test_output_scores_are_toward_the_lenss_tokens_and_success_keeps_its_own(
    tiny_subject: MakeSubject, lens_ctx: RunContext
) -> None:
    from steerlens.scores.scoring import score_layer

    subject = tiny_subject("llama", layer=1)
    config = output.Config(null_directions=9, top_k=7)
    plain = dataclasses.replace(lens_ctx, lens=LensConfig())
    ours, logit = (
        score_layer(subject, range(D_SAE), {"output": config}, 7, ctx) for ctx in (lens_ctx, plain)
    )
    assert ours["logit_lens_token_ids"] == logit["logit_lens_token_ids"]
    assert "promoted_tokens" not in logit
    tokens_FK = promoted_tokens(subject, torch.arange(D_SAE), 7, lens_ctx)
    for feature in (0, 13, 47):
        logits_V, _ = naive_steered_logits(subject, feature, config.prompt, 10.0)
        own = tokens_FK[feature]
        best = own[logits_V[own].argmax()]
        rank = int((logits_V > logits_V[best]).sum())
        expected = (1 - rank / len(logits_V)) * float(logits_V.softmax(-1)[best])
        assert ours["output_score"][feature].as_py() == pytest.approx(expected, rel=1e-3)
    assert ours["output_score"] != logit["output_score"]


def test_effect_tokens_are_those_whose_probability_rises_most(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("gemma2", "topk", layer=1)
    lens = LensConfig("effect", n_prompts=3, factor=4.0)
    ctx = RunContext(lens=lens, memory_budget=2_000_000)
    features = torch.tensor([5, 30, 47])
    tokens = promoted_tokens(subject, features, 6, ctx)
    for feature, own in zip(features.tolist(), tokens, strict=True):
        rises = [
            naive_steered_logits(subject, feature, prompt, 4.0)[0].softmax(-1)
            - naive_steered_logits(subject, feature, prompt, 0.0)[0].softmax(-1)
            for prompt in PROMPTS[:6:2]
        ]
        rise_V = torch.stack(rises).mean(dim=0)
        torch.testing.assert_close(rise_V[own], rise_V.topk(6).values, rtol=1e-3, atol=1e-6)
    of_rows = promoted_tokens_of_directions(subject, features, subject.sae.W_dec[features], 6, ctx)
    assert torch.equal(of_rows, tokens)


def test_another_run_finds_the_tokens_of_another_lens_in_the_store(
    tiny_subject: MakeSubject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_subject("llama", layer=1)
    ctx = RunContext(lens=LensConfig("effect", n_prompts=2), store=Store(tmp_path / "store"))
    every = torch.arange(D_SAE)
    promoted_tokens(subject, every[:9], 5, ctx)
    asked: list[int] = []

    def counted(subject: Subject, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        asked.extend(ids.tolist())
        return effect_tokens(subject, ids, *args)

    monkeypatch.setattr(lens_module, "effect_tokens", counted)
    tokens = promoted_tokens(subject, every.flip(0), 5, ctx.for_group())
    assert sorted(asked) == every[9:].tolist()
    alone = promoted_tokens(subject, every, 5, RunContext(lens=ctx.lens))
    assert torch.equal(tokens.flip(0), alone)
    other_prompts = dataclasses.replace(ctx.for_group(), lens=LensConfig("effect", n_prompts=3))
    asked.clear()
    promoted_tokens(subject, every[:2], 5, other_prompts)
    assert asked == [0, 1]


def test_a_fitted_file_is_read_and_one_of_another_model_or_layer_refused(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    subject, file = tiny_subject("llama", layer=1), tmp_path / "lens.safetensors"
    ctx = RunContext(lens=LensConfig("jacobian", path=str(file)))
    J_SDD = torch.randn(2, D_MODEL, D_MODEL)

    def save(J: torch.Tensor, layers: list[int], **metadata: str) -> None:
        save_file({"J": J, "source_layers": torch.tensor(layers)}, file, metadata)

    save(J_SDD, [1, 2])
    torch.testing.assert_close(jacobian(subject, ctx).mean(subject.site.write), J_SDD[0])
    save_file({"J": J_SDD}, file, {"source_layers": json.dumps([0, 1])})
    ctx = ctx.for_group()
    torch.testing.assert_close(jacobian(subject, ctx).mean(subject.site.write), J_SDD[1])
    for saved, sentence in (
        (lambda: save(J_SDD, [0, 2]), "has no layer 1, only 0, 2"),
        (lambda: save(torch.randn(1, 8, 8), [1]), "is of a model with vectors of size 8, not of"),
        (lambda: save(J_SDD, [1, 2], model="google/gemma-2-2b"), "is of google/gemma-2-2b, not of"),
        (lambda: save_file({"x": J_SDD}, file), "has no J of shape"),
        (lambda: file.write_bytes(b"nothing"), "is truncated, or no file with J"),
    ):
        saved()
        with pytest.raises(SteerlensError, match=sentence):
            jacobian(subject, ctx.for_group())
    save(J_SDD, [1, 2])
    with pytest.raises(SteerlensError, match="residual stream after blocks"):
        jacobian(tiny_subject("llama", layer=1, site="mlp_out"), ctx.for_group())


def test_what_is_packed_for_the_distribution_is_read_as_the_mean(
    tiny_subject: MakeSubject, lens_ctx: RunContext, tmp_path: Path
) -> None:
    from experiments.smollm2.jacobians import agreement, pack

    subject = tiny_subject("llama", layer=1)
    halves = jacobian(subject, lens_ctx)
    file = tmp_path / "jacobians.safetensors"
    file.write_bytes(pack(halves, subject.lm.name))
    ctx = RunContext(lens=LensConfig("jacobian", path=str(file)))
    for layer in (1, 3):
        own = tiny_subject("llama", layer=layer)
        read_DD = jacobian(own, ctx.for_group()).mean(own.site.write)
        torch.testing.assert_close(
            read_DD, halves.mean(own.site.write), rtol=1e-3, atol=1e-3, check_dtype=True
        )
    numbers = agreement(subject, halves)
    assert numbers["tokens_in_float32"] > 0.98
    assert 0 < numbers["tokens_in_both_halves"] < 1
    assert 0.5 < numbers["cosine_of_halves"] < 1


def test_the_hubs_fitted_files_are_read(tiny_subject: MakeSubject, tmp_path: Path) -> None:
    subject = tiny_subject("llama", layer=1)
    file = tmp_path / "tiny_jacobian_lens.pt"
    ctx = RunContext(lens=LensConfig("jacobian", path=str(file)))
    J_DD = torch.randn(D_MODEL, D_MODEL).half()
    others: dict[str, Any] = {"n_prompts": 9, "source_layers": [0, 1], "d_model": D_MODEL}
    torch.save({"J": {0: torch.zeros_like(J_DD), 1: J_DD}, **others}, file)
    config = tmp_path / "config.yaml"
    for named in ("hf_model_name: somebody/tiny", "no: name", "[", ""):
        config.write_text(named)
        halves = jacobian(subject, ctx.for_group())
        assert torch.equal(halves.mean(subject.site.write), J_DD.float())
    config.write_text("hf_model_name: google/gemma-2-2b")
    with pytest.raises(SteerlensError, match="is of google/gemma-2-2b, not of"):
        jacobian(subject, ctx.for_group())
    config.unlink()
    for saved, sentence in (
        ({"J": {0: J_DD}}, "has no layer 1, only 0"),
        ({"J": {1: torch.randn(8, 8)}}, "is of a model with vectors of size 8, not of"),
        ({"jacobians": {1: J_DD}}, "has no J of one"),
        ({"J": {1: J_DD}, "more": Path("x")}, "is truncated, or holds more than J"),
    ):
        torch.save(saved, file)
        with pytest.raises(SteerlensError, match=sentence):
            jacobian(subject, ctx.for_group())


def test_a_corpus_with_too_few_long_documents_is_refused(
    tiny_subject: MakeSubject, lens_ctx: RunContext
) -> None:
    subject = tiny_subject("llama", layer=1)
    for lens, sentence in (
        (LensConfig("jacobian", n_prompts=7, context_length=8), "has 6 documents of at least 8"),
        (LensConfig("jacobian", n_prompts=2, context_length=99), "more than the 64 tokens"),
    ):
        with pytest.raises(SteerlensError, match=sentence):
            sequences_of_corpus(subject, dataclasses.replace(lens_ctx, lens=lens))
