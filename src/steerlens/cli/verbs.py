"""The verbs: what `steerlens VERB ...` does beside running experiments."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from steerlens.errors import SteerlensError, nearest

USAGE = {
    "compare": "steerlens compare DIR DIR [paths.output_dir=DIR]",
    "examples": "steerlens examples FILE.parquet [model=... sae=... layer=... corpus=...]",
    "export": "steerlens export DIR [layer=L] [feature=I] [factor=S]",
    "join": "steerlens join DIR [DIR ...] [paths.output_dir=DIR]",
    "list": "steerlens list models|saes|subjects|releases|scores|methods|concepts|judges|"
    "experiments|corpora|launchers|settings [filter]",
    "play": "steerlens play [DIR] [port=8765] [host=127.0.0.1] [model=... sae=... layer=...]",
    "report": "steerlens report DIR",
}
"""By verb, how it is typed."""
ABOUT = {
    "compare": "Lay two finished runs or sweeps side by side: settings in which they differ, "
    "how far their scores agree, figures with both. Writes a folder of its own, by default "
    "outputs/compare/TIME.",
    "examples": "Read a corpus once, and store for every feature of the SAEs what the scores "
    "that need texts take from it: the texts where it fires hardest, statistics, a histogram. "
    "`sae.examples=FILE` then stands for the corpus.",
    "export": "Of a run's folder: write one steering vector, by default of the run's best "
    "feature at its best factor, as safetensors with a JSON card, a steer.py that needs "
    "Transformers alone, and the file of lm-evaluation-harness' steered model. Of a "
    "FILE.parquet of examples: write Neuronpedia's layout into paths.output_dir, with the "
    "tokenizer of model=.",
    "join": "Join the tables of finished runs and sweeps, shards among them, with a row for "
    "each job in sweep.csv, figures and a report. Of one sweep it does so in the sweep's "
    "folder, else in paths.output_dir, by default outputs/join/TIME.",
    "list": "Show what there is to choose from, a line each, and for experiments how long they "
    "take: measured, estimated or counted. Of `releases` and `saes` a name shows what is in it. "
    "The filter keeps the lines that have it.",
    "play": "Load a subject once, by default the default's or that of the run in DIR, and serve a "
    "page to this machine's browser, with a card that steers: a prompt, features found by token, "
    "concept or number, a factor to move, and the text as it is written beside the unsteered one. "
    "The address that it prints has a token. Settings of `steer` and `generation` are those that "
    "texts begin with. Ctrl-C ends it.",
    "report": "Draw figures, report and summary of a finished run or sweep anew from its "
    "tables, without the model.",
}
"""By verb, what it does."""
VERBS = tuple(USAGE)
FOLDER_TIME = "%Y-%m-%d_%H-%M-%S-%f"


def run_verb(verb: str, arguments: list[str]) -> None:
    """Do what `steerlens VERB ARGUMENTS` asks for."""
    if verb == "list":
        if not 1 <= len(arguments) <= 2:
            raise SteerlensError(f"usage: {USAGE[verb]}")
        from steerlens.config.catalog import listing

        print(listing(*arguments))
    elif verb == "report":
        if len(arguments) != 1:
            raise SteerlensError(f"usage: {USAGE[verb]}")
        from steerlens.report import report
        from steerlens.runs.sweep import is_sweep, join_sweep

        folder = Path(arguments[0])
        if is_sweep(folder):
            join_sweep(folder, again=True)
        else:
            report(folder)
    elif verb == "play":
        from steerlens.runs.play import play

        play(arguments)
    elif verb in ("join", "compare"):
        _several(verb, arguments)
    elif verb == "export":
        if not arguments:
            raise SteerlensError(f"usage: {USAGE[verb]}")
        if arguments[0].endswith(".parquet"):
            _export_examples(Path(arguments[0]), arguments[1:])
            return
        from steerlens.runs.export.of_run import export_run

        for path in export_run(Path(arguments[0]), arguments[1:]):
            print(path)
    elif verb == "examples":
        if not arguments or "=" in arguments[0]:
            raise SteerlensError(f"usage: {USAGE[verb]}")
        _write_examples(Path(arguments[0]), arguments[1:])
    else:
        raise _unknown_verb(verb, arguments)


def _write_examples(file: Path, overrides: list[str]) -> None:
    """Make one corpus pass of the SAEs that `overrides` choose, for all runs to come."""
    from steerlens.config.compose import compose
    from steerlens.config.settings import parse_settings
    from steerlens.runs.preflight import check
    from steerlens.runs.run import refuse_unloadable

    config = compose(overrides)
    check(config)
    settings = parse_settings(config)
    refuse_unloadable(settings)
    from steerlens.runs.examples import write_examples

    print(write_examples(config, file))


def _export_examples(file: Path, overrides: list[str]) -> None:
    """Write examples in Neuronpedia's layout, with the tokenizer of the model in `overrides`."""
    from steerlens.config.compose import compose
    from steerlens.engine.examples import read_metadata
    from steerlens.engine.examples.neuronpedia import export_neuronpedia
    from steerlens.engine.subject.model import load_tokenizer

    read_metadata(file)
    config = compose(overrides)
    folder = Path(config.paths.output_dir)
    export_neuronpedia(file, folder, load_tokenizer(config.model))
    print(folder)


def _several(verb: str, arguments: list[str]) -> None:
    """Carry out the verbs that take the folders of several runs or sweeps."""
    from steerlens.runs.sweep import join, join_sweep

    folders = [Path(word) for word in arguments if "=" not in word]
    settings = dict(word.split("=", 1) for word in arguments if "=" in word)
    out = settings.pop("paths.output_dir", None)
    if settings or not folders or (verb == "compare" and len(folders) != 2):
        raise SteerlensError(f"usage: {USAGE[verb]}")
    if verb == "join" and len(folders) == 1 and out is None:
        join_sweep(folders[0])
        return
    into = Path(out) if out else Path("outputs") / verb / datetime.now().strftime(FOLDER_TIME)
    if verb == "join":
        join(folders, into)
    else:
        from steerlens.runs.compare import compare

        compare(folders[0], folders[1], into)


def _unknown_verb(verb: str, arguments: list[str]) -> SteerlensError:
    from steerlens.config.entries import options

    if verb == "concept":
        from steerlens.config.overrides import proposal

        words = " ".join(word for word in arguments if "=" not in word)
        overrides = "".join(f" {shlex.quote(word)}" for word in arguments if "=" in word)
        proposed = proposal("concept", words) if words else "concept=WORD"
        return SteerlensError(
            f"unknown verb 'concept'; did you mean: steerlens {proposed}{overrides}"
        )
    if verb == "version":
        return SteerlensError("unknown verb 'version'; did you mean: steerlens --version")
    groups = [group for group, names in options().items() if verb in names]
    near = nearest(verb, VERBS, n=1)
    if groups:
        hint = f"did you mean {groups[0]}={verb}?"
    elif verb in options():
        hint = f"did you mean {verb}=OPTION? `steerlens --help` lists the options."
    elif near:
        hint = f"did you mean 'steerlens {near[0]}'?"
    else:
        hint = f"verbs are {', '.join(VERBS)}; everything else is key=value, such as layer=3."
    return SteerlensError(f"unknown verb {verb!r}; {hint}")
