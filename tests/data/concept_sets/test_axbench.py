"""AxBench's files: a made-up folder of the same layout, and its own samples where they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.data.concept_sets import FeatureRef
from steerlens.data.concept_sets.axbench import axbench_folder, axbench_hub, feature_ref
from steerlens.data.concept_sets.instructions import ALPACA_EVAL, OF_GENRE, with_instructions
from steerlens.errors import SteerlensError

SHARED = Path(__file__).parents[4] / "shared" / "paper"
AXBENCH = SHARED / "axbench"
RELEASED = SHARED / "authors/axbench_instructions/gemma2_9b_it_131_instructions_cache.json"
needs_samples = pytest.mark.skipif(not AXBENCH.is_dir(), reason="AxBench's samples are not here")

REF = "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/"
COLUMNS = ["input", "output", "output_concept", "concept_genre", "category", "concept_id"]


def table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS))


def train_rows() -> list[tuple[Any, ...]]:
    shared = [
        (f"q{k}", f"none {genre} {k}", "EEEEE", genre, "negative", -1)
        for genre in ("text", "code")
        for k in range(3)
    ]
    return [
        *shared,
        *((f"q{k}", f"boat {k}", "boats", "text", "positive", 0) for k in range(3)),
        *((f"q{k}", f"loop {k}", "loops", "code", "positive", 1) for k in range(2)),
    ]


def testing_rows() -> list[tuple[Any, ...]]:
    return [
        ("q", "boat", "boats", "text", "positive", 0),
        ("q", "tree", "boats", "math", "negative", 0),
        ("q", "ship", "ships//vessels", "text", "hard negative", 0),
        ("q", None, "loops", "code", "positive", 1),
    ]


def metadata(concepts: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "concept_id": key,
            "concept": name,
            "ref": f"{REF}{key + 5}",
            "concept_genres_map": {name: [genre]},
        }
        for key, (name, genre) in enumerate(concepts.items())
    ]


def write(folder: Path, lines: list[Any] | None = None, **tables: Any) -> Path:
    (folder / "generate").mkdir(parents=True)
    (folder / "inference").mkdir()
    lines = metadata({"boats": "text", "loops": "code"}) if lines is None else lines
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    (folder / "generate/metadata.jsonl").write_text(text)
    if (train := tables.get("train")) is not None:
        train.to_parquet(folder / "generate/train_data.parquet")
    if (test := tables.get("test")) is not None:
        test.to_parquet(folder / "inference/latent_eval_data.parquet")
    return folder


def both() -> dict[str, Any]:
    return {"train": table(train_rows()), "test": table(testing_rows())}


def test_a_folder_of_axbenchs_layout(tmp_path: Path) -> None:
    found = axbench_folder(write(tmp_path / "mine", **both()))
    boats, loops = found.concepts
    assert found.are_instructions
    assert (boats.id, boats.name, boats.genre) == (0, "boats", "text")
    assert boats.feature == FeatureRef(20, 5, "gemma-2-2b/20-gemmascope-res-16k")
    assert [one.text for one in boats.positives] == ["boat 0", "boat 1", "boat 2"]
    assert [one.text for one in boats.negatives] == [f"none text {k}" for k in range(3)]
    assert [one.text for one in loops.negatives] == [f"none code {k}" for k in range(3)]
    assert [one.text for one in boats.test_positives] == ["boat"]
    assert [one.text for one in boats.test_negatives] == ["tree"]  # no hard ones
    assert loops.test_positives[0].text == ""
    found.check_texts()
    found.check_features(20, 7, "an SAE")


def test_files_may_lie_in_the_folder_itself(tmp_path: Path) -> None:
    nested = write(tmp_path / "nested", **both())
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in [*nested.glob("*/*")]:
        file.rename(flat / file.name)
    assert [len(one.positives) for one in axbench_folder(flat).concepts] == [3, 2]


def test_metadata_alone_gives_concepts_without_texts_and_says_so(tmp_path: Path) -> None:
    found = axbench_folder(write(tmp_path / "bare"))
    assert [one.name for one in found.concepts] == ["boats", "loops"]
    assert len(found.notes) == 2
    with pytest.raises(SteerlensError, match=r"concept 0 \('boats'\) .* has no positives"):
        found.check_texts()


def test_a_concept_without_positives_is_named(tmp_path: Path) -> None:
    tables = both()
    train = tables["train"]
    tables["train"] = train[train["concept_id"] != 1]
    found = axbench_folder(write(tmp_path / "some", **tables))
    with pytest.raises(SteerlensError, match=r"concept 1 \('loops'\) of some has no positives"):
        found.check_texts()


def test_a_feature_that_the_sae_lacks_is_named(tmp_path: Path) -> None:
    found = axbench_folder(write(tmp_path / "mine", **both()))
    with pytest.raises(SteerlensError, match=r"'loops'.* feature 6 of layer 20 .* 0 to 5;"):
        found.check_features(20, 6, "an SAE")
    with pytest.raises(SteerlensError, match="feature 5 of layer 20"):
        found.check_features(3, 100, "an SAE")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, part: str, column: str) -> None:
    tables = both()
    tables[part] = tables[part].drop(columns=column)
    with pytest.raises(SteerlensError, match=rf"parquet has no column '{column}'"):
        axbench_folder(write(tmp_path / "mine", **tables))


def test_the_nearest_column_is_suggested(tmp_path: Path) -> None:
    tables = both()
    tables["train"] = tables["train"].rename(columns={"category": "categories"})
    with pytest.raises(SteerlensError, match="the nearest is 'categories'"):
        axbench_folder(write(tmp_path / "mine", **tables))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: no concept"),
        ({"concept": "boats", "ref": f"{REF}5"}, "line 1: no concept with concept_id"),
        ({"concept_id": 0, "concept": "boats", "ref": "neuronpedia"}, "no address of a feature"),
        ({"concept_id": "x", "concept": "boats", "ref": f"{REF}5"}, "line 1: no concept with"),
        ("[" * 100_000, "line 1: no concept"),
        ([1], "line 1: no concept"),
    ],
)
def test_broken_metadata_is_refused(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(SteerlensError, match=message):
        axbench_folder(write(tmp_path / "mine", [line], **both()))


@pytest.mark.parametrize("name", ["concept", "concept_id"])
def test_lines_of_metadata_with_nulls_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    lines = metadata({"boats": "text", "loops": "code"})
    nan = json.dumps({**lines[1], name: float("nan")})
    with_nulls = [lines[0], {**lines[1], name: None}, nan]
    found = axbench_folder(write(tmp_path / "mine", with_nulls, **both()))
    assert [concept.name for concept in found.concepts] == ["boats"]
    assert found.notes[0] == (
        "2 lines of metadata.jsonl of mine have null for the concept or its id: left out."
    )
    assert found.notes[1].startswith("2 rows of mine are of 1 concepts that the metadata doesn't")


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    lines = metadata({"boats": "text"})
    with pytest.raises(SteerlensError, match="line 2: concept_id 0 is there twice"):
        axbench_folder(write(tmp_path / "mine", lines * 2, **both()))


def test_rows_of_unlisted_concepts_are_counted(tmp_path: Path) -> None:
    found = axbench_folder(write(tmp_path / "mine", metadata({"boats": "text"}), **both()))
    assert len(found) == 1
    assert found.notes[0].startswith("2 rows of mine are of 1 concepts")


@pytest.mark.parametrize("column", ["input", "category", "concept_genre", "concept_id"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_rows_with_nulls_are_left_out_and_counted(tmp_path: Path, part: str, column: str) -> None:
    tables = both()
    first = int((tables[part]["concept_id"] == 0).to_numpy().argmax())
    expected = axbench_folder(
        write(tmp_path / "a" / "mine", **{**tables, part: tables[part].drop(index=first)})
    )
    tables[part] = tables[part].astype({column: object})
    tables[part].loc[first, column] = None
    found = axbench_folder(write(tmp_path / "b" / "mine", **tables))
    assert found.concepts == expected.concepts
    assert [note for note in found.notes if "left out" in note] == [
        f"1 rows to {part} on of mine lack an input, a category, a genre or a concept's id: left "
        "out."
    ]


@pytest.mark.parametrize("ref", [None, "missing"])
def test_a_concept_may_have_no_feature_where_none_is_asked_for(
    tmp_path: Path, ref: str | None
) -> None:
    lines = metadata({"boats": "text", "loops": "code"})
    lines[0]["ref"] = None
    lines[0]["concept_genres_map"] = None
    if ref == "missing":
        del lines[0]["ref"]
    found = axbench_folder(write(tmp_path / "mine", lines, **both()))
    assert [one.feature is None for one in found.concepts] == [True, False]
    found.check_texts()
    with pytest.raises(SteerlensError, match=r"concept 0 \('boats'\) names no feature"):
        found.check_features(20, 100, "an SAE")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_metadata_may_have_a_byte_order_mark_and_odd_separators(
    tmp_path: Path, encoding: str
) -> None:
    lines = metadata({"boats\u2028ships": "text", "loops": "code"})
    folder = write(tmp_path / "mine", **both())
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "generate/metadata.jsonl").write_bytes(text.encode(encoding))
    assert [one.name for one in axbench_folder(folder).concepts] == ["boats\u2028ships", "loops"]


def test_what_is_no_folder_or_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match="there is no folder"):
        axbench_folder(tmp_path / "nowhere")
    with pytest.raises(SteerlensError, match=r"has no metadata\.jsonl"):
        axbench_folder(tmp_path)
    folder = write(tmp_path / "mine", **both())
    (folder / "generate/train_data.parquet").write_text("no")
    with pytest.raises(SteerlensError, match="no Parquet file"):
        axbench_folder(folder)


def test_the_hubs_layout_has_its_metadata_in_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config

    tables = both()
    tables["test"]["sae_link"] = [f"{REF}{key + 5}" for key in tables["test"]["concept_id"]]
    for split, rows in tables.items():
        (tmp_path / f"9b/l20/{split}").mkdir(parents=True)
        rows.to_parquet(tmp_path / f"9b/l20/{split}/data.parquet")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = axbench_hub(str(tmp_path), "9b/l20")
    folder = axbench_folder(write(tmp_path / "mine", **both()))
    assert found.concepts == folder.concepts
    with pytest.raises(SteerlensError, match="can't read 2b/l20/train/data"):
        axbench_hub(str(tmp_path), "2b/l20")


@pytest.mark.parametrize("address", ["", "16038", f"{REF}", "https://x/y/res/3", f"{REF}-1"])
def test_only_addresses_of_features_are_references(address: str) -> None:
    with pytest.raises(SteerlensError, match="no address of a feature"):
        feature_ref(address)


def questions(tmp_path: Path, ending: str, n: int = 40) -> Path:
    data = pd.DataFrame({"instruction": [f"instruction {k}" for k in range(n)], "id": range(n)})
    file = tmp_path / f"questions{ending}"
    if ending == ".parquet":
        data.to_parquet(file)
    else:
        data.to_json(file, orient="records", lines=ending == ".jsonl")
    return file


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_instructions_are_drawn_by_the_concepts_id(tmp_path: Path, ending: str) -> None:
    concepts = axbench_folder(write(tmp_path / "mine", **both()))
    file = questions(tmp_path, ending)
    found = with_instructions(concepts, "alpaca_eval", file)
    data = pd.DataFrame({"instruction": [f"instruction {k}" for k in range(40)]})
    for concept in found.concepts:
        expected = data.sample(10, random_state=concept.id)["instruction"].tolist()
        assert [*concept.choosing, *concept.evaluating] == expected
        assert len(concept.choosing) == 5
    assert found.concepts[0].choosing != found.concepts[1].choosing
    one = with_instructions(concepts.only(["loops"]), "alpaca_eval", file)
    assert one.concepts[0] == found.concepts[1]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_null_instructions_are_none_and_a_byte_order_mark_is_no_text(
    tmp_path: Path, ending: str
) -> None:
    concepts = axbench_folder(write(tmp_path / "mine", **both()))
    rows = [{"instruction": None if k in (0, 7) else f"do {k}"} for k in range(12)]
    text = "\n".join(map(json.dumps, rows)) if ending == ".jsonl" else json.dumps(rows)
    (tmp_path / f"x{ending}").write_bytes(text.encode("utf-8-sig"))
    found = with_instructions(concepts, "alpaca_eval", tmp_path / f"x{ending}", n=10)
    for concept in found.concepts:
        assert sorted(concept.choosing + concept.evaluating) == sorted(
            row["instruction"] for row in rows if row["instruction"]
        )
    assert found.notes[-1] == "2 instructions for all are null: left out."
    with pytest.raises(SteerlensError, match="there are 10 instructions"):
        with_instructions(concepts, "alpaca_eval", tmp_path / f"x{ending}", n=11)


def test_null_instructions_of_the_authors_file_are_none(tmp_path: Path) -> None:
    concepts = axbench_folder(write(tmp_path / "mine", **both()))
    content = {f"20_{k}": [None, "a", None, "b"] for k in (5, 6)}
    (tmp_path / "released.json").write_bytes(json.dumps(content).encode("utf-8-sig"))
    found = with_instructions(concepts, "released", tmp_path / "released.json", n=2)
    assert found.concepts[0].choosing + found.concepts[0].evaluating == ("a", "b")
    with pytest.raises(SteerlensError, match="has 2 instructions for concept 0"):
        with_instructions(concepts, "released", tmp_path / "released.json", n=3)


def test_instructions_by_genre_come_from_the_genres_file(tmp_path: Path) -> None:
    concepts = axbench_folder(write(tmp_path / "mine", **both()))
    for genre in ("text", "code"):
        rows = pd.DataFrame({"question": [f"{genre} {k}" for k in range(12)]})
        rows.to_json(tmp_path / f"{genre}.jsonl", orient="records", lines=True)
    found = with_instructions(concepts, "genre", tmp_path, n=4)
    for concept in found.concepts:
        assert all(one.startswith(concept.genre) for one in concept.choosing + concept.evaluating)
    (tmp_path / "code.jsonl").unlink()
    with pytest.raises(SteerlensError, match=r"code\.parquet or .*code\.json"):
        with_instructions(concepts, "genre", tmp_path)
    assert set(OF_GENRE) == {"text", "math", "code"}
    assert ALPACA_EVAL.column == "instruction"


def test_instructions_that_are_wrong_or_too_few_are_refused(tmp_path: Path) -> None:
    concepts = axbench_folder(write(tmp_path / "mine", **both()))
    with pytest.raises(SteerlensError, match="did you mean 'genre'"):
        with_instructions(concepts, "genres")
    with pytest.raises(SteerlensError, match="there are 3 instructions"):
        with_instructions(concepts, "alpaca_eval", questions(tmp_path, ".json", 3))
    (tmp_path / "bad.json").write_text('[{"text": "x"}]')
    with pytest.raises(SteerlensError, match="no column 'instruction' or 'question'"):
        with_instructions(concepts, "alpaca_eval", tmp_path / "bad.json")
    (tmp_path / "released.json").write_text('{"20_6": []}')
    with pytest.raises(SteerlensError, match=r"no instructions for concept 0 \('boats'\)"):
        with_instructions(concepts, "released", tmp_path / "released.json")


@needs_samples
def test_concept10_has_72_positives_and_its_genres_negatives() -> None:
    found = axbench_folder(AXBENCH / "concept10/prod_2b_l20_v1")
    assert len(found) == 10
    assert not found.notes
    assert found.concepts[0].feature == FeatureRef(20, 16038, "gemma-2-2b/20-gemmascope-res-16k")
    for concept in found.concepts:
        assert [len(concept.positives), len(concept.negatives)] == [72, 72]
        assert [len(concept.test_positives), len(concept.test_negatives)] == [36, 36]
    assert Counter(one.genre for one in found.concepts)["code"] >= 1
    found.check_features(20, 16384, "gemma-scope-2b-res")


@needs_samples
@pytest.mark.parametrize("layer", [20, 31])
def test_concept500_is_what_the_authors_steered(layer: int) -> None:
    found = axbench_folder(AXBENCH / f"concept500/prod_9b_l{layer}_v1")
    assert len(found) == 500
    found.check_features(layer, 131072, "gemma-scope-9b-it-res-131k")
    with_prompts = with_instructions(found, "released", RELEASED)
    assert {len(one.choosing) for one in with_prompts.concepts} == {5}
    assert {len(one.evaluating) for one in with_prompts.concepts} == {5}
