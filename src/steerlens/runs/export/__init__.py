"""Steering vectors for other tools: one feature of one SAE as a constant to add in the model.

What other tools can do is add the same vector at a place of the model. steerlens' own edit adds
`factor * a_max` times the feature's decoder row, where `a_max` is the largest feature activation at
the steered position; a constant has to take one `a_max` for all positions. Everywhere else the two
are the same: what the SAE fails to reconstruct is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import steerlens
from steerlens.engine.intervention import decoder_rows
from steerlens.engine.logit_lens import logit_lens
from steerlens.engine.steered import SteeredPrompt
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.runs.export.site import find_place
from steerlens.storage.files import write_json

__all__ = ["Card", "SteeringVector", "measured_a_max", "steering_vector"]

SCALING = (
    "vector = factor * a_max * the feature's decoder row, a constant. steerlens itself takes the "
    "a_max of the position that it steers; here it is this card's a_max, the mean over the prompts "
    "named here at their last position."
)


@dataclass(frozen=True)
class Card:
    """What a vector is, and where it belongs."""

    model: str
    model_identity: Mapping[str, Any]
    sae: str
    sae_identity: Mapping[str, Any]
    hook_name: str
    """TransformerLens' name of the place that the SAE reads."""
    layer: int
    feature: int
    factor: float
    a_max: float
    prompts: tuple[str, ...]
    """Those at whose last position `a_max` was measured."""
    module: str
    """The module of the Hugging Face model that the vector is added to."""
    side: str
    """`output` or `input` of that module."""
    base_model_prefix: str
    """The attribute under which the Hugging Face model keeps its blocks."""
    logit_lens_tokens: tuple[str, ...]
    operator: str = "add"
    unit: str = "a_max"
    """What `factor` counts in."""
    chat_template: bool = False
    """Whether `prompts` were requests inside the model's chat template."""
    scaling: str = SCALING
    steerlens: str = steerlens.__version__

    @property
    def name(self) -> str:
        """Give the name of the file, without its ending."""
        return f"{self.hook_name}.feature_{self.feature}"


@dataclass(frozen=True)
class SteeringVector:
    """A vector with its card."""

    vector_D: torch.Tensor
    """(D,) float32 on the CPU: what is added, factor and all."""
    card: Card


def measured_a_max(subject: Subject, prompts: Sequence[str], chat_template: bool = False) -> float:
    """Return the mean over `prompts` of the largest feature activation at the last position.

    For an SAE that normalises what it reads, as much larger as its output is scaled back.

    Raises:
        SteerlensError: for no prompt or an empty one, or a template that the model hasn't.
    """
    if not prompts:
        raise SteerlensError("a_max needs at least one prompt to be measured at.")
    steered = (SteeredPrompt(subject, prompt, chat_template=chat_template) for prompt in prompts)
    return sum(float(prompt.a_max) for prompt in steered) / len(prompts)


@torch.no_grad()
def steering_vector(
    subject: Subject,
    feature: int,
    factor: float,
    a_max: float,
    prompts: Sequence[str] = (),
    chat_template: bool = False,
) -> SteeringVector:
    """Return the constant that raises `feature` by `factor * a_max`.

    Args:
        subject: the model and its SAE.
        feature: feature id.
        factor: steering factor s.
        a_max: from `measured_a_max`, or any activation.
        prompts: those `a_max` was measured at, for the card.
        chat_template: whether inside the model's chat template.

    Raises:
        SteerlensError: if the SAE's site is no output or input of a module, or for no such feature.
    """
    if not 0 <= feature < subject.d_sae:
        raise SteerlensError(f"there is no feature {feature}: 0 to {subject.d_sae - 1}.")
    site = find_place(subject)
    index_1 = torch.tensor([feature])
    change_1D = factor * a_max * decoder_rows(subject.sae, index_1)
    vector_D = site.carry(change_1D)[0].float().cpu()
    if not torch.isfinite(vector_D).all():
        raise SteerlensError(f"factor={factor} and a_max={a_max} give a vector that isn't finite.")
    tokens = logit_lens(subject, index_1)[0].tolist()
    return SteeringVector(
        vector_D.contiguous(),
        Card(
            model=subject.lm.name,
            model_identity=subject.lm.identity,
            sae=subject.name,
            sae_identity=subject.identity,
            hook_name=subject.hook_name,
            layer=subject.layer,
            feature=feature,
            factor=factor,
            a_max=a_max,
            prompts=tuple(prompts),
            chat_template=chat_template,
            module=site.module,
            side=site.side,
            base_model_prefix=site.base_model_prefix,
            logit_lens_tokens=tuple(subject.lm.tokenizer.batch_decode([[t] for t in tokens])),
        ),
    )


def card_path(path: Path) -> Path:
    """Return the card of an exported file, beside it: `NAME.json`."""
    return path.with_name(f"{path.name}.json")


def write_card(path: Path, vectors: Sequence[SteeringVector], note: str) -> None:
    """Write the card of the file `path`, atomically."""
    cards = {vector.card.name: asdict(vector.card) for vector in vectors}
    write_json(card_path(path), {"note": note, "vectors": cards})


def check_together(path: Path, vectors: Sequence[SteeringVector], suffixes: Sequence[str]) -> None:
    """Refuse vectors that can't stand in one file, and a file that would be taken for another."""
    if path.suffix not in suffixes:
        raise SteerlensError(f"{path} must end with {' or '.join(suffixes)}.")
    if not vectors:
        raise SteerlensError(f"there is no vector to write to {path}.")
    models = sorted({vector.card.model for vector in vectors})
    if len(models) > 1:
        raise SteerlensError(f"{path} can't hold vectors of both {models[0]} and {models[1]}.")
    names = [vector.card.name for vector in vectors]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SteerlensError(f"{path} can't hold {twice} twice.")
