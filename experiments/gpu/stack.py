"""Take the training steps of `experiments.smollm2.step` with dense products, all layers in one.

On a GPU dense bfloat16 products are faster than sparse ones, and one batched product of all layers
is one launch. Losses, gradients, clipping and the choice of latents are `step.py`'s; in float32 a
test finds the same weights after some steps.

Letters: L layers, B tokens, D d_in, F d_sae, N dead latents of the layer that has most.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.smollm2.step import MAX_GRADIENT_NORM, Settings, Trainee, new_trainee


@dataclass
class Stack:
    """SAEs of one release in training, one a layer; inputs are scaled to a mean norm of sqrt(D)."""

    settings: Settings
    W_enc_LFD: nn.Parameter
    b_enc_LF: nn.Parameter
    W_dec_LFD: nn.Parameter
    b_dec_LD: nn.Parameter
    scale_L: Tensor
    steps_since_fired_LF: Tensor
    threshold_L: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Of the last step, each `[L]`: `explained` and `dead`."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.W_enc_LFD, self.b_enc_LF, self.W_dec_LFD, self.b_dec_LD]


def new_stack(settings: Settings, acts_LND: Tensor, seed: int) -> Stack:
    """Initialise an SAE of each layer, scaled and centred by activations `[L, N, D]`."""
    device = acts_LND.device
    mean_LD, mean_norm_L = acts_LND.mean(1).cpu(), acts_LND.norm(dim=-1).mean(-1).tolist()
    saes = [
        new_trainee(settings, mean, norm, seed)
        for mean, norm in zip(mean_LD, mean_norm_L, strict=True)
    ]
    parameters = [
        nn.Parameter(torch.stack([p.detach() for p in same]).to(device))
        for same in zip(*(sae.parameters for sae in saes), strict=True)
    ]
    return Stack(
        settings,
        *parameters,
        scale_L=torch.tensor([sae.scale for sae in saes], device=device),
        steps_since_fired_LF=torch.stack([sae.steps_since_fired for sae in saes]).to(device),
        threshold_L=torch.zeros(len(saes), device=device),
    )


def trainee(stack: Stack, index: int) -> Trainee:
    """Return one layer's SAE as `step.py` has it, on the CPU."""
    weights = (nn.Parameter(p.detach()[index].cpu().clone()) for p in stack.parameters)
    return Trainee(
        stack.settings,
        *weights,
        scale=stack.scale_L[index].item(),
        steps_since_fired=stack.steps_since_fired_LF[index].cpu().clone(),
        threshold=stack.threshold_L[index].item(),
    )


def _product(x: Tensor, y: Tensor, half: bool) -> Tensor:
    """Return the batched product in float32, computed in bfloat16 if `half`."""
    return (x.bfloat16() @ y.bfloat16()).float() if half else x @ y


def choose_latents(stack: Stack, pre_LBF: Tensor) -> Tensor:
    """Return the activations `[L, B, F]`, 0 where a latent isn't chosen.

    Decoder norms take part in the choice only (`step.choose_latents`). BatchTopK's threshold moves.
    """
    k, threshold_lr = stack.settings.k, stack.settings.threshold_lr
    rescaled_LBF = pre_LBF * stack.W_dec_LFD.detach().norm(dim=-1)[:, None]
    if stack.settings.architecture == "topk":
        chosen = rescaled_LBF.topk(k, dim=-1, sorted=False).indices
        return torch.zeros_like(pre_LBF).scatter_(-1, chosen, pre_LBF.gather(-1, chosen).relu())
    values, chosen = rescaled_LBF.relu().flatten(1).topk(k * pre_LBF.shape[1], sorted=False)
    flat = pre_LBF.flatten(1)
    acts = torch.zeros_like(flat).scatter_(-1, chosen, flat.gather(-1, chosen).relu())
    smallest_L = values.masked_fill(values <= 0, torch.inf).amin(dim=-1)
    stack.threshold_L = torch.lerp(stack.threshold_L, smallest_L, threshold_lr)
    return acts.view_as(pre_LBF)


@torch.no_grad()
def backward(stack: Stack, x_LBD: Tensor) -> None:
    """Set the gradients of the loss on a batch of unscaled activations, and note its metrics."""
    half = stack.settings.half
    W_enc_LFD, b_enc_LF, W_dec_LFD, b_dec_LD = (p.detach() for p in stack.parameters)
    x_LBD = x_LBD * stack.scale_L[:, None, None]
    centred_LBD = x_LBD - b_dec_LD[:, None]
    pre_LBF = _product(centred_LBD, W_enc_LFD.mT, half) + b_enc_LF[:, None]
    acts_LBF = choose_latents(stack, pre_LBF)
    del pre_LBF
    fires_LBF = acts_LBF > 0
    error_LBD = _product(acts_LBF, W_dec_LFD, half) + b_dec_LD[:, None] - x_LBD
    grad_LBD = 2 / x_LBD.shape[1] * error_LBD
    grad_acts_LBF = _product(grad_LBD, W_dec_LFD.mT, half) * fires_LBF
    stack.W_dec_LFD.grad = _product(acts_LBF.mT, grad_LBD, half)
    stack.W_enc_LFD.grad = _product(grad_acts_LBF.mT, centred_LBD, half)
    grad_b_enc_LF = stack.b_enc_LF.grad = grad_acts_LBF.sum(1)
    stack.b_dec_LD.grad = grad_LBD.sum(1) - (grad_b_enc_LF[:, None] @ W_enc_LFD)[:, 0]
    dead_LF = stack.steps_since_fired_LF > stack.settings.dead_steps
    stack.steps_since_fired_LF += 1
    stack.steps_since_fired_LF.masked_fill_(fires_LBF.any(1), 0)
    squared_L = error_LBD.pow(2).sum((1, 2))
    variance_L = (x_LBD - x_LBD.mean(1, keepdim=True)).pow(2).sum((1, 2))
    stack.metrics = {"explained": 1 - squared_L / variance_L, "dead": dead_LF.sum(-1)}
    if n_dead := int(stack.metrics["dead"].max()):
        _add_auxiliary(stack, centred_LBD, -error_LBD, dead_LF, n_dead)


def _add_auxiliary(
    stack: Stack, centred_LBD: Tensor, residual_LBD: Tensor, dead_LF: Tensor, n_dead: int
) -> None:
    """Add the gradients of the auxiliary loss; `n_dead` in the layer that has most."""
    half = stack.settings.half
    _, B, D = centred_LBD.shape
    rows_LN = dead_LF.float().topk(n_dead, dim=-1).indices
    dead_LN = dead_LF.gather(-1, rows_LN)  # layers with fewer are filled up with live ones
    rows_LND = rows_LN[..., None].expand(-1, -1, D)
    W_enc_LND, W_dec_LND = (
        p.detach().gather(1, rows_LND) for p in (stack.W_enc_LFD, stack.W_dec_LFD)
    )
    b_enc_LN = stack.b_enc_LF.detach().gather(-1, rows_LN)
    pre_LBN = _product(centred_LBD, W_enc_LND.mT, half) + b_enc_LN[:, None]
    rank_LBN = pre_LBN * W_dec_LND.norm(dim=-1)[:, None]
    rank_LBN = rank_LBN.masked_fill_(~dead_LN[:, None], -torch.inf)
    chosen = rank_LBN.topk(min(D // 2, n_dead), dim=-1, sorted=False).indices
    chosen_LBN = torch.zeros_like(pre_LBN, dtype=torch.bool).scatter_(-1, chosen, True)
    chosen_LBN &= dead_LN[:, None]
    acts_LBN = pre_LBN * chosen_LBN
    share_L = (stack.metrics["dead"] / (D // 2)).clamp(max=1)
    weight_L = stack.settings.aux_coefficient * share_L * 2 / B
    error_LBD = _product(acts_LBN, W_dec_LND, half) - residual_LBD
    grad_LBD = weight_L[:, None, None] * error_LBD
    grad_acts_LBN = _product(grad_LBD, W_dec_LND.mT, half) * chosen_LBN
    grad_b_enc_LN = grad_acts_LBN.sum(1)
    W_enc_grad, b_enc_grad, W_dec_grad, b_dec_grad = _gradients(stack)
    W_enc_grad.scatter_add_(1, rows_LND, _product(grad_acts_LBN.mT, centred_LBD, half))
    W_dec_grad.scatter_add_(1, rows_LND, _product(acts_LBN.mT, grad_LBD, half))
    b_enc_grad.scatter_add_(1, rows_LN, grad_b_enc_LN)
    b_dec_grad -= (grad_b_enc_LN[:, None] @ W_enc_LND)[:, 0]


def _gradients(stack: Stack) -> list[Tensor]:
    return [p.grad for p in stack.parameters if p.grad is not None]


def optimiser(stack: Stack, lr: float) -> torch.optim.Adam:
    """Return the same Adam as `step.optimiser`; its update is each number's own."""
    return torch.optim.Adam(stack.parameters, lr=lr, betas=(0.9, 0.999), fused=True)


def take_step(stack: Stack, adam: torch.optim.Adam, x_LBD: Tensor) -> None:
    """Take one step on a batch of unscaled activations; each layer's gradient is clipped alone."""
    backward(stack, x_LBD)
    gradients = _gradients(stack)
    norm_L = torch.stack([g.flatten(1).norm(dim=-1) for g in gradients]).norm(dim=0)
    factor_L = (MAX_GRADIENT_NORM / (norm_L + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient *= factor_L.view(-1, *[1] * (gradient.ndim - 1))
    adam.step()
    adam.zero_grad()
