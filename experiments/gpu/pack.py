"""Stage what a machine with a GPU and without a network needs, in calls of at most 60 MiB.

    python -m experiments.gpu.pack --model DIR --gguf FILE --scratch DIR --wheels DIR \\
      [--shipped DIR]

Writes `.gpu/call_1`, `.gpu/call_2`, ... (ignored by git): wheels, token files, held-out samples,
the nouns of the prompts, the tokenizer, the model's GGUF file in parts, and with `--shipped` the
package of the default's SAEs, so that none need be trained there. Prints what each call
sends, the work tree included, and refuses a work tree that leaves no room for a part.
`receive.py` takes it apart on the other side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.smollm2.activations import HELD_OUT_SAMPLES
from experiments.smollm2.sample import common_nouns

ROOT = Path(__file__).parents[2]
STAGE = ROOT / ".gpu"
MIB = 2**20
AT_MOST = 60 * MIB
PART = 24 * MIB
"""Two such parts and the work tree go together."""
TOKENIZER = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def work_tree() -> dict[str, int]:
    """Map the files that git has or would have, and are here, to their sizes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = {name for name in listed.split("\0") if name}
    names |= {str(file.relative_to(ROOT)) for file in (ROOT / "shared").rglob("*")}
    return {
        name: (ROOT / name).lstat().st_size
        for name in sorted(names)
        if (ROOT / name).is_symlink() or (ROOT / name).is_file()
    }


def parts(file: Path, folder: Path) -> Iterator[Path]:
    """Cut a file into `NAME.000`, ...; `NAME.json` has its size and SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with file.open("rb") as source:
        for number, content in enumerate(iter(lambda: source.read(PART), b"")):
            digest.update(content)
            part = folder / f"{file.name}.{number:03d}"
            part.write_bytes(content)
            yield part
    facts = {"size": file.stat().st_size, "sha256": digest.hexdigest()}
    described = folder / f"{file.name}.json"
    described.write_text(json.dumps(facts))
    yield described


def payload(arguments: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Yield each file with its path on the other side, what is needed first coming first."""
    for wheel in sorted(arguments.wheels.glob("*.whl")):
        yield wheel, f"wheels/{wheel.name}"
    for file in sorted((arguments.scratch / "tokens").glob("*.npy")):
        if not file.stem.endswith(".starts"):
            yield file, f"tokens/{file.name}"
    for file in sorted((arguments.scratch / "samples").glob("[0-9]*[0-9].npy")):
        if int(file.stem) >= HELD_OUT_SAMPLES:
            yield file, f"samples/{file.name}"
    nouns = STAGE / "parts" / "nouns.txt"
    nouns.parent.mkdir(parents=True, exist_ok=True)
    nouns.write_text("\n".join(common_nouns()))
    yield nouns, nouns.name
    for name in TOKENIZER:
        if (arguments.model / name).exists():
            yield arguments.model / name, f"tokenizer/{name}"
    for part in parts(arguments.gguf, STAGE / "parts"):
        yield part, f"gguf/{part.name}"
    if arguments.shipped:
        for file in sorted(arguments.shipped.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file, f"site/{arguments.shipped.name}/{file.relative_to(arguments.shipped)}"


def into_calls(sizes: list[int], room: int) -> list[int]:
    """Return the call of each file: the first in which there is room for it.

    Raises:
        SystemExit: for a file that doesn't fit into any call.
    """
    if max(sizes) > room:
        sys.exit(f"a file of {max(sizes) / MIB:.1f} MiB doesn't fit into {room / MIB:.1f} MiB")
    free: list[int] = []
    calls = []
    for size in sizes:
        call = next((number for number, left in enumerate(free) if left >= size), len(free))
        if call == len(free):
            free.append(room)
        free[call] -= size
        calls.append(call)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the converted model's folder")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="of experiments/smollm2")
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--shipped", type=Path, help="packages/smollm2/steerlens_smollm2")
    arguments = parser.parse_args()
    tree = work_tree()
    n_tree = sum(tree.values())
    print(f"work tree: {len(tree)} files, {n_tree / MIB:.1f} MiB; largest folders:")
    folders: dict[str, int] = {}
    for name, size in tree.items():
        folder = "/".join(name.split("/")[:3])
        folders[folder] = folders.get(folder, 0) + size
    for folder, size in sorted(folders.items(), key=lambda item: -item[1])[:5]:
        print(f"  {size / MIB:6.1f} MiB  {folder}")
    if n_tree > AT_MOST - PART:
        sys.exit(
            f"refused: {(AT_MOST - n_tree) / MIB:.1f} MiB are left of {AT_MOST // MIB}; take large "
            "folders out of the work tree with git sparse-checkout (README.md)"
        )
    shutil.rmtree(STAGE, ignore_errors=True)
    files = list(payload(arguments))
    sizes = [source.stat().st_size for source, _ in files]
    calls = into_calls(sizes, AT_MOST - n_tree)
    for (source, name), call in zip(files, calls, strict=True):
        target = STAGE / f"call_{call + 1}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.rmtree(STAGE / "parts")
    for call in range(max(calls) + 1):
        of_call = [index for index, number in enumerate(calls) if number == call]
        carried = sum(sizes[index] for index in of_call)
        kinds = dict.fromkeys(files[index][1].split("/")[0] for index in of_call)
        print(
            f"call {call + 1}: .gpu/call_{call + 1} {carried / MIB:.1f} MiB ({', '.join(kinds)}), "
            f"{(carried + n_tree) / MIB:.1f} MiB with the work tree"
        )


if __name__ == "__main__":
    main()
