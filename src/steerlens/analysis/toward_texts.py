"""The texts of features that were steered with toward a word, beside the unsteered ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from steerlens.analysis.factors import reported_texts
from steerlens.analysis.roles import Continuation, success_spans
from steerlens.analysis.toward import best_toward
from steerlens.config.schema import ChoiceConfig
from steerlens.results import features_alone
from steerlens.results.folder import RunTables


class Pair(NamedTuple):
    """What a model writes after a prompt, steered and not; tokens of the concept are the spans."""

    prompt: str
    unsteered: Continuation
    steered: Continuation


class Toward(NamedTuple):
    """A feature that was steered with toward a concept, at its best factor."""

    row: Mapping[str, Any]
    """Its row of `steering.parquet`."""
    writes: list[str]
    """The concept's token that it makes likeliest, then its other logit-lens tokens."""
    n_texts: int
    n_with_token: int
    """Texts with a token of the concept."""
    n_with_token_unsteered: int
    """As many of its unsteered texts."""
    pairs: list[Pair]
    """A text of every prompt, in their order; [] where no factor may be chosen."""

    @property
    def adds(self) -> bool:
        """Whether its texts have more of the concept's tokens than the unsteered ones."""
        return bool(self.pairs) and (
            self.row["concept_success"] > self.row["concept_success_unsteered"]
        )


def steered_toward(tables: RunTables, word: Mapping[str, Any]) -> list[Toward]:
    """Return the features that were steered with toward a word, the best first, with the texts
    that their means are of.

    Args:
        tables: of the run.
        word: from `words_summary`.
    """
    concept = (tables.steering["concept"] == word["word"]).fillna(value=False)
    ids = word["token_ids"] or []  # earlier runs have none beside their tokens
    texts = dict(zip(ids, word["tokens"], strict=True)) if ids else {}
    return [
        _toward(row, tables, texts)
        for row in best_toward(tables.steering.loc[concept]).to_dict("records")
    ]


def _toward(row: Mapping[str, Any], tables: RunTables, tokens: Mapping[int, str]) -> Toward:
    """Return a steered feature with its texts; `tokens` of the concept by their ids."""
    alone = features_alone(tables.generations)
    texts = alone.loc[(alone["layer"] == row["layer"]) & (alone["feature"] == row["feature"])]
    texts = reported_texts(texts, tables.choice or ChoiceConfig())
    sides = [
        texts.loc[texts["factor"] == factor] if isinstance(factor, float) else texts.head(0)
        for factor in (0.0, row["best_factor"])
    ]
    n_texts = [
        int((side["concept_success"].to_numpy(float, na_value=np.nan) > 0).sum()) for side in sides
    ]
    continuations: list[dict[str, Continuation]] = [{}, {}]
    for side, of_side in zip(sides, continuations, strict=True):
        for text in side.drop_duplicates("prompt").to_dict("records"):
            ids = text["token_ids"] if hasattr(text["token_ids"], "__len__") else []
            spans = success_spans(text["text"], [tokens[id_] for id_ in ids if id_ in tokens])
            of_side[text["prompt"]] = Continuation(text["factor"], text["text"], spans)
    pairs = [
        Pair(prompt, unsteered, continuations[1][prompt])
        for prompt, unsteered in continuations[0].items()
        if prompt in continuations[1]
    ]
    return Toward(row, _writes(row), len(sides[1]), n_texts[1], n_texts[0], pairs)


def _writes(row: Mapping[str, Any]) -> list[str]:
    token, lens = row["concept_token"], row["logit_lens_tokens"]
    first = [token] if isinstance(token, str) else []
    tokens = list(lens) if hasattr(lens, "__len__") else []
    return list(dict.fromkeys([*first, *tokens]))
