"""Input scores and labels from Neuronpedia's files, made here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens import SteerlensError, score_features
from steerlens.data.neuronpedia import (
    UNNAMED,
    OwnSource,
    TokenActivations,
    label_columns,
    labels_of_layer,
    peak,
    read_activations,
    read_labels,
    source_of_sae,
)
from steerlens.engine.subject import Subject
from steerlens.scores.input import token_texts
from tests.support.naive import naive_logit_lens

MakeSubject = Callable[..., Subject]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def activation(token: str, other: str = "zz") -> dict[str, Any]:
    return {"tokens": ["<bos>", other, token], "values": [99.0, 0.5, 2.0]}


@pytest.fixture
def subject(tiny_subject: MakeSubject) -> Subject:
    return tiny_subject()


def own_token(subject: Subject, feature: int) -> str:
    token = int(naive_logit_lens(subject, feature, 20)[3])
    return str(subject.lm.tokenizer.decode([token]))


def score(subject: Subject, path: Path, features: list[int], **settings: Any) -> pd.DataFrame:
    settings = {"min_examples": 4, **settings}
    return score_features(
        subject, "input", features, source="neuronpedia", path=str(path), **settings
    )


@pytest.mark.parametrize("layout", ["one file each", "export", "export per source"])
def test_scores_count_sentences_and_distinct_tokens(
    subject: Subject, tmp_path: Path, layout: str
) -> None:
    own = own_token(subject, 5)
    found = [activation(own)] * 3 + [activation("other"), {"tokens": ["a"], "values": [0.0]}]
    if layout == "one file each":
        (tmp_path / "2_5.json").write_text(json.dumps({"activations": found}))
    else:
        folder = tmp_path / "2-res" if layout == "export per source" else tmp_path
        rows = [{**row, "index": "5", "layer": "2-res", "modelId": "local"} for row in found]
        write_jsonl(folder / "activations/batch-0.jsonl.gz", rows[:2])
        write_jsonl(folder / "activations/batch-1.jsonl.gz", rows[2:])
    frame = score(subject, tmp_path, [5, 6])
    row = frame.iloc[0]
    assert (row["input_examples"], row["input_score"], row["input_score_unique"]) == (4, 0.75, 0.5)
    assert next(iter(row["input_top_examples"])) == f"<bos>zz«{own}»"
    assert frame.iloc[1]["input_examples"] == 0
    assert pd.isna(frame.iloc[1]["input_score"])


def test_fewer_than_the_minimum_give_no_score(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "2_5.json").write_text(json.dumps({"activations": [activation("a")] * 3}))
    row = score(subject, tmp_path, [5]).iloc[0]
    assert row["input_examples"] == 3
    assert pd.isna(row["input_score"])


def test_marks_of_tokenizers_are_spaces_and_underscores_where_asked() -> None:
    examples = [
        TokenActivations(["\u2581a", "b"], np.array([2.0, 1.0])),
        TokenActivations(["_c"], np.array([1.0])),
    ]
    assert [peak(one) for one in examples] == [" a", "_c"]
    assert [peak(one, underscore_is_space=True) for one in examples] == [" a", " c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "values": [1.0]}, "2 tokens and 1 values"),
        ({"tokens": ["a"], "values": [float("nan")]}, "not all numbers"),
        ({"tokens": ["a"], "values": ["x"]}, "not all numbers"),
        ({"values": [1.0]}, "without tokens"),
        ({"tokens": ["a"], "values": [1.0], "modelId": "gpt2-small"}, "of the model gpt2-small"),
        ({"tokens": ["a"], "values": [1.0], "layer": "7-res"}, "of 7-res, not of layer 2"),
        ({"tokens": ["a"], "values": [1.0], "index": "x"}, "index is 'x'"),
    ],
)
def test_rows_that_can_not_be_right_are_refused(
    subject: Subject, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    write_jsonl(tmp_path / "activations/batch-0.jsonl.gz", [{"index": "5", **row}])
    with pytest.raises(SteerlensError, match=message):
        score(subject, tmp_path, [5])


def test_a_folder_without_files_of_the_layer_is_refused(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "3_5.json").write_text("{}")
    with pytest.raises(SteerlensError, match=r"has neither 2_FEATURE.json nor"):
        score(subject, tmp_path, [5])
    (tmp_path / "2_5.json").write_text("{")
    with pytest.raises(SteerlensError, match="not valid JSON"):
        score(subject, tmp_path, [5])


def test_a_truncated_export_is_refused(subject: Subject, tmp_path: Path) -> None:
    file = tmp_path / "activations/batch-0.jsonl.gz"
    write_jsonl(file, [{"index": "5", **activation("a")}] * 50)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SteerlensError, match="truncated"):
        score(subject, tmp_path, [5])


def test_labels_are_nullable_and_of_this_model(tmp_path: Path) -> None:
    rows = [
        {"modelId": "m", "layer": "2-res", "index": "5", "description": " planets "},
        {"modelId": "m", "layer": "2-res", "index": "5", "description": "second"},
        {"modelId": "m", "layer": "3-res", "index": "6", "description": None},
    ]
    write_jsonl(tmp_path / "2-res/explanations/batch-0.jsonl.gz", rows)
    labels = read_labels(tmp_path, ["m"])
    columns = label_columns(labels_of_layer(labels, 2, UNNAMED, "labels=x"), [5, 6])
    assert columns["label"] == ["planets", None]
    assert columns["neuronpedia_url"] == ["https://www.neuronpedia.org/m/2-res/5", None]
    with pytest.raises(SteerlensError, match="of the model m, not of other"):
        read_labels(tmp_path, ["other"])


def test_a_token_goes_by_its_text_and_its_piece_but_not_by_another_tokens_text() -> None:
    class SentencePiece:
        pieces = ("\u2581the", "the", "\u0120caf\u00c3\u00a9")
        texts = ("the", "the", " caf\u00e9")

        def decode(self, ids: list[int]) -> str:
            return self.texts[ids[0]]

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
            return [self.pieces[one] if one < len(self.pieces) else None for one in ids]

    assert token_texts(SentencePiece(), [0]) == {"\u2581the"}
    assert token_texts(SentencePiece(), [1]) == {"the"}
    assert token_texts(SentencePiece(), [2]) == {"\u0120caf\u00c3\u00a9", " caf\u00e9"}
    assert token_texts(SentencePiece(), [1, 9]) == {"the"}  # 9 is the padded part


def explanation(source: str, text: str) -> dict[str, Any]:
    return {"modelId": "m", "layer": source, "index": "1", "description": text}


def activations_in(path: Path, own: OwnSource = UNNAMED) -> list[str]:
    found = read_activations(path, 2, [1], ["m"], "<bos>", own)
    return [peak(one) for one in found.get(1, [])]


def write_source(folder: Path, source: str, token: str, n: int = 2) -> None:
    rows = [{"layer": source, "index": "1", **activation(token, f"t{k}")} for k in range(n)]
    write_jsonl(folder / source / "activations/batch-0.jsonl.gz", rows)
    about = [explanation(source, f"of {source}")]
    write_jsonl(folder / source / "explanations/batch-0.jsonl.gz", about)


@pytest.mark.parametrize(
    ("own", "token"),
    [
        (source_of_sae("m/2-res", 2, "x"), "r"),
        (source_of_sae(None, 2, "att"), "a"),
        (source_of_sae("m/2-hub-name", 2, "att"), "a"),
    ],
)
def test_of_several_sources_only_the_saes_own_counts(
    tmp_path: Path, own: OwnSource, token: str
) -> None:
    for source, peaks in (("2-att", "a"), ("2-res", "r"), ("3-res", "x")):
        write_source(tmp_path, source, peaks)
    assert activations_in(tmp_path, own) == [token] * 2
    named = labels_of_layer(read_labels(tmp_path, ["m"]), 2, own, "labels=x")
    assert named[1][0] == {"r": "of 2-res", "a": "of 2-att"}[token]


@pytest.mark.parametrize("own", [UNNAMED, source_of_sae("m/2-mlp", 2, "x")])
def test_which_of_several_sources_is_asked_where_nothing_tells(
    tmp_path: Path, own: OwnSource
) -> None:
    for source in ("2-att", "2-res"):
        write_source(tmp_path, source, "a")
    message = "holds several sources, 2-att and 2-res"
    with pytest.raises(SteerlensError, match=message):
        activations_in(tmp_path, own)
    labels = read_labels(tmp_path, ["m"])
    with pytest.raises(SteerlensError, match=message):
        labels_of_layer(labels, 2, own, "labels=x")
    assert labels_of_layer(labels, 3, own, "labels=x") == {}
    assert activations_in(tmp_path / "2-res") == ["a", "a"]


def test_sources_are_told_by_their_rows_too(tmp_path: Path) -> None:
    rows = [
        {"layer": source, "index": "1", **activation(source[2])} for source in ("2-att", "2-res")
    ]
    write_jsonl(tmp_path / "activations/batch-0.jsonl.gz", rows)
    assert activations_in(tmp_path, source_of_sae("m/2-res", 2, "x")) == ["r"]
    with pytest.raises(SteerlensError, match="several sources"):
        activations_in(tmp_path)


def test_another_saes_export_is_refused_where_its_own_name_is_known(tmp_path: Path) -> None:
    write_source(tmp_path, "2-res-65k", "a")
    with pytest.raises(SteerlensError, match="is of 2-res-65k, but the SAE is 2-res-16k"):
        activations_in(tmp_path, source_of_sae("m/2-res-16k", 2, "x"))
    assert activations_in(tmp_path, source_of_sae(None, 2, "x")) == ["a", "a"]


def test_a_file_and_its_unpacked_twin_and_a_row_of_the_same_id_count_once(tmp_path: Path) -> None:
    rows = [{"index": "1", "id": f"r{k}", **activation(f"a{k}")} for k in (0, 1, 1)]
    file = tmp_path / "activations/batch-0.jsonl.gz"
    write_jsonl(file, rows)
    assert activations_in(tmp_path) == ["a0", "a1"]
    write_jsonl(file, [{"index": "1", **activation(f"a{k}")} for k in range(2)])
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    assert activations_in(tmp_path) == ["a0", "a1"]
    file.with_suffix("").write_bytes(file.read_bytes())  # packed, but not by its name
    assert activations_in(tmp_path) == ["a0", "a1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["lines", "array", "indented array", "answer", "answers"])
def test_exports_are_read_in_every_form_and_with_a_bom(
    tmp_path: Path, encoding: str, form: str
) -> None:
    explanations = [explanation("2-res", "first \u2028 é"), explanation("2-res", "second")]
    found = [{"index": "1", **activation("é")}, {"index": "1", **activation("b")}]
    answer = {
        "modelId": "m",
        "layer": "2-res",
        "index": "1",
        "activations": [activation("é"), activation("b")],
        "explanations": [{"description": "first \u2028 é"}],
    }
    texts: dict[str, Any] = {"answer": (answer, answer), "answers": ([answer], [answer])}
    for file, rows, one in zip(
        ("activations/batch-0.jsonl", "labels"),
        (found, explanations),
        texts.get(form, (found, explanations)),
        strict=True,
    ):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        indent = 1 if "indented" in form else None
        text = json.dumps(one, ensure_ascii=False, indent=indent)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        written = "\r\n".join(lines) if form == "lines" else text
        (tmp_path / file).write_bytes(written.encode(encoding))
    assert activations_in(tmp_path) == ["é", "b"]
    assert read_labels(tmp_path / "labels", ["m"])["2-res"][1][0] == "first \u2028 é"
