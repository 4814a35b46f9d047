"""Loading subjects: as the SAE was trained, and nothing that doesn't belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from steerlens import SteerlensError, load_subject
from steerlens.config.schema import ModelConfig, PathsConfig, RunConfig
from steerlens.config.settings import parse_subject
from steerlens.engine.activations.stream import residuals
from steerlens.engine.subject import SaeSource, Subject
from steerlens.engine.subject.belonging import check_belongs
from tests.support.tiny import MODELS, save_model, save_sae, save_tokenizer

MakeSubject = Callable[..., Subject]


def load(model: Path, sae: Path, layer: Any = "all", **settings: Any) -> Subject:
    paths = {"model.path": model, "sae.path": sae, "paths.cache_dir": sae.parent / "cache"}
    return load_subject("local", "local", layer, **paths, **settings)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", list(MODELS))
def test_without_metadata_the_model_gives_hugging_face_logits(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path], kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    subject = tiny_subject(kind)
    tokens = subject.to_tokens("the experience")
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(kind), attn_implementation="eager")
    assert subject.lm.identity["processing"] == "none"
    assert torch.allclose(subject.lm.bridge(tokens), reference(tokens).logits, atol=1e-5)


def test_weights_are_processed_as_the_metadata_says(tiny_subject: MakeSubject) -> None:
    kwargs = {"center_writing_weights": True}
    subject = tiny_subject("gpt2", metadata={"model_from_pretrained_kwargs": kwargs})
    assert subject.lm.identity["processing"]["center_writing_weights"] is True
    assert subject.lm.identity["processing"]["fold_ln"] is False
    _, cache = subject.lm.bridge.run_with_cache(subject.to_tokens("the"))
    residual = cache["blocks.3.hook_resid_post"]
    assert residual.mean(dim=-1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("told", "tokenizer_prepends", "expected"),
    [(True, False, True), (False, True, False), (None, True, True), (None, False, False)],
)
def test_bos_follows_the_metadata_and_else_the_tokenizer(
    tmp_path: Path, told: bool | None, tokenizer_prepends: bool, expected: bool
) -> None:
    model = save_model(tmp_path / "model")
    save_tokenizer(model, tokenizer_prepends)
    subject = load(model, save_sae(tmp_path / "sae", metadata={"prepend_bos": told}))
    tokens = subject.to_tokens("the the")[0].tolist()
    assert tokens == ([0] if expected else []) + [9, 9]
    assert subject.identity["prepend_bos_from"] == ("tokenizer" if told is None else "SAE metadata")


def save_tokenizer_without_bos(folder: Path) -> None:
    """Qwen's way: EOS, and no BOS at all."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"prepend_bos": True}, "<eos>"),
        ({"prepend_bos": True, "model_class_name": "AutoModelForCausalLM"}, None),
        ({"prepend_bos": True, "sae_lens_training_version": None}, None),
        ({"prepend_bos": False}, None),
        ({"prepend_bos": None}, None),
    ],
)
def test_without_a_bos_texts_begin_as_in_training_and_that_is_recorded(
    tmp_path: Path, metadata: dict[str, Any], expected: str | None
) -> None:
    model = save_model(tmp_path / "model")
    save_tokenizer_without_bos(model)
    subject = load(model, save_sae(tmp_path / "sae", metadata=metadata))
    assert subject.lm.tokenizer.bos_token_id is None
    assert subject.to_tokens("the the")[0].tolist() == ([1] if expected else []) + [9, 9]
    assert subject.identity["before_texts"] == expected
    assert subject.identity["prepend_bos"] == (expected is not None)
    assert subject.n_uncounted == int(expected is not None)


@pytest.mark.parametrize("hook", ["model.layers.2", "transformer.h.2", "gpt_neox.layers.2"])
def test_a_block_of_hugging_faces_is_its_output(tmp_path: Path, hook: str) -> None:
    metadata = {"hook_name": hook, "model_class_name": "AutoModelForCausalLM"}
    subject = load(save_model(tmp_path / "m"), save_sae(tmp_path / "sae", metadata=metadata), 2)
    assert (subject.hook_name, subject.layer) == ("blocks.2.hook_resid_post", 2)


@pytest.mark.parametrize("hook", ["model.layers.2.mlp", "model.norm", "vision.layers.2"])
def test_other_hooks_of_hugging_faces_are_refused_with_the_words_for_it(
    tmp_path: Path, hook: str
) -> None:
    sae = save_sae(tmp_path / "sae", metadata={"hook_name": hook})
    with pytest.raises(SteerlensError, match=r"blocks\.2\.hook_resid_post into cfg"):
        load(save_model(tmp_path / "model"), sae, "all")


def test_a_scale_that_is_not_folded_in_is_refused(tmp_path: Path) -> None:
    sae = save_sae(tmp_path / "sae", normalize_activations="expected_average_only_in")
    with pytest.raises(SteerlensError, match="factor that isn't folded into its weights"):
        load(save_model(tmp_path / "model"), sae)


def save_flat(folder: Path, **settings: Any) -> Path:
    """SAELens 5's flat config beside the weights of a new SAE."""
    save_sae(folder)
    config = {
        "model_name": "tiny",
        "hook_name": "blocks.2.hook_resid_post",
        "d_in": 32,
        "d_sae": 48,
        "dtype": "float32",
        "device": "cpu",
        "prepend_bos": True,
        "normalize_activations": "none",
        "architecture": "standard",
        **settings,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_fn_str": "tanh-relu"},
        {"activation_fn": "topk"},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6, "signed": True}},
    ],
)
def test_activation_functions_that_would_be_loaded_as_others_are_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(SteerlensError, match="SAELens 6 would load as another one"):
        load(save_model(tmp_path / "model"), save_flat(tmp_path / "sae", **settings))


@pytest.mark.parametrize(
    ("settings", "architecture"),
    [
        ({"activation_fn_str": "relu", "activation_fn_kwargs": {}}, "standard"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 6}}, "topk"),
    ],
)
def test_activation_functions_that_are_loaded_as_themselves_stay(
    tmp_path: Path, settings: dict[str, Any], architecture: str
) -> None:
    subject = load(save_model(tmp_path / "model"), save_flat(tmp_path / "sae", **settings))
    assert subject.sae.cfg.architecture() == architecture


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_with_a_byte_order_mark_gives_the_same_sae(tmp_path: Path, encoding: str) -> None:
    sae, model = save_sae(tmp_path / "sae"), save_model(tmp_path / "model")
    plain = load(model, sae)
    text = (sae / "cfg.json").read_text()
    (sae / "cfg.json").write_bytes(text.encode(encoding))
    marked = load(model, sae)
    assert torch.equal(marked.sae.W_dec, plain.sae.W_dec)
    assert marked.sae.cfg.to_dict() == plain.sae.cfg.to_dict()


def test_one_folder_per_layer_gives_the_layer_asked_for(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    for layer in (1, 3):
        save_sae(tmp_path / "saes" / f"layer_{layer}", layer=layer, seed=layer)
    subject = load(model, tmp_path / "saes", 3)
    assert (subject.layer, subject.hook_name) == (3, "blocks.3.hook_resid_post")
    with pytest.raises(SteerlensError, match="no SAE at layer 2"):
        load(model, tmp_path / "saes", 2)
    with pytest.raises(SteerlensError, match="choose one"):
        load(model, tmp_path / "saes")


def test_two_saes_of_one_layer_are_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    save_sae(tmp_path / "saes" / "a", layer=1)
    save_sae(tmp_path / "saes" / "b", layer=1)
    with pytest.raises(SteerlensError, match="both SAEs of layer 1"):
        load(model, tmp_path / "saes")


def test_an_sae_of_another_known_model_is_refused_with_both_names(
    tiny_subject: MakeSubject,
) -> None:
    with pytest.raises(SteerlensError, match=r"gpt2-small.*local"):
        tiny_subject("llama", metadata={"model_name": "gpt2-small"})


def test_a_wrong_d_in_is_refused_with_both_sizes(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    with pytest.raises(SteerlensError, match=r"48.*32"):
        load(model, save_sae(tmp_path / "sae", d_in=48))


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.2.hook_nowhere", "no hook 'blocks.2.hook_nowhere'"),
        ("blocks.7.hook_resid_post", "no SAE at layer 0; it has: 7"),
        ("blocks.2.ln1.hook_in", r"writes at blocks.2.ln1.hook_in; steerlens edits at .*mlp_out"),
        ("embed.hook_out", "is no hook of a block"),
        (None, "doesn't say its hook_name"),
    ],
)
def test_a_hook_that_can_not_be_used_is_refused(
    tiny_subject: MakeSubject, hook_name: str | None, message: str
) -> None:
    with pytest.raises(SteerlensError, match=message):
        tiny_subject(metadata={"hook_name": hook_name})


def test_missing_weights_are_refused_and_not_made_up(tmp_path: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"]

    model = save_model(tmp_path / "model")
    change_weights(model, drop)
    with pytest.raises(SteerlensError, match=r"missing model.layers.1.mlp.up_proj.weight"):
        load(model, save_sae(tmp_path / "sae"))


def test_nan_in_the_models_weights_is_refused_by_name(tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")

    model = save_model(tmp_path / "model")
    change_weights(model, spoil)
    with pytest.raises(SteerlensError, match=r"NaN or infinite in model.layers.2.mlp.up_proj"):
        load(model, save_sae(tmp_path / "sae"))


def test_nan_in_the_saes_weights_is_refused_by_name(tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["W_dec"][3, 1] = float("inf")

    model = save_model(tmp_path / "model")
    change_weights(save_sae(tmp_path / "sae"), spoil)
    with pytest.raises(SteerlensError, match="NaN or infinite values in W_dec"):
        load(model, tmp_path / "sae")


def test_an_sae_of_zeros_is_refused(tmp_path: Path) -> None:
    def empty(weights: dict[str, torch.Tensor]) -> None:
        weights["W_enc"].zero_()

    change_weights(save_sae(tmp_path / "sae"), empty)
    with pytest.raises(SteerlensError, match="has only zeros in W_enc; it isn't trained"):
        load(save_model(tmp_path / "model"), tmp_path / "sae")


def test_gated_weights_name_the_licence_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("You are trying to access a gated repo. 401 Client Error.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    from steerlens.config.compose import compose
    from steerlens.engine.subject.model import _hf_config

    entry = compose(["model=gemma-2-2b", "sae=gemma-scope-2b-res"]).model
    with pytest.raises(SteerlensError, match=r"huggingface.co/google/gemma-2-2b.*HF_TOKEN"):
        _hf_config(entry)


def test_a_model_that_is_not_in_the_cache_is_refused_offline(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="nobody/nothing"):
        load_subject(
            "hub", "local", **{"model.path": "nobody/nothing", "sae.path": save_sae(tmp_path / "s")}
        )


def test_identities_tell_files_and_choices(tmp_path: Path) -> None:
    subject = load(save_model(tmp_path / "model"), save_sae(tmp_path / "sae"), dtype="float32")
    files = {file["file"]: file for file in subject.lm.identity["files"]}
    assert len(files["model.safetensors"]["sha256"]) == 64
    assert subject.identity["decoder_norm_folded"] is False
    assert json.loads(json.dumps(subject.identity)) == subject.identity
    shutil.rmtree(tmp_path / "cache")


def test_an_unaffine_decoder_is_refused(tiny_subject: MakeSubject) -> None:
    from steerlens.engine.intervention import check_affine

    subject = tiny_subject()
    decode = subject.sae.decode
    subject.sae.decode = lambda acts: decode(acts).relu()  # type: ignore[method-assign]
    with pytest.raises(SteerlensError, match="not affine"):
        check_affine(subject.sae, torch.randn(1, 3, 32))


def test_a_transcoder_without_an_output_hook_is_refused(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match="doesn't say its hook_name_out"):
        tiny_subject("llama", "transcoder", site="mlp.hook_in", metadata={"hook_name_out": None})


def test_heads_outputs_of_another_size_are_refused(tiny_subject: MakeSubject) -> None:
    with pytest.raises(SteerlensError, match=r"size 48 \(d_in\) .* has 32 \(n_heads \* d_head\)"):
        tiny_subject("llama", site="attn.hook_z", d_in=48)


def test_a_hook_that_never_fires_is_told(tiny_subject: MakeSubject) -> None:
    from steerlens import score_features

    subject = tiny_subject("llama", "transcoder", site="attn.hook_hidden_states")
    with pytest.raises(SteerlensError, match=r"hook_hidden_states of llama never fires"):
        score_features(subject)
    with pytest.raises(SteerlensError, match=r"hook_hidden_states of llama never fires"):
        residuals([subject], [np.array([0, 1])])


def test_an_sae_of_another_layer_than_those_asked_for_is_refused(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    source = SaeSource(layer=None, path=Path("sae"))  # only the weights tell the layer
    settings = parse_subject(RunConfig(model=ModelConfig("local", "x"), paths=PathsConfig("", "")))
    assert check_belongs(subject.lm, subject.sae, source, settings) == subject.site
    for layers in ((subject.layer,), (0, subject.layer)):
        check_belongs(subject.lm, subject.sae, source, settings.of_layers(layers))
    with pytest.raises(SteerlensError, match=rf"sae is of layer {subject.layer}, not of layer 0\."):
        check_belongs(subject.lm, subject.sae, source, settings.of_layers([0]))


def test_chats_of_a_corpus_are_rendered_without_the_bos_of_their_template(
    tiny_subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_subject().lm
    chat = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "experience"}]
    with pytest.raises(SteerlensError, match="has no chat template"):
        lm.transcript(chat)
    turns = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    monkeypatch.setattr(lm.tokenizer, "chat_template", "{{ bos_token }}" + turns)
    assert lm.transcript(chat) == "[user] the\n[assistant] experience\n"
    monkeypatch.setattr(lm.tokenizer, "chat_template", "{{ raise_exception('no system') }}")
    with pytest.raises(SteerlensError, match="can't render a chat of the corpus: no system"):
        lm.transcript(chat)
