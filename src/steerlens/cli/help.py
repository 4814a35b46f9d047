"""What `steerlens --help` shows: everything in short, or one verb, group, option or setting."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from itertools import chain

from steerlens.cli.verbs import ABOUT, USAGE
from steerlens.config.catalog import shortened
from steerlens.config.docstrings import (
    Setting,
    all_settings,
    group_classes,
    method_settings,
    metric_settings,
    settings_of,
)
from steerlens.config.entries import conf_dir, entries, header, options
from steerlens.config.registry import load_part, parts_of
from steerlens.errors import SteerlensError, nearest
from steerlens.results import TABLES
from steerlens.results.tables.sweep import SWEEP

WIDTH = 96


def help_text(topic: str | None = None) -> str:
    """Return the text of `steerlens --help [TOPIC]`.

    Args:
        topic: a verb, a group, `GROUP=OPTION`, an option's name, a setting such as
            `steer.operator`, a scoring method such as `score.output`, or a table's file or column;
            None for everything in short.

    Raises:
        SteerlensError: there is no such thing; says what is called nearly so.
    """
    if topic is None:
        lists = (_listed(f"  {name:<11}", names) for name, names in options().items() if names)
        return OVERVIEW.format(groups="\n".join(lists))
    group, equals, option = topic.partition("=")
    groups = list(dict.fromkeys([*options(), *group_classes(), "metrics"]))
    pages: list[tuple[Iterable[str], Callable[[str], str]]] = [
        (USAGE, _verb),
        (groups, _group),
        ([setting.key for setting in all_settings()], _setting),
        ([f"score.{method}" for method in parts_of("scores")], _method),
        ([table.file for table in (*TABLES, SWEEP)], _table),
    ]
    if equals and option in options().get(group, []):
        return _option(group, option)
    for names, page in pages:
        if topic in names:
            return page(topic)
    if equals:
        return help_text(group)
    pages_of = [_option(name, topic) for name in options() if topic in options()[name]]
    pages_of += [
        _described(setting)
        for setting in all_settings()
        if topic in (setting.key.rpartition(".")[2], _flat(setting.key))
    ]
    for table in (*TABLES, SWEEP):
        if topic in table.columns:
            kind, about = table.columns[topic]
            pages_of.append(f"{table.file}\n{_row((f'{topic} ({kind})', about))}")
    if pages_of:
        return "\n\n".join(pages_of)
    words = [*(name for names, _ in pages for name in names), *chain(*options().values())]
    near = nearest(topic, words)
    hint = f"did you mean {' or '.join(near)}?" if near else "`steerlens --help` shows everything."
    raise SteerlensError(f"there is no help on {topic!r}; {hint}")


def _verb(verb: str) -> str:
    return f"{USAGE[verb]}\n\n{_filled(ABOUT[verb])}"


def _group(group: str) -> str:
    """Return what a group is for, its options and its settings."""
    kind = group_classes().get(group)
    about = {
        "score": "What features are scored by.",
        "metrics": "What generated texts are measured by, all of them.",
        "experiment": "Settings for a question, by the file's name; `steerlens list experiments`.",
        "subject": "Model, SAE, evaluator and corpus together.",
    }.get(group) or " ".join(str(kind.__doc__ if kind else "").split())
    parts = [_filled(f"{group}: {about}")]
    if group in options():
        rows = [(f"{group}={name}", str(entry["about"])) for name, entry in entries(group).items()]
        parts.append("\n".join(["Options", *map(_row, rows)]))
    if kind is not None:
        parts.append("\n".join(["Settings", *map(_described, settings_of(kind, f"{group}."))]))
    if group == "metrics":
        parts.append("\n".join(["Settings", *map(_described, metric_settings())]))
    if group == "score":
        parts += [_method(f"score.{method}") for method in sorted(parts_of("scores"))]
    return "\n\n".join(parts)


def _option(group: str, option: str) -> str:
    """Return the header of a file of `conf/`, and the values that it sets."""
    text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
    top = header(text)
    values = [line for line in text.splitlines() if line and not line.startswith("#")]
    parts = [_filled(f"{group}={option}: {top.text}")]
    if group == "experiment":
        parts.append(f"Takes {top.takes}" if top.takes else "How long it takes isn't measured.")
    if top.commands:
        parts.append("\n".join(f"  {command}" for command in top.commands))
    if values:
        parts.append("\n".join(["Sets", *(f"  {line}" for line in values)]))
    return "\n\n".join(parts)


def _setting(key: str) -> str:
    return "\n".join(_described(setting) for setting in all_settings() if setting.key == key)


def _method(name: str) -> str:
    """Return what a scoring method computes, and its settings."""
    method = name.removeprefix("score.")
    about = " ".join((load_part("scores", method).__doc__ or "").strip().split("\n\n")[0].split())
    settings = method_settings(method)
    lines = [_filled(f"score={method}: {about}"), *map(_described, settings)]
    return "\n".join(lines)


def _table(file: str) -> str:
    """Return what the rows of a table are, and its columns."""
    (table,) = [table for table in (*TABLES, SWEEP) if table.file == file]
    rows = [_row((f"{name} ({c.kind})", c.about)) for name, c in table.columns.items()]
    return "\n".join([_filled(f"{file}: {table.about}"), "", "Columns", *rows])


def _flat(key: str) -> str:
    """Return how the setting of a scoring method is written where there is one method alone."""
    return f"score.{key.rpartition('.')[2]}" if key.startswith("score.") else key


def _described(setting: Setting) -> str:
    return _row((f"{setting.key}={shortened(setting.default)}", setting.about))


def _row(cells: tuple[str, str]) -> str:
    """Return a name, and what it is on the lines below it."""
    name, about = cells
    return f"  {name}\n{textwrap.indent(_filled(about, WIDTH - 6), ' ' * 6)}"


def _filled(text: str, width: int = WIDTH) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _listed(head: str, names: list[str]) -> str:
    lines, indent = [head], " " * len(head)
    for name in names:
        if len(lines[-1]) + len(name) + 1 > WIDTH:
            lines.append(indent)
        lines[-1] += f" {name}"
    return "\n".join(lines)


OVERVIEW = """\
steerlens: which SAE feature steers a language model toward X, how strongly, and can the number
be trusted?

Run                  steerlens [KEY=VALUE ...]        score features; without arguments, every
                                                     feature of the SAEs that ship along
                     steerlens concept=WORD           find the features that steer toward a word or
                                                     phrase, and show what they write
                     steerlens steer=grid ...         score features, then steer with them
Look                 steerlens list KIND [filter]     experiments, models, saes, subjects, releases,
                                                     scores, methods, corpora, concepts, judges,
                                                     launchers, settings
                     steerlens --help TOPIC           a verb, a group, an option, a setting, a table
                                                     or a column: --help steer.operator
Try by hand          steerlens play [DIR]             a local page on which one moves a factor and
                                                     sees the model write, of a run or a subject
Redraw               steerlens report DIR             figures and tables of a finished run
Sweep                steerlens -m KEY=A,B ...         one run for each value, joined at the end
                     steerlens join DIR [DIR ...]     the same of finished runs and sweeps
                     steerlens compare DIR DIR        two of them: settings, agreement, figures
Export               steerlens export DIR             a steering vector for other tools
                     steerlens export FILE.parquet    examples of features, in Neuronpedia's layout
Examples             steerlens examples FILE ...      of your SAE's features, for sae.examples=FILE

Groups: GROUP=OPTION (what they are: steerlens --help GROUP)
{groups}

Settings: KEY=VALUE (all of them: steerlens list settings)
  layer=3  'layer=[3,5]'  layer=late  layer=all      late = the upper 40 % (or model.late_from)
  'features.ids=[1,2,3]'  features.n=100  features.file=FILE
  score.factor=10  'score.prompt="From my experience,"'       (score=all: score.output.factor=10)
  device=auto|cpu|cuda|mps  dtype=auto|float32|bfloat16|float16  device_map=auto
  memory_budget=2GiB  seed=0  name=NAME  tracking.mode=disabled  paths.output_dir=DIR
  shard=0/4       the first of four parts of each layer's features; joined they are the whole
  objective=success   the number that a sweeper optimises
  plan=true       print what would run, how long and how large, and stop; nothing is loaded
  plan=measure    the same, after timing a few features and texts; kept for later plans
  debug=true      show tracebacks

Texts with spaces, commas or brackets are quoted twice, for the shell and for Hydra, as above.

Examples
  steerlens
  steerlens concept=garden
  steerlens layer=24 features.n=20 steer=grid generation.n_prompts=5
  steerlens model=gemma-2-2b sae=gemma-scope-2b-res layer=20 features=random
  steerlens experiment=gemma_2_2b plan=true
  steerlens model=local model.path=DIR sae=local sae.path=DIR layer=3
  steerlens model=local model.path=FILE.gguf sae=local sae.path=DIR layer=9
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
