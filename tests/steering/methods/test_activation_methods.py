"""Directions from activations alone: planted ones are found, batches equal naive references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.linear_model import LogisticRegression

from steerlens.config.registry import loadable_parts
from steerlens.steering.methods import components, probe
from steerlens.steering.methods.components import first_component
from steerlens.steering.methods.lat import paired
from tests.support.concepts import FakeTask, planted

METHODS = loadable_parts("methods")


def fit(name: str, task: FakeTask, seed: int = 0, **settings: Any) -> torch.Tensor:
    method = METHODS[name]
    return method.fit(task, method.Config(**settings), seed).vectors_CD


def principal(x_TD: np.ndarray) -> np.ndarray:
    """scikit-learn's first component, AxBench's way."""
    components: Any = SklearnPCA(n_components=2, svd_solver="full").fit(x_TD).components_
    return components[0]


def cosine(a_CD: torch.Tensor, b_CD: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a_CD, b_CD, dim=-1)


def only(task: FakeTask, concept: int) -> FakeTask:
    """The task with this concept alone."""
    labelled = task.labelled
    one = type(labelled)(
        labelled.texts, [labelled.positives[concept]], [labelled.negatives[concept]]
    )
    alone = FakeTask(task.vectors, one)
    object.__setattr__(alone, "concepts", (task.concepts[concept],))
    return alone


@pytest.mark.parametrize(
    ("name", "settings", "plant"),
    [
        ("DiffMean", {}, {"n_texts": 60}),
        ("Probe", {"solver": "exact"}, {"n_texts": 60}),
        # Without an intercept, a probe can't separate what is all on one side of 0; and once it
        # separates what is far apart, its gradient is next to nothing.
        ("Probe", {"lr": 0.02}, {"n_texts": 120, "strength": 2.0, "offset": 0.0, "d_model": 12}),
    ],
)
def test_a_planted_difference_is_found(
    name: str, settings: dict[str, Any], plant: dict[str, Any]
) -> None:
    task, true_CD = planted(**plant)
    assert cosine(fit(name, task, **settings), true_CD).min() > 0.95


@pytest.mark.parametrize("name", ["PCA", "LAT"])
def test_a_planted_variation_is_found(name: str) -> None:
    task, true_CD = planted(n_texts=60, strength=5.0, spread=6.0)
    assert cosine(fit(name, task), true_CD).abs().min() > 0.95
    assert cosine(fit(name, task, orient=True), true_CD).min() > 0.95


@pytest.mark.parametrize("name", ["DiffMean", "Probe", "PCA", "LAT"])
def test_directions_have_length_1_and_know_nothing_of_the_prefix(name: str) -> None:
    task, _ = planted()
    found_CD = fit(name, task)
    torch.testing.assert_close(found_CD.norm(dim=-1), torch.ones(3))
    ones_D = torch.ones(40) / 40**0.5
    assert (found_CD @ ones_D).abs().max() < 0.8  # the prefix is 1000 in all entries


@pytest.mark.parametrize(
    ("name", "settings"),
    [("DiffMean", {}), ("Probe", {}), ("Probe", {"solver": "exact"}), ("PCA", {}), ("LAT", {})],
)
def test_a_concept_alone_has_the_same_direction(name: str, settings: dict[str, Any]) -> None:
    task, _ = planted()
    together_CD = fit(name, task, **settings)
    for concept in range(3):
        alone_1D = fit(name, only(task, concept), **settings)
        torch.testing.assert_close(alone_1D[0], together_CD[concept], rtol=0, atol=1e-5)


def test_diffmean_equals_means_taken_one_concept_at_a_time() -> None:
    task, _ = planted()
    for concept, found_D in enumerate(fit("DiffMean", task)):
        labelled = task.labelled
        means = [
            torch.cat([task.vectors.whole(text)[1:] for text in texts]).mean(0)
            for texts in (labelled.positives[concept], labelled.negatives[concept])
        ]
        difference_D = means[0] - means[1]
        torch.testing.assert_close(found_D, difference_D / difference_D.norm(), atol=1e-6, rtol=0)


def test_pca_equals_scikit_learns() -> None:
    task, _ = planted(strength=3.0, spread=1.0)
    for concept, found_D in enumerate(fit("PCA", task)):
        x_TD = task.vectors.of(task.labelled.positives[concept]).numpy()
        expected_D = principal(x_TD)
        np.testing.assert_allclose(found_D.numpy(), expected_D, atol=1e-3)


@pytest.mark.parametrize(("rows", "d_model"), [(2, 20), (5, 3), (30, 100), (700, 60)])
@pytest.mark.parametrize("small", [components.SMALL, 0])
def test_the_first_component_of_any_shape_is_scikit_learns(
    rows: int, d_model: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "SMALL", small)  # 0: always by a Krylov space
    generator = torch.Generator().manual_seed(rows)
    scale_D = torch.arange(1, d_model + 1).float() ** -0.7
    x_TD = torch.randn(rows, d_model, generator=generator) * scale_D + 5
    expected_D = principal(x_TD.double().numpy())
    found_D = first_component(x_TD, generator)
    np.testing.assert_allclose(found_D.numpy(), expected_D, atol=2e-3)


def test_lat_is_pca_of_unit_differences_of_pairs() -> None:
    task, _ = planted(spread=2.0)
    x_TD = task.vectors.of(task.labelled.positives[0])
    seed = int(task.rng(0, "LAT", 0).integers(2**62))
    pairs = paired(x_TD, torch.Generator().manual_seed(seed))
    assert len(pairs) == len(x_TD) // 2
    torch.testing.assert_close(pairs.norm(dim=-1), torch.ones(len(pairs)))
    expected_D = principal(pairs.numpy())
    np.testing.assert_allclose(fit("LAT", task)[0].numpy(), expected_D, atol=1e-3)


@pytest.mark.parametrize("C", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("n", [20, 60])
def test_exact_probes_equal_scikit_learns(C: float, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_CND = torch.randn(4, n, 30, generator=generator) + 3
    sign_N = torch.ones(n)
    sign_N[n // 3 :] = -1
    x_CND[:, : n // 3, 2] += 1
    found_CD = probe.logistic_regression(x_CND, sign_N, C)
    for x_ND, found_D in zip(x_CND, found_CD, strict=True):
        model = LogisticRegression(C=C, tol=1e-10, max_iter=100_000)
        expected_D = model.fit(x_ND.double().numpy(), sign_N.numpy()).coef_[0]
        np.testing.assert_allclose(
            found_D.numpy(), expected_D, atol=1e-3 * np.abs(expected_D).max()
        )


def naive_probe(task: FakeTask, concept: int, config: probe.Config, seed: int) -> torch.Tensor:
    """One concept, a text after the other, with torch's own gradients and loss."""
    labelled, vectors = task.labelled, task.vectors
    texts = labelled.of(concept)
    rng = task.rng(concept, "Probe", seed)
    linear = torch.nn.Linear(vectors.x_TD.shape[1], 1, bias=False)
    start = rng.uniform(-1, 1, vectors.x_TD.shape[1]) / vectors.x_TD.shape[1] ** 0.5
    linear.weight.data = torch.from_numpy(start[None]).float()
    optimizer = torch.optim.AdamW(
        linear.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * -(-len(texts) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    for _ in range(config.epochs):
        order = rng.permutation(len(texts))
        for first in range(0, len(texts), config.batch_size):
            here = order[first : first + config.batch_size]
            x_TD = torch.cat([vectors.of([texts[k]]) for k in here])
            label = [float(k < len(labelled.positives[concept])) for k in here for _ in
                     range(len(vectors.of([texts[k]])))]  # fmt: skip
            p = torch.sigmoid(linear(x_TD)[:, 0])
            torch.nn.BCELoss()(p, torch.tensor(label)).backward()
            weight, grad = linear.weight.data, linear.weight.grad
            assert grad is not None
            weight /= weight.norm()
            grad -= (grad * weight).sum() * weight
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return linear.weight.data[0] / linear.weight.data.norm()


def test_probes_trained_together_equal_a_plain_loop() -> None:
    task, _ = planted(n_texts=8)
    config = probe.Config(epochs=3, batch_size=5)
    found_CD = probe.fit(task, config, seed=3).vectors_CD
    for concept in range(3):
        expected_D = naive_probe(task, concept, config, seed=3)
        torch.testing.assert_close(found_CD[concept], expected_D, rtol=0, atol=1e-5)


def test_probes_are_the_same_however_many_fit_in_memory() -> None:
    task, _ = planted(n_texts=8)
    little = FakeTask(task.vectors, task.labelled)
    object.__setattr__(little, "memory_budget", 1)
    torch.testing.assert_close(fit("Probe", little), fit("Probe", task), rtol=0, atol=1e-6)


def test_random_directions_are_each_concepts_and_seeds_own() -> None:
    class Sae:
        class cfg:
            d_in = 40

    class Subject:
        sae = Sae()

    task, _ = planted()
    object.__setattr__(task, "subject", Subject())
    one, two = fit("Random", task, seed=0), fit("Random", task, seed=1)
    assert torch.equal(one, fit("Random", task, seed=0))
    assert cosine(one, two).abs().max() < 0.6
    assert cosine(one[0], one[1]).abs() < 0.6
