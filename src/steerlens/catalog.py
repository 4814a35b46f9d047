"""What there is to choose from: the entries of `conf/`, SAELens' releases, scoring methods."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import yaml

from steerlens.config.compose import register
from steerlens.config.entries import Entry, entries, options
from steerlens.errors import SteerlensError, nearest, unknown
from steerlens.registry import load_method, methods


def listing(kind: str, filter: str = "") -> str:
    """The text of `steerlens list KIND [filter]`."""
    kinds = {
        "models": _models,
        "saes": _saes,
        "releases": _releases,
        "scores": _scores,
        "concepts": partial(_group, "concepts"),
        "judges": partial(_group, "judge"),
    }
    if kind not in kinds:
        raise unknown("list", kind, kinds)
    if kind == "releases" and filter in releases():
        return _release(filter)
    rows = kinds[kind]()
    chosen = [row for row in rows if any(filter.lower() in cell.lower() for cell in row)]
    if not chosen:
        near = nearest(filter, [row[0].rpartition("=")[2] for row in rows])
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "try a shorter word."
        raise SteerlensError(f"no {kind} match {filter!r}; {hint}")
    return table(chosen)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as aligned text; the last column is not padded."""
    rows = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _models() -> list[list[str]]:
    rows = []
    for name, entry in entries("model").items():
        size = f"{entry['n_params'] / 1e9:.3g}B" if "n_params" in entry else ""
        facts = [("{} layers", "n_layers"), ("d {}", "d_model")]
        shape = ", ".join(text.format(entry[key]) for text, key in facts if key in entry)
        rows.append([f"model={name}", size, shape, entry["about"]])
    return rows


def _saes() -> list[list[str]]:
    rows = []
    for name, entry in entries("sae").items():
        of = f"model={entry['model']}" if entry.get("model") else "any model"
        width = f"{entry['d_sae']} features" if entry.get("d_sae") else ""
        rows.append([f"sae={name}", of, width, entry["about"]])
    return rows


def _group(group: str) -> list[list[str]]:
    return [[f"{group}={name}", str(entry["about"])] for name, entry in entries(group).items()]


def _scores() -> list[list[str]]:
    rows = []
    register()
    for name in sorted(methods()):
        try:
            doc = load_method(name).__doc__ or ""
            about = doc.strip().split("\n")[0]
        except Exception as error:  # somebody else's module: anything can happen
            about = f"(can't be imported: {type(error).__name__}: {error})"
        rows.append([f"score={name}", about])
    return rows


def _releases() -> list[list[str]]:
    return [
        [name, _field(block, "model"), f"{block.count(chr(10) + '  - ')} SAEs"]
        for name, block in releases().items()
    ]


def _release(name: str) -> str:
    release = read_release(name)
    head = [
        f"{name}: SAEs of {release['model']}, from https://huggingface.co/{release['repo_id']}",
        f"  steerlens sae=release sae.release={name} 'sae.sae_id=\"ID\"'",
        "",
    ]
    return "\n".join(head + [sae["id"] for sae in release["saes"]])


@cache
def releases() -> dict[str, str]:
    """SAELens' releases by name, each as its piece of SAELens' YAML file.

    The file has 43,000 lines; cutting it into pieces takes a hundredth of the time of parsing it.
    """
    # Finding a top-level package, unlike a module inside it, doesn't import it.
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or spec.origin is None:
        raise SteerlensError("sae-lens isn't installed, so its releases can't be listed.")
    file = Path(spec.origin).parent / "pretrained_saes.yaml"
    if not file.is_file():
        raise SteerlensError(f"sae-lens has no {file.name} any more; this version isn't supported.")
    pieces = re.split(r"^([^\s#].*):[ ]*\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(sorted(zip(pieces[1::2], pieces[2::2], strict=True)))


@cache
def read_release(name: str) -> Entry:
    """One release of SAELens: `model`, `repo_id`, and `saes` with an `id` each."""
    if name not in releases():
        raise unknown("SAELens release", name, releases())
    return yaml.safe_load(releases()[name])


def _field(block: str, key: str) -> str:
    match = re.search(rf"^  {key}: (.*)$", block, flags=re.MULTILINE)
    return match[1].strip("'\"") if match else ""


def help_text() -> str:
    """The text of `steerlens --help`."""
    groups = "\n".join(
        _wrapped(f"  {name:<11}", names) for name, names in options().items() if names
    )
    return HELP.format(groups=groups)


def _wrapped(head: str, names: list[str], width: int = 96) -> str:
    lines, indent = [head], " " * len(head)
    for name in names:
        if len(lines[-1]) + len(name) + 1 > width:
            lines.append(indent)
        lines[-1] += f" {name}"
    return "\n".join(lines)


HELP = """\
steerlens: which SAE feature steers a language model toward X, how strongly, and can the number
be trusted?

Run                  steerlens [KEY=VALUE ...]        score features; without arguments, every
                                                     feature of the SAEs that ship along
Look                 steerlens list models|saes|releases|scores|concepts|judges [filter]
Redraw               steerlens report DIR             figures and tables of a finished run
Sweep                steerlens -m KEY=A,B ...         one run for each value, joined at the end
                     steerlens join DIR [DIR ...]     the same of finished runs and sweeps
                     steerlens compare DIR DIR        two of them: settings, agreement, figures
Export               steerlens export DIR             a steering vector for other tools

Groups: GROUP=OPTION
{groups}

Settings: KEY=VALUE (all of them: steerlens --cfg job)
  layer=3  'layer=[3,5]'  layer=late  layer=all      late = the upper 40 % (or model.late_from)
  'features.ids=[1,2,3]'  features.n=100  features.file=FILE
  score.factor=10  'score.prompt="From my experience,"'       (score=all: score.output.factor=10)
  device=auto|cpu|cuda|mps  dtype=auto|float32|bfloat16|float16  device_map=auto
  memory_budget=2GiB  seed=0  name=NAME  tracking.mode=disabled  paths.output_dir=DIR
  shard=0/4       the first of four parts of each layer's features; joined they are the whole
  objective=success   the number that a sweeper optimises
  plan=true       print what would run, how long and how large, and stop
  debug=true      show tracebacks

Texts with spaces, commas or brackets are quoted twice, for the shell and for Hydra, as above.

Examples
  steerlens
  steerlens model=gemma-2-2b sae=gemma-scope-2b-res layer=20 features=random
  steerlens experiment=gemma_2_2b plan=true
  steerlens model=local model.path=DIR sae=local sae.path=DIR layer=3
  steerlens model=gpt2-small sae=release sae.release=gpt2-small-resid-post-v5-32k \\
      'sae.sae_id="blocks.{{layer}}.hook_resid_post"' layer=6
  steerlens -m layer=1,2,3 score.factor=5,10         one run for each combination
  steerlens -m hydra/launcher=joblib|submitit_local|slurm|ray ...      at once, or on a cluster

Results go to outputs/NAME/TIME/, or to paths.output_dir=DIR: features.parquet (one row per
feature), summary.json, config.yaml, provenance.json, status.json, figures/ and the W&B run. In a
multirun each job has a numbered folder inside, and the joined tables and figures lie beside them;
the same command again runs only what is missing or failed.

Flags
  --cfg job [--resolve]     print the configuration    --info [defaults|searchpath|...]
  -m, --multirun            one run for each value     --config-dir DIR   a folder of your own YAML
  --version                                            --hydra-help       Hydra's own flags
  --shell-completion        eval "$(steerlens -sc install=bash)"
"""
