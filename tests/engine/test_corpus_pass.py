"""`features.min_examples`: features that fire in enough pieces of the corpus."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from steerlens.config.compose import compose
from steerlens.config.settings import parse_subject
from steerlens.data.corpus import texts
from steerlens.data.corpus.sequences import pieces
from steerlens.engine.activations import stream
from steerlens.engine.subject import load_subjects
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from tests.support.scoring import scored
from tests.support.tiny import D_SAE, save_sae

LAYERS = (1, 3)


@pytest.fixture(scope="module")
def read(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for two layers of a tiny subject and 150 pieces of text."""
    folder = tmp_path_factory.mktemp("pieces")
    for layer in LAYERS:
        # k=2: most features fire in some pieces and not in others.
        save_sae(folder / "saes" / str(layer), "topk", layer=layer, seed=layer, k=2)
    draw = random.Random(0)
    lines = (" ".join(f"w{draw.randrange(12, 211)}" for _ in range(9)) for _ in range(150))
    (folder / "text.txt").write_text("\n".join(lines))
    return [
        *("model=local", f"model.path={tiny_folder('llama')}"),
        *("sae=local", f"sae.path={folder / 'saes'}"),
        *("corpus=text", f"corpus.path={folder / 'text.txt'}", "corpus.context_length=16"),
        *("tracking=disabled", "device=cpu", "dtype=float32", "seed=4"),
    ]


@pytest.fixture
def words(read: list[str], tmp_path: Path) -> list[str]:
    """The same for a run that finds nothing in its cache."""
    return [*read, f"paths.cache_dir={tmp_path / 'cache'}", f"paths.output_dir={tmp_path / 'out'}"]


@pytest.fixture(scope="module")
@torch.no_grad()
def counts(read: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """Of every layer, in how many pieces each feature fires: one piece at a time."""
    config = compose([*read, f"paths.cache_dir={tmp_path_factory.mktemp('naive')}"])
    counts_of_layer = {}
    for subject in load_subjects(parse_subject(config)):
        cut = pieces(
            texts(config.corpus), subject.lm.tokenizer, config.corpus.context_length, subject.bos
        )
        counts_F = np.zeros(D_SAE, dtype=int)
        for piece in cut:
            _, cache = subject.lm.bridge.run_with_cache(
                torch.from_numpy(piece).long()[None], names_filter=subject.hook_name
            )
            acts_LF = subject.sae.encode(cache[subject.hook_name])[0, 1:]  # without BOS
            counts_F += (acts_LF > 0).any(dim=0).numpy()
        counts_of_layer[subject.layer] = counts_F
    return counts_of_layer


def features_of(words: list[str]) -> dict[int, list[int]]:
    config = compose(words)
    check(config)
    folder = Path(config.paths.output_dir)
    frame = scored(config, folder)
    return {layer: frame.loc[frame["layer"] == layer, "feature"].tolist() for layer in LAYERS}


@pytest.mark.parametrize("least", [10, 120])
def test_all_features_are_those_that_fire_often_enough(
    words: list[str], counts: dict[int, np.ndarray], least: int
) -> None:
    expected = {layer: np.flatnonzero(n_F >= least).tolist() for layer, n_F in counts.items()}
    assert all(0 < len(ids) < D_SAE for ids in expected.values())
    assert features_of([*words, f"features.min_examples={least}"]) == expected


def test_random_features_are_the_first_of_a_permutation_that_fire_often_enough(
    words: list[str], counts: dict[int, np.ndarray]
) -> None:
    expected = {}
    for layer, n_F in counts.items():
        order = np.random.default_rng([4, layer]).permutation(D_SAE)
        expected[layer] = sorted([int(i) for i in order if n_F[i] >= 10][:5])
    assert features_of([*words, "features.n=5", "features.min_examples=10"]) == expected


def test_the_pass_is_shared_with_the_scores_and_kept(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    whole = stream.activations
    monkeypatch.setattr(
        stream, "activations", lambda *args, **kwargs: passes.append(1) or whole(*args, **kwargs)
    )
    words = [*words, "features.n=5", "features.min_examples=10"]
    alone = features_of([*words, "score=output"])
    assert len(passes) == 1
    assert features_of([*words, "score=both", "score.input.min_examples=1"]) == alone
    assert len(passes) == 1
    (file, *_) = Path(compose(words).paths.cache_dir).rglob("activations.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    assert features_of([*words, "score=output"]) == alone
    assert len(passes) == 2


def test_too_few_are_refused_with_their_number(
    words: list[str], counts: dict[int, np.ndarray]
) -> None:
    some = int((counts[1] >= 10).sum())
    with pytest.raises(SteerlensError, match=f"^{some} features of layer 1 fire in at least 10 "):
        features_of([*words, f"features.n={some + 1}", "features.min_examples=10"])
    with pytest.raises(SteerlensError, match="0 features of layer 1 fire in at least 151 s"):
        features_of([*words, "features.min_examples=151"])


def test_a_plan_counts_at_most_all_of_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose([*words, "features.min_examples=10", "plan=true"])
    run(config)
    assert f"features  {2 * D_SAE}" in capsys.readouterr().out.replace("   ", "")
