"""The answer to `concept=WORD`, at most a page: which features steer toward it, how it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.text import Text

from steerlens.analysis.roles import Example, best_steered
from steerlens.text import number, visible, visible_token, visible_tokens

if TYPE_CHECKING:
    from steerlens.results.folder import RunTables

FEATURES = 5
PROMPTS = 3
TOKENS = 8
SHOWN = ("best_factor", "success_20", "concept_success", "perplexity", "perplexity_unsteered")


def is_of_a_concept(tables: RunTables) -> bool:
    """Whether the run was asked for a concept and steered toward it."""
    scored = tables.features["concept_score"].notna().tolist()
    return any(scored) and len(tables.steering) > 0


def concept_page(tables: RunTables, width: int) -> Iterator[Text]:
    """Lines for a terminal of `width` columns; success tokens stand out.

    The features with the highest output score toward the concept come first, each with its best
    factor and three of its texts, below the unsteered ones.
    """
    rows = tables.steering.sort_values(
        ["concept_score", "layer", "feature"], ascending=[False, True, True]
    )
    shown = {
        (one.layer, one.feature): one
        for one in best_steered(rows, tables.generations, 10**6, PROMPTS)
    }
    # A word that is no token is stood for by a piece of it: the reader should see which.
    written = visible_tokens(tables.features["concept_token"].dropna().value_counts().index, TOKENS)
    yield Text()
    yield _line(f"Tokens of the concept that these features write: {written}", width)
    for row in rows.loc[rows["control"].isna()].head(FEATURES).to_dict("records"):
        yield from _feature(row, shown.get((row["layer"], row["feature"])), width)
    for row in rows.loc[rows["control"].str.startswith("+", na=False)].to_dict("records"):
        yield Text()
        features = f"{row['feature']}{row['control']}".replace("+", " + ")
        yield _line(f"layer {row['layer']}, features {features} together", width, "bold")
        yield _numbers(row, width)


def _feature(row: dict[str, Any], example: Example | None, width: int) -> Iterator[Text]:
    yield Text()
    title = f"layer {row['layer']}, feature {row['feature']}"
    scores = (
        f"output score {number(row['concept_score'], '.3f')} toward the concept, "
        f"{number(row['output_score'], '.3f')} (S_out) toward its own tokens"
    )
    yield _line(f"{title}: {scores}; S_in {number(row['input_score'], '.2f')}", width, "bold")
    tokens = [visible_token(token) for token in row["logit_lens_tokens"][:TOKENS]]
    yield _line(f"  writes {' '.join(tokens)}", width)
    if example is None:
        yield _line("  no factor may be chosen: at all of them the texts break down", width)
        return
    yield _numbers(row, width)
    for passage in example.passages:
        yield _line(f"  {visible(passage.prompt)} ...", width, "dim")
        for text in passage.continuations:
            line = Text("    without " if text.factor == 0 else "    steered ")
            start = 0
            for begin, end in text.successes if text.factor else ():
                line.append(visible(text.text[start:begin]))
                line.append(visible(text.text[begin:end]), style="bold green")
                start = end
            line.append(visible(text.text[start:]))
            line.truncate(width, overflow="ellipsis")
            yield line


def _numbers(row: dict[str, Any], width: int) -> Text:
    found = {name: number(row[name], ".3g") for name in SHOWN}
    return _line(
        f"  best factor {found['best_factor']}: {found['success_20']} success tokens a text, "
        f"{found['concept_success']} of the concept; perplexity {found['perplexity']} (unsteered "
        f"{found['perplexity_unsteered']})",
        width,
    )


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style=style)
    line.truncate(width, overflow="ellipsis")
    return line
