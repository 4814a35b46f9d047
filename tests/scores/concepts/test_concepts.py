"""Candidates for a concept against a loop over whole logits; tokens of three kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerlens import SteerlensError
from steerlens.config.schema import LensConfig
from steerlens.engine.lens import promoted_tokens
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.scores.concepts import (
    FileTokenizer,
    candidates,
    concept_tokens,
    mean_max_activation,
    names,
)
from tests.support.naive import naive_logit_lens
from tests.support.tiny import D_MODEL, D_SAE, MODELS
from tests.support.trained import FOLDER, trained_subject

SPACED = ("_file", "file", "_Files", "FILE", "_filing", "_profile", "_fi", "_unfiled", "\n", "_the")


def tokenizer_of(words: Iterable[str], space: str, decoder: object) -> PreTrainedTokenizerFast:
    vocab = {"<unk>": 0}
    for word in words:
        vocab.setdefault(word.replace("_", space), len(vocab))
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("space", "decoder"),
    [("Ġ", decoders.ByteLevel()), ("▁", decoders.Metaspace()), (" ", decoders.Fuse())],
)
def test_a_token_is_the_word_with_any_space_case_and_form(space: str, decoder: object) -> None:
    found = concept_tokens(tokenizer_of(SPACED, space, decoder), "file")
    assert {text.strip() for text in found.texts.values()} == {"file", "Files", "FILE", "filing"}
    assert list(found.texts) == [1, 2, 3, 4, 5]


def test_a_tokenizer_without_a_backend_gives_the_same(
    tiny_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_subject().lm.tokenizer
    fast = concept_tokens(tokenizer, ["experience", "w17"])
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", None)
    assert concept_tokens(tokenizer, ["experience", "w17"]) == fast
    assert set(fast.texts.values()) == {"experience", "w17"}


def test_a_tokenizer_read_from_its_file_gives_the_same() -> None:
    tokenizer = trained_subject().lm.tokenizer
    in_file = FileTokenizer(FOLDER / "model" / "tokenizer.json")
    assert len(in_file) == len(tokenizer)
    assert {*in_file.all_special_ids} == {*tokenizer.all_special_ids}
    for word in ("experience", "Files", "the model of tokens", "translations"):
        assert concept_tokens(in_file, word) == concept_tokens(tokenizer, word)
    for vocabulary in (in_file, tokenizer):
        with pytest.raises(SteerlensError, match="'tokenisation'; near it are tokenization"):
            concept_tokens(vocabulary, "tokenisation")


def test_special_tokens_stand_for_nothing(tiny_subject: Callable[..., Subject]) -> None:
    with pytest.raises(SteerlensError, match="no token"):
        concept_tokens(tiny_subject().lm.tokenizer, "<bos>")


def test_of_a_phrase_the_content_words_count() -> None:
    tokenizer = tokenizer_of(("_file", "_of", "_the", "_day"), "Ġ", decoders.ByteLevel())
    texts = concept_tokens(tokenizer, "the file of the day").texts.values()
    assert set(texts) == {" file", " day"}


@pytest.mark.parametrize("concept", ["", " ", [], ["file", ""]])
def test_an_empty_concept_is_refused(concept: object) -> None:
    tokenizer = tokenizer_of(SPACED, "Ġ", decoders.ByteLevel())
    with pytest.raises(SteerlensError, match="empty"):
        concept_tokens(tokenizer, concept)  # type: ignore[arg-type]


def test_in_a_large_vocabulary_the_nearest_words_are_found() -> None:
    letters = "abcdefghijklmnopqrst"
    words = [
        f"_{a}{b}{c}{d}x{a}" for a in letters for b in letters for c in letters for d in "efgh"
    ]
    words += [f"{word}{end}" for word in words for end in ("tion", "ly", "um", "al", "ic", "or")]
    assert len(words) > 200_000
    tokenizer = tokenizer_of(["_exception", "_exceptions", *words], "Ġ", decoders.ByteLevel())
    with pytest.raises(SteerlensError, match="near it are exceptions, exception,"):
        concept_tokens(tokenizer, "excptoins")


@pytest.mark.parametrize("kind", list(MODELS))
def test_logit_lens_candidates_equal_a_loop_over_whole_logits(
    tiny_subject: Callable[..., Subject], kind: str
) -> None:
    subject = tiny_subject(kind)
    tokens = concept_tokens(subject.lm.tokenizer, ["experience", "Note", "that", "From"])
    expected = {}
    for feature in range(D_SAE):
        own = naive_logit_lens(subject, feature, 20).tolist()
        ranks = [rank for rank, token in enumerate(own) if token in tokens.texts]
        if ranks:
            words = tuple(tokens.texts[own[rank]] for rank in ranks)
            expected[feature] = (ranks[0], len(ranks), words)
    found = candidates(subject, tokens, RunContext(memory_budget=20_000))
    assert expected
    assert {row.feature: (row.rank, row.count, row.tokens) for row in found} == expected
    order = [(row.rank, -row.count, row.feature) for row in found]
    assert order == sorted(order)  # type: ignore[type-var]
    assert {row.routes for row in found} == {("lens",)}


@pytest.mark.parametrize("name", ["jacobian", "effect"])
def test_candidates_are_those_of_the_run_s_lens(
    tiny_subject: Callable[..., Subject], name: str, tmp_path: Path
) -> None:
    subject = tiny_subject("llama", layer=1)
    file = tmp_path / "lens.safetensors"
    save_file({"J": torch.randn(1, D_MODEL, D_MODEL), "source_layers": torch.tensor([1])}, file)
    lens = LensConfig(name, n_prompts=2, path=str(file) if name == "jacobian" else None)
    ctx = RunContext(lens=lens)
    tokens = concept_tokens(subject.lm.tokenizer, ["experience", "Note", "that", "From"])
    promoted = promoted_tokens(subject, torch.arange(D_SAE), 20, ctx).tolist()
    expected = {
        feature: [rank for rank, token in enumerate(own) if token in tokens.texts]
        for feature, own in enumerate(promoted)
    }
    found = {row.feature: (row.rank, row.count) for row in candidates(subject, tokens, ctx)}
    assert found == {f: (ranks[0], len(ranks)) for f, ranks in expected.items() if ranks}
    by_logit = {row.feature for row in candidates(subject, tokens, RunContext())}
    assert found.keys() != by_logit


def test_labels_and_examples_bring_in_features_and_more_routes_come_first(
    tiny_subject: Callable[..., Subject],
) -> None:
    subject = tiny_subject()
    tokens = concept_tokens(subject.lm.tokenizer, "experience")
    writes = {row.feature for row in candidates(subject, tokens, RunContext())}
    silent = next(feature for feature in range(D_SAE) if feature not in writes)
    both = min(writes)
    labels = {silent: "Past experiences", both: "EXPERIENCE", 7: "inexperienced"}
    found = candidates(subject, tokens, RunContext(), labels=labels)
    assert found[0].feature == both
    assert found[0].routes == ("lens", "label")
    row = next(row for row in found if row.feature == silent)
    assert (row.routes, row.rank, row.count, row.label) == (("label",), None, 0, "Past experiences")
    assert 7 in writes or 7 not in {row.feature for row in found}

    examples = ["my experience", "From experience , that"]
    active_F = mean_max_activation(subject, examples)
    found = candidates(subject, tokens, RunContext(), examples=examples, n_examples=5)
    fired = {row.feature: row.activation for row in found if "examples" in row.routes}
    assert fired.keys() == set(active_F.topk(5).indices.tolist())
    assert all(active_F[feature] == value for feature, value in fired.items())
    none = candidates(subject, tokens, RunContext(), examples=examples, reference_F=active_F)
    assert {row.routes for row in none} == {("lens",)}


def test_mean_max_activation_is_that_of_each_text_alone_without_bos(
    tiny_subject: Callable[..., Subject],
) -> None:
    subject = tiny_subject("gpt2", "topk", site="resid_pre")
    texts = ["my experience", "From"]
    maxima = []
    for text in texts:
        _, cache = subject.lm.bridge.run_with_cache(subject.to_tokens(text))
        maxima.append(subject.sae.encode(cache[subject.hook_name])[0, 1:].amax(0))
    expected = torch.stack(maxima).mean(0)
    assert torch.allclose(mean_max_activation(subject, texts), expected, atol=1e-5)
    with pytest.raises(SteerlensError, match="at least one"):
        mean_max_activation(subject, [])


def test_a_label_names_a_concept_by_whole_words_in_any_form() -> None:
    assert names("Networks of computers", ["network"])
    assert names("learned by machines, slowly", ["machine learn"])
    assert names("reads C++ code", ["c++"])
    assert names("(networks), etc.", ["network!"])
    assert not names("networkx", ["network"])
    assert not names("machine tools", ["machine learning"])


def test_the_words_of_a_trained_model_are_found() -> None:
    subject = trained_subject()
    tokens = concept_tokens(subject.lm.tokenizer, "file")
    assert set(tokens.texts.values()) >= {" file", " files", "file", " File"}
    assert candidates(subject, tokens, RunContext())[0].count >= 3
    pieces = concept_tokens(subject.lm.tokenizer, "normalizations").texts.values()
    assert any("normal" in text.lower() for text in pieces)
    with pytest.raises(SteerlensError, match="no token of the vocabulary stands for 'zxqw'"):
        concept_tokens(subject.lm.tokenizer, "zxqw")
