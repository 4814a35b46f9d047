"""Rows that different things steer, in batches that they share, against each group alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from steerlens import SteerlensError
from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.generation import TEXT, Steering, generate, generate_groups
from steerlens.engine.intervention import Targets
from steerlens.engine.subject import Subject
from steerlens.scores import RunContext
from steerlens.steering.methods.directions import Directions, direction_targets
from steerlens.storage.store import Store
from tests.support.generating import PROMPTS, SAMPLED, count_decoded

MakeSubject = Callable[..., Subject]
LARGEST_C = (4.0, 9.0)


def targets_of(subject: Subject, directions: Directions, rows: pd.DataFrame) -> Targets:
    factors = rows["factor"].tolist()
    return direction_targets(subject, directions, rows["concept_id"].tolist(), factors, LARGEST_C)


def groups_of(subject: Subject) -> list[tuple[pd.DataFrame, Steering | None]]:
    """Features of the SAE, plain directions, and nothing, at different factors and prompts."""
    draw = torch.Generator().manual_seed(3)
    features = torch.tensor([5, 30])
    plain_CD = torch.randn(2, subject.sae.W_dec.shape[1], generator=draw)
    directions = {
        "features": Directions(subject.sae.W_dec[features], features_C=features),
        "plain": Directions(plain_CD / plain_CD.norm(dim=-1, keepdim=True)),
        "nothing": Directions(torch.zeros_like(plain_CD)),
    }
    factors_of = {"features": (0.5, 2.0), "plain": (1.0, 3.0, -2.0), "nothing": (0.0,)}
    groups: list[tuple[pd.DataFrame, Steering | None]] = []
    for name, of_name in directions.items():
        index = pd.MultiIndex.from_product([(0, 1), factors_of[name], PROMPTS, (0,)])
        rows = index.set_names(["concept_id", *TEXT]).to_frame(index=False)
        given = partial(targets_of, subject, of_name)
        groups.append((rows, Steering(name, "concept_id", {"arm": name}, given)))
    return groups


def in_one(subject: Subject, run: RunContext, groups: Any, **edit: Any) -> list[pd.DataFrame]:
    return generate_groups(subject, groups, SteerConfig(**edit), GenerationConfig(**SAMPLED), run)


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
@pytest.mark.parametrize(
    ("unit", "positions", "keep_error"),
    [("max_activation", "all", True), ("a_max", "last", False), ("norm", "generated", True)],
)
def test_a_shared_batch_gives_each_row_the_same_bits_as_alone(
    tiny_subject: MakeSubject,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    unit: str,
    positions: str,
    keep_error: bool,
) -> None:
    subject = tiny_subject("llama", "jumprelu", normalize_activations=norm)
    groups = groups_of(subject)
    edit: dict[str, Any] = {"unit": unit, "positions": positions, "keep_error": keep_error}
    sizes = count_decoded(monkeypatch)
    together = in_one(subject, RunContext(), groups, **edit)
    n_shared = len(sizes)
    alone = [in_one(subject, RunContext(), [group], **edit)[0] for group in groups]
    assert n_shared * len(groups) == len(sizes) - n_shared  # as many calls for all as for one
    for mixed, of_group in zip(together, alone, strict=True):
        pd.testing.assert_frame_equal(mixed, of_group, check_exact=True)
    texts = [tuple(of_group["text"]) for of_group in together]
    assert len(set(texts)) == len(texts)
    assert min(together[0]["first_step_kl"].tolist()) > 0
    assert set(together[2]["first_step_kl"].tolist()) == {0.0}


def test_texts_made_together_are_kept_under_each_groups_own_key(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, groups = RunContext(store=Store(tmp_path)), groups_of(subject)
    edit: dict[str, Any] = {"unit": "raw"}
    together = in_one(subject, run, groups, **edit)
    sizes = count_decoded(monkeypatch)
    for (rows, steering), texts in zip(groups, together, strict=True):
        settings = GenerationConfig(**SAMPLED)
        alone = generate(subject, rows, SteerConfig(**edit), settings, run, steering)
        pd.testing.assert_frame_equal(alone, texts)
    assert sizes == []


def test_a_killed_run_keeps_the_finished_batches_of_every_group(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, groups = RunContext(store=Store(tmp_path)), groups_of(subject)
    settings = GenerationConfig(**SAMPLED, batch_size=20)
    make = partial(generate_groups, subject, groups, SteerConfig(unit="raw"), settings)
    whole = make(RunContext())
    with monkeypatch.context() as patch:
        killed = count_decoded(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            make(run)
    again = count_decoded(monkeypatch)
    for texts, expected in zip(make(run), whole, strict=True):
        pd.testing.assert_frame_equal(texts, expected, check_exact=True)
    assert killed == [20]  # rows of features and of plain directions
    assert sum(killed) + sum(again) == sum(len(rows) for rows, _ in groups)


def test_what_only_features_can_be_is_refused_where_a_direction_is_among_the_rows(
    subject: Subject,
) -> None:
    with pytest.raises(SteerlensError, match=r"steer\.operator=clamp needs features"):
        in_one(subject, RunContext(), groups_of(subject), operator="clamp", unit="raw")
