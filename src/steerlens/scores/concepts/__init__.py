"""Candidate features for a concept: by the tokens they write, their labels, what they fire on.

A feature is a candidate by one route or more:

- `lens`: a token of the concept is among the k tokens that the feature promotes most, by the run's
  lens;
- `label`: the feature's label (Neuronpedia's, say) names the concept;
- `examples`: the feature fires more on the user's own sentences than on ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.errors import SteerlensError, nearest
from steerlens.scores.concepts.inflection import content_words, forms

if TYPE_CHECKING:
    import torch

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

SHORTEST_PIECE = 4
"""Letters that the first piece of a word must have to stand for it; and half of the word's."""


@dataclass(frozen=True)
class ConceptTokens:
    """Concepts, and the tokens of one vocabulary that stand for them."""

    concepts: tuple[str, ...]
    texts: Mapping[int, str]
    """The decoded text of each token, by its id, in rising order."""


class Candidate(NamedTuple):
    """A feature that may stand for the concept; null where a route didn't find it."""

    feature: int
    routes: tuple[str, ...]
    rank: int | None
    """0-based rank of the best concept token among those that the feature promotes."""
    count: int
    """Number of concept tokens among the top k."""
    tokens: tuple[str, ...]
    """Those tokens, best first."""
    label: str | None
    activation: float | None
    """Mean largest activation in the user's sentences, above that in ordinary text."""


def concept_tokens(tokenizer: Any, concept: str | Sequence[str]) -> ConceptTokens:
    """Return the tokens of the vocabulary that stand for `concept`: a word, a phrase, or several.

    A token stands for a word when its text, spaces around it and case aside, is the word or one of
    its regular forms (`inflection.forms`). Of a phrase, any word that isn't a stop word counts. A
    word that is no single token is stood for by the first piece that the tokenizer cuts it into,
    if that is distinctive: at least `SHORTEST_PIECE` letters and half of the word.

    Raises:
        SteerlensError: if no token stands for a concept, with the nearest words of the vocabulary.
    """
    return Vocabulary(tokenizer).tokens(concept)


class FileTokenizer:
    """A `tokenizer.json` with what `Vocabulary` asks of Transformers' tokenizers, whose import
    would bring torch.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))
        added = self.backend_tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [id_ for id_, token in added.items() if token.special]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return the token ids of a text, as `input_ids`."""
        encoding = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special ones among them."""
        return self.backend_tokenizer.decode(ids, skip_special_tokens=False)


class Vocabulary:
    """A tokenizer's tokens, decoded once for many concepts."""

    def __init__(self, tokenizer: Any) -> None:
        special = set(tokenizer.all_special_ids)
        self._tokenizer = tokenizer
        self._texts = {i: text for i, text in enumerate(_decoded(tokenizer)) if i not in special}
        self._by_word: dict[str, list[int]] = {}
        for id_, text in self._texts.items():
            self._by_word.setdefault(text.strip().lower(), []).append(id_)

    def tokens(self, concept: str | Sequence[str]) -> ConceptTokens:
        """See `concept_tokens`."""
        concepts = (concept,) if isinstance(concept, str) else tuple(concept)
        if not concepts or not all(concept.strip() for concept in concepts):
            raise SteerlensError("the concept is empty; give a word or a phrase.")
        token_ids: set[int] = set()
        for concept_name in concepts:
            ids: set[int] = set()
            for word in content_words(concept_name):
                of_word = {id_ for form in forms(word) for id_ in self._by_word.get(form, ())}
                piece = word if of_word else _first_piece(self._tokenizer, word) or word
                ids |= of_word or {*self._by_word.get(piece, ())}
            if not ids:
                raise _no_token(concept_name, self._by_word)
            token_ids |= ids
        return ConceptTokens(concepts, {id_: self._texts[id_] for id_ in sorted(token_ids)})


def candidates(
    subject: Subject,
    tokens: ConceptTokens,
    ctx: RunContext,
    k: int = 20,
    labels: Mapping[int, str] | None = None,
    examples: Sequence[str] = (),
    reference_F: torch.Tensor | None = None,
    n_examples: int = 20,
) -> list[Candidate]:
    """Return the features of `subject` that may stand for a concept, the most promising first.

    Sorted by the number of routes, then the best rank, the number of concept tokens, the
    activation, and the feature.

    Args:
        subject: the model and its SAE.
        tokens: from `concept_tokens`.
        ctx: the lens, memory, and what is computed once.
        k: number of tokens that each feature promotes which are looked at.
        labels: label by feature; one that names a concept makes its feature a candidate.
        examples: sentences about the concept.
        reference_F: `mean_max_activation` of ordinary text; None = 0.
        n_examples: number of features that `examples` may bring in.
    """
    written = _by_lens(subject, tokens, k, ctx)
    named = {feature for feature, text in (labels or {}).items() if names(text, tokens.concepts)}
    fired = _by_examples(subject, examples, reference_F, n_examples) if examples else {}
    table = []
    for feature in written.keys() | named | fired.keys():
        ranks = written.get(feature, {})
        routes = {
            "lens": feature in written,
            "label": feature in named,
            "examples": feature in fired,
        }
        table.append(
            Candidate(
                feature=feature,
                routes=tuple(route for route, hit in routes.items() if hit),
                rank=min(ranks, default=None),
                count=len(ranks),
                tokens=tuple(tokens.texts[ranks[rank]] for rank in sorted(ranks)),
                label=(labels or {}).get(feature),
                activation=fired.get(feature),
            )
        )
    return sorted(table, key=lambda row: _promise(row, k))


def names(label: str, concepts: Iterable[str]) -> bool:
    """Return whether `label` has all words of one of `concepts`, in any form and case."""
    words = set(re.findall(r"\w+", label.lower())) | set(content_words(label))  # c++ is one, too
    return any(all(forms(word) & words for word in content_words(concept)) for concept in concepts)


def mean_max_activation(subject: Subject, texts: Sequence[str]) -> torch.Tensor:
    """Return each feature's largest activation in a text as a mean over texts: (F,), CPU.

    BOS, and positions that the SAE wasn't trained on, are left out.

    A longer text has a larger maximum: compare texts of about the same length.

    Raises:
        SteerlensError: for no text, an empty one, or one that the model's context can't hold.
    """
    import torch

    from steerlens.engine.activations.stream import residuals

    if not texts:
        raise SteerlensError("there is no sentence to run; give at least one.")
    sum_F = torch.zeros(subject.d_sae)
    skip = subject.n_uncounted
    for text in texts:
        ids_L = subject.to_tokens(text)[0].cpu().numpy()
        if len(ids_L) <= skip:
            raise SteerlensError(f"the sentence {text!r} has no token that counts.")
        (x_1LD,), _ = residuals([subject], [ids_L])
        with torch.no_grad():
            acts_LF = subject.sae.encode(x_1LD.to(subject.sae.device))[0, skip:]
        sum_F += acts_LF.amax(dim=0).float().cpu()
    return sum_F / len(texts)


def _promise(row: Candidate, k: int) -> tuple[float, ...]:
    rank = k if row.rank is None else row.rank
    return (-len(row.routes), rank, -row.count, -(row.activation or 0.0), row.feature)


def _by_lens(
    subject: Subject, tokens: ConceptTokens, k: int, ctx: RunContext
) -> dict[int, dict[int, int]]:
    """Return, for each feature that has a concept token: the token by its rank."""
    import torch

    from steerlens.engine.lens import promoted_tokens

    tokens_FK = promoted_tokens(subject, torch.arange(subject.d_sae), k, ctx)
    hits_FK = torch.isin(tokens_FK, torch.tensor(list(tokens.texts)))
    by_feature: dict[int, dict[int, int]] = {}
    for feature, rank in hits_FK.nonzero().tolist():
        by_feature.setdefault(feature, {})[rank] = int(tokens_FK[feature, rank])
    return by_feature


def _by_examples(
    subject: Subject, examples: Sequence[str], reference_F: torch.Tensor | None, n: int
) -> dict[int, float]:
    above_F = mean_max_activation(subject, examples)
    if reference_F is not None:
        above_F = above_F - reference_F
    values, features = above_F.topk(min(n, len(above_F)))
    pairs = zip(features.tolist(), values.tolist(), strict=True)
    return {feature: value for feature, value in pairs if value > 0}


def _decoded(tokenizer: Any) -> list[str]:
    """Return the text of every token of the vocabulary, each on its own."""
    ids = [[id_] for id_ in range(len(tokenizer))]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.batch_decode(ids)
    return backend.decode_batch(ids, skip_special_tokens=False)  # 25 times as fast


def _first_piece(tokenizer: Any, word: str) -> str:
    """Return the longest piece that begins `word` in one of its spellings; "" if it isn't
    distinctive.
    """
    longest = ""
    for spelling in (word, word.title(), word.upper()):
        for text in (spelling, f" {spelling}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            pieces = (tokenizer.decode([id_]).strip().lower() for id_ in ids)
            first = next((piece for piece in pieces if piece), "")  # some write the space alone
            if word.startswith(first) and len(first) > len(longest):
                longest = first
    return longest if len(longest) >= max(SHORTEST_PIECE, len(word) / 2) else ""


def _no_token(concept: str, by_word: Iterable[str]) -> SteerlensError:
    word = content_words(concept)[0]
    # Only these, because comparing with every word of a large vocabulary takes seconds.
    like = [
        vocabulary_word
        for vocabulary_word in by_word
        if vocabulary_word.isalpha()
        and vocabulary_word[0] == word[0]
        and abs(len(vocabulary_word) - len(word)) <= 3
    ]
    near = nearest(word, like, n=5)
    hint = f"; near it are {', '.join(near)}." if near else "; try another word for it."
    return SteerlensError(f"no token of the vocabulary stands for {concept!r}{hint}")
