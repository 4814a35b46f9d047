"""The pages of the documentation that are made from the code, and `docs/llms.txt`.

    python -m experiments.reference            # into docs/; `make docs` does it, too

`docs/reference/` has every group, setting, option, column and verb with the sentence that the code
has for it; it isn't committed. `docs/llms.txt` lists the pages for programs that read them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from steerlens.cli.verbs import ABOUT, USAGE
from steerlens.config.catalog import listing
from steerlens.config.docstrings import Setting, group_classes, method_settings, settings_of
from steerlens.config.entries import conf_dir, header, options
from steerlens.config.registry import KINDS, load_part, parts_of
from steerlens.config.schema import RunConfig
from steerlens.results import TABLES
from steerlens.results.tables.sweep import SWEEP
from steerlens.storage.files import make_folder, write_text

ROOT = Path(__file__).resolve().parents[1]
LISTED = ("subjects", "scores", "corpora", "concepts", "judges", "launchers", "experiments")
"""What `steerlens list` has of which a page shows all; models, SAEs and releases are too many."""


def pages() -> dict[str, str]:
    """Return the pages of the reference by their names."""
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    return {
        **{f"notebook-{file.stem}.md": notebook_page(file) for file in notebooks},
        "index.md": INDEX,
        "settings.md": settings_page(),
        "options.md": options_page(),
        "parts.md": parts_page(),
        "tables.md": tables_page(),
        "verbs.md": verbs_page(),
    }


def settings_page() -> str:
    """Return every setting, group by group, with its type, default and sentence."""
    parts = [SETTINGS, "## Without a group", _settings(settings_of(RunConfig))]
    for group, kind in group_classes().items():
        parts += [f"## {group}", _sentence(kind.__doc__), _settings(settings_of(kind, f"{group}."))]
    for method in sorted(parts_of("scores")):
        about = (load_part("scores", method).__doc__ or "").strip().split("\n\n")[0]
        parts += [f"## score.{method}", _sentence(about), _settings(method_settings(method))]
    return _page(parts)


def options_page() -> str:
    """Return every file of `conf/` with its header."""
    parts = ["# Options", "`GROUP=NAME` chooses a file of `conf/GROUP/`; this is what they say."]
    for group, names in options().items():
        rows = []
        for name in names:
            top = header((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
            takes = f" Takes {top.takes}." if top.takes else ""
            rows.append([f"`{group}={name}`", f"{top.text}{takes}"])
        parts += [f"## {group}", _table(["option", "what it is"], rows)]
    return _page(parts)


def parts_page() -> str:
    """Return every part but the scores: what it does, and its settings where it has some."""
    parts = ["# Parts", PARTS]
    for kind, about in KINDS.items():
        if kind == "scores":
            continue
        parts.append(f"## {kind}")
        for name in sorted(parts_of(kind)):
            part = load_part(kind, name)
            text = (part.__doc__ or "").strip().split("\n\n")[0]
            parts += [f"### {name}", _sentence(text)]
            if not about.is_functions and hasattr(part, "Config"):
                prefix = f"metrics.{name}." if kind == "metrics" else ""
                settings = settings_of(part.Config, prefix)
                parts.append(_settings(settings) if settings else "")
    return _page(parts)


def tables_page() -> str:
    """Return every column of every table, and what tells rows apart."""
    parts = ["# Tables", "Every column is there in every run, null where no method has filled it."]
    for table in (*TABLES, SWEEP):
        rows = [[f"`{name}`", c.kind, c.about] for name, c in table.columns.items()]
        keys = ", ".join(f"`{key}`" for key in table.keys)
        parts += [
            f"## {table.file}",
            f"{table.about} Rows are told apart by {keys}.",
            _table(["column", "type", "what it holds"], rows),
        ]
    return _page(parts)


def verbs_page() -> str:
    """Return every verb, and what `steerlens list` shows."""
    parts = ["# Verbs and lists", "`steerlens KEY=VALUE ...` runs; these do something else."]
    for verb, usage in USAGE.items():
        parts += [f"## {verb}", f"```text\n{usage}\n```", ABOUT[verb]]
    parts.append("## What `steerlens list` shows")
    for kind in LISTED:
        parts += [f"### {kind}", f"```text\n{listing(kind)}\n```"]
    return _page(parts)


def notebook_page(file: Path) -> str:
    """Return a notebook as it was executed: texts, code, and what the code gave."""
    parts: list[str] = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [text for output in cell["outputs"] if (text := _output(output))]
    parts.append(f"The notebook itself: `docs/notebooks/{file.name}`.")
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str | None:
    """Return what a cell gave: a table, or text; None for what it wrote on stderr."""
    data = output.get("data", {})
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
        # In one line, so that no blank line ends it for Markdown.
        return f"<div>{' '.join(html.split())}</div>"
    text = "".join(
        data.get("text/plain") or (output.get("name") == "stdout" and output["text"]) or ""
    )
    return f"```text\n{text.rstrip()}\n```" if text.strip() else None


def llms_text() -> str:
    """Return the pages of the documentation with the first sentence of each, for programs."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}", ""]
    for title, page in _nav(site["nav"]):
        if not page:
            lines += ["", f"## {title}", ""]
        else:
            lines.append(f"- [{title}]({page}){_about(page)}")
    return "\n".join(lines) + "\n"


def _nav(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield titles with their pages; a section's title has none."""
    for entry in entries:
        for title, page in entry.items():
            if isinstance(page, str):
                yield title, page
            else:
                yield title, ""
                yield from _nav(page)


def _about(page: str) -> str:
    """Return the first sentence of a page, as far as it is committed."""
    file = ROOT / "docs" / page
    if page.startswith("reference/"):
        return ""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.S)
    prose = [part for part in text.split("\n\n") if part.strip() and part.strip()[0] not in "#|-!"]
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(prose[0].split()))
    return ": " + re.split(r"(?<=[.?:])\s", words, maxsplit=1)[0].rstrip(":.") + "."


def _settings(settings: Sequence[Setting]) -> str:
    rows = [
        [f"`{setting.key}`", f"`{setting.type}`", f"`{setting.default}`", setting.about]
        for setting in settings
    ]
    return _table(["setting", "type", "default", "what it is"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return text that can stand in a cell: outside of code `|` would end it, `<name>` would be a
    tag.
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else p.replace("|", "\\|").replace("<", "&lt;") for p in parts
    )


def _sentence(docstring: str | None) -> str:
    return _cell(" ".join((docstring or "").split()))


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


INDEX = """\
# Reference

Made from the code; the same in a terminal is `steerlens --help TOPIC`.

- [Settings](settings.md): every key of the configuration.
- [Options](options.md): every file that a group can choose, experiments among them.
- [Parts](parts.md): operators, units, rules, metrics, methods, judges, studies.
- [Tables](tables.md): every column of every table that a run writes.
- [Verbs and lists](verbs.md): what the command does beside running.
"""

SETTINGS = """\
# Settings

`KEY=VALUE` on the command line; `???` has to be given, or is given by the option that is chosen.
What `steerlens` runs with is shown by `steerlens --cfg job`.
"""


PARTS = """\
What the settings choose from beside scores, and what another package can add to. The settings of a
method of Table 1 are `concepts.settings.NAME.KEY`.
"""


def main() -> None:
    """Write the pages below `--folder`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    folder = parser.parse_args().folder
    reference = make_folder(folder / "reference")
    for name, text in pages().items():
        write_text(reference / name, text)
    write_text(folder / "llms.txt", llms_text())


if __name__ == "__main__":
    main()
