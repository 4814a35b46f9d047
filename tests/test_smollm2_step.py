"""The training step of the default's SAEs equals SAELens' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput

from experiments.smollm2.step import (
    MAX_GRADIENT_NORM,
    Settings,
    Trainee,
    inference_weights,
    new_trainee,
    optimiser,
    take_step,
)

D_IN, D_SAE, K = 16, 48, 4
CLASSES: dict[str, tuple[Any, Any]] = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def trainee(architecture: str, x_BD: torch.Tensor, dead: torch.Tensor) -> Trainee:
    """Initialise an SAE whose decoder norms differ, so that they decide which latents are
    chosen."""
    settings = Settings(architecture, D_SAE, K, half=False)
    sae = new_trainee(settings, x_BD.mean(0), x_BD.norm(dim=-1).mean().item(), seed=0)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) * 10 + 1)
        sae.W_enc_FD.add_(torch.randn(D_SAE, D_IN) * 0.1)
        sae.b_enc.add_(torch.randn(D_SAE) * 0.1)
    sae.steps_since_fired = dead * (settings.dead_steps + 1.0)
    return sae


@pytest.mark.parametrize("with_dead", [False, True])
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_a_step_equals_saelens_own(architecture: str, with_dead: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x_BD = torch.randn(40, D_IN) * 3 + 1
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[::3] = with_dead
    ours = trainee(architecture, x_BD, dead)
    sae_class, config_class = CLASSES[architecture]
    theirs = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, k=K))
    weights = {
        "W_enc": ours.W_enc_FD.detach().T.clone(),
        "b_enc": ours.b_enc.detach().clone(),
        "W_dec": ours.W_dec.detach().clone(),
        "b_dec": ours.b_dec.detach().clone(),
    }
    theirs.load_state_dict(theirs.state_dict() | weights)

    output = theirs.training_forward_pass(
        TrainStepInput(
            sae_in=x_BD * ours.scale,
            coefficients={},
            dead_neuron_mask=dead if with_dead else None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), MAX_GRADIENT_NORM)
    torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.9, 0.999)).step()
    take_step(ours, optimiser(ours, 1e-2), x_BD)

    for name, tensor in theirs.named_parameters():
        mine = ours.W_enc_FD.T if name == "W_enc" else getattr(ours, name)
        assert (mine - weights[name]).abs().max() > 1e-3  # the step did something
        torch.testing.assert_close(mine, tensor, rtol=1e-4, atol=1e-5)

    theirs.fold_activation_norm_scaling_factor(ours.scale)
    theirs.save_inference_model(tmp_path)
    from sae_lens import SAE

    saved = SAE.load_from_disk(tmp_path).state_dict()
    for name, tensor in inference_weights(ours).items():
        torch.testing.assert_close(tensor, saved[name], rtol=1e-4, atol=1e-5)
