"""Every kind of corpus through `datasets`, offline, and the pieces it is cut into."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from steerlens import SteerlensError
from steerlens.config.compose import compose
from steerlens.config.schema import CorpusConfig
from steerlens.data.corpus import identity, texts
from steerlens.data.corpus.local import LONGEST_LINE, lines
from steerlens.data.corpus.sequences import CHARACTERS_AT_ONCE, cut, pieces
from steerlens.data.corpus.values import contents
from tests.support.tiny import save_tokenizer

CHAT = [{"role": "user", "content": "the first"}]
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
    for split, body in [("train", LINES), ("test", LINES[:1])]:
        pd.DataFrame({"body": body}).to_parquet(folder / f"{split}-00000-of-00001.parquet")
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("source", ["text", "json"])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, encoding: str, source: str, seed: int | None
) -> None:
    file = tmp_path / "a.data"
    rows = LINES if source == "text" else [json.dumps({"text": line}) for line in LINES]
    file.write_bytes("\r\n".join(rows).encode(encoding))
    assert sorted(texts(corpus(source, file, seed=seed))) == sorted(LINES)


def test_a_byte_order_mark_in_a_table_is_no_text(tmp_path: Path) -> None:
    pd.DataFrame({"text": [f"\ufeff{LINES[0]}", *LINES[1:]]}).to_parquet(tmp_path / "a.parquet")
    assert list(texts(corpus("parquet", tmp_path / "a.parquet"))) == LINES


def test_only_ends_of_lines_end_a_document(tmp_path: Path) -> None:
    odd = "one\u2028document\u2029with\x85all\x0cof\x1cthem"
    (tmp_path / "a.txt").write_text(f"{odd}\n{LINES[0]}\r{LINES[1]}", encoding="utf-8", newline="")
    assert list(texts(corpus("text", tmp_path / "a.txt"))) == [odd, *LINES[:2]]
    row = json.dumps({"text": odd}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{row}\n", encoding="utf-8")
    assert list(texts(corpus("json", tmp_path / "a.jsonl"))) == [odd]


@pytest.mark.parametrize("form", ["lines", "array", "indented"])
def test_json_may_be_lines_or_an_array_and_null_is_no_text(tmp_path: Path, form: str) -> None:
    rows = [{"text": None}, {"id": 1}, *({"text": line, "id": None} for line in LINES)]
    file = tmp_path / "a.json"
    text = json.dumps(rows, indent=1 if form == "indented" else None)
    file.write_text("\n".join(map(json.dumps, rows)) if form == "lines" else text)
    assert list(texts(corpus("json", file))) == LINES
    with pytest.raises(SteerlensError, match=r"unknown column .*'txet'.* did you mean 'text'"):
        list(texts(corpus("json", file, column="txet")))


def test_a_corpus_of_nulls_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n' * 3)
    with pytest.raises(SteerlensError, match="has no text in it"):
        texts(corpus("json", tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["a", "b"], "holds lists, no texts"),
        ([], "holds empty lists"),
        ([{"from": "human", "value": "x"}], "holds lists"),
        ({"de": "x"}, "holds objects"),
        (7, "holds values like 7"),
        (CHAT, "holds chats, no texts"),
    ],
)
@pytest.mark.parametrize("source", ["json", "parquet"])
def test_what_is_no_text_is_never_read_as_its_repr(
    tmp_path: Path, value: object, told: str, source: str
) -> None:
    file = tmp_path / "a.data"
    if source == "json":
        file.write_text(json.dumps({"x": value}))
    else:
        pd.DataFrame({"x": [value]}).to_parquet(file)
    with pytest.raises(SteerlensError, match=told):
        texts(corpus(source, file, column="x"))


@pytest.mark.parametrize("source", ["json", "parquet"])
def test_chats_are_rendered(tmp_path: Path, source: str) -> None:
    chats = [CHAT, [*CHAT, {"role": "assistant", "content": "the second"}]]
    file = tmp_path / "a.data"
    if source == "json":
        file.write_text(json.dumps([{"messages": chat} for chat in chats]))
    else:
        pd.DataFrame({"messages": chats}).to_parquet(file)
    settings = corpus(source, file, column="messages")
    assert list(texts(settings, contents)) == ["the first", "the first\nthe second"]


@pytest.mark.parametrize("source", ["json", "parquet"])
def test_contents_of_chats_may_be_null_or_parts_of_text(tmp_path: Path, source: str) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    calls = [*CHAT, {"role": "assistant", "content": None}, {"role": "tool", "content": "4"}]
    file = tmp_path / "a.data"
    rows = {"calls": calls, "parts": [{"role": "user", "content": parts}]}
    if source == "json":
        file.write_text(json.dumps(rows))
    else:
        pd.DataFrame({name: [chat] for name, chat in rows.items()}).to_parquet(file)
    for column, text in (("calls", "the first\n\n4"), ("parts", "one two")):
        assert list(texts(corpus(source, file, column=column), contents)) == [text]
    images = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    file.write_text(json.dumps({"x": images}))
    with pytest.raises(SteerlensError, match="holds lists"):
        texts(corpus("json", file, column="x"), contents)


def test_broken_json_is_told_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for text, told in [
        ('{"text": "x"}\n{', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"x"', "no JSON object with a column"),
        ("null", "no JSON object with a column"),
    ]:
        file.write_text(text)
        with pytest.raises(SteerlensError, match=told):
            list(texts(corpus("json", file)))


def test_a_huge_line_is_read_in_parts(tmp_path: Path) -> None:
    words = "".join(f"w{k % 50} " for k in range(3 * LONGEST_LINE // 4))
    (tmp_path / "a.txt").write_text(f"{words}\nthe last")
    *parts, last = lines(tmp_path / "a.txt")
    assert max(map(len, parts)) <= LONGEST_LINE
    assert "".join(parts) == words
    assert last == "the last"


def test_the_first_tokens_of_a_huge_document_need_only_its_beginning(tokenizer) -> None:
    given: list[str] = []

    def counting(documents: list[str], **settings: object) -> object:
        given.extend(documents)
        return tokenizer(documents, **settings)

    huge = " ".join(f"w{k % 50 + 20}" for k in range(2 * CHARACTERS_AT_ONCE))
    found = list(pieces(iter([huge] * 3), counting, 128, 0, n_tokens=2000))  # type: ignore[arg-type]
    assert sum(len(piece) - 1 for piece in found) == 2000
    assert sum(map(len, given)) <= 2 * CHARACTERS_AT_ONCE


def test_a_document_in_parts_gives_the_pieces_of_the_whole(
    tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [" ".join(f"w{k % 150 + 20}" for k in range(n)) for n in (1, 40, 3, 64, 0, 33)]
    whole = [piece.tolist() for piece in pieces(documents, tokenizer, 9, bos=0)]
    monkeypatch.setattr("steerlens.data.corpus.sequences.CHARACTERS_AT_ONCE", 30)
    assert [piece.tolist() for piece in pieces(documents, tokenizer, 9, bos=0)] == whole
    for n_tokens in (1, 9, 60):
        some = [p.tolist() for p in pieces(documents, tokenizer, 9, bos=0, n_tokens=n_tokens)]
        assert sum(len(piece) - 1 for piece in some) == n_tokens


def test_a_text_without_spaces_is_cut_too() -> None:
    assert [*cut("abcdefg", 3)] == ["abc", "def", "g"]
    assert [*cut("ab cdx ef", 5)] == ["ab", " cdx", " ef"]
    assert [*cut("", 3)] == [""]
