"""Bring results back in files of at most 16 MiB, some a call, and put them together again.

    python3 experiments/gpu/results.py split --source DIR --out DIR --first 0 --count 4
    python3 experiments/gpu/results.py join --source DIR --target DIR

`split` makes one uncompressed archive of a folder (checkpoints left out) and writes parts `first`
to `first + count` of it, with `results.json`, which has size and SHA-256 of the whole. `join`
unpacks when all are there; of an archive whose end is missing it unpacks the files that are whole,
and says so.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

PART = 15 * 2**20
LEFT_OUT = ("checkpoint.safetensors",)


def archive(source: Path) -> bytes:
    """Return the folder as an archive that depends on nothing but names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(source.rglob("*")):
            if file.is_file() and file.name not in LEFT_OUT:
                info = tarfile.TarInfo(str(file.relative_to(source)))
                info.size = file.stat().st_size
                with file.open("rb") as content:
                    tar.addfile(info, content)
    return buffer.getvalue()


def split(source: Path, out: Path, first: int, count: int) -> None:
    whole = archive(source)
    n_parts = -(-len(whole) // PART)
    facts = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest(), "parts": n_parts}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(facts))
    numbers = range(first, min(first + count, n_parts))
    for number in numbers:
        content = whole[number * PART : (number + 1) * PART]
        (out / f"results.{number:03d}").write_bytes(content)
    print(f"parts {[*numbers]} of {n_parts}, {len(whole) / 2**20:.1f} MiB in all")


def join(source: Path, target: Path) -> None:
    """Unpack the parts below `source`, whatever folders they came back in.

    Raises:
        SystemExit: if the parts don't make the archive that was split.
    """
    facts = json.loads(next(source.rglob("results.json")).read_text())
    parts = {file.name: file for file in source.rglob("results.[0-9][0-9][0-9]")}
    names = [f"results.{number:03d}" for number in range(facts["parts"])]
    missing = [name for name in names if name not in parts]
    before = names[: names.index(missing[0])] if missing else names
    whole = b"".join(parts[name].read_bytes() for name in before)
    if not missing and hashlib.sha256(whole).hexdigest() != facts["sha256"]:
        sys.exit("these parts aren't of one archive: bring all of them back from the same state")
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        n_files = 0
        for info in _members(tar):
            file = target / info.name
            if not file.resolve().is_relative_to(target.resolve()):
                sys.exit(f"{info.name} would leave {target}")
            content = tar.extractfile(info)
            if content is None or info.offset_data + info.size > len(whole):
                break
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as written:
                shutil.copyfileobj(content, written)
            n_files += 1
    print(f"{n_files} files" + (f"; missing: {', '.join(missing)}" if missing else ""))


def _members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """List members as far as the archive can be read."""
    members = []
    try:
        while (info := tar.next()) is not None:
            members.append(info)
    except tarfile.ReadError:
        pass
    return members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("--source", type=Path, required=True)
    splitting.add_argument("--out", type=Path, required=True)
    splitting.add_argument("--first", type=int, default=0)
    splitting.add_argument("--count", type=int, default=4)
    joining = commands.add_parser("join")
    joining.add_argument("--source", type=Path, required=True)
    joining.add_argument("--target", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "split":
        split(arguments.source, arguments.out, arguments.first, arguments.count)
    else:
        join(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
