"""Do several output features of a concept, steered together, beat the best one?

From the top of the repository, after a multirun over concepts with `experiment=together`:

    python -m experiments.together FOLDER

Every job of FOLDER is one concept. The factor of each feature and group is chosen on one half of
the prompts, and success is the number of the concept's tokens in the texts of the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from steerlens.analysis.payoff import RESAMPLES
from steerlens.analysis.resampling import counts_of_resamples, estimate
from steerlens.results import STEERING, features_alone

SUCCESS = "concept_success"


def arms(folder: Path) -> dict[str, float]:
    """Of one concept: success unsteered is not in it; NaN where no factor may be chosen."""
    steering = STEERING.read(folder).sort_values(
        ["concept_score", "feature"], ascending=[False, True]
    )
    alone = features_alone(steering)[SUCCESS].astype(float)
    found = {"the best by score": alone.iloc[0], "mean of all alone": alone.mean()}
    for row in steering.dropna(subset="together").to_dict("records"):
        size = 2 + row["together"].count("+")
        found[f"the best {size} together"] = float(row[SUCCESS])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Several features together against the best one.")
    parser.add_argument("folder", type=Path, help="of a multirun over concepts")
    folders = sorted(path.parent for path in parser.parse_args().folder.rglob(STEERING.file))
    table = pd.DataFrame([arms(folder) for folder in folders]).astype(float)
    best = table["the best by score"]
    print(f"{len(table)} concepts; the concept's tokens in a text, and the difference to the best:")
    for name in sorted(table.columns, key=lambda name: "together" in name):
        pairs_N = (table[name] - best).dropna().to_numpy()
        n = len(pairs_N)
        draws = counts_of_resamples(n, RESAMPLES, np.random.default_rng(0))
        means = np.concatenate([counts_RN @ pairs_N / n for counts_RN in draws])
        found = estimate(pairs_N.mean(), means, n)
        low, high = (f"{value:+.2f}" if value is not None else "?" for value in found[1:])
        wins = int((pairs_N > 0).sum())
        print(
            f"{name:>20}: {table[name].mean():.2f} ({n} concepts), {found.value:+.2f} "
            f"(95 % {low} to {high}), more in {wins}"
        )


if __name__ == "__main__":
    main()
