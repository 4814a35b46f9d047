"""What the paper's experiments cost on a GPU, from shapes: an extrapolation, as none was at hand.

    python -m experiments.paper.cost

counts the matrix products of a run (`steerlens.runs.plan.price`) and divides by a share of the
GPU's peak. The share is what our benchmarks reach of plain matrix products on a CPU (README, "How
fast"); whether a GPU reaches it is not measured. Below the table stands what the headers of
`conf/experiment` say of experiments whose subjects need a GPU or the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from steerlens.config.compose import compose
from steerlens.config.parse import parse_layers
from steerlens.report.terminal import duration
from steerlens.results.text import markdown_table
from steerlens.runs.plan.price import NEW, Flops
from steerlens.runs.plan.price import flops as flops_of

SUBJECTS = ("gemma-2-2b", "gemma-2-9b", "llama-3.1-8b", "pythia-70m")
UNTIED = ("llama-3.1-8b", "pythia-70m-deduped")
"""Models whose unembedding isn't their embedding."""

PEAK = {"A40": 149.7e12, "H100 SXM": 989e12}
"""Dense bfloat16 FLOP/s, by the manufacturer."""
SHARE = (0.83, 0.64)
"""Of the rate of matrix products: the best and the worst of our benchmarks."""

FEATURES = 100
"""A layer."""
TEXTS = 13 * 50
"""Of a feature: 12 factors and none, 50 prompts."""
NEUTRAL_PROMPTS = 50
CORPUS = 1e6
"""Tokens of a corpus."""
CONCEPT_TEXTS, CONCEPT_TOKENS = 790_000, 128
"""Texts of Table 1 with all methods, and tokens of each (README.md)."""
LEAST_MINUTES = 1
"""Of a subject: importing, loading weights and SAEs, figures and the report."""


@cache
def flops(subject: str, n_new: int = NEW) -> Flops:
    """Return what the pieces of a run on the subject take, with `n_new` tokens in a text."""
    config = compose([f"subject={subject}"])
    n_layers = config.model.n_layers
    assert n_layers
    each = flops_of(config.model, config.sae, config.evaluator, n_layers, n_new, UNTIED)
    assert each
    return each


@cache
def runs(subject: str) -> dict[str, float]:
    """FLOPs of the experiments, each from nothing."""
    config = compose([f"subject={subject}", "layer=late"])
    n_layers = config.model.n_layers
    assert n_layers
    late = len(parse_layers("late", n_layers, config.model.late_from))
    one = flops(subject)

    def steered(layers: int) -> float:
        scores = FEATURES * layers * one.score + CORPUS * one.token
        return scores + FEATURES * layers * TEXTS * (one.text + one.perplexity)

    return {
        "scores": FEATURES * n_layers * one.score + CORPUS * one.token,
        "steering": steered(n_layers),
        "figure_5": steered(late),
        "appendix_d": FEATURES * n_layers * NEUTRAL_PROMPTS * one.score,
    }


def takes(flops_of_subject: Mapping[str, float]) -> str:
    """Return what the header of an experiment says of its time on an H100: the least possible, by
    the FLOPs of its subjects, one after the other.
    """
    seconds = sum(flops_of_subject.values()) / (PEAK["H100 SXM"] * SHARE[0])
    minutes = max(round(seconds / 60), LEAST_MINUTES * len(flops_of_subject))
    hours, rest = divmod(minutes, 60)
    length = f"{hours} h {rest} min" if hours else f"{minutes} min"
    return f"at least {length} (H100), counted for {', '.join(flops_of_subject)}"


def takes_of_run(run: str, subjects: Sequence[str]) -> str:
    """Return the same of one of `runs`."""
    return takes({subject: runs(subject)[run] for subject in subjects})


def takes_elsewhere() -> dict[str, str]:
    """Return the same of experiments that are no run of `runs`, by their names."""
    late = compose(["subject=gemma-2-2b", "layer=late"])
    assert late.model.n_layers
    n_late = len(parse_layers("late", late.model.n_layers, late.model.late_from))
    return {
        "gemma_2_2b": takes({"gemma-2-2b": 16_384 * n_late * flops("gemma-2-2b").score}),
        "paper/appendix_d": takes_of_run("appendix_d", SUBJECTS[:2]),
        "paper/table1": takes(
            {"gemma-2-9b-it": CONCEPT_TEXTS * flops("gemma-2-9b-it", CONCEPT_TOKENS).text}
        ),
    }


def table() -> str:
    """Per subject: GFLOPs of the pieces, and the least and most time of the runs on each GPU."""
    rows = []
    for subject in SUBJECTS:
        named = [subject, *(f"{number / 1e9:.3g}" for number in flops(subject))]
        for gpu, peak in PEAK.items():
            times = [
                " to ".join(duration(number / (peak * share)) for share in SHARE)
                for number in runs(subject).values()
            ]
            rows.append([*named, gpu, *times])
            named = [""] * len(named)
    pieces = ["GFLOPs: score", "token of the corpus", "text", "its perplexity"]
    return markdown_table(["subject", *pieces, "GPU", *runs(SUBJECTS[0])], rows)


if __name__ == "__main__":
    print(table())
    for name, text in takes_elsewhere().items():
        print(f"experiment={name}: {text}")
