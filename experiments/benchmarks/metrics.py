"""What the metrics of steered texts cost, beside making the texts.

From the top of the repository (the default model; a minute on one core):

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.metrics

In this one process and in seconds of its processor time: texts of some features at several factors,
as `concept=WORD` makes them (requests inside the chat template), prompts included, then each metric
of them that is on by default. Nothing is read from the cache of finished work. More arguments are
settings of the run.
"""

from __future__ import annotations

import argparse
import time

from steerlens.config.compose import compose
from steerlens.config.settings import parse_settings
from steerlens.engine.generation import generate
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import load_subjects
from steerlens.runs.models import steering_of
from steerlens.steering.features import text_rows
from steerlens.steering.measured import SteeredVectors
from steerlens.steering.metrics import MetricRun, Texts, metrics

SETTINGS = ["layer=19", "steer=grid", "generation.n_prompts=10", "generation.chat_template=auto"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the metrics cost, beside the texts.")
    parser.add_argument("--features", type=int, default=3)
    parser.add_argument("--factors", default="0,0.7,1.4,2.8,5.6")
    parser.add_argument("--rounds", type=int, default=2, help="the best counts")
    args, overrides = parser.parse_known_args()
    settings = parse_settings(compose([*SETTINGS, "generation.stop=null", *overrides]))
    subject = next(load_subjects(settings.subject))
    steering = steering_of(subject.lm, settings.steering)
    generation = steering.generation
    factors = [float(factor) for factor in args.factors.split(",")]
    arms = {(feature, "", ""): factors for feature in range(args.features)}
    rows = text_rows(arms, steering)
    run = RunContext()
    vectors = SteeredVectors(subject, steering.steer, generation, run)

    def seconds_of_texts() -> float:
        nonlocal texts
        run.cache.prompt_states.clear()
        start = time.process_time()
        texts = generate(subject, rows, steering.steer, generation, run, vectors=vectors.by_row)
        return time.process_time() - start

    texts = generate(subject, rows.head(16), steering.steer, generation, run)  # what happens once
    of_texts = min(seconds_of_texts() for _ in range(args.rounds))
    metric_run = MetricRun(
        chat_template=bool(generation.chat_template), prompt_states=run.cache.prompt_states
    )
    columns = Texts(
        features=texts["feature"].to_numpy(dtype="int64"),
        prompts=texts["prompt"].tolist(),
        texts=texts["text"].tolist(),
        token_ids=[list(ids) for ids in texts["token_ids"]],
        factors=texts["factor"].tolist(),
        made_of=lambda: vectors.of(texts),
    )
    n_tokens = sum(map(len, columns.token_ids))
    print(f"{len(texts)} texts of {n_tokens:,} tokens: {of_texts:.2f} s", flush=True)
    total = 0.0
    for name, metric in metrics().items():
        if not getattr(metric.Config(), "enabled", True):
            continue
        times = []
        for _ in range(args.rounds):
            start = time.process_time()
            metric.measure(columns, subject, metric.Config(), metric_run)
            times.append(time.process_time() - start)
        total += min(times)
        print(f"{name}: {min(times):.2f} s, {min(times) / of_texts:.0%} of the texts", flush=True)
    print(f"all metrics: {total:.2f} s, {total / of_texts:.0%} of the texts")


if __name__ == "__main__":
    main()
