"""A card for a feature: its tokens, the texts it fires on, and what steering with it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steerlens.analysis.factors import no_factor
from steerlens.analysis.ranking import BEST_OF_LAYER, best_of_layers
from steerlens.analysis.roles import TOP_K, Span, success_spans
from steerlens.analysis.toward import words_summary
from steerlens.report.page.contents import (
    Arm,
    Card,
    Neighbour,
    Numbers,
    Segment,
    Steered,
    SteeredText,
    Window,
    plain,
)
from steerlens.report.page.scores import encode_tokens
from steerlens.results import features_alone
from steerlens.results.folder import RunTables
from steerlens.results.text import printable, visible, visible_token

if TYPE_CHECKING:
    import pandas as pd

PROMPTS, MORE_PROMPTS, FEW_STEERED = 4, 10, 10
"""Prompts of a steered feature whose texts are shown; `MORE` of them where few were steered."""

LONGEST = 2000
"""Characters of a text that are shown."""

MOST_TEXTS = 20_000
"""Texts of a page; features beyond have curves without texts."""

WINDOWS = 5
FEATURE = "feature"
ARM = ["layer", "feature", "concept", "arm"]
MEASURED = ["success_20", "concept_success", "perplexity", "first_step_kl"]

Goal = tuple[int, int, str | None]
"""Layer and feature that were steered with, and the concept that it was toward, if any."""


def text_lines(text: str) -> str:
    """Text with its line breaks, of which nothing else is invisible; cut where it is endless."""
    if text.isprintable() and len(text) <= LONGEST:
        return text
    lines = "\n".join(map(printable, text[:LONGEST].split("\n")))
    more = len(text) - LONGEST
    return f"{lines} … ({more:,} more characters in the table)" if more > 0 else lines


def card_order(tables: RunTables) -> list[int]:
    """Rows of the table of features in the order in which their cards are wanted: the steered ones,
    the best of each layer by S_out and by S_in, then the others.
    """
    frame = tables.features.reset_index(drop=True)
    steered = tables.steering[["layer", "feature"]].drop_duplicates()
    first = frame.reset_index().merge(steered, on=["layer", "feature"])["index"].tolist()
    return list(dict.fromkeys([*first, *best_of_layers(frame, BEST_OF_LAYER), *range(len(frame))]))


def n_in_the_page(tables: RunTables, order: Sequence[int]) -> int:
    """How many of `order` belong into the page itself: the steered and the best ones."""
    best = sum(
        min(BEST_OF_LAYER, n) * 2 for n in tables.features.groupby("layer").size().tolist()
    ) + len(tables.steering)
    return min(best, len(order))


def cards(tables: RunTables, order: Sequence[int]) -> Iterator[tuple[str, Card]]:
    """Give the cards of the features at `order`, under `layer/feature`."""
    frame = tables.features
    keys = frame[["layer", "feature"]].to_numpy()
    steered_of = _steered_by_feature(tables)
    windows_of = _windows_by_feature(tables)
    neighbours_of = _neighbours_by_feature(tables)
    described = {(row["layer"], row["feature"]): row for row in tables.cards.to_dict("records")}
    lists = {
        name: frame[name].tolist()
        for name in (*("input_top_examples", "neuronpedia_url", "activation_frequency"),)
    }
    promoted, by_lens = (
        _shown_lists(frame[name]) for name in ("logit_lens_tokens", "promoted_tokens")
    )
    for row in order:
        layer, feature = keys[row].tolist()
        value = {name: column[row] for name, column in lists.items()}
        description = described.get((layer, feature), {})
        windows = windows_of.get((layer, feature), [])
        url = value["neuronpedia_url"]
        marked = [] if windows else _list(value["input_top_examples"])[:WINDOWS]
        yield (
            f"{layer}/{feature}",
            Card(
                promoted=promoted[row],
                promoted_logits=_numbers(description.get("logit_lens_logits")),
                by_lens=by_lens[row],
                suppressed=[*map(visible_token, _list(description.get("suppressed_tokens")))],
                suppressed_logits=_numbers(description.get("suppressed_logits")),
                windows=windows,
                marked=[text_lines(text) for text in marked],
                histogram=_list(description.get("activation_histogram")),
                histogram_range=plain(description.get("activation_histogram_range")),
                frequency=plain(
                    description.get("activation_frequency", value["activation_frequency"])
                ),
                neighbours=neighbours_of.get((layer, feature), []),
                url=url if isinstance(url, str) and url.startswith("https://") else None,
                steered=steered_of.get((layer, feature), []),
            ),
        )


def _shown_lists(column: Any) -> list[list[str]]:
    """Give the tokens of every row as they are shown."""
    encoded = encode_tokens(column)
    flat = np.array(encoded.visible_tokens, dtype=object)[encoded.index].tolist()
    bounds = zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True)
    return [flat[start:end] for start, end in bounds]


def _list(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "__len__") and not isinstance(value, str) else []


def _numbers(value: Any) -> Numbers | None:
    return [plain(number) for number in value] if hasattr(value, "__len__") else None


def _windows_by_feature(tables: RunTables) -> dict[tuple[int, int], list[Window]]:
    """Give the texts of `examples.parquet`, the highest activation first."""
    windows: dict[tuple[int, int], list[Window]] = {}
    for row in tables.examples.to_dict("records"):
        maximum = max(row["activations"], default=0.0) or 1.0
        window = Window(
            [text_lines(token) for token in row["tokens"]],
            [round(activation / maximum, 2) for activation in row["activations"]],
            plain(maximum),
        )
        windows.setdefault((row["layer"], row["feature"]), []).append(window)
    return windows


def _neighbours_by_feature(tables: RunTables) -> dict[tuple[int, int], list[Neighbour]]:
    """Give the rows of `neighbours.parquet`, the nearest first."""
    neighbours: dict[tuple[int, int], list[Neighbour]] = {}
    for row in tables.neighbours.sort_values("rank", kind="stable").to_dict("records"):
        near = Neighbour(row["neighbour"], round(row["cosine"], 3))
        neighbours.setdefault((row["layer"], row["feature"]), []).append(near)
    return neighbours


def _steered_by_feature(tables: RunTables) -> dict[tuple[int, int], list[Steered]]:
    """Say what steering with each feature did, toward every concept that it was steered toward.

    Pandas sees all texts at once: it takes milliseconds for each call, of however few rows.
    """
    tokens_of = {  # a table without the ids marks none
        word["word"]: dict(zip(word["token_ids"] or [], word["tokens"] or [], strict=False))
        for word in words_summary(tables.words)
    }
    chosen = {_goal(row): row for row in features_alone(tables.steering).to_dict("records")}
    pairs = zip(tables.generations["together"], tables.generations["control"], strict=True)
    texts = tables.generations.assign(arm=[_arm_name(*pair) for pair in pairs])
    goals = [*map(_goal, texts.filter(items=["layer", "feature", "concept"]).to_dict("records"))]
    prompts_of = _numbered(goals, texts["prompt"].tolist())
    curves_of = _curves(texts)
    n_prompts = MORE_PROMPTS if len(prompts_of) <= FEW_STEERED else PROMPTS
    rows_of: dict[Goal, list[dict[Any, Any]]] = {}
    numbers = zip(goals, texts["prompt"].tolist(), strict=True)
    is_shown = [prompts_of[goal][prompt] < n_prompts for goal, prompt in numbers]
    for row in _first_texts(texts.loc[is_shown]):
        rows_of.setdefault(_goal(row), []).append(row)
    texts_left = MOST_TEXTS
    by_feature: dict[tuple[int, int], list[Steered]] = {}
    for goal, arms in _numbered(goals, texts["arm"].tolist()).items():
        layer, feature, concept = goal
        row, prompts = chosen.get(goal, {}), prompts_of[goal]
        low, high = (plain(row.get(f"safe_factor_{end}")) for end in ("low", "high"))
        steered = Steered(
            concept=None if concept is None else visible(concept),
            best_factor=plain(row.get("best_factor")),
            safe_range=None if low is None or high is None else (low, high),
            why_none=no_factor(tables.choice),
            undecided=row.get("undecided") is True,
            arms=[_arm(name, curves_of[goal, name]) for name in arms],
            prompts=[text_lines(prompt) for prompt in [*prompts][:n_prompts]],
            n_prompts=len(prompts),
            texts=[
                SteeredText(
                    prompt=prompts[text["prompt"]],
                    arm=arms[text["arm"]],
                    factor=text["factor"],
                    segments=segments(
                        text["text"],
                        text["token_ids"],
                        _lens_tokens(row),
                        tokens_of.get(concept or "", {}),
                    ),
                    perplexity=plain(text["perplexity"]),
                )
                for text in (rows_of.get(goal, []) if texts_left > 0 else [])
            ],
        )
        texts_left -= len(steered.texts)
        by_feature.setdefault((layer, feature), []).append(steered)
    return by_feature


def _goal(row: Mapping[Any, Any]) -> Goal:
    concept = row["concept"]
    return row["layer"], row["feature"], concept if isinstance(concept, str) else None


def _numbered(goals: Sequence[Goal], names: Sequence[str]) -> dict[Goal, dict[str, int]]:
    """Give the names of each goal numbers, in their order of appearance."""
    numbers: dict[Goal, dict[str, int]] = {}
    for goal, name in zip(goals, names, strict=True):
        of_goal = numbers.setdefault(goal, {})
        of_goal.setdefault(name, len(of_goal))
    return numbers


def _first_texts(texts: pd.DataFrame) -> list[dict[Any, Any]]:
    """Give the first text of each arm, prompt and factor, by prompt and factor."""
    columns = [*ARM, "prompt", "factor"]
    first = texts.sort_values("sample", kind="stable").drop_duplicates(columns)
    first = first.loc[first["text"].notna(), [*columns, "text", "token_ids", "perplexity"]]
    return first.sort_values(["prompt", "factor"], kind="stable").to_dict("records")


def _curves(texts: pd.DataFrame) -> dict[tuple[Goal, str], list[dict[Any, Any]]]:
    """Give the means of each arm, by factor, the smallest first."""
    types = dict.fromkeys(["factor", *MEASURED], "Float64")
    by_factor = texts[[*ARM, *types]].astype(types).groupby([*ARM, "factor"], dropna=False)
    curves: dict[tuple[Goal, str], list[dict[Any, Any]]] = {}
    means: Any = by_factor.mean()
    for row in means.reset_index().to_dict("records"):
        curves.setdefault((_goal(row), row["arm"]), []).append(row)
    return curves


def _arm_name(together: Any, control: Any) -> str:
    if isinstance(together, str):
        return f"with {visible(together)}"
    return visible(control).replace("_", " ") if isinstance(control, str) else FEATURE


def _arm(name: str, curve: Sequence[Mapping[Any, Any]]) -> Arm:
    means = {column: [plain(row[column]) for row in curve] for column in MEASURED}
    return Arm(
        name=name,
        factors=[row["factor"] for row in curve],
        success=means["success_20"],
        concept_success=means["concept_success"],
        perplexity=means["perplexity"],
        kl=means["first_step_kl"],
    )


def _lens_tokens(row: Mapping[str, Any]) -> dict[int, str]:
    """Give the tokens that count as success of a steered feature, by their ids."""
    ids, tokens = (_list(row.get(f"logit_lens_{name}"))[:TOP_K] for name in ("token_ids", "tokens"))
    return dict(zip(ids, tokens, strict=False))


def segments(
    text: str,
    token_ids: Any,
    lens_tokens: Mapping[int, str],
    concept_tokens: Mapping[int, str],
) -> list[Segment]:
    """Give the parts of a text, with the feature's own tokens and those of the concept marked."""
    text = text[: LONGEST + 1]
    marks = [0] * len(text)
    for mark, tokens in ((1, lens_tokens), (2, concept_tokens)):
        written = [tokens[id_] for id_ in _list(token_ids) if id_ in tokens]
        for start, end in _without_spaces(text, success_spans(text, written)):
            for at in range(start, end):
                marks[at] |= mark
    parts: list[Segment] = []
    start = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or marks[at] != marks[start]:
            parts.append((text_lines(text[start:at]), marks[start]))
            start = at
    return parts


def _without_spaces(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    """Give the spans without the space that a token begins with."""
    for start, end in spans:
        token = text[start:end]
        yield start + len(token) - len(token.lstrip()), end
