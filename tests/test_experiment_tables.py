"""Tables of experiments in the repository: all that figures need, no text, no path of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments.add_scores import add_scores
from experiments.tables import store
from steerlens.config.compose import compose
from steerlens.report import report
from steerlens.results import FEATURES, GENERATIONS, STEERING
from steerlens.runs.run import run
from steerlens.storage.provenance import PROVENANCE_FILE
from tests.support.trained import FOLDER, LAYER

SUBJECT = [
    "model=local", f"model.path={FOLDER / 'model'}", "sae=local", f"layer={LAYER}",
    f"sae.path={FOLDER / 'sae-batchtopk'}", "features.ids=[1,2,3]", "tracking.mode=disabled",
]  # fmt: skip
STEERS = [
    "score=output", "steer=grid", "steer.factors=[2,5]", "generation.n_prompts=2",
    "generation.max_new_tokens=4",
]  # fmt: skip


def folders(folder: Path) -> list[str]:
    return [f"paths.output_dir={folder}", f"paths.cache_dir={folder.parent / 'cache'}"]


@pytest.mark.slow
def test_a_stored_run_draws_the_same_figures_without_its_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(compose([*SUBJECT, *STEERS, *folders(folder)]))
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


@pytest.mark.slow
def test_scores_of_a_second_run_are_as_if_computed_in_the_first(tmp_path: Path) -> None:
    at_once, steered, scored = (tmp_path / name for name in ("at_once", "steered", "scored"))
    run(compose([*SUBJECT, *STEERS, "score=[output,mean_logit]", *folders(at_once)]))
    run(compose([*SUBJECT, *STEERS, *folders(steered)]))
    run(compose([*SUBJECT, "score=[mean_logit]", "steer=none", *folders(scored)]))
    add_scores(scored, steered, ["mean_logit"])
    for table in (FEATURES, STEERING):
        rows, expected = (table.read(folder) for folder in (steered, at_once))
        assert all(rows["mean_logit"].notna().tolist())
        pd.testing.assert_frame_equal(rows, expected)
    add_scores(scored, steered, ["mean_logit"], "_again")
    again = STEERING.read(steered)
    assert again["mean_logit_again"].tolist() == again["mean_logit"].tolist()
    notes = json.loads((steered / PROVENANCE_FILE).read_text())["notes"]
    assert "mean_logit_again: of a second run over the same features, at commit" in notes[-1]
    run(compose([*SUBJECT, "features.ids=[1,2]", "score=mean_logit", *folders(scored)]))
    with pytest.raises(ValueError, match="hasn't all features of"):
        add_scores(scored, steered, ["mean_logit"])
