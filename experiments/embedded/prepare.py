"""First two stages: the corpus as one file, the tokenizer, and the packed token rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from settings import PACKAGE, Settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from steerlens.corpus.installed import documents

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPLITS = ("train", "validation")
MIN_STRING = 200
"""Shorter strings are messages; comments, without their code, say little to anyone."""


def write_corpus(settings: Settings) -> None:
    """Read the installation once; every later stage reads this file."""
    settings.scratch.mkdir(parents=True, exist_ok=True)
    partial = settings.corpus_file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for document in documents(kinds=("docstring", "string")):
            if document.kind == "docstring" or len(document.text) >= MIN_STRING:
                file.write(json.dumps({**asdict(document), "split": document.split}) + "\n")
    partial.replace(settings.corpus_file)


def read_corpus(settings: Settings, split: str) -> Iterator[dict[str, str]]:
    with settings.corpus_file.open(encoding="utf-8") as file:
        for line in file:
            document = json.loads(line)
            if document["split"] == split:
                yield document


def train_tokenizer(settings: Settings) -> None:
    """Byte-level BPE that prepends BOS by itself."""
    tokenizer = Tokenizer(models.BPE())
    # One digit a token: numbers in documentation are arbitrary and would fill the vocabulary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.tokenizer.vocabulary,
        min_frequency=settings.tokenizer.min_frequency,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document["text"] for document in read_corpus(settings, "train"))
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=settings.model.context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(settings.scratch / "tokenizer")


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    trained = settings.scratch / "tokenizer"
    shipped = PACKAGE / "embedded" / "model"
    return PreTrainedTokenizerFast.from_pretrained(
        shipped if settings.tokenizer.shipped else trained
    )


def pack(settings: Settings) -> None:
    """One array for each split: modules shuffled, each after a BOS, its documents in their order.

    Documents are short (half of them under 40 tokens); what stands around one in its module is
    what makes it predictable, and what a continuation should be about.
    """
    tokenizer = load_tokenizer(settings)
    sizes = {}
    for split in SPLITS:
        modules: dict[str, list[str]] = {}
        for document in read_corpus(settings, split):
            modules.setdefault(document["module"], []).append(document["text"])
        texts = ["\n".join(documents) for documents in modules.values()]
        order = np.random.default_rng(0).permutation(len(texts))
        encoded = tokenizer([texts[i] for i in order])["input_ids"]
        tokens = np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in encoded])
        np.save(settings.scratch / f"{split}.npy", tokens)
        sizes[split] = {
            "modules": len(modules),
            "documents": sum(map(len, modules.values())),
            "tokens": len(tokens),
            "bytes": sum(len(text.encode()) for text in texts),
        }
    (settings.scratch / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def load_sizes(settings: Settings) -> dict[str, dict[str, int]]:
    return json.loads((settings.scratch / "sizes.json").read_text())


def load_rows(settings: Settings, split: str, bos_id: int = 0) -> torch.Tensor:
    """Rows [N, L] that all begin with BOS, as every prompt does later."""
    tokens = torch.from_numpy(np.load(settings.scratch / f"{split}.npy").astype(np.int32))
    width = settings.model.context - 1
    rows = tokens[: len(tokens) // width * width].view(-1, width)
    return torch.cat([torch.full((len(rows), 1), bos_id, dtype=torch.int32), rows], dim=1)


def is_newer(result: Path, *sources: Path) -> bool:
    """Whether a stage can be skipped."""
    return result.exists() and all(
        result.stat().st_mtime >= source.stat().st_mtime for source in sources
    )
