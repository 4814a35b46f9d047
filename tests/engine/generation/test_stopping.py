"""What ends a text, and what of it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerlens.engine.generation.row_batches import eos_ids
from steerlens.engine.generation.stopping import EOS, LENGTH, STOP, Stopping
from steerlens.engine.subject import Subject
from tests.support.generating import (
    PROMPTS,
    SAMPLED,
    assert_equal_ids,
    ids_of,
    rows_of,
    texts_of,
)

MakeSubject = Callable[..., Subject]


PIECES = ("Ġa", "b.c")
"""Tokens of more than a byte."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: a token can begin with a space, hold a stop string, or be half a letter."""
    bytes_of = {
        char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    vocab = {**bytes_of, **{text: 256 + n for n, text in enumerate(PIECES)}}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def ids(tokenizer: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    """The ids of `PIECES`; of any other text, one for each byte."""
    vocab, found = tokenizer.get_vocab(), []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for piece in pieces:
        if piece in PIECES:
            found.append(vocab[piece])
        else:
            for word, _ in byte_level.pre_tokenize_str(piece):
                found += [vocab[char] for char in word]
    return found


def end(stopping: Stopping, token_ids: list[int]) -> tuple[int, str] | None:
    """After how many tokens the text ends, and why, asked token by token."""
    for n in range(1, len(token_ids) + 1):
        if reason := stopping.reason(token_ids[:n]):
            return n, reason
    return None


def test_length_ends_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    stopping = Stopping(tokenizer, [], [], 3)
    assert end(stopping, ids(tokenizer, "abcdef")) == (3, LENGTH)
    assert end(stopping, ids(tokenizer, "ab")) is None


def test_any_eos_ends_a_text_and_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    eos = tokenizer.get_vocab()["</s>"]
    b = ids(tokenizer, "b")[0]
    stopping = Stopping(tokenizer, [eos, b], ["b"], 3)
    assert end(stopping, [*ids(tokenizer, "a"), eos]) == (2, EOS)
    assert end(stopping, ids(tokenizer, "acb")) == (3, EOS)
    assert end(stopping, ids(tokenizer, "b")) == (1, EOS)


@pytest.mark.parametrize(
    ("stops", "pieces", "n"),
    [
        (["."], ["a", "b", ".", "c"], 3),
        (["."], ["."], 1),
        (["."], ["a", "b.c", "d"], 2),  # inside a token
        (["b.c"], ["a", "b.c"], 2),
        ([".cd"], ["a", "b.c", "d", "e"], 3),  # across two tokens
        (["ab"], ["a", "b"], 2),
        (["ab"], ["a", "c", "b"], None),
        (["abcde"], ["x", "a", "b", "c", "d", "e"], 6),
        (["abab"], ["a", "b", "c", "a", "b", "a", "b"], 7),
        (["aa"], ["a", "a", "a"], 2),
        ([" a"], ["x", "Ġa"], 2),
        (["\n\n"], ["a", "\n", "b", "\n", "\n"], 5),
        (["xyz", "."], ["a", ".", "x", "y", "z"], 2),
        (["xyz", "!"], ["a", ".", "x", "y", "z"], 5),
        (["é"], ["a", "é", "b"], 3),  # two tokens, one letter
        (["日本"], ["日本"], 6),
        (["."], ["a", "b"], None),
        ([], ["a", "."], None),
    ],
)
def test_the_token_that_completes_a_stop_string_is_the_last(
    tokenizer: PreTrainedTokenizerFast, stops: list[str], pieces: list[str], n: int | None
) -> None:
    stopping = Stopping(tokenizer, [], stops, 100)
    assert end(stopping, ids(tokenizer, *pieces)) == (None if n is None else (n, STOP))


def test_a_long_text_is_searched_to_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    stopping = Stopping(tokenizer, [], ["the end"], 1000)
    assert end(stopping, ids(tokenizer, "x" * 300 + "the end" + "y")) == (307, STOP)


def test_eos_comes_from_the_tokenizer_and_from_the_models_settings(
    tiny_subject: MakeSubject,
) -> None:
    subject = tiny_subject()
    settings: Any = subject.lm.bridge.original_model
    for told, expected in ((None, {1}), (7, {1, 7}), ([7, 8], {1, 7, 8})):
        settings.generation_config.eos_token_id = told
        assert eos_ids(subject) == expected
    tokenizer: Any = subject.lm.tokenizer
    tokenizer.eos_token = None
    assert eos_ids(subject) == {7, 8}


def cut(ids: list[int], last: set[int]) -> list[int]:
    """`ids` up to the first of `last`, included."""
    ends = [place for place, one in enumerate(ids) if one in last]
    return ids[: ends[0] + 1] if ends else ids


@pytest.mark.parametrize("positions", ["last", "generated"])
@pytest.mark.parametrize("architecture", ["jumprelu", "temporal"])
def test_finished_rows_leave_and_the_others_go_on_unchanged(
    tiny_subject: MakeSubject, architecture: str, positions: str
) -> None:
    subject = tiny_subject("llama", architecture)
    rows = rows_of(factors=[0.0, 0.7], prompts=PROMPTS, samples=2)
    settings = {**SAMPLED, "positions": positions}
    whole = texts_of(subject, rows, **settings)
    eos = set(range(1, 211, 5))
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = sorted(eos)
    texts = texts_of(subject, rows, **settings)
    expected = [cut(ids, eos) for ids in ids_of(whole)]
    assert_equal_ids(expected, texts)
    assert len({len(ids) for ids in expected}) > 3
    for found, reason in zip(ids_of(texts), texts["stopped_by"], strict=True):
        assert reason == (EOS if found[-1] in eos else LENGTH)
    assert set(texts["stopped_by"]) == {EOS, LENGTH}


def test_a_stop_string_ends_texts_with_the_token_that_completes_it(subject: Subject) -> None:
    rows = rows_of(factors=[0.0, 0.7], prompts=PROMPTS, samples=2)
    whole = texts_of(subject, rows, **SAMPLED)
    texts = texts_of(subject, rows, **{**SAMPLED, "stop": ["w17", "7 w2"]})
    assert {STOP, LENGTH} <= set(texts["stopped_by"])
    for ids, text, reason, all_ids in zip(
        ids_of(texts), texts["text"], texts["stopped_by"], ids_of(whole), strict=True
    ):
        assert ids == all_ids[: len(ids)]
        words = str(subject.lm.tokenizer.decode(ids, skip_special_tokens=True))
        assert text == (f" {words}" if words else "")
        assert ("w17" in text or "7 w2" in text) == (reason == STOP)
        # The text before its last token has none of them yet.
        before = text.rpartition(" ")[0]
        assert before.count("w17") + before.count("7 w2") == 0


def test_a_stop_string_that_only_stands_between_tokens_ends_a_text(subject: Subject) -> None:
    # This tokenizer has no token with a space; only two words together show one.
    stopping = Stopping(subject.lm.tokenizer, [], [" "], 100)
    assert end(stopping, [5, 6, 7]) == (2, STOP)


def test_a_stop_string_in_the_prompt_ends_nothing(subject: Subject) -> None:
    rows = rows_of([5], [0.0], ["the . Note that", "that ."])
    texts = texts_of(subject, rows, **{**SAMPLED, "stop": "."})
    without = texts_of(subject, rows, **SAMPLED)
    dot = int(subject.lm.tokenizer.convert_tokens_to_ids("."))  # type: ignore[arg-type]
    assert ids_of(texts) == [cut(ids, {dot}) for ids in ids_of(without)]
    assert min(map(len, ids_of(texts))) > 1


def test_eos_closes_the_tokens_and_is_not_in_the_text(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject()
    rows = rows_of([5], [0.7], ["Note that"])
    first = ids_of(texts_of(subject, rows, **SAMPLED))[0]
    assert min(first) > 2  # no special token
    assert first[2] not in first[:2]
    tokenizer: Any = subject.lm.tokenizer
    model: Any = subject.lm.bridge.original_model
    model.generation_config.eos_token_id = first[2]  # the tokenizer doesn't know
    text = texts_of(subject, rows, **SAMPLED).iloc[0]
    assert text["token_ids"].tolist() == first[:3]
    assert text["stopped_by"] == EOS
    assert text["text"] == "".join(f" {one}" for one in tokenizer.convert_ids_to_tokens(first[:2]))
    model.generation_config.eos_token_id = first[0]
    text = texts_of(subject, rows, **SAMPLED).iloc[0]
    assert (text["text"], *text["token_ids"], text["stopped_by"]) == ("", first[0], EOS)
