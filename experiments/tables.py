"""Store the tables of a run or a sweep in the repository, without its texts.

    python -m experiments.tables outputs/NAME experiments/results/NAME
    steerlens report experiments/results/NAME      # its figures and report anew, without running

Texts are left empty, and of features that weren't steered with only scores stay; cards' tables
are left out. Settings, provenance and summaries come along.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steerlens.results import SUMMARY_FILE, TABLES
from steerlens.results.status import STATUS_FILE
from steerlens.storage.files import CONFIG_FILE, atomic_write, write_text
from steerlens.storage.provenance import PROVENANCE_FILE

TEXTS: dict[str, Any] = {"text": "", "token_ids": []}
"""Columns of texts, and what stands in their place."""
LEFT_OUT = {
    "features.parquet": (
        *("logit_lens_tokens", "logit_lens_token_ids", "input_top_examples", "output_token"),
        *("promoted_tokens", "promoted_token_ids", "label", "neuronpedia_url"),
    ),
    "steering.parquet": ("input_top_examples",),
}
"""Columns that are large or hold texts, by table."""
OF_CARDS = ("cards.parquet", "examples.parquet", "neighbours.parquet")
"""Tables that aren't stored: tokens and texts for a page's cards."""
FOLDERS = re.compile(r"(?<![\w:/])/(?:[\w.@+~-]+/)+")
"""The folders of an absolute path, which are the machine's."""


def without_texts(table: pa.Table, file: str) -> pa.Table:
    """Give the table of a file without texts."""
    for name, value in TEXTS.items():
        if name in table.column_names:
            field = table.schema.field(name)
            column = pa.array([value] * len(table), field.type)
            table = table.set_column(table.schema.get_field_index(name), field, column)
    return table.drop_columns(
        [name for name in LEFT_OUT.get(file, ()) if name in table.column_names]
    )


def store(source: Path, target: Path) -> None:
    """Store the tables of the run in `source`, and those of its jobs if it is a sweep."""
    target.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        if table.file not in OF_CARDS and (source / table.file).is_file():
            small = without_texts(pq.read_table(source / table.file), table.file)
            with atomic_write(target / table.file) as file:
                pq.write_table(small, file, compression="zstd", compression_level=15)
    texts = [source / name for name in (SUMMARY_FILE, STATUS_FILE, CONFIG_FILE, PROVENANCE_FILE)]
    for file in (*filter(Path.is_file, texts), *source.glob("*.csv")):
        write_text(target / file.name, FOLDERS.sub("", file.read_text()))
    for job in sorted(path.parent for path in source.glob(f"*/{STATUS_FILE}")):
        store(job, target / job.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    store(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
