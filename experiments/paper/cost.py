"""What the paper's experiments cost on a GPU, from shapes: an extrapolation, as none was at hand.

    python -m experiments.paper.cost

counts the matrix products of a run (`steerlens.runs.plan.price`) and divides by a share of the
GPU's peak. The share is what our benchmarks reach of plain matrix products on a CPU (README, "How
fast"); whether a GPU reaches it is not measured.
"""

from __future__ import annotations

from steerlens.config.compose import compose
from steerlens.config.parse import parse_layers
from steerlens.report.terminal import duration
from steerlens.results.text import markdown_table
from steerlens.runs.plan.price import Flops
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


def flops(subject: str) -> Flops:
    """Return what the pieces of a run on the subject take."""
    config = compose([f"subject={subject}"])
    n_layers = config.model.n_layers
    assert n_layers
    each = flops_of(config.model, config.sae, config.evaluator, n_layers, untied=UNTIED)
    assert each
    return each


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
