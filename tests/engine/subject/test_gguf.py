"""GGUF files are loaded as the models that they were made from, and converted once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from steerlens import SteerlensError, load_subject
from steerlens.config.settings import parse_subject
from steerlens.engine.subject import Subject
from steerlens.engine.subject import gguf as module
from steerlens.engine.subject.gguf import loadable
from steerlens.results.folder import read_tables
from steerlens.runs.run import run
from tests.support.gguf import (
    D_VOCAB,
    MERGES,
    N_CTX,
    SPECIAL,
    needs_wheel,
    save_pair,
    tokens,
    write_gguf,
)
from tests.support.tiny import save_model, save_sae, save_tokenizer

F32 = GGMLQuantizationType.F32


def load(path: Path, tmp_path: Path, **settings: Any) -> Subject:
    sae = tmp_path / "sae"
    if not sae.is_dir():
        save_sae(sae)
    paths = {"model.path": path, "sae.path": sae, "paths.cache_dir": tmp_path / "cache"}
    return load_subject("local", "local", "all", **paths, **settings)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", F32),
        ("llama", GGMLQuantizationType.F16),
        ("llama", GGMLQuantizationType.Q8_0),
        ("llama", GGMLQuantizationType.Q4_1),
        ("qwen2", F32),
        ("qwen2", GGMLQuantizationType.Q5_0),
    ],
)
def test_logits_are_those_of_the_same_weights_from_safetensors(
    tmp_path: Path, architecture: str, kind: GGMLQuantizationType
) -> None:
    file, model = save_pair(tmp_path, architecture, kind)
    model.save_pretrained(tmp_path / "plain")
    reference = type(model).from_pretrained(tmp_path / "plain", attn_implementation="eager")
    subject = load(file, tmp_path)
    tokens_BL = torch.randint(D_VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(subject.lm.bridge(tokens_BL), reference(tokens_BL).logits, atol=1e-5)
    assert subject.lm.bridge.cfg.n_ctx == N_CTX
    assert subject.lm.n_layers == 4


def test_tokenizer_and_template_come_along_and_files_beside_the_gguf_do_not(
    tmp_path: Path,
) -> None:
    file, _ = save_pair(tmp_path / "model")
    save_tokenizer(file.parent)
    (file.parent / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
    subject = load(file.parent, tmp_path)
    vocabulary = tokens()
    ids = [vocabulary.index(token) for token in ("h", "Ġthe", "Ġ", "z", "Ġt")]
    assert subject.lm.tokenizer("h the z t", add_special_tokens=False)["input_ids"] == ids
    assert subject.lm.prepended_bos is None
    chat = [{"role": "user", "content": "he"}]
    ids = subject.lm.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    assert ids == [0, vocabulary.index(MERGES[1].replace(" ", "")), 1, 0]
    assert subject.lm.tokenizer.bos_token == SPECIAL[0]


def test_a_gguf_is_converted_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert, converted = module._convert, []

    def counted(file: Path, folder: Path) -> None:
        converted.append(file)
        convert(file, folder)

    monkeypatch.setattr(module, "_convert", counted)
    file, _ = save_pair(tmp_path)
    load(file, tmp_path)
    load(file, tmp_path)
    assert converted == [file]
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "moved.gguf")
    load(moved, tmp_path)
    assert converted == [file]
    save_pair(tmp_path / "elsewhere", kind=GGMLQuantizationType.Q8_0)[0].rename(moved)
    load(moved, tmp_path)
    assert converted == [file, moved]
    assert not list((tmp_path / "cache" / "gguf").glob(".*"))


def test_of_two_conversions_at_once_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, copies = module._convert, []

    def while_another_finishes(file: Path, folder: Path) -> None:
        convert(file, folder)
        if not copies:
            copies.append(folder)
            copies.append(Path(loadable(entry, tmp_path / "cache").path))
            copies.append(copies[-1].stat().st_ino)

    monkeypatch.setattr(module, "_convert", while_another_finishes)
    file, _ = save_pair(tmp_path)
    from steerlens.config.schema import ModelConfig

    entry = ModelConfig(name="local", path=str(file))
    kept = Path(loadable(entry, tmp_path / "cache").path)
    assert [kept, kept.stat().st_ino] == copies[1:]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert (kept / "model.safetensors").is_file()


def convert_in_a_process(file: Path, cache: Path, ready: Any) -> None:
    from steerlens.config.schema import ModelConfig

    convert = module._convert

    def together(file: Path, folder: Path) -> None:
        ready.wait(60)  # until the other one has found nothing in the cache, too
        convert(file, folder)

    module._convert = together
    loadable(ModelConfig(name="local", path=str(file)), cache)


@pytest.mark.slow
def test_two_processes_at_once_end_with_one_whole_copy(tmp_path: Path) -> None:
    file, _ = save_pair(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["steerlens.engine.subject.model", "tests.engine.subject.test_gguf"]
    )
    ready = context.Barrier(2)
    arguments = (file, tmp_path / "cache", ready)
    processes = [context.Process(target=convert_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 1
    load(file, tmp_path)


def test_a_conversion_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_convert", killed)
    file, _ = save_pair(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load(file, tmp_path)
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_weights_that_are_missing_are_refused_and_not_made_up(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "half.gguf")
    with pytest.raises(SteerlensError, match=r"half\.gguf .*missing .* and \d+ more"):
        load(file, tmp_path)
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_cache_without_room_or_that_is_no_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = save_pair(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SteerlensError, match=r"choose another place with paths\.cache_dir=DIR"):
        load(file, tmp_path)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(SteerlensError, match=r"takes .* GB once it is converted, but .* free"):
        load(file, tmp_path)


def test_a_run_is_of_the_ggufs_sha256(tmp_path: Path, undrawn_figures: None) -> None:
    from steerlens.config.compose import compose

    file, _ = save_pair(tmp_path)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    sae = save_sae(tmp_path / "sae", metadata={"model_name": "tiny.gguf", "gguf_sha256": sha256})
    out = tmp_path / "out"
    words = ["model=local", f"model.path={file}", "sae=local", f"sae.path={sae}"]
    words += ["features.ids=[1,2]", "score=output", "device=cpu", "tracking.mode=disabled"]
    run(compose([*words, f"paths.cache_dir={tmp_path / 'cache'}", f"paths.output_dir={out}"]))
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["model"]["sha256"] == sha256
    assert provenance["model"]["file"] == "tiny.gguf"
    assert provenance["versions"]["gguf"] == provenance["model"]["gguf"]
    assert "notes" not in provenance


def test_an_sae_of_another_gguf_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    file, _ = save_pair(tmp_path)
    save_sae(tmp_path / "sae", metadata={"gguf_sha256": "f" * 64})
    with pytest.raises(SteerlensError, match="was trained on another GGUF than"):
        load(file, tmp_path)


def test_a_run_on_the_original_says_that_its_saes_are_of_the_quantised_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn_figures: None
) -> None:
    from steerlens.config.compose import compose

    metadata = {"gguf_sha256": "f" * 64, "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    sae = save_sae(tmp_path / "sae", metadata=metadata)
    out = tmp_path / "out"
    words = ["model=local", f"model.path={save_model(tmp_path / 'model')}", "sae=local"]
    words += [f"sae.path={sae}", "features.ids=[1,2]", "score=output", "device=cpu"]
    words += ["tracking.mode=disabled", f"paths.output_dir={out}"]
    run(compose([*words, f"paths.cache_dir={tmp_path / 'cache'}"]))
    note = (
        "The SAEs were trained on the 4-bit copy of model, SmolLM2-135M-Instruct.Q4_1.gguf, and "
        "not on these weights."
    )
    assert note in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "provenance.json").read_text())["notes"] == [note]
    assert read_tables(out).notes == (note,)
    assert "The SAEs were trained on the 4-bit copy" in (out / "report.md").read_text()


@needs_wheel
@pytest.mark.slow
def test_the_default_model_has_transformers_logits(tmp_path: Path) -> None:
    from sae_lens.saes.sae import SAEMetadata
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from steerlens.config.compose import compose
    from steerlens.config.gguf import gguf_file
    from steerlens.engine.subject.model import load_model

    config = compose(["model=smollm2-135m-instruct", "sae=local", "sae.path=unused"])
    config.paths.cache_dir = str(tmp_path)
    lm = load_model(parse_subject(config), SAEMetadata())
    file = gguf_file(config.model)
    assert file is not None
    model_class: Any = AutoModelForCausalLM
    reference = model_class.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    chat = [{"role": "user", "content": "How do I cook rice in 2026, don't you say?"}]
    template: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
    ids: Any = tokenizer.apply_chat_template(chat, **template)
    assert lm.tokenizer.apply_chat_template(chat, **template) == ids
    tokens_1L = torch.tensor([ids])
    with torch.inference_mode():
        ours, theirs = lm.bridge(tokens_1L), reference(tokens_1L).logits
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-3)
    best = tokenizer.decode(int(ours[0, -1].argmax()))
    assert best.strip().isalpha()
