"""Add the scores of a second run over the same features to the tables of a run that has steered.

    steerlens experiment=criteria 'score=[prompt_robustness,lens_precision]' steer=none
    python -m experiments.add_scores outputs/SCORED outputs/criteria/0 lens_precision
    steerlens report outputs/criteria/0

Texts needn't be made anew for a score that was thought of later. `--suffix` keeps the column of the
same name beside the new one; `provenance.json` notes where the scores are from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerlens.results import FEATURES, STEERING
from steerlens.storage.files import write_json
from steerlens.storage.provenance import PROVENANCE_FILE


def add_scores(scored: Path, run: Path, columns: Sequence[str], suffix: str = "") -> None:
    """Fill `columns` of the run's tables of features and of steering from those of `scored`.

    Raises:
        ValueError: a feature of the run isn't among those that were scored.
    """
    keys = list(FEATURES.keys)
    scores: Any = FEATURES.read(scored)[[*keys, *columns]]
    scores = scores.rename(columns={name: f"{name}{suffix}" for name in columns})
    names = [name for name in scores.columns if name not in keys]
    for table in (FEATURES, STEERING):
        rows = table.read(run)
        both = rows.drop(columns=rows.columns.intersection(names)).merge(
            scores, on=keys, how="left", indicator="scored", validate="many_to_one"
        )
        if any((both["scored"] != "both").tolist()):
            raise ValueError(f"{scored} hasn't all features of {run}.")
        table.write(both.drop(columns="scored"), run)
    provenance: dict[str, Any] = json.loads((run / PROVENANCE_FILE).read_text())
    of_scores = json.loads((scored / PROVENANCE_FILE).read_text())
    note = (
        f"{', '.join(names)}: of a second run over the same features, at commit "
        f"{str(of_scores['git']['commit'])[:8]}: {of_scores['command']}"
    )
    provenance["notes"] = [*provenance.get("notes", []), note]
    write_json(run / PROVENANCE_FILE, provenance)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scored", type=Path, help="the run that has the scores")
    parser.add_argument("run", type=Path, help="the run whose tables they are added to")
    parser.add_argument("columns", nargs="+", help="columns of features.parquet")
    parser.add_argument("--suffix", default="", help="of the new columns' names")
    arguments = parser.parse_args()
    add_scores(arguments.scored, arguments.run, arguments.columns, arguments.suffix)


if __name__ == "__main__":
    main()
