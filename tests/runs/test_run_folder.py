"""What a run writes: whole tables after every part, and facts that are noted once."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from steerlens.results import FEATURES
from steerlens.runs.run_folder import RunFolder
from steerlens.storage.provenance import PROVENANCE_FILE


def layer(number: int) -> pd.DataFrame:
    of_layer = {"model": "m", "sae": "s", "hook_name": "h", "layer": number, "feature": [3, 1]}
    return FEATURES.frame(of_layer)


def test_a_table_is_whole_on_disk_after_every_part(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, seed=0)
    assert len(folder.rows(FEATURES)) == 0
    for number in (1, 2):
        folder.add(FEATURES, layer(number))
        assert sorted(set(FEATURES.read(tmp_path)["layer"].tolist())) == [*range(1, number + 1)]
    assert folder.rows(FEATURES)["feature"].tolist() == [3, 1, 3, 1]


def test_facts_are_noted_once_and_the_first_corpus_stays(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, seed=7)
    for line in ("first", "second", "first"):
        folder.note_line(line)
    folder.note(chat_template=True)
    folder.note_corpus({"name": "read by a score"})
    folder.note_corpus({"name": "read for PMI"})
    assert not (tmp_path / PROVENANCE_FILE).exists()
    folder.write_provenance()
    record = json.loads((tmp_path / PROVENANCE_FILE).read_text())
    assert record["notes"] == ["first", "second"]
    assert record["chat_template"] is True
    assert record["corpus"] == {"name": "read by a score"}
    assert record["seeds"] == 7
