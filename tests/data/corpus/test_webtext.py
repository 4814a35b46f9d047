from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nltk")

READ = """
from pathlib import Path
from steerlens.config.schema import CorpusConfig
from steerlens.data.corpus import identity, texts
from steerlens.data.corpus.webtext import webtext
from steerlens.errors import SteerlensError
try:
    print(list(webtext()))
    for seed in (None, 1, 1):
        config = CorpusConfig(name="webtext", source="webtext", seed=seed)
        print(list(texts(config)), identity(config, Path())["sha256"])
except SteerlensError as error:
    print(error)
"""


def read(data: Path) -> str:
    """What webtext gives where NLTK's data is in `data`: NLTK loads a corpus once a process."""
    environment = {**os.environ, "NLTK_DATA": str(data), "HOME": str(data)}
    return subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_missing_webtext_is_told_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    said = read(tmp_path)
    assert said.count("\n") == 1
    assert "python -m nltk.downloader webtext" in said


def test_lines_with_text_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "webtext"
    folder.mkdir(parents=True)
    (folder / "README").write_text("no corpus")
    (folder / "a.txt").write_text("One line.\n\n  \nAnother one.\n")
    (folder / "b.txt").write_text("A third.")
    said = read(tmp_path).splitlines()
    assert said[0] == "['One line.', 'Another one.', 'A third.']"
    assert said[1].startswith(said[0])
    assert said[2] == said[3] != said[1]
    (folder / "b.txt").write_text("Another third.")
    assert read(tmp_path).splitlines()[1].split("]")[1] != said[1].split("]")[1]
