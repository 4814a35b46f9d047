"""Every kind of corpus through `datasets`, offline, and the pieces it is cut into."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from steerlens import SteerlensError
from steerlens.config.compose import compose
from steerlens.config.schema import CorpusConfig
from steerlens.corpus import identity, texts
from steerlens.corpus.pieces import pieces
from tests.support.tiny import save_tokenizer

LINES = ["the first line", "the second", "w40 w41 w42 w43 w44 w45 w46", "the last"]


def corpus(source: str, path: Path, **settings: object) -> CorpusConfig:
    return CorpusConfig(name="x", source=source, path=str(path), **settings)  # type: ignore[arg-type]


def test_text_has_one_document_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n".join([LINES[0], "", *LINES[1:], "  ", ""]), encoding="utf-8")
    assert list(texts(corpus("text", file))) == LINES


@pytest.mark.parametrize("source", ["json", "parquet"])
def test_tables_are_read_by_their_column(tmp_path: Path, source: str) -> None:
    file = tmp_path / "a.data"
    if source == "json":
        file.write_text("".join(json.dumps({"id": 1, "body": line}) + "\n" for line in LINES))
    else:
        pd.DataFrame({"id": 1, "body": LINES}).to_parquet(file)
    assert list(texts(corpus(source, file, column="body"))) == LINES
    with pytest.raises(SteerlensError, match=r"unknown column .*'bdoy'.*'body'"):
        list(texts(corpus(source, file, column="bdoy")))


def test_a_data_set_is_streamed_with_its_split_and_column(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, lines in [("train", LINES), ("test", LINES[:1])]:
        pd.DataFrame({"body": lines}).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    assert list(texts(corpus("hub", folder, column="body"))) == LINES
    assert list(texts(corpus("hub", folder, column="body", split="test"))) == LINES[:1]
    with pytest.raises(SteerlensError, match=r"unknown column .*'txet'"):
        list(texts(corpus("hub", folder, column="txet")))
    with pytest.raises(SteerlensError, match=r"can't read the corpus .*nowhere"):
        list(texts(corpus("hub", tmp_path / "nowhere")))


def test_a_seed_shuffles_and_the_same_one_shuffles_alike(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    lines = [f"line {i}" for i in range(50)]
    file.write_text("\n".join(lines))
    first = list(texts(corpus("text", file, seed=1)))
    assert first != lines
    assert sorted(first) == sorted(lines)
    assert first == list(texts(corpus("text", file, seed=1)))
    assert first != list(texts(corpus("text", file, seed=2)))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n \n")
    with pytest.raises(SteerlensError, match="has no text in it"):
        texts(corpus("text", file))


def test_a_file_of_another_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_text("no table")
    with pytest.raises(SteerlensError, match="can't read the corpus"):
        list(texts(corpus("parquet", file)))


def test_the_identity_changes_with_the_file_and_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = identity(corpus("text", file), tmp_path)
    assert first == identity(corpus("text", file), tmp_path)
    assert first != identity(corpus("text", file, n_tokens=5), tmp_path)
    file.write_text("other")
    assert first != identity(corpus("text", file), tmp_path)


@pytest.mark.parametrize("name", ["embedded", "text", "jsonl", "parquet", "hub"])
def test_every_option_has_a_source_that_is_known(name: str) -> None:
    path = [] if name == "embedded" else ["corpus.path=x"]
    assert compose([f"corpus={name}", *path]).corpus.name == name


@pytest.fixture
def tokenizer(tmp_path: Path):
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def test_pieces_are_whole_documents_or_parts_of_one(tokenizer) -> None:
    found = [piece.tolist() for piece in pieces(LINES, tokenizer, 5, bos=0)]
    ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
    assert found == [[0, *ids[0]], [0, *ids[1]], [0, *ids[2][:4]], [0, *ids[2][4:]], [0, *ids[3]]]


def test_pieces_end_with_the_tokens_asked_for(tokenizer) -> None:
    found = [piece.tolist() for piece in pieces(LINES, tokenizer, 5, bos=None, n_tokens=6)]
    assert [len(piece) for piece in found] == [3, 2, 1]
    assert sum(map(len, pieces(LINES, tokenizer, 5, bos=None))) == 14


def test_positions_that_count_nowhere_are_not_counted(tokenizer) -> None:
    every = list(pieces(LINES, tokenizer, 5, bos=None))
    found = list(pieces(LINES, tokenizer, 5, bos=None, n_tokens=6, n_uncounted=1))
    assert sum(len(piece) - 1 for piece in found) == 6
    assert all(a.tolist() == b.tolist()[: len(a)] for a, b in zip(found, every, strict=False))
    with_bos = list(pieces(LINES, tokenizer, 5, bos=0, n_tokens=6, n_uncounted=2))
    assert sum(max(len(piece) - 2, 0) for piece in with_bos) == 6
