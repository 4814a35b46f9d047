"""The notebooks of the documentation, executed: what they show is what they gave.

    python -m experiments.notebooks            # writes docs/notebooks/*.ipynb with their outputs

The slow tests execute them, too, and keep nothing.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from steerlens.storage.files import write_text

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 1200
"""For the kernel to start, and for one cell."""


def execute(file: Path, folder: Path, chosen: str | None = None) -> Any:
    """Execute a notebook in `folder` and return it with its outputs.

    Args:
        file: the notebook.
        folder: where its files go.
        chosen: the right side of its line `MODEL, SAE, ... = ...`; None = as it is.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and chosen is not None:
            cell.source = re.sub(
                r"^(MODEL, SAE, .*) = .*$",
                lambda match: f"{match[1]} = {chosen}",
                cell.source,
                flags=re.M,
            )
    NotebookClient(
        notebook,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Execute the notebooks that are named, by default all."""
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=[file.stem for file in sorted(FOLDER.glob("*.ipynb"))]
    )
    for name in parser.parse_args().names:
        file = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(file, Path(folder))
        write_text(file, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main()
