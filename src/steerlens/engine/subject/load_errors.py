"""What is wrong with a model that doesn't load, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerlens.config.schema import ModelConfig
from steerlens.errors import SteerlensError


def load_error(entry: ModelConfig, error: Exception) -> SteerlensError:
    """Tell `error`, which Transformers raised while it loaded the model of `entry`."""
    text = str(error)
    if "gated" in text.lower() or "401" in text or "403" in text:
        page = entry.license_url or f"the page of {entry.path}"
        return SteerlensError(
            f"the weights of {entry.path} are gated: accept the licence at {page}, then set the "
            "environment variable HF_TOKEN to your Hugging Face token."
        )
    return SteerlensError(
        f"can't load the model {entry.path}: {type(error).__name__}: {first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """Give the first line of what `error` says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refuse_made_up_weights(path: object, info: Mapping[str, Any]) -> None:
    """Refuse weights that Transformers would fill in at random, and only warn.

    Args:
        path: what was loaded.
        info: Transformers' `output_loading_info`.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(problem) or ())
        if keys:
            raise SteerlensError(
                f"the weights of {path} don't fit its config.json: {problem.split('_')[0]} "
                f"{keys[0]}" + (f" and {len(keys) - 1} more." if len(keys) > 1 else ".")
            )
