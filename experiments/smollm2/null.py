"""Output scores of the default beside two nulls, an isotropic and a harder one.

    python -m experiments.smollm2.null --features experiments/results/demo/features.parquet

Isotropic directions (those of `output_score_p`) are mostly far from everything that the model ever
writes into its residual stream. The harder null draws Gaussian directions with the covariance of
the residual stream at the SAE's hook, which are combinations of what is active there. Both have the
norms of decoder rows, and the same features in whose place they stand. p-values are corrected for a
layer's number of features (Benjamini and Hochberg).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control

from steerlens import load_subject
from steerlens.config.compose import compose
from steerlens.engine.activations.stream import residuals
from steerlens.engine.corpus_pass import context_length, cut_corpus
from steerlens.engine.logit_lens import logit_lens_of_directions
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores.output import Config, draw_directions, p_values, score_toward

LEVEL = 0.05
PIECES_AT_ONCE = 8
LAYERS = (4, 9, 14, 19, 24, 28)


def covariance(subject: Subject, n_tokens: int, run: RunContext) -> torch.Tensor:
    """Return the (D, D) covariance of the residual stream over `n_tokens` of the run's corpus."""
    assert run.corpus is not None
    length = context_length(subject, None, run)
    pieces = list(cut_corpus(subject, run.corpus, length, n_tokens))
    rows = []
    for start in range(0, len(pieces), PIECES_AT_ONCE):
        (x_BLD,), mask_BL = residuals([subject], pieces[start : start + PIECES_AT_ONCE])
        mask_BL[:, : subject.n_uncounted] = False
        rows.append(x_BLD[mask_BL].double())
    return torch.cov(torch.cat(rows).T)


def coloured_directions(
    subject: Subject, n: int, covariance_DD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (n,) feature ids and (n, D) directions with that covariance and those rows' norms."""
    ids_n, isotropic_nD = draw_directions(subject, n)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    root_DD = vectors_DD * values_D.clamp(min=0).sqrt()
    norm_n1 = isotropic_nD.double().norm(dim=-1, keepdim=True)
    coloured_nD = torch.nn.functional.normalize(isotropic_nD.double() @ root_DD.T, dim=-1) * norm_n1
    return ids_n, coloured_nD.to(isotropic_nD.dtype)


def null_scores(
    subject: Subject, directions: tuple[torch.Tensor, torch.Tensor], config: Config, run: RunContext
) -> np.ndarray:
    """Return the (n,) output scores of directions, each toward its own logit-lens tokens."""
    ids_n, directions_nD = directions
    tokens_nK = logit_lens_of_directions(subject, directions_nD, config.top_k, run.memory_budget)
    columns = score_toward(subject, ids_n, tokens_nK, config, run, directions_nD)
    return np.asarray(columns["output_score"])


def row(name: str, scores_F: np.ndarray, null_n: np.ndarray) -> dict[str, str | float]:
    """Return what a null says of a layer's features."""
    p_F = p_values(scores_F, null_n)
    return {
        "null": name,
        "null_median": float(np.median(null_n)),
        "null_at_least_0.01": float((null_n >= 0.01).mean()),
        "null_at_least_0.1": float((null_n >= 0.1).mean()),
        "p_at_most_0.05": float((p_F <= LEVEL).mean()),
        "q_at_most_0.05": float((false_discovery_control(p_F) <= LEVEL).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--directions", type=int, default=499)
    parser.add_argument("--tokens", type=int, default=20_000)
    arguments = parser.parse_args()
    features = pd.read_parquet(arguments.features)
    config = Config(null_directions=arguments.directions)
    run = RunContext(corpus=compose([]).corpus)
    rows = []
    for layer in LAYERS:
        subject = load_subject(layer=layer)
        scores_F = features.loc[features["layer"] == layer, "output_score"].dropna().to_numpy(float)
        spread_DD = covariance(subject, arguments.tokens, run)
        for name, directions in (
            ("isotropic", draw_directions(subject, arguments.directions)),
            ("covariance", coloured_directions(subject, arguments.directions, spread_DD)),
        ):
            found = row(name, scores_F, null_scores(subject, directions, config, run))
            rows.append({"layer": layer, "features": len(scores_F), **found})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
