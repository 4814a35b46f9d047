"""AxBench's concepts with their texts, from a folder in its layout or from the hub.

A folder has `metadata.jsonl` and `train_data.parquet` (in it or in `generate/`), and
`latent_eval_data.parquet` (in it or in `inference/`). The hub has `SUBSET/train/data.parquet` and
`SUBSET/test/data.parquet`, for example of `pyvene/axbench-concept500` the subset `9b/l20`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.data.concept_sets import Concept, ConceptSet, FeatureRef, LabelledText
from steerlens.data.neuronpedia import layer_of
from steerlens.errors import SteerlensError, nearest
from steerlens.storage.files import parse_json, read_text

if TYPE_CHECKING:
    import pandas as pd

METADATA = ("metadata.jsonl", "generate")
TRAIN = ("train_data.parquet", "generate")
TEST = ("latent_eval_data.parquet", "inference")
"""The name of each file, and the folder in which AxBench writes it."""

COLUMNS = ("input", "output", "output_concept", "concept_genre", "category", "concept_id")
"""What every table has to have."""

POSITIVE, NEGATIVE = "positive", "negative"
"""Categories. AxBench's "hard negative" rows count in no AUROC of its own, nor here."""


class _Known(NamedTuple):
    """What is known of a concept besides its texts."""

    name: str
    genre: str
    feature: FeatureRef | None


def axbench_folder(path: Path) -> ConceptSet:
    """Return the concepts of a folder, in the order of their ids; without tables they have no
    texts.

    Raises:
        SteerlensError: for a folder without metadata, a file that can't be read, or a table that
            lacks a column.
    """
    metadata_of, n_null = _metadata(_metadata_file(path))
    tables = {name: _read(_find(path, file)) for name, file in (("train", TRAIN), ("test", TEST))}
    return _assembled(path.name, metadata_of, **tables, n_null=n_null)


def concept_names(path: Path) -> list[str]:
    """Return the names of the concepts of a folder, from its metadata alone.

    Raises:
        SteerlensError: for a folder without metadata, or metadata that can't be read.
    """
    return [row.name for row in _metadata(_metadata_file(path))[0].values()]


def _metadata_file(path: Path) -> Path:
    if not path.is_dir():
        raise SteerlensError(f"concepts: there is no folder {path}.")
    file = _find(path, METADATA)
    if file is None:
        raise SteerlensError(
            f"concepts: {path} has no {METADATA[0]}, neither in it nor in {METADATA[1]}/, and no "
            "JSON files of contrast pairs."
        )
    return file


def has_metadata(path: Path) -> bool:
    """Return whether a folder says of what concepts its tables are."""
    return _find(path, METADATA) is not None


def axbench_hub(repo: str, subset: str, revision: str | None = None) -> ConceptSet:
    """Return the concepts of a data set on the hub; `subset` is e.g. `9b/l20`.

    Raises:
        SteerlensError: if it can't be read, or lacks a column.
    """
    from datasets import load_dataset

    tables: dict[str, pd.DataFrame] = {}
    for split in ("train", "test"):
        file = f"{subset}/{split}/data.parquet"
        try:
            data: Any = load_dataset(repo, data_files={split: file}, split=split, revision=revision)
            table = data.to_pandas()
        except MemoryError:
            raise
        except Exception as error:  # whatever a reader of somebody's files comes up with
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SteerlensError(f"can't read {file} of {repo}: {line}") from error
        tables[split] = _checked(table, f"{repo}/{file}", COLUMNS)
    _checked(tables["test"], f"{repo}/{subset}/test/data.parquet", ("sae_link",))
    return _assembled(f"{repo}/{subset}", None, tables["train"], tables["test"])


def _find(path: Path, file: tuple[str, str]) -> Path | None:
    name, folder = file
    return next((file for file in (path / name, path / folder / name) if file.is_file()), None)


def _read(file: Path | None) -> pd.DataFrame | None:
    import pandas as pd

    if file is None:
        return None
    try:
        table = pd.read_parquet(file)
    except MemoryError:
        raise
    except Exception as error:
        raise SteerlensError(f"{file} is no Parquet file that can be read ({error}).") from error
    return _checked(table, str(file), COLUMNS)


def _complete(table: pd.DataFrame | None) -> tuple[pd.DataFrame | None, int]:
    """Return the rows that say their concept and have an input, and how many there are besides.

    A missing output is an empty one.
    """
    import pandas as pd

    if table is None:
        return None, 0
    has = table[["input", "concept_id", "category", "concept_genre"]].notna().all(axis=1)
    numbers: Any = pd.to_numeric(table["concept_id"], errors="coerce")
    has &= numbers.notna() & (numbers % 1 == 0)
    rows: pd.DataFrame = table[has].assign(concept_id=numbers[has].astype(int))
    return rows, len(table) - len(rows)


def _checked(table: pd.DataFrame, name: str, columns: Iterable[str]) -> pd.DataFrame:
    for column in columns:
        if column not in table:
            near = nearest(column, map(str, table.columns))
            raise SteerlensError(
                f"{name} has no column {column!r}"
                + (f"; the nearest is {near[0]!r}." if near else ", which AxBench's tables have.")
            )
    return table


def _metadata(file: Path) -> tuple[dict[int, _Known], int]:
    """Return what the lines of the metadata say, by concept id; `ref` may be null or missing.

    And how many lines have null for the concept or its id, which say nothing.
    """
    concepts: dict[int, _Known] = {}
    n_null = 0
    try:
        lines = read_text(file).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SteerlensError(f"{file} can't be read ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if any(
                value is None or value != value for value in (row["concept_id"], row["concept"])
            ):
                n_null += 1
                continue
            key, name = int(row["concept_id"]), row["concept"]
            if not isinstance(name, str):
                raise TypeError(f"concept is {name!r}")
            genres = (row.get("concept_genres_map") or {}).get(name) or ["text"]
            ref = row.get("ref")
            feature = None if ref is None else feature_ref(str(ref))
            known_row = _Known(name, str(genres[0]), feature)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise SteerlensError(
                f"{file}, line {number}: no concept with concept_id and concept ({error!r})."
            ) from error
        if key in concepts:
            raise SteerlensError(f"{file}, line {number}: concept_id {key} is there twice.")
        concepts[key] = known_row
    return concepts, n_null


def _from_rows(train: pd.DataFrame, test: pd.DataFrame) -> dict[int, _Known]:
    """Return the same from the tables, where there is no metadata."""
    linked: Any = test[test["sae_link"].notna()]
    named: Any = train[train["output_concept"].notna()]
    links = dict(zip(linked["concept_id"], linked["sae_link"], strict=True))
    concepts: dict[int, _Known] = {}
    for row in named.to_dict("records"):
        key = int(row["concept_id"])
        if row["category"] == POSITIVE and key not in concepts:
            ref = feature_ref(str(links[key])) if key in links else None
            concepts[key] = _Known(str(row["output_concept"]), str(row["concept_genre"]), ref)
    return concepts


def feature_ref(address: str) -> FeatureRef:
    """Return the feature that a Neuronpedia address is of: `.../MODEL/20-gemmascope-res-16k/16038`.

    Raises:
        SteerlensError: for any other text.
    """
    parts = address.rstrip("/").split("/")
    layer = layer_of(parts[-2]) if len(parts) >= 3 else None
    if layer is None or not parts[-1].isdigit():
        raise SteerlensError(
            f"{address!r} is no address of a feature like .../MODEL/20-gemmascope-res-16k/16038."
        )
    return FeatureRef(layer, int(parts[-1]), f"{parts[-3]}/{parts[-2]}")


def _assembled(
    name: str,
    metadata_of: Mapping[int, _Known] | None,
    train: pd.DataFrame | None,
    test: pd.DataFrame | None,
    n_null: int = 0,
) -> ConceptSet:
    """Return the set of the concepts of `metadata_of`; None where both tables say what is known of
    them.

    `n_null` lines of the metadata name none.
    """
    notes = [
        f"{name} has no {file[0]}: its concepts have no texts to {use} on."
        for use, file, table in (("train", TRAIN, train), ("test", TEST, test))
        if table is None
    ]
    if n_null:
        notes.append(
            f"{n_null:,} lines of {METADATA[0]} of {name} have null for the concept or its id: "
            "left out."
        )
    (train, to_train), (test, to_test) = _complete(train), _complete(test)
    for n, use in ((to_train, "train"), (to_test, "test")):
        if n:
            notes.append(
                f"{n:,} rows to {use} on of {name} lack an input, a category, a genre or a "
                "concept's id: left out."
            )
    if metadata_of is None:
        assert train is not None
        assert test is not None
        metadata_of = _from_rows(train, test)
    for table in (train, test):
        if table is not None:
            ids = [int(key) for key in table["concept_id"] if key not in metadata_of and key != -1]
            if ids:
                notes.append(
                    f"{len(ids):,} rows of {name} are of {len(set(ids)):,} concepts that the "
                    "metadata doesn't list: left out."
                )
    shared = _negatives(train)
    by_id = _by_concept(train), _by_concept(test)
    concepts = []
    for key, (concept, genre, feature) in sorted(metadata_of.items()):
        trained, tested = (rows.get(key, {}) for rows in by_id)
        concepts.append(
            Concept(
                id=key,
                name=concept,
                genre=genre,
                positives=trained.get(POSITIVE, ()),
                negatives=trained.get(NEGATIVE, ()) or shared.get(genre, ()),
                test_positives=tested.get(POSITIVE, ()),
                test_negatives=tested.get(NEGATIVE, ()),
                feature=feature,
            )
        )
    return ConceptSet(name, tuple(concepts), are_instructions=True, notes=tuple(notes))


def _negatives(train: pd.DataFrame | None) -> dict[str, tuple[LabelledText, ...]]:
    """Return the negatives that all concepts of a genre share: AxBench gives them the concept
    -1.
    """
    if train is None:
        return {}
    rows: Any = train[(train["concept_id"] == -1) & (train["category"] == NEGATIVE)]
    return {str(genre): _examples(group) for genre, group in rows.groupby("concept_genre")}


def _by_concept(table: pd.DataFrame | None) -> dict[int, dict[str, tuple[LabelledText, ...]]]:
    if table is None:
        return {}
    by_concept: dict[int, dict[str, tuple[LabelledText, ...]]] = {}
    groups: Any = table.groupby(["concept_id", "category"])
    for (key, category), group in groups:
        by_concept.setdefault(int(key), {})[str(category)] = _examples(group)
    return by_concept


def _examples(rows: pd.DataFrame) -> tuple[LabelledText, ...]:
    """Return a missing output is an empty one."""
    outputs = rows["output"].where(rows["output"].notna(), "")
    return tuple(map(LabelledText, rows["input"].astype(str), outputs.astype(str)))
