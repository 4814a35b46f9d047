"""Drift: how many other features a steered text has that the unsteered one has not.

The unedited model reads prompt and text again, and its SAE says which features fire on the text's
tokens. Not counted are the features that are steered with, and tokens among the 20 logit-lens
tokens of the feature: what steering is for isn't drift. Compare with a control that is steered as
hard: texts that are sampled anew (`generation.temperature` above 0) drift by themselves.

Reading costs as much again as the model's blocks up to the SAE's, so it is measured only with
`metrics.drift.enabled=true`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerlens.steering.metrics.texts import MetricRun, Texts, without_closing

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.engine.subject import Subject

NEEDS_FEATURE = True
USES_EVALUATOR = False

OWN_TOKENS = 20
"""Logit-lens tokens of the steered feature that aren't looked at (success@20)."""

FIRED = "fired_features"
"""The column of feature ids that `measure` returns, of which `with_drift` makes `drift`."""


@dataclass
class DriftConfig:
    """Settings of what fires in the texts."""

    enabled: bool = False
    """Read the texts once more and count."""


Config = DriftConfig


def measure(
    texts: Texts, subject: Subject, config: DriftConfig, run: MetricRun
) -> Mapping[str, Sequence[Sequence[int]]]:
    """Return the column `fired_features`: ids of all features that fire on the text's own tokens,
    but the feature's logit-lens tokens.
    """
    import numpy as np
    import torch

    from steerlens.engine.activations.stream import bytes_per_token, residuals, similar_length
    from steerlens.engine.logit_lens import logit_lens
    from steerlens.engine.memory import rows_that_fit

    assert texts.features is not None
    features_N, row_of_text = np.unique(texts.features, return_inverse=True)
    lens_NK = logit_lens(subject, torch.from_numpy(features_N), OWN_TOKENS, run.memory_budget)
    special = set(subject.lm.tokenizer.all_special_ids)
    prompts = {
        prompt: subject.to_tokens(prompt, run.chat_template)[0].tolist()
        for prompt in dict.fromkeys(texts.prompts)
    }
    written = [without_closing(ids, special) for ids in texts.token_ids]
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    pieces = [
        np.array([*prompts[prompt], *ids], dtype=np.int64)[:n_ctx]
        for prompt, ids in zip(texts.prompts, written, strict=True)
    ]
    fired: list[list[int]] = [[] for _ in pieces]
    at_once = rows_that_fit(run.memory_budget // 2, bytes_per_token([subject]), 2048)
    for batch in similar_length(range(len(pieces)), pieces, at_once):
        (x_BLD,), _ = residuals([subject], [pieces[index] for index in batch])
        with torch.no_grad():
            fires_BLF = subject.sae.encode(x_BLD.to(subject.sae.device)) > 0
        for fires_LF, index in zip(fires_BLF, batch, strict=True):
            start = len(prompts[texts.prompts[index]])
            text = torch.from_numpy(pieces[index][start:])
            is_other_T = ~torch.isin(text, lens_NK[row_of_text[index]].cpu())
            fires_TF = fires_LF[start : start + len(text)][is_other_T.to(fires_LF.device)]
            fired[index] = fires_TF.any(dim=0).nonzero()[:, 0].tolist()
        run.progress(len(batch))
    return {FIRED: fired}


def with_drift(measured: pd.DataFrame) -> pd.DataFrame:
    """Return texts with `drift` in the place of what fires in them, if that was measured.

    Args:
        measured: texts that are told apart by feature, control, together, factor, prompt and
            sample, those at factor 0 of each among them.
    """
    if FIRED not in measured:
        return measured
    keys = ["feature", "control", "together", "prompt", "sample"]
    columns: Any = measured[[*keys, "factor", FIRED]]
    rows = columns.to_dict("records")
    unsteered = {
        tuple(row[key] for key in keys): {*row[FIRED]} for row in rows if row["factor"] == 0
    }
    drift = []
    for row in rows:
        steered = {row["feature"], *map(int, filter(None, row["together"].split("+")))}
        before = unsteered[tuple(row[key] for key in keys)]
        drift.append(len({*row[FIRED]} - before - steered))
    return measured.drop(columns=FIRED).assign(drift=drift)
