"""Let the default model write text: chats, answers to requests, stories, and plain text.

    python -m experiments.smollm2.sample --model DIR --scratch DIR --minutes 40

SAEs that are to explain what a steered model does need the text that the model itself writes. Each
batch is a file of token rows `[B, L]` (`samples/NNNN.npy`, uint16) seeded by its number, so that a
killed run goes on with the next number."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

ROWS = 192
NEW_TOKENS = 256
INDEX = Path("/usr/share/wordnet/index.noun")

REQUESTS = (
    "Write a short story about {}.",
    "Write a story for children in which {} is important.",
    "Explain what {} is in simple words.",
    "What should I know about {}?",
    "Describe {} to somebody who has never seen it.",
    "Write a poem about {}.",
    "Give me three facts about {}.",
    "How is {} used in everyday life?",
    "What is the history of {}?",
    "Write a letter to a friend about {}.",
    "Why do people care about {}?",
    "Compare {} and {}.",
    "Write a dialogue between two people about {}.",
    "Tell me something funny about {}.",
    "Write a short news article about {}.",
    "What are the advantages and disadvantages of {}?",
    "Give me some advice about {}.",
    "Write the opening of a novel that begins with {}.",
)
"""User turns; each `{}` is a noun of WordNet."""

BEGINNINGS = (
    "Once upon a time, there was a {}",
    "The {} was",
    "In the history of {},",
    "It was a cold morning, and the {}",
    "I have always thought that {}",
    "People who live near a {}",
    "Scientists have found that {}",
    "My favourite thing about {} is",
    "A {} is a kind of",
    "She looked at the {} and said,",
    "{}\n\n",
    "The best way to make {}",
)
"""Beginnings of plain text, without a template."""


def common_nouns() -> list[str]:
    """List nouns of one lower-case word with at least one sense that occurs in WordNet's tagged
    texts."""
    nouns = []
    for line in INDEX.read_text().splitlines():
        fields = line.split()
        if line.startswith(" ") or not fields[0].isalpha():
            continue
        n_pointers = int(fields[3])
        if int(fields[5 + n_pointers]) > 0:
            nouns.append(fields[0])
    return nouns


def prompts(tokenizer: PreTrainedTokenizerBase, nouns: list[str], rng: random.Random) -> list[str]:
    """Mix `ROWS` prompts: two fifths chats from nothing, two fifths requests, one fifth plain
    text."""
    chat = str(tokenizer.apply_chat_template([{"role": "user", "content": "X"}], tokenize=False))
    from_nothing = chat[: chat.index("X")]

    def filled(template: str) -> str:
        return template.format(*(rng.choice(nouns) for _ in range(template.count("{}"))))

    def request() -> str:
        message = {"role": "user", "content": filled(rng.choice(REQUESTS))}
        return str(
            tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        )

    n_plain, n_requests = ROWS // 5, 2 * ROWS // 5
    plain = [filled(rng.choice(BEGINNINGS)) for _ in range(n_plain)]
    requests = [request() for _ in range(n_requests)]
    return plain + requests + [from_nothing] * (ROWS - n_plain - n_requests)


@torch.no_grad()
def write_batch(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, number: int, nouns: list[str]
) -> np.ndarray:
    """Sample token rows `[ROWS, L]`, left-padded with 0, from temperature 1 and min-p 0.05."""
    torch.manual_seed(number)
    texts = prompts(tokenizer, nouns, random.Random(number))
    encoded = tokenizer(texts, return_tensors="pt", add_special_tokens=False, padding=True)
    rows = model.generate(  # type: ignore[operator]
        **encoded,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.05,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=[0],
        pad_token_id=0,
        cache_implementation="static",
        disable_compile=True,
    )
    return rows.numpy().astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.pad_token_id = 0
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    nouns = common_nouns()
    folder = arguments.scratch / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    number = arguments.first
    while time.monotonic() < end:
        file = folder / f"{number:04d}.npy"
        if not file.exists():
            start = time.monotonic()
            rows = write_batch(model, tokenizer, number, nouns)
            partial = file.with_suffix(".partial.npy")
            np.save(partial, rows)
            partial.replace(file)
            seconds = time.monotonic() - start
            print(
                f"{file.name}: {rows.shape}, {ROWS * NEW_TOKENS / seconds:.0f} tokens/s", flush=True
            )
        number += 1


if __name__ == "__main__":
    main()
