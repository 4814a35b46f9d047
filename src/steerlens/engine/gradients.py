"""What the model's next token owes to each feature of a text: one backward pass for all features.

With the SAE's error kept, the hook's value is `decode(a) + error`, so that the gradient with
respect to an activation is that of the vector where the SAE writes, along the feature's decoder
row. The text runs as it is: nothing is edited.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from steerlens.engine.activations.stream import residuals
from steerlens.engine.intervention import decoder_rows, encode
from steerlens.engine.subject import Subject
from steerlens.engine.subject.forward import final_vectors
from steerlens.engine.subject.site import never_fires


class Attribution(NamedTuple):
    """Of a text and some features, each (L, n), float32 on the CPU."""

    acts_Ln: torch.Tensor
    """Activations."""
    gradient_Ln: torch.Tensor
    """Gradient of the log-probability (nats) with respect to each of them."""


def greedy_attribution(
    subject: Subject, tokens_L: np.ndarray, ids_n: torch.Tensor, every_position: bool = False
) -> Attribution:
    """Return activations, and gradients of the log-probability of the model's greedy next token.

    Args:
        subject: model and SAE.
        tokens_L: token ids of a text, with BOS where the SAE was trained with one.
        ids_n: feature ids.
        every_position: the sum over the token that follows each position, instead of the one that
            follows the text.
    """
    lm, site, sae = subject.lm, subject.site, subject.sae
    caught: dict[str, torch.Tensor] = {}

    def look(x_1LD: torch.Tensor, hook: Any) -> None:
        caught["read"] = x_1LD.detach().flatten(2)

    def cut(out_1LD: torch.Tensor, hook: Any) -> torch.Tensor:
        caught["written"] = out_1LD.detach().requires_grad_()
        return caught["written"]

    tokens_1L = torch.from_numpy(np.asarray(tokens_L, dtype=np.int64))[None].to(lm.device)
    with torch.enable_grad():
        h_1LD = final_vectors(lm.bridge, tokens_1L, [(site.read, look), (site.write, cut)])
        for name, hook_name in (("read", site.read), ("written", site.write)):
            if name not in caught:
                raise never_fires(hook_name, lm)
        h_LD = h_1LD[0] if every_position else h_1LD[0, -1:]
        logits_LV = lm.head.finish(lm.head.logits(h_LD).float())
        greedy = logits_LV.log_softmax(dim=-1).max(dim=-1).values.sum()
        (gradient_1LD,) = torch.autograd.grad(greedy, [caught["written"]])
    with torch.no_grad():
        encoded = encode(sae, caught["read"], caught["written"].flatten(2))
        scale_L = encoded.out_scale_BL[0].float()
        gradient_LD = gradient_1LD[0].flatten(1).to(sae.W_dec.device).float()
        # One by one: a product's additions would have another order for another number of rows.
        along = [(gradient_LD * d_D.float()).sum(dim=-1) for d_D in decoder_rows(sae, ids_n)]
        acts_Ln = encoded.acts_BLF[0][:, ids_n.to(sae.W_dec.device)].float()
        return Attribution(acts_Ln.cpu(), (torch.stack(along, dim=-1) * scale_L[:, None]).cpu())


@torch.no_grad()
def text_activations(subject: Subject, tokens_L: np.ndarray, ids_n: torch.Tensor) -> torch.Tensor:
    """Return activations of features at all positions of a text, (L, n) float32 on the CPU."""
    (x_1LD,), _ = residuals([subject], [np.asarray(tokens_L)])
    acts_LF = subject.sae.encode(x_1LD.to(subject.sae.W_dec.device))[0]
    return acts_LF[:, ids_n.to(acts_LF.device)].float().cpu()
