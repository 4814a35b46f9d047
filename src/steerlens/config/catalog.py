"""What there is to choose from: the entries of `conf/`, SAELens' releases, scoring methods."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import yaml

from steerlens.config.docstrings import all_settings
from steerlens.config.entries import Entry, conf_dir, entries, header, options, resolved
from steerlens.config.registry import KINDS, PACKAGE, load_part, parts_of
from steerlens.config.resolvers import register
from steerlens.config.schema import STEERED_BY
from steerlens.errors import SteerlensError, nearest, unknown

SAE_SETTINGS = ("site", "width", "l0")
"""Settings that choose within a family of SAEs; an entry that is one has them."""


def listing(kind: str, filter: str = "") -> str:
    """Return the text of `steerlens list KIND [filter]`."""
    kinds = {
        "models": _models,
        "saes": _saes,
        "subjects": _subjects,
        "releases": _releases,
        "scores": _scores,
        "methods": _methods,
        "concepts": partial(_group, "concepts"),
        "judges": partial(_group, "judge"),
        "experiments": _experiments,
        "corpora": _corpora,
        "launchers": _launchers,
        "settings": _settings,
    }
    if kind not in kinds:
        raise unknown("list", kind, kinds)
    if kind == "releases" and filter in releases():
        return _release(filter)
    if kind == "saes" and set(SAE_SETTINGS) & set(entries("sae").get(filter, {})):
        return _family(filter)
    rows = kinds[kind]()
    chosen = [row for row in rows if any(filter.lower() in cell.lower() for cell in row)]
    if not chosen:
        near = nearest(filter, [row[0].rpartition("=")[2] for row in rows])
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "try a shorter word."
        raise SteerlensError(f"no {kind} match {filter!r}; {hint}")
    return table(chosen)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as aligned text; the last column is not padded."""
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
    register()  # the resolvers
    rows = []
    for name, entry in entries("sae").items():
        of = f"model={entry['model']}" if entry.get("model") else "any model"
        d_sae = resolved(entry).get("d_sae")
        rows.append([f"sae={name}", of, f"{d_sae} features" if d_sae else "", entry["about"]])
    return rows


def _subjects() -> list[list[str]]:
    rows = []
    for name, entry in entries("subject").items():
        chosen = {key: value for part in entry["defaults"] for key, value in part.items()}
        model, sae = chosen["override /model"], chosen["override /sae"]
        rows.append([f"subject={name}", f"model={model}", f"sae={sae}", entry["about"]])
    return rows


def _family(name: str) -> str:
    """Return what `steerlens list saes NAME` shows of an entry whose settings choose an SAE."""
    entry = entries("sae")[name]
    settings = [setting for setting in SAE_SETTINGS if setting in entry]
    *apart, last = settings
    grouped: dict[tuple[str, ...], list[str]] = {}
    for chosen, layers in family(name):
        key = (*(chosen[setting] for setting in apart), _runs(layers))
        grouped.setdefault(key, []).append(chosen[last])
    heads = [f"sae.{setting}" for setting in settings]
    head = [
        f"{name}: {entry['about']}",
        f"  steerlens model={entry['model']} sae={name}"
        + "".join(f" sae.{setting}={entry[setting]}" for setting in settings),
        "",
    ]
    rows = [[*key[:-1], ", ".join(sorted(values)), key[-1]] for key, values in grouped.items()]
    return "\n".join([*head, table([[*heads, "layers"], *rows])])


def family(name: str) -> list[tuple[dict[str, str], list[int]]]:
    """Return every choice of the settings of the SAE entry `name`, with the layers that have it.

    From SAELens' list: what the names of releases, and in them of SAEs, say.
    """
    entry = entries("sae")[name]
    layers_at: dict[tuple[tuple[str, str], ...], list[int]] = {}
    pieces = re.split(r"\$\{\.(\w+)\}", entry["release"])
    pattern = "".join(
        f"(?P<{piece}>.+)" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
    )
    for release in releases():
        match = re.fullmatch(pattern, release)
        if match is None:
            continue
        for sae in read_release(release)["saes"]:
            inside = re.search(r"width_(?P<width>[^_]+)_l0_(?P<l0>.+)", sae["id"])
            values = {**(inside.groupdict() if inside else {}), **match.groupdict()}
            key = tuple((setting, values[setting]) for setting in SAE_SETTINGS if setting in entry)
            layers_at.setdefault(key, []).append(int(re.findall(r"layer_?(\d+)", sae["id"])[0]))
    return [(dict(key), sorted(layers)) for key, layers in layers_at.items()]


def _runs(numbers: Sequence[int]) -> str:
    """Return rising numbers in short: `0-3, 5, 9`."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _group(group: str) -> list[list[str]]:
    return [[f"{group}={name}", str(entry["about"])] for name, entry in entries(group).items()]


def _experiments() -> list[list[str]]:
    """Return each with how long it took, or was estimated to take: from the number of texts that
    its plan says, at 6 a second (Table 1 on two quiet cores, 20 tokens with their perplexity);
    where it needs a GPU, the least that its matrix products allow (`experiments.paper.cost`).
    """
    rows = []
    for name in options()["experiment"]:
        top = header((conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
        rows.append([f"experiment={name}", top.takes or "not measured", top.about])
    return rows


def _corpora() -> list[list[str]]:
    """Return each with how many tokens it reads, from which follows how long a pass over it
    takes.
    """
    rows = []
    for name, entry in entries("corpus").items():
        n_tokens = entry.get("n_tokens")
        length = f"{n_tokens:,} tokens" if n_tokens else ""
        rows.append([f"corpus={name}", length, entry["about"]])
    return rows


def _launchers() -> list[list[str]]:
    """Return Hydra's own, those of its plugins that are extras of ours, and
    `conf/hydra/launcher`.
    """
    ours = header((conf_dir() / "hydra" / "launcher" / "slurm.yaml").read_text(encoding="utf-8"))
    launchers = {
        "basic": ("", "One job after the other, in this process: the default."),
        "joblib": ("joblib", "Several processes on this machine: hydra.launcher.n_jobs=4."),
        "submitit_local": ("submitit", "A process for each job on this machine."),
        "submitit_slurm": ("submitit", "A job of SLURM for each job, as the plugin has it."),
        "slurm": ("submitit", ours.about),
        "ray": ("ray", "Ray, on this machine or a cluster: +hydra.launcher.ray.init.num_cpus=8."),
    }
    return [
        [f"hydra/launcher={name}", f"needs the extra {extra}" if extra else "", about]
        for name, (extra, about) in launchers.items()
    ]


def _settings() -> list[list[str]]:
    return [
        [f"{setting.key}={shortened(setting.default)}", setting.about] for setting in all_settings()
    ]


def shortened(text: str, width: int = 40) -> str:
    """Return `text`, its end left out where it is longer than `width`."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _scores() -> list[list[str]]:
    rows = []
    register()
    for name in sorted(parts_of("scores")):
        try:
            doc = load_part("scores", name).__doc__ or ""
            about = doc.strip().split("\n")[0]
        except SteerlensError as error:
            about = f"({error})"
        rows.append([f"score={name}", about])
    return rows


def _methods() -> list[list[str]]:
    """Return the ways of steering toward concepts; of ours the files are read, not imported."""
    about = {"SAE together": "Several of the features that detect the concept best, at once."}
    for file in sorted((PACKAGE / KINDS["methods"].home).glob("[!_]*.py")):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        name, _, line = doc.split("\n")[0].partition(": ")
        about[name] = f"{line[:1].upper()}{line[1:]}"
    names = [*STEERED_BY, *(name for name in parts_of("methods") if name not in STEERED_BY)]
    rows = []
    for name in names:
        if name not in about:
            doc = load_part("methods", name).__doc__ or ""
            about[name] = doc.strip().split("\n")[0]
        rows.append([name, about[name]])
    return rows


def _releases() -> list[list[str]]:
    model = re.compile(r"^  model: ['\"]?(.*?)['\"]?$", flags=re.MULTILINE)
    return [
        [
            name,
            match[1] if (match := model.search(block)) else "",
            f"{block.count(chr(10) + '  - ')} SAEs",
        ]
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
    """Return SAELens' releases by name, each as its piece of SAELens' YAML file.

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
    """Return one release of SAELens: `model`, `repo_id`, and `saes` with an `id` each."""
    if name not in releases():
        raise unknown("SAELens release", name, releases())
    # libyaml, where PyYAML has been built with it, takes a tenth of the time.
    return yaml.load(releases()[name], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
