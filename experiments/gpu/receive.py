"""Move what `pack.py` staged into this machine's scratch folder; put the model together there.

    python3 experiments/gpu/receive.py --scratch DIR

Every call brings one `.gpu/call_N`. Wheels are installed into `DIR/site`. When all parts of the
GGUF file are here, its SHA-256 is checked and it is converted to `DIR/model` in float32. Runs
without steerlens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGE = ROOT / ".gpu"


def move(scratch: Path) -> int:
    """Move all staged files to the scratch folder; return how many."""
    files = [file for file in STAGE.glob("call_*/**/*") if file.is_file()]
    for file in files:
        target = scratch / file.relative_to(STAGE).relative_to(file.relative_to(STAGE).parts[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    return len(files)


def install(scratch: Path) -> None:
    """Install new wheels into a folder of their own, without an index or their dependencies."""
    wheels = sorted((scratch / "wheels").glob("*.whl"))
    if wheels:
        options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
        into = ["--target", str(scratch / "site")]
        pip = [sys.executable, "-m", "pip", "install", *options, *into, *map(str, wheels)]
        subprocess.run(pip, check=True)
        for wheel in wheels:
            wheel.unlink()
        print(f"installed {len(wheels)} wheels")


def describe(site: Path) -> None:
    """Write what an installation would: steerlens asks for its version and for its entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def whole_file(folder: Path) -> Path | None:
    """Join the parts in a folder; None if there are some missing.

    Raises:
        SystemExit: if the whole isn't the file that was cut.
    """
    described = next(folder.glob("*.json"), None)
    if described is None:
        return None
    facts = json.loads(described.read_text())
    target = described.with_suffix("")
    if target.exists():
        return target
    parts = sorted(folder.glob(f"{target.name}.[0-9][0-9][0-9]"))
    if sum(part.stat().st_size for part in parts) < facts["size"]:
        print(f"{target.name}: {len(parts)} parts so far")
        return None
    partial = target.with_suffix(".partial")
    digest = hashlib.sha256()
    with partial.open("wb") as whole:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            whole.write(content)
    if digest.hexdigest() != facts["sha256"]:
        sys.exit(f"{target.name} isn't the file that was sent; its SHA-256 is {digest.hexdigest()}")
    for part in parts:
        part.unlink()
    return partial.rename(target)


def convert(gguf: Path, tokenizer: Path, target: Path) -> None:
    """Dequantise the GGUF file to safetensors; config and tokenizer are those that came along."""
    import torch
    from transformers import AutoModelForCausalLM

    start = time.monotonic()
    given = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The dequantised model itself refuses to be saved, and so does one with its config.
    config = given.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(given.state_dict())
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    fresh.save_pretrained(partial)
    shutil.copytree(tokenizer, partial, dirs_exist_ok=True)
    partial.rename(target)
    print(f"{target.name}: converted in {time.monotonic() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    scratch, model = arguments.scratch, arguments.scratch / "model"
    print(f"received {move(scratch)} files")
    install(scratch)
    describe(scratch / "site")
    gguf = whole_file(scratch / "gguf")
    if gguf and not model.exists():
        sys.path.insert(0, str(scratch / "site"))  # has the package gguf
        convert(gguf, scratch / "tokenizer", model)


if __name__ == "__main__":
    main()
