"""Steers a Hugging Face model with vectors that steerlens exported.

Needs torch, transformers and safetensors, nothing else:

    python steer.py VECTORS.safetensors MODEL "From my experience,"

The card VECTORS.safetensors.json says where each vector goes. A vector is a constant: the feature's
decoder row times factor times a_max, where a_max is the card's, measured once. steerlens itself
measures a_max anew at the position that it steers, so the two agree only at the card's prompt (with
one prompt, and last_only=True).
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file


@contextlib.contextmanager
def steered(model, path, strength=1.0, last_only=False):
    """Steer with the model within the `with` block.

    Args:
        model: as AutoModelForCausalLM loads it.
        path: the .safetensors file; its card lies beside it.
        strength: multiplies the vectors; 1 = as exported, 0 = not steered.
        last_only: add the vectors at the last position of each forward only, instead of at all.
    """
    vectors = load_file(path)
    cards = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["vectors"]
    handles = []
    try:
        for name, card in cards.items():
            module = model.get_submodule(card["module"])
            add = adder(strength * vectors[name], last_only)
            if card["side"] == "output":
                handles.append(module.register_forward_hook(on_output(add)))
            else:
                handles.append(module.register_forward_pre_hook(on_input(add)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def adder(vector, last_only):
    """Return what adds the vector to hidden states."""

    def add(x):  # (rows, positions, d_model)
        x = x.clone()
        x[:, -1 if last_only else slice(None)] += vector.to(x)
        return x

    return add


def on_output(add):
    """Return a hook that adds to a module's output."""

    def hook(module, args, output):
        return (add(output[0]), *output[1:]) if isinstance(output, tuple) else add(output)

    return hook


def on_input(add):
    """Return a hook that adds to a module's input."""
    return lambda module, args: (add(args[0]), *args[1:])


def main():
    """Write a steered text beside an unsteered one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--last-only", action="store_true")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokens = tokenizer(args.prompt, return_tensors="pt")
    with steered(model, args.path, args.strength, args.last_only):
        out = model.generate(**tokens, max_new_tokens=args.max_new_tokens, do_sample=False)
    print(repr(tokenizer.decode(out[0])))


if __name__ == "__main__":
    main()
