"""The experiments of the paper's figures and tables that show one and the same run.

    python -m experiments.paper.index

Writes a file of `conf/experiment/paper` for each, so that `experiment=paper/figure_4` answers
and `steerlens list experiments` shows it; `tests/config/test_compose.py` compares the files.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

from experiments.paper.cost import takes_of_run
from steerlens.config.entries import conf_dir, header
from steerlens.storage.files import write_text


class Shown(NamedTuple):
    """A figure or table of the paper."""

    name: str
    of: str
    """The experiment in the same folder whose run it is."""
    about: str
    subjects: str | None = None
    """Those of the paper, where they aren't the default."""
    layer: str | None = None
    """Where it shows only some layers of that run."""


INDEX = (
    Shown(
        "figure_2",
        "steering",
        "An input and an output feature, weakly and strongly steered: only the output "
        "feature brings its own tokens into the texts "
        "(figures/input_and_output_feature.png).",
    ),
    Shown(
        "figure_3",
        "scores",
        "Input scores are high in early layers, output scores in late ones "
        "(figures/input_output_by_layer.png).",
        subjects="gemma-2-2b,gemma-2-9b",
    ),
    Shown(
        "figure_4",
        "steering",
        "The higher the output scores of the features, the more of their tokens are in "
        "the texts that they steer (figures/success_by_threshold.png).",
        subjects="gemma-2-2b,gemma-2-9b",
    ),
    Shown(
        "figure_5",
        "steering",
        "The same among late layers alone, from 16 on in Gemma-2-2B and from 24 on in "
        "Gemma-2-9B (figures/success_by_threshold.png).",
        subjects="gemma-2-2b,gemma-2-9b",
        layer="late",
    ),
    Shown(
        "figure_6",
        "scores",
        "High input and high output scores rarely meet in one feature "
        "(figures/input_against_output.png).",
        subjects="gemma-2-2b,gemma-2-9b",
    ),
    Shown(
        "figure_7",
        "steering",
        "Texts of features with both scores high (figures/hybrid_features.png).",
    ),
    Shown(
        "figure_8",
        "steering",
        "Generated success tokens of output features go with their first logit-lens token "
        "in ordinary text, too (figures/pmi_by_role.png).",
    ),
    Shown(
        "figure_9",
        "scores",
        "Both scores by layer in the models that Figure 3 leaves out "
        "(figures/input_output_by_layer.png).",
        subjects="llama-3.1-8b,pythia-70m",
    ),
    Shown(
        "figure_10",
        "steering",
        "The curve of Figure 4 in further models (figures/success_by_threshold.png).",
        subjects="llama-3.1-8b,pythia-70m",
    ),
    Shown(
        "table_2",
        "steering",
        "Input features with texts that they steer, weakly and strongly (report.md, Input "
        "features).",
    ),
    Shown(
        "table_3",
        "steering",
        "Output features with texts that they steer, weakly and strongly (report.md, "
        "Output features).",
    ),
    Shown(
        "table_4",
        "steering",
        "Hybrid features with texts that they steer, weakly and strongly (report.md, "
        "Hybrid features).",
    ),
    Shown(
        "table_5",
        "steering",
        "Success tokens beside the feature's first logit-lens token, with their PMI "
        "(report.md, Success tokens and the first logit-lens token).",
    ),
)


def files() -> dict[Path, str]:
    """Return the content of every file, by where it lies."""
    return {
        conf_dir() / "experiment" / "paper" / f"{shown.name}.yaml": _content(shown)
        for shown in INDEX
    }


def _content(shown: Shown) -> str:
    sweep = f" -m subject={shown.subjects}" if shown.subjects else ""
    whole = conf_dir() / "experiment" / "paper" / f"{shown.of}.yaml"
    takes = header(whole.read_text(encoding="utf-8")).takes
    if shown.subjects:
        run = shown.name if shown.layer else shown.of
        takes = takes_of_run(run, shown.subjects.split(","))
    lines = [
        "# @package _global_",
        *textwrap.wrap(shown.about, 100, initial_indent="# ", subsequent_indent="# "),
        f"#   steerlens experiment=paper/{shown.name}{sweep}",
        f"# Takes: {takes}",
        "defaults:",
        f"  - /experiment/paper/{shown.of}",
        "",
        f"name: paper_{shown.name} # this file is written by experiments/paper/index.py",
        *([f"layer: {shown.layer}"] if shown.layer else []),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for file, content in files().items():
        write_text(file, content)
