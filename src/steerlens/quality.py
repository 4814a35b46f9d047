"""How well an SAE reconstructs ordinary text: explained variance, L0, dead features."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steerlens.corpus import texts
from steerlens.corpus.pieces import pieces
from steerlens.corpus_pass import context_length
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.score_run import ScoreRun
    from steerlens.subject import Subject

FILE = "quality.json"
TOKENS_AT_ONCE = 4096


def describe(subject: Subject, n_tokens: int | None, run: ScoreRun) -> Mapping[str, Any]:
    """A row of `saes.parquet`; without `n_tokens` only what needs no text.

    Raises:
        SteerlensError: the corpus has no text.
    """
    sae = subject.sae
    row = {
        "model": subject.lm.name,
        "sae": subject.name,
        "hook_name": subject.hook_name,
        "layer": subject.layer,
        "n_layers": subject.lm.n_layers,
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": subject.d_sae,
        "parameters": sum(one.numel() for one in sae.parameters()),
    }
    return row | (_kept(subject, n_tokens, run) if n_tokens else {})


def _kept(subject: Subject, n_tokens: int, run: ScoreRun) -> dict[str, Any]:
    """`quality`, from the store if it is there."""
    if run.store is None:
        return quality(subject, n_tokens, run)
    key = {**subject.key, "quality": n_tokens, "corpus": run.corpus_key()}
    file = run.store.folder(key) / FILE
    if file.is_file():
        return json.loads(file.read_text())
    found = quality(subject, n_tokens, run)
    run.store.keep(key, FILE, json.dumps(found).encode())
    return found


def quality(subject: Subject, n_tokens: int, run: ScoreRun) -> dict[str, Any]:
    """Reconstructs the first `n_tokens` tokens of the corpus with SAELens' own encode and decode.

    BOS counts nowhere.

    Returns:
        `tokens`; `explained_variance`: 1 - sum |x - decode(a)|^2 / sum |x - mean x|^2, null for a
        transcoder, which reconstructs something else than x; `l0`: active features a token;
        `dead_share`: features that are active on none of these tokens.
    """
    import torch

    from steerlens.activations.stream import residuals
    from steerlens.subject.site import is_transcoder

    assert run.corpus is not None
    length = context_length(subject, None, run)
    cut = pieces(texts(run.corpus), subject.lm.tokenizer, length, subject.bos, n_tokens)
    sae, skip = subject.sae, 0 if subject.bos is None else 1
    fired_F = torch.zeros(subject.d_sae, dtype=torch.bool)
    sum_D = torch.zeros(sae.cfg.d_in, dtype=torch.float64)
    squares, missed, active, tokens = 0.0, 0.0, 0, 0
    with (
        torch.no_grad(),
        run.task(n_tokens, f"quality, layer {subject.layer}", "tokens") as advance,
    ):
        while group := list(itertools.islice(cut, max(1, TOKENS_AT_ONCE // length))):
            (x_BLD,), mask_BL = residuals([subject], group)
            mask_BL[:, :skip] = False
            acts_BLF = sae.encode(x_BLD.to(sae.device))
            x_ND = x_BLD[mask_BL].double().cpu()
            if not is_transcoder(sae):
                decoded_ND = sae.decode(acts_BLF)[mask_BL].double().cpu()
                missed += float((decoded_ND - x_ND).square().sum())
            sum_D += x_ND.sum(0)
            squares += float(x_ND.square().sum())
            fires_NF = acts_BLF[mask_BL] > 0
            active += int(fires_NF.sum())
            fired_F |= fires_NF.any(0).cpu()
            tokens += len(x_ND)
            advance(len(x_ND))
    variance = squares - float(sum_D.square().sum()) / max(tokens, 1)
    if not tokens or variance <= 0:
        raise SteerlensError("quality.n_tokens needs a corpus with some text.")
    return {
        "tokens": tokens,
        "explained_variance": None if is_transcoder(sae) else 1 - missed / variance,
        "l0": active / tokens,
        "dead_share": float((~fired_F).float().mean()),
    }
