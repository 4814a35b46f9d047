"""Numbers of the default that no new version of a library may change unseen.

python -m tests.test_golden     # writes them anew, after a change that is meant
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import steerlens
from steerlens.config.compose import compose
from steerlens.config.settings import parse_subject
from steerlens.config.shipped import missing_release, shipped_path
from steerlens.engine.subject import load_subjects
from tests.support.gguf import needs_wheel

GOLDEN = Path(__file__).with_name("golden") / "smollm2-topk.json"
FEATURE_IDS = (7, 511, 1024, 2047, 4095)
COLUMNS = ("output_score", "output_rank", "input_score")
FOLDER = shipped_path("smollm2-topk")
MISSING = None if FOLDER.is_dir() else missing_release(FOLDER)


def measured() -> list[dict[str, Any]]:
    """Score five features of each layer that ships."""
    rows: list[dict[str, Any]] = []
    for subject in load_subjects(parse_subject(compose(["sae=smollm2-topk", "layer=all"]))):
        output = steerlens.score_features(
            subject, "output", features=FEATURE_IDS, null_directions=0
        )
        input_ = steerlens.score_features(subject, "input", features=FEATURE_IDS)
        scores: Any = output.assign(input_score=input_["input_score"])
        scores = scores[["layer", "feature", *COLUMNS]].astype(object)
        rows += scores.where(scores.notna(), None).to_dict("records")
    return rows


@needs_wheel
@pytest.mark.slow
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_scores_of_the_default_are_those_of_the_file() -> None:
    rows, golden = measured(), json.loads(GOLDEN.read_text())
    assert len(rows) == len(golden) == 30
    for row, expected in zip(rows, golden, strict=True):
        assert (row["layer"], row["feature"]) == (expected["layer"], expected["feature"])
        assert row["output_rank"] == pytest.approx(expected["output_rank"], rel=1e-3)
        for name in ("output_score", "input_score"):
            assert row[name] == pytest.approx(expected[name], abs=1e-3), (row["layer"], name)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(measured(), indent=1) + "\n")
