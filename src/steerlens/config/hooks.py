"""Names of the places where SAEs read, as different libraries call them."""

from __future__ import annotations

import re

_STACKS = (
    r"(?:model\.(?:language_model\.|decoder\.)?|language_model\.model\.|transformer\.|gpt_neox\.)?"
)
_BLOCK = re.compile(rf"{_STACKS}(?:layers|h)\.(\d+)")


def bridge_hook(name: str) -> str:
    """Give the bridge's name of a hook; Hugging Face's `model.layers.2` is its block's output.

    Any other name comes back as it is: what a module inside a block gives isn't the same in every
    type of model.
    """
    block = _BLOCK.fullmatch(name)
    return f"blocks.{block[1]}.hook_resid_post" if block else name


def layer_of_hook(name: str | None) -> int | None:
    """Return the block number in a hook's name, e.g. 3 for `blocks.3.hook_resid_post`."""
    match = re.match(r"blocks\.(\d+)\.", bridge_hook(name or ""))
    return int(match[1]) if match else None
