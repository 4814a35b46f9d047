"""One pass for many layers, resumed and in any batch size, is the same pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steerlens.config.compose import compose
from steerlens.config.settings import parse_subject
from steerlens.engine.activations import (
    ARRAYS,
    DETAIL_ARRAYS,
    Activations,
    activations_bytes,
    read_activations,
    stream,
    tally,
)
from steerlens.engine.activations.details import histogram, no_activations
from steerlens.engine.activations.stream import activations
from steerlens.engine.corpus_pass import in_groups
from steerlens.engine.subject import Subject, load_subjects
from steerlens.errors import SteerlensError
from steerlens.scores import activation, output
from tests.support.tiny import D_SAE, D_VOCAB, save_sae

GIB = 1024**3


@pytest.fixture
def subjects(tiny_folder: Callable[[str], Path], tmp_path: Path) -> list[Subject]:
    """Three layers' SAEs on one model."""
    for layer in (0, 1, 3):
        save_sae(tmp_path / "saes" / str(layer), "topk", layer=layer, seed=layer)
    words = [
        *("model=local", f"model.path={tiny_folder('gemma2')}"),
        *("sae=local", f"sae.path={tmp_path / 'saes'}", f"paths.cache_dir={tmp_path / 'cache'}"),
    ]
    return list(load_subjects(parse_subject(compose(words))))


@pytest.fixture
def pieces() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 30, 70)
    return [np.concatenate([[0], draw.integers(3, D_VOCAB, n)]).astype(np.int32) for n in lengths]


def assert_same(one: Activations, two: Activations, rtol: float = 1e-5) -> None:
    assert one.n_tokens == two.n_tokens
    assert [piece.tolist() for piece in one.pieces] == [piece.tolist() for piece in two.pieces]
    np.testing.assert_array_equal(one.fired_F, two.fired_F)
    np.testing.assert_allclose(one.sum_F, two.sum_F, rtol=rtol)
    np.testing.assert_allclose(one.value_FN, two.value_FN, rtol=rtol)
    every = np.arange(D_SAE)
    np.testing.assert_array_equal(one.token_FN(every), two.token_FN(every))


def test_layers_together_are_layers_alone(
    subjects: list[Subject], pieces: list[np.ndarray]
) -> None:
    together = activations(subjects, pieces, 10, GIB)
    for subject, found in zip(subjects, together, strict=True):
        assert_same(found, activations([subject], pieces, 10, GIB)[0])


def test_small_batches_and_windows_change_nothing(
    subjects: list[Subject], pieces: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = activations(subjects[:1], pieces, 10, GIB, details=True)[0]
    monkeypatch.setattr(stream, "SORTED_AT_ONCE", 8)
    monkeypatch.setattr(tally, "COMPACTED_AT_ONCE", 7)
    small = activations(subjects[:1], pieces, 10, 100_000, details=True)[0]
    assert whole.details
    assert small.details
    assert (whole.details.bin_FB.sum(1) == whole.fired_F).all()
    # Activations depend on the batch in their last digit, which may round otherwise.
    near = np.abs(whole.details.window_FNW.astype(int) - small.details.window_FNW).max()
    assert near <= 1
    np.testing.assert_array_equal(small.details.range_F, whole.details.range_F)
    moved = np.abs(small.details.bin_FB - whole.details.bin_FB).sum()
    assert moved <= 2
    assert_same(dataclasses.replace(small, details=None), whole)


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    value = torch.rand(4000, generator=draw).exp2().square() ** 3 + 1e-3  # 1 to 64
    feature = torch.randint(0, 5, (4000,), generator=draw)
    order = value.argsort()  # so that the range grows from part to part
    found = no_activations(6, torch.device("cpu"))
    for part in order.split(250):
        max_F = torch.zeros(6).scatter_reduce(0, feature[part], value[part], "amax")
        found = found + histogram(feature[part], value[part], max_F)
    assert found.range_F.tolist() == [64.0] * 5 + [0.0]
    for one in range(5):
        expected = np.histogram(value[feature == one].numpy(), bins=16, range=(0, 64))[0]
        assert found.bin_FB[one].tolist() == expected.tolist()
    assert not found.bin_FB[5].any()


def test_a_pass_that_goes_on_ends_like_one_that_was_not_stopped(
    subjects: list[Subject],
    pieces: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(stream, "SORTED_AT_ONCE", 8)
    monkeypatch.setattr(stream, "KEEP_SECONDS", 0)
    kept: list[list[Activations]] = []
    whole = activations(subjects, pieces, 10, GIB, save=kept.append, details=True)
    assert len(kept) == 9
    begun = []
    for index, part in enumerate(kept[4]):
        (tmp_path / f"{index}").write_bytes(activations_bytes(part))
        read = read_activations(tmp_path / f"{index}")
        assert read is not None
        begun.append(read)
    done: list[int] = []
    resumed = activations(subjects, pieces, 10, GIB, done.append, begun=begun, details=True)
    assert done[0] == begun[0].n_tokens > 0
    assert sum(done) == whole[0].n_tokens
    for one, two in zip(resumed, whole, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        for name in DETAIL_ARRAYS:
            np.testing.assert_array_equal(getattr(one.details, name), getattr(two.details, name))


def test_of_equal_examples_the_earlier_ones_count(subjects: list[Subject]) -> None:
    same = [np.array([0, 5, 9, 7], dtype=np.int32)] * 30
    found = activations(subjects[:1], same, 4, GIB)[0]
    fires = found.value_FN[:, 0] > 0
    assert fires.any()
    assert (found.piece_FN[fires] == np.arange(4)).all()


def test_examples_that_rounding_sets_apart_are_in_the_order_of_the_texts() -> None:
    equal = torch.ones(3).nextafter(torch.tensor([0.0, 1.0, 2.0]))
    value = torch.cat([equal, torch.tensor([1.001])])[None]
    assert tally._order(value, torch.arange(4)[None]).tolist() == [[3, 0, 1, 2]]


def test_saes_are_read_together_as_far_as_the_budget_goes(subjects: list[Subject]) -> None:
    size = sum(p.numel() * p.element_size() for p in subjects[0].sae.parameters())
    reading, other = [activation.Config()], [output.Config()]

    def groups(configs: list, budget: int) -> list[int]:
        return [len(group) for group in in_groups(iter(subjects), configs, budget)]

    assert groups(reading, 2 * size) == [2, 1]
    assert groups(reading, 3 * size) == [3]
    assert groups(reading, 1) == [1, 1, 1]
    assert groups([*other, *reading], 3 * size) == [3]
    assert groups(other, 3 * size) == [1, 1, 1]


def test_nan_activations_are_refused(subjects: list[Subject], pieces: list[np.ndarray]) -> None:
    sae: Any = subjects[1].sae
    sae.b_enc.data[3] = float("nan")
    with pytest.raises(SteerlensError, match="layer 1 has NaN activations"):
        activations(subjects, pieces, 10, GIB)


def test_a_kept_pass_that_is_not_whole_counts_as_missing(tmp_path: Path) -> None:
    assert read_activations(tmp_path / "nowhere") is None
    (tmp_path / "broken").write_bytes(b"\x10\x00")
    assert read_activations(tmp_path / "broken") is None
