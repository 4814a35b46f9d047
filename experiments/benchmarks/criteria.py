"""What each criterion costs on the default: seconds whatever the number of features, and
milliseconds a feature.

From the top of the repository (three minutes on one core):

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.criteria --out criteria_cost.csv

In this one process and in seconds of its processor time, nothing read from the cache of finished
work. Each score runs three times: for a few features from nothing, for the same again, and for
more. What more features take makes the milliseconds a feature, and what the first run took beyond
its features is fixed: the prompt, 499 random directions, texts that are sampled or read. Beside it
one plain forward of the output score's prompt, and the naive reference of the tests, a feature or a
text at a time. Of the 500 texts of `outcome` it takes 40, of the 50 prompts of `prompt_robustness`
five, and multiplies, because their work is the same for each. A machine with other work inflates
all of them alike: compare within a run.
More arguments are settings of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from steerlens.config.compose import compose
from steerlens.config.prompts import PROMPTS
from steerlens.config.registry import load_part
from steerlens.config.settings import parse_settings
from steerlens.engine.examples import read_examples
from steerlens.engine.subject import Subject
from steerlens.runs.models import RunModels
from steerlens.runs.run import context_of
from steerlens.storage.files import write_text
from steerlens.storage.store import Store
from tests.support.naive import naive_logit_lens, naive_output_score, naive_steered_logits
from tests.support.naive_scores import naive_attribution, naive_largest, naive_side_effects

LAYER = 19
PROMPT = "From my experience,"
SAMPLES, SAMPLES_IN_ALL = 2, 25
"""Of each prompt of `outcome`: here, and by default."""
FEW_PROMPTS = json.dumps(PROMPTS[:5])
"""Of the 50 of `prompt_robustness`."""

Naive = Callable[[Subject, Any, int], object]


class Criterion(NamedTuple):
    """A score, as it is measured."""

    score: str
    overrides: Sequence[str] = ()
    sizes: tuple[int, int] = (32, 288)
    """How many features, a few and more."""
    naive: Naive | None = None
    """The reference for one feature; None where the tests have none that is a loop."""
    part: float = 1.0
    """The share of its work that the reference does here."""
    times: float = 1.0
    """What ours does a part of."""

    @property
    def name(self) -> str:
        """The score, with what isn't its default."""
        fewer = ("score.samples", "score.prompts")
        words = [word for word in self.overrides if not word.startswith(fewer)]
        return " ".join([self.score, *words])


def naive_gradient(subject: Subject, config: Any, feature: int) -> None:
    """Splice the SAE in and go back through it, a text at a time."""
    bos = [] if subject.bos is None else [subject.bos]
    examples = read_examples(Path(config.path), subject)
    for window in examples.windows(feature)[: config.max_examples]:
        naive_attribution(subject, np.array([*bos, *window.tokens]), every=False)


def naive_outcome(subject: Subject, config: Any, feature: int) -> None:
    """Read the texts of one prompt, one a forward, for this feature alone."""
    for _ in range(config.samples):
        naive_largest(subject, config.prompts[0], [1000] * config.max_new_tokens)


CRITERIA = (
    Criterion("random", sizes=(32, 1056)),
    Criterion("activation", sizes=(32, 1056)),
    Criterion("input"),
    Criterion("mean_logit", naive=lambda s, c, i: naive_logit_lens(s, i, c.top_k)),
    Criterion("mean_logit", ["lens=jacobian"]),
    Criterion("mean_logit", ["lens=effect"], (16, 80)),
    Criterion("output", naive=lambda s, c, i: naive_output_score(s, i, c.prompt, c.factor)),
    Criterion(
        "token_confidence", naive=lambda s, c, i: naive_steered_logits(s, i, c.prompt, c.factor)
    ),
    Criterion("lens_precision", sizes=(16, 80)),
    Criterion(
        "prompt_robustness",
        [f"score.prompts={FEW_PROMPTS}"],
        (16, 80),
        lambda s, c, i: [naive_output_score(s, i, text, c.factor) for text in c.prompts],
        part=0.1,
        times=10,
    ),
    Criterion(
        "side_effects",
        sizes=(8, 40),
        naive=lambda s, c, i: naive_side_effects(s, i, c.prompts, c.factor, c.tolerance),
    ),
    Criterion("gradient", sizes=(2, 8), naive=naive_gradient),
    Criterion("gradient", ["score.target=promoted", "lens=jacobian"], (2, 8)),
    Criterion("f1", ["score.labels=embedded", "score.topic=networking"], (16, 80)),
    Criterion(
        "outcome",
        [f"score.samples={SAMPLES}"],
        (16, 272),
        naive_outcome,
        part=SAMPLES / (20 * SAMPLES_IN_ALL),
        times=SAMPLES_IN_ALL / SAMPLES,
    ),
)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(
    criterion: Criterion, models: RunModels, subject: Subject, forward: float, more: Sequence[str]
) -> dict[str, Any]:
    """Return a row of the table."""
    words = [f"score={criterion.score}", *criterion.overrides]
    settings = parse_settings(compose(["layer=all", *words, *more]))
    (config,) = settings.scores.values()
    few, many = criterion.sizes
    ids = np.random.default_rng(0).choice(subject.d_sae, many, replace=False)
    score = load_part("scores", config.method).score
    with tempfile.TemporaryDirectory() as folder:
        ctx = replace(context_of(settings), store=Store(Path(folder)), later=models.after)

        def timed(n: int) -> float:
            fresh, subject.logit_lens_memo = ctx.for_group(), None
            fresh.later_subjects(subject)  # loading SAEs is nobody's cost
            return seconds(lambda: score(subject, ids[:n], config, fresh))

        first, again, longer = timed(few), timed(few), timed(many)
        each = max(0.0, longer - again) / (many - few) * criterion.times
        row: dict[str, Any] = {
            "score": criterion.name,
            "fixed_seconds": max(0.0, first * criterion.times - few * each),
            "ms_a_feature": 1000 * each,
            "forwards_of_the_prompt": each / forward,
            "features": many,
        }
        if criterion.naive is not None:
            reference = partial(criterion.naive, subject, config, int(ids[0]))
            naive = seconds(reference) / criterion.part
            row |= {"naive_ms": 1000 * naive, "naive_over_ours": naive / each if each else None}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="What each criterion costs on the default.")
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--scores", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    args, more = parser.parse_known_args()
    settings = parse_settings(compose(["layer=all", *more]))
    models = RunModels(settings.subject)
    subject = next(models.subjects([args.layer]))
    tokens = subject.to_tokens(PROMPT)
    subject.lm.bridge(tokens)
    forward = seconds(lambda: [subject.lm.bridge(tokens) for _ in range(5)]) / 5
    print(
        f"{subject.lm.name}, {subject.name}, layer {subject.layer}; one forward of the prompt "
        f"{1000 * forward:.1f} ms; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    print(f"{'score':<52}{'fixed s':>9}{'ms a feature':>14}{'forwards':>10}{'naive/ours':>12}")
    rows = []
    for criterion in CRITERIA:
        if args.scores and criterion.score not in args.scores:
            continue
        row = measure(criterion, models, subject, forward, more)
        rows.append(row)
        ratio = row.get("naive_over_ours")
        print(
            f"{row['score']:<52}{row['fixed_seconds']:>9.2f}{row['ms_a_feature']:>14.3f}"
            f"{row['forwards_of_the_prompt']:>10.2f}{f'{ratio:,.0f}x' if ratio else '':>12}",
            flush=True,
        )
    if args.out:
        write_text(args.out, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main()
