"""GGUF files, converted once into the cache and from then on loaded as any model's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from steerlens.config.gguf import GgufHeader, check_gguf, converted_folder, gguf_file
from steerlens.config.schema import ModelConfig
from steerlens.engine.subject.load_errors import first_line, refuse_made_up_weights
from steerlens.errors import SteerlensError
from steerlens.storage.provenance import file_identity

FLOAT32_BYTES = 4


def loadable(entry: ModelConfig, cache_dir: Path) -> ModelConfig:
    """Give `entry` with a path that Transformers loads fast: for a GGUF, its converted copy.

    The copy is float32, in which dequantised weights are exact. Processes that convert the same
    file at once each write a copy of their own; the first one that is whole stays.

    Raises:
        SteerlensError: the GGUF can't be converted, or there is no room for it.
    """
    file = gguf_file(entry)
    if file is None:
        return entry
    header = check_gguf(entry, file, cache_dir)
    sha256 = file_identity(file, cache_dir)["sha256"]
    folder = converted_folder(sha256, cache_dir)
    if not folder.is_dir():
        _convert_into(folder, file, header, cache_dir)
    return dataclasses.replace(entry, path=str(folder), revision=None)


def _convert_into(folder: Path, file: Path, header: GgufHeader, cache_dir: Path) -> None:
    print(f"Converting {file.name} into the cache, once ...", file=sys.stderr)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.mkdir(parents=True)
        needed = header.n_parameters * FLOAT32_BYTES
        free = shutil.disk_usage(temporary).free
        if free < needed:
            raise SteerlensError(
                f"{file.name} takes {needed / 1e9:.3g} GB once it is converted, but {cache_dir} "
                f"has {free / 1e9:.3g} GB free; choose another place with paths.cache_dir=DIR."
            )
        _convert(file, temporary)
        for written in temporary.iterdir():  # whole also after the power has failed
            with written.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # no other process was first
                raise
    except OSError as error:
        raise SteerlensError(
            f"can't convert {file.name} in {cache_dir} ({(error.strerror or str(error)).lower()}); "
            "choose another place with paths.cache_dir=DIR."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let Transformers' conversion parse a file once, and look up tensors' names in one table.

    It reads the file's header for the tokenizer, for the config and for the weights, and makes the
    table anew for every module of the model: most of the time of a small model.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """The same file as plain memory: every slice of a `memmap` is another one, slowly."""

        def _get(self, *args: Any, **kwargs: Any) -> Any:
            self.data = self.data.view(np.ndarray)  # pyright: ignore
            return super()._get(*args, **kwargs)

    made_anew = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = cache(Reader)  # pyright: ignore
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = made_anew  # pyright: ignore


def _convert(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of `file` in the Hugging Face layout."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_class: Any = AutoModelForCausalLM
    try:
        # From the empty folder, because other files beside the GGUF would be read, too.
        # Transformers shows bars of its own.
        path = str(file.resolve())
        with contextlib.redirect_stderr(io.StringIO()), _read_once():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path)
            model, info = model_class.from_pretrained(
                folder, gguf_file=path, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError:
        raise
    except Exception as error:
        raise SteerlensError(
            f"can't read the model in {file}: {type(error).__name__}: {first_line(error)}"
        ) from error
    refuse_made_up_weights(file, info)
    # Transformers saves no model that it takes for quantised; the same weights in a fresh one do.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with torch.device("meta"):  # without weights of its own
        plain = model_class.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
