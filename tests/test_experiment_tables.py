"""Tables of experiments in the repository: all that figures need, no text, no path of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tables import store
from steerlens.config.compose import compose
from steerlens.report import report
from steerlens.results import FEATURES, GENERATIONS
from steerlens.runs.run import run
from tests.support.trained import FOLDER, LAYER


@pytest.mark.slow
def test_a_stored_run_draws_the_same_figures_without_its_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = [
        "model=local", f"model.path={FOLDER / 'model'}", "sae=local", f"layer={LAYER}",
        f"sae.path={FOLDER / 'sae-batchtopk'}", "features.ids=[1,2,3]",
        "score=output", "steer=grid", "steer.factors=[2,5]",
        "generation.n_prompts=2", "generation.max_new_tokens=4", "tracking.mode=disabled",
        f"paths.output_dir={folder}", f"paths.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    run(compose(words))
    stored = tmp_path / "stored"
    store(folder, stored)
    texts = GENERATIONS.read(stored)
    assert set(texts["text"]) == {""}
    assert len(texts) == len(GENERATIONS.read(folder))
    scores = [FEATURES.read(one)["output_score"].tolist() for one in (stored, folder)]
    assert scores[0] == scores[1]
    for file in stored.glob("*.[jy]*"):
        assert str(tmp_path) not in file.read_text(), file.name
    report(stored)
    capsys.readouterr()
    drawn = {file.name for file in (folder / "figures").iterdir()}
    assert drawn == {file.name for file in (stored / "figures").iterdir()}
