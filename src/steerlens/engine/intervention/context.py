"""Steering as a context manager, for the model's own forwards and its own `generate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steerlens.config.parse import parse_ids
from steerlens.engine.intervention import Operation, Targets, check_affine, feature_targets
from steerlens.engine.intervention.hooks import Edits, SteeringHooks
from steerlens.engine.subject import Subject, refuse_no_subject
from steerlens.errors import SteerlensError, refuses_misfits


@refuses_misfits
@contextmanager
def steer(
    subject: Subject,
    feature: int | Sequence[int] | None = None,
    factor: float = 1.0,
    *,
    direction: torch.Tensor | None = None,
    weights: float | Sequence[float] | None = None,
    operator: str = "add",
    unit: str = "a_max",
    keep_error: bool = True,
    positions: str = "last",
    max_activation: float | Sequence[float] | None = None,
) -> Iterator[SteeringHooks]:
    """Steer every forward of the subject's model in the block, and leave the model as it was.

    A forward without past keys and values is a prompt, one with them new tokens: `generate` has to
    use its cache, as it does by default.

    Args:
        subject: from `load_subject`.
        feature: a feature id, or several that are steered together.
        factor: steering factor s (Eq. 6); 0 changes nothing.
        direction: (D,) a plain vector to add instead of features: `s * unit * direction`.
        weights: share of each feature in the factor; 1 by default.
        operator: add, clamp, min_clamp or ablate.
        unit: a_max, max_activation, norm or raw.
        keep_error: keep what the SAE fails to reconstruct.
        positions: last (the prompt's last and every new one), all, generated or prompt.
        max_activation: of each feature, for unit=max_activation.

    Yields:
        The hooks; `fired` counts the forwards that were edited.

    Raises:
        SteerlensError: for what isn't there or doesn't go together.
    """
    refuse_no_subject(subject)
    if not isinstance(keep_error, bool):
        raise SteerlensError(f"keep_error={keep_error!r} is neither True nor False.")
    operation = Operation(operator, unit, keep_error)
    targets = _targets(subject, feature, factor, direction, weights, max_activation)
    check_affine(subject.sae, torch.randn(1, 2, subject.sae.cfg.d_in).to(subject.sae.W_dec))
    hooks = SteeringHooks(subject, operation, targets, positions)

    with hooked(subject, hooks):
        yield hooks


@contextmanager
def hooked(subject: Subject, edits: Edits) -> Iterator[None]:
    """`edits` are on in every forward of the subject's model in the block, and told which are of a
    prompt: those without past keys and values. The model is as it was afterwards.
    """

    def tell(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        edits.is_prompt = past is None or past.get_seq_length() == 0

    model: Any = subject.lm.bridge.original_model
    handle = model.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        with subject.lm.bridge.hooks(fwd_hooks=edits.hooks()):
            yield
    finally:
        handle.remove()


def _targets(
    subject: Subject,
    feature: int | Sequence[int] | None,
    factor: float,
    direction: torch.Tensor | None,
    weights: float | Sequence[float] | None,
    max_activation: float | Sequence[float] | None,
) -> Targets:
    """Return one row, for all texts of a batch."""
    if (feature is None) == (direction is None):
        raise SteerlensError("steer with a feature or with a direction: give one of them.")
    factor_1 = torch.tensor([_finite("factor", factor)])
    if direction is not None:
        d_out = subject.sae.W_dec.shape[-1]
        if not isinstance(direction, torch.Tensor) or direction.shape != (d_out,):
            is_what = f"is of type {type(direction).__name__}"
            if isinstance(direction, torch.Tensor):
                is_what = f"has shape {tuple(direction.shape)}"
            raise SteerlensError(
                f"the direction {is_what}; at {subject.hook_name} it must be a tensor of shape "
                f"({d_out},)."
            )
        vectors_11D = direction.to(subject.sae.W_dec)[None, None]
        ones_11 = vectors_11D.new_ones(1, 1)
        return Targets(vectors_11D, factor_1.to(ones_11), ones_11)
    ids = parse_ids(feature, subject.d_sae, where="feature")
    tensors = []
    for name, values in (("weights", weights), ("max_activation", max_activation)):
        numbers = None
        if values is not None:
            listed: Iterable[Any] = [values]
            if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
                listed = values
            numbers = torch.tensor(
                [[_finite(name, value) for value in listed]], dtype=torch.float64
            )
            if numbers.shape[1] != len(ids):
                raise SteerlensError(
                    f"{name} has {numbers.shape[1]} numbers for {len(ids)} features."
                )
        tensors.append(numbers)
    return feature_targets(subject.sae, torch.tensor([ids]), factor_1, *tensors)


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SteerlensError(f"{name}={value!r} is not a number.")
    return number
