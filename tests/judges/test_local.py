"""judge=local: a Hugging Face model in this process, against one token at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from steerlens.config.schema import JudgeConfig, PathsConfig, RunConfig
from steerlens.errors import SteerlensError
from steerlens.judges import Item, load_judge
from steerlens.judges.chat import Answer, Message, Unanswered
from steerlens.judges.items import UNANSWERED, UNPARSABLE
from steerlens.judges.local import LocalChat
from tests.support.gguf import save_pair
from tests.support.tiny import D_VOCAB, save_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ITEMS = [
    Item("One text.", "boats", "Write."),
    Item("Another, which is a good deal longer than the first.", "cars"),
    Item("A third", "boats"),
]


def rating_of(token: int) -> str:
    """The word of a token; all of them are ratings, so that a random model rates, too."""
    between = f"{token:08b}".replace("0", " ").replace("1", "*")
    return f"Rating{between}[[{token % 3}]]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that answers with ratings and nothing else."""
    path = save_model(tmp_path_factory.mktemp("judge"), "llama", max_position_embeddings=1024)
    save_words(path, TEMPLATE)
    return path


def save_words(path: Path, template: str | None) -> None:
    vocab = {"<bos>": 0, "<eos>": 1, "<unk>": 2, **{rating_of(n): n for n in range(3, D_VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    fast.save_pretrained(path)


def configure(folder: Path, cache: Path, **settings: Any) -> RunConfig:
    run = RunConfig(device="cpu", paths=PathsConfig("unused", str(cache)))
    run.judge = JudgeConfig("local", str(folder), **{"max_tokens": 6, **settings})
    return run


def greedy(folder: Path, prompt_ids: list[int], n: int) -> list[int]:
    """The naive reference: the whole text again for every token."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = list(prompt_ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_those_of_one_token_at_a_time(folder: Path, batch: int, tmp_path: Path) -> None:
    chat = LocalChat(configure(folder, tmp_path, concurrency=batch))
    asked = [(Message("user", text),) for text in ("a", "a b c d e", "a b")]
    found = [one for k in range(0, 3, batch) for one in chat.answers(asked[k : k + batch])]
    for conversation, answer in zip(asked, found, strict=True):
        assert isinstance(answer, Answer)
        ids = [0, *[2] * (2 + len(conversation[0].content.split()))]  # <bos>, unknown words
        new = greedy(folder, ids, 6)
        assert answer.text == " ".join(rating_of(token) for token in new if token > 2)
        assert (answer.input_tokens, answer.output_tokens) == (len(ids), len(new))
        assert answer.stopped == ("stop" if new[-1] == 1 else "length")


def test_it_rates_and_the_rerun_loads_what_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(folder, tmp_path, concurrency=2)
    judge = load_judge(config)
    judge.check()
    rated = judge.rate(ITEMS)
    assert rated.judge == f"local:{folder}"
    assert [list(rating) for rating in rated.ratings] == [
        ["concept", "instruction", "fluency"],
        ["concept", "fluency"],
        ["concept", "fluency"],
    ]
    assert all(one.value in (0, 1, 2) for rating in rated.ratings for one in rating.values())
    assert (rated.cost.requests, rated.cost.usd) == (7, 0.0)
    monkeypatch.setattr(LocalChat, "_generate", None)
    assert load_judge(config).rate(ITEMS).ratings == rated.ratings


def test_memory_that_runs_out_halves_the_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = LocalChat(configure(folder, tmp_path))
    asked = [(Message("user", "a " * n),) for n in (1, 2, 3, 4)]
    whole, sizes = chat.answers(asked), []
    generate = LocalChat._generate

    def short_of_memory(self: LocalChat, tokens: Any) -> list[Answer]:
        sizes.append(len(tokens))
        if len(tokens) > 1:
            raise torch.OutOfMemoryError
        return generate(self, tokens)

    monkeypatch.setattr(LocalChat, "_generate", short_of_memory)
    assert chat.answers(asked) == whole
    assert sizes[:2] == [4, 2]


def test_a_text_longer_than_the_context_is_missing_and_the_others_are_rated(
    folder: Path, tmp_path: Path
) -> None:
    long = Item("word " * 1024, "boats")
    rated = load_judge(configure(folder, tmp_path)).rate([long, ITEMS[0]])
    assert {one.missing for one in rated.ratings[0].values()} == {UNANSWERED}
    assert "are more than the model's 1024" in rated.ratings[0]["fluency"].detail
    assert {one.missing for one in rated.ratings[1].values()} == {None}
    chat = LocalChat(configure(folder, tmp_path))
    (only,) = chat.answers([(Message("user", "word " * 1024),)])
    assert isinstance(only, Unanswered)


def test_a_model_that_never_rates_leaves_all_missing(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "judge", "llama", max_position_embeddings=4096)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    rated = load_judge(configure(folder, tmp_path)).rate(ITEMS[1:])
    missing = {one.missing for rating in rated.ratings for one in rating.values()}
    assert missing == {UNPARSABLE}
    assert rated.cost.requests == 4 * 3


def test_what_cannot_judge_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama")
    with pytest.raises(SteerlensError, match="has no chat template, so it follows no instructions"):
        load_judge(configure(base, tmp_path))
    with pytest.raises(SteerlensError, match="can't load"):
        load_judge(configure(tmp_path / "nowhere", tmp_path))


def test_a_gguf_judges_as_the_model_that_it_was_made_from(tmp_path: Path) -> None:
    file, model = save_pair(tmp_path / "judge")
    chat = LocalChat(configure(file, tmp_path / "cache"))
    assert chat.identity["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    (answer,) = chat.answers([(Message("user", "the"),)])
    assert isinstance(answer, Answer)
    ids, written = chat._tokens((Message("user", "the"),)), int(answer.output_tokens or 0)
    for _ in range(written):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answer.text == chat._tokenizer.decode(ids[-written:], skip_special_tokens=True)
