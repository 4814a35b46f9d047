"""Supervised directions: many concepts at once, one at a time, and the machine's own limit.

    python -m experiments.benchmarks.baselines              # 500 concepts at Gemma-2-2B's width
    python -m experiments.benchmarks.baselines --default    # ReFT-r1 and SSV on the default model

The first needs no model: DiffMean, probe and PCA fit made-up activations with a spectrum like a
residual stream's. From each text's mean vector all 500 concepts are fitted; from all tokens, as
AxBench does it, as many as fit in `--gib`, because those of 500 concepts don't fit in memory: the
time of 500 is theirs, scaled. "Loop" is one concept at a time, with scikit-learn's
LogisticRegression and PCA where it has the method; "limit" the time that the arithmetic alone would
take at the rate of plain matrix products, or of reading the activations once where that is more.
"CPU" is the processor time of ours, over the threads: what it would take on a quiet machine.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.random_subject import seconds
from steerlens.config.registry import loadable_parts
from steerlens.data.concept_sets import Concept, ConceptSet
from steerlens.data.concept_sets.embedded import embedded_concepts
from steerlens.steering.methods.labelled import Labelled, Tokens, TokenVectors, label
from steerlens.steering.methods.task import Task

METHODS = loadable_parts("methods")

N_POSITIVE = 72
"""As many negatives, which all concepts share (AxBench)."""


def made_up(n_concepts: int, d_model: int, tokens_per_text: int) -> Task:
    """Activations whose variances fall as a power of their rank, each concept with a direction."""
    generator = torch.Generator().manual_seed(0)
    n_texts = N_POSITIVE * (n_concepts + 1)
    scale_D = 30 * torch.arange(1, d_model + 1).float() ** -0.75
    x_TD = torch.empty(n_texts * tokens_per_text, d_model)
    per_concept = N_POSITIVE * tokens_per_text
    for concept in range(n_concepts + 1):
        rows = x_TD[concept * per_concept : (concept + 1) * per_concept]
        rows.normal_(generator=generator).mul_(scale_D).add_(1.0)
        if concept < n_concepts:
            rows.add_(2 * torch.randn(d_model, generator=generator) / d_model**0.5)
    starts = list(range(0, len(x_TD) + 1, tokens_per_text))
    vectors = TokenVectors(x_TD, starts, [0] * n_texts)
    shared = list(range(N_POSITIVE * n_concepts, n_texts))
    positives = np.arange(N_POSITIVE * n_concepts).reshape(n_concepts, N_POSITIVE).tolist()
    texts = [Tokens([0] * tokens_per_text, 0, 1)] * n_texts
    labelled = Labelled(texts, positives, [shared] * n_concepts)
    concepts = tuple(Concept(id=c, name=str(c)) for c in range(n_concepts))
    nothing: Any = None
    task = Task(nothing, concepts, labelled)
    task.__dict__["vectors"] = vectors
    return task


def naive_diffmean(task: Task, concept: int) -> None:
    labelled = task.labelled
    means = [
        task.vectors.of(texts).mean(dim=0)
        for texts in (labelled.positives[concept], labelled.negatives[concept])
    ]
    torch.nn.functional.normalize(means[0] - means[1], dim=0)


def naive_probe(task: Task, concept: int) -> None:
    from sklearn.linear_model import LogisticRegression

    labelled, vectors = task.labelled, task.vectors
    texts = labelled.of(concept)
    rows = [vectors.of([text]) for text in texts]
    label = np.repeat(np.arange(len(texts)) < N_POSITIVE, [len(row) for row in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LogisticRegression(max_iter=1000).fit(torch.cat(rows).numpy(), label)


def naive_pca(task: Task, concept: int) -> None:
    from sklearn.decomposition import PCA

    PCA(n_components=2).fit(task.vectors.of(task.labelled.positives[concept]).numpy())


NAIVE: dict[str, Callable[[Task, int], None]] = {
    "DiffMean": naive_diffmean,
    "Probe": naive_probe,
    "PCA": naive_pca,
}


def flops(task: Task, name: str, settings: dict[str, Any]) -> float:
    """The products that a method can't do without, for one concept."""
    D = task.vectors.x_TD.shape[1]
    n_tokens = len(task.vectors.of(task.labelled.of(0)))
    if name == "DiffMean":
        return 2.0 * n_tokens * D
    if name == "PCA":  # two products with one vector, ten times
        return 10 * 2 * 2.0 * n_tokens / 2 * D
    if settings:  # the Gram matrix of the texts
        return 2.0 * (2 * N_POSITIVE) ** 2 * D
    return METHODS[name].Config().epochs * 2 * 2.0 * n_tokens * D


def machine(task: Task) -> tuple[float, float]:
    """Products a second of large matrices, and bytes a second of reading them."""
    x = torch.randn(2048, 2304)
    w = torch.randn(2304, 2304)
    rate = 2.0 * 2048 * 2304**2 / min(seconds(lambda: x @ w) for _ in range(3))
    some = task.vectors.x_TD[: 2**28 // task.vectors.x_TD.shape[1] // 4]
    return rate, some.numel() * 4 / min(seconds(lambda: some.sum()) for _ in range(3))


def measure(task: Task, what: str, n_concepts: int, loops: int, probe: dict[str, Any]) -> float:
    """Prints a row for each method; returns the seconds of all of them for `n_concepts`."""
    rate, bandwidth = machine(task)
    read = 4 * len(task.vectors.of(task.labelled.of(0))) * task.vectors.x_TD.shape[1] / bandwidth
    total = 0.0
    for name in NAIVE:
        settings = probe if name == "Probe" else {}
        method = METHODS[name]
        config = method.Config(**settings)
        task.vectors.__dict__.pop("sum_ND", None)  # the sums are part of the first method's work
        used = time.process_time()
        ours = seconds(lambda: method.fit(task, config, 0)) / len(task) * n_concepts  # noqa: B023
        used = (time.process_time() - used) / len(task) * n_concepts / torch.get_num_threads()
        loop = seconds(lambda: [NAIVE[name](task, c) for c in range(loops)])  # noqa: B023
        loop *= n_concepts / loops
        limit = max(flops(task, name, settings) / rate, read) * n_concepts
        total += ours
        print(
            f"{what:<12}{name:<10}{ours:>10.1f}{used:>10.1f}{loop:>10.1f}{loop / ours:>9.1f}x"
            f"{limit:>10.1f}{ours / limit:>9.1f}x",
            flush=True,
        )
    return total


def activations_alone(n_concepts: int, d_model: int, tokens: int, gib: float, loops: int) -> None:
    print(f"threads {torch.get_num_threads()}; {n_concepts} concepts of {2 * N_POSITIVE} texts")
    titles = ("ours s", "CPU s", "loop s", "ours/it", "limit s", "of limit")
    print(f"{'from':<12}{'method':<10}" + "".join(f"{title:>10}" for title in titles))
    task = made_up(n_concepts, d_model, 1)
    total = measure(task, "means", n_concepts, loops, {"solver": "exact"})
    print(f"all three: {total:.1f} s")
    del task
    fits = int(gib * 2**30 / (4 * N_POSITIVE * tokens * d_model)) - 1
    task = made_up(min(n_concepts, max(1, fits)), d_model, tokens)
    total = measure(task, f"{tokens} tokens", n_concepts, min(loops, 2), {})
    print(f"all three: {total:.1f} s, scaled from {len(task)} concepts")


def trained(names: Sequence[str], layer: int, loops: int) -> None:
    """Time the methods on all topics of the documentation, and on one topic at a time."""
    from steerlens import load_subject
    from tests.support.naive_training import naive_training

    subject = load_subject(layer=layer)
    made: list[ConceptSet] = []
    reading = seconds(lambda: made.append(embedded_concepts()))
    concepts = made[0].concepts
    print(f"threads {torch.get_num_threads()}; {len(concepts)} concepts, made in {reading:.0f} s")
    task = Task(subject, concepts, label(subject, concepts))
    print(f"vectors of {len(task.labelled.texts)} texts: {seconds(lambda: task.vectors):.1f} s")
    for name in names:
        method = METHODS[name]
        ours = seconds(lambda: method.fit(task, method.Config(), 0))  # noqa: B023
        config = method.Config(epochs=1)
        loop = seconds(lambda: [naive_training(task, c, config, 0) for c in range(loops)])  # noqa: B023
        loop *= method.Config().epochs * len(concepts) / loops
        print(f"{name}: ours {ours:.1f} s, loop {loop:.1f} s, {loop / ours:.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Supervised directions of many concepts.")
    parser.add_argument("--default", action="store_true", help="trained directions instead")
    parser.add_argument("--concepts", type=int, default=500)
    parser.add_argument("--d-model", type=int, default=2304)
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a text")
    parser.add_argument("--gib", type=float, default=1.0, help="memory for activations of tokens")
    parser.add_argument("--loops", type=int, default=5, help="concepts of the naive loop")
    parser.add_argument("--layer", type=int, default=19)
    parser.add_argument("--methods", nargs="+", default=["ReFT-r1", "SSV"])
    args = parser.parse_args()
    if args.default:
        trained(args.methods, args.layer, min(args.loops, 1))
    else:
        activations_alone(args.concepts, args.d_model, args.tokens, args.gib, args.loops)


if __name__ == "__main__":
    main()
