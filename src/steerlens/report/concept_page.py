"""The answer to `concept=WORD`: which features steer toward it, and how it reads.

Lines are a label and a text: in a terminal the text is wrapped beside its label, elsewhere (a pipe,
a file) every line is whole.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from steerlens.analysis.factors import no_factor
from steerlens.analysis.roles import Continuation
from steerlens.analysis.toward import words_explanation, words_summary
from steerlens.analysis.toward_texts import Pair, Toward, steered_toward
from steerlens.config.schema import ChoiceConfig
from steerlens.results.folder import RunTables
from steerlens.results.text import number, safe_range, visible, visible_token, visible_tokens

FEATURES = 5
PROMPTS = 3
TOKENS = 8
NARROWEST = 20
"""Columns that a text must have beside its label."""

HIT = "bold green"
"""Of a token of the concept."""


class Line(NamedTuple):
    """A text beside what it is."""

    label: str
    text: Text
    is_command: bool = False
    """Never wrapped: a command with a line break in it couldn't be copied."""


def is_of_a_concept(tables: RunTables) -> bool:
    """Return whether the run was asked for one concept, and nothing but its candidates was
    scored.
    """
    are_candidates = tables.features["concept_score"].notna()
    return len(tables.words) == 1 and bool(are_candidates.all())


def print_hanging(console: Console, lines: Iterable[Line]) -> None:
    """Print lines whole, in a terminal each text wrapped beside its label."""
    for label, text, is_command in lines:
        width = console.width - len(label) - 1
        if is_command or not console.is_terminal or width < NARROWEST:
            console.print(Text(label).append_text(text), soft_wrap=True)
            continue
        for at, part in enumerate(text.wrap(console, width)):
            part.rstrip()
            console.print(Text(" " * len(label) if at else label).append_text(part), soft_wrap=True)


def concept_page(tables: RunTables) -> Iterator[Line]:
    """Yield the page of a run toward one concept: the features that write its tokens with three
    texts.
    """
    (word,) = words_summary(tables.words)
    features = steered_toward(tables, word)
    yield _line()
    if word["found"]:
        adding = [feature for feature in features if feature.adds]
        subject_of_sentence = f"{len(adding)} of {len(features)}" if len(features) > 1 else "The"
        verb = "features steer" if len(features) > 1 else "feature steers"
        yield _line(f"{subject_of_sentence} {verb} toward {word['word']!r}.", style="bold")
    yield from map(_line, words_explanation([word]))
    yield _line(f"Tokens of it: {visible_tokens(word['tokens'], TOKENS)}")
    if features:
        yield _line(template_sentence(tables))
    for feature in features[:FEATURES]:
        yield _line()
        yield from _feature(feature, PROMPTS if feature.adds else 1, tables.choice)
    for row in tables.steering.dropna(subset="together").to_dict("records"):
        yield _line()
        together = f"{row['feature']}+{row['together']}".replace("+", " + ")
        yield _line(f"layer {row['layer']}, features {together} together", style="bold")
        yield Line("  ", Text(numbers(row)))


def words_page(tables: RunTables) -> Iterator[Line]:
    """Yield the words that a run has tried, and of each that was found its best feature with a
    text: the first that has a token of the word.
    """
    words = words_summary(tables.words)
    for word in words:
        if not word["found"]:
            continue
        best = steered_toward(tables, word)[0]
        row = best.row
        yield _line()
        title = f"{word['word']}: layer {row['layer']}, feature {row['feature']}"
        yield _line(f"{title}, which writes {_writes(best, 4)}", style="bold")
        yield _line(f"{share_sentence(best)}; perplexity {_perplexities(row)}.")
        with_it = [pair for pair in best.pairs if pair.steered.successes]
        yield from _pairs([*with_it, *best.pairs][:1])
    yield _line()
    yield from map(_line, words_explanation(words)[:1] if len(words) > 1 else [])
    for word in words:
        if not word["found"]:
            yield Line(f"  not {word['word']}: ", Text(visible(str(word["reason"]))))


def what_to_look_at(tables: RunTables, folder: Path, in_colour: bool) -> Iterator[Line]:
    """Yield after a first run: how to read what stands above, and what to do next."""
    words = words_summary(tables.words)
    words_with_feature = [word for word in words if word["found"]]
    if not words_with_feature:
        return
    green = " Tokens of the word are green." if in_colour else ""
    yield _line()
    yield _line(
        f"Look at the two texts of each pair: the same model, asked the same; the second time one "
        f"feature was raised.{green} Shown is the first answer with the word. Perplexity is how "
        "surprising the text is to the unsteered model: steering costs some of it, too strong "
        f"steering costs the sense. {template_sentence(tables)}"
    )
    yield _line()
    steerlens, first = program(), words_with_feature[0]
    subject = subject_words(tables.command)
    address = f"layer={first['layer']} feature={first['feature']}"
    folder_word = shlex.quote(str(folder))
    yield _line("Next:")
    for command, does in (
        (f"{steerlens} concept=WORD{subject}", "any word or phrase of yours"),
        (
            f"{steerlens} export {folder_word} {address}",
            f"{first['word']} as a vector for Transformers",
        ),
        (f"{steerlens} experiment=filter{subject} plan=true", "what selecting by S_out buys"),
    ):
        yield Line("  ", Text(f"{visible(command)}  # {visible(does)}"), is_command=True)


def program() -> str:
    """Return what the user types to run steerlens again, from here."""
    if shutil.which("steerlens"):
        return "steerlens"
    path = Path(sys.argv[0])
    return shlex.quote(sys.argv[0]) if path.name == "steerlens" else "python -m steerlens"


SUBJECT_KEYS = ("model", "sae", "subject", "corpus", "dtype", "device")


def subject_words(command: str | None) -> str:
    """Return the words of a command that choose model, SAE and corpus, as the shell takes them."""
    words = shlex.split(command)[1:] if command else []
    chosen = [word for word in words if word.partition("=")[0].partition(".")[0] in SUBJECT_KEYS]
    return "".join(f" {shlex.quote(word)}" for word in chosen)


def template_sentence(tables: RunTables) -> str:
    """Say what the model was asked, and how, and which of its texts count."""
    n = tables.generations["prompt"].nunique()
    prompts = f"{n} prompt{'s' * (n != 1)}"
    counted = ""
    if tables.choice and tables.choice.splits:
        counted = "; every second one chose the factor, only the others count"
    if tables.chat_template is None:
        return f"Texts go on from {prompts}{counted}."
    if tables.chat_template:
        return f"Texts answer {prompts} inside the model's chat template{counted}."
    return f"Texts go on from {prompts}, without a chat template{counted}."


def share_sentence(feature: Toward) -> str:
    """Say how many tokens of the concept stand in how many texts, and without steering."""
    row = feature.row
    allowed = "" if (factors := safe_range(row)) == "-" else f" (allowed: {factors})"
    return (
        f"factor {number(row['best_factor'], 'g')}{allowed}: "
        f"{number(row['concept_success'], '.2g')} of its tokens a text "
        f"(unsteered {number(row['concept_success_unsteered'], '.2g')}), in "
        f"{feature.n_with_token} of {feature.n_texts} texts "
        f"(unsteered {feature.n_with_token_unsteered})"
    )


def numbers(row: Mapping[str, Any]) -> str:
    """Return the means of a steered row at its best factor, each beside the unsteered one."""
    return (
        f"best factor {number(row['best_factor'], 'g')}: "
        f"{number(row['concept_success'], '.2g')} tokens of the concept a text (unsteered "
        f"{number(row['concept_success_unsteered'], '.2g')}); perplexity {_perplexities(row)}"
    )


def _perplexities(row: Mapping[str, Any]) -> str:
    steered, unsteered = (
        number(row[name], ".3g") for name in ("perplexity", "perplexity_unsteered")
    )
    return f"{steered} (unsteered {unsteered})"


def _feature(feature: Toward, n_prompts: int, choice: ChoiceConfig | None) -> Iterator[Line]:
    row = feature.row
    yield _line(f"layer {row['layer']}, feature {row['feature']}", style="bold")
    yield Line("  writes  ", Text(_writes(feature, TOKENS)))
    s_in = (
        f"; S_in {number(row['input_score'], '.2f')}"
        if isinstance(row["input_score"], float)
        else ""
    )
    scores = (
        f"{number(row['concept_score'], '.3f')} toward the concept, "
        f"{number(row['output_score'], '.3f')} (S_out) toward its own tokens{s_in}"
    )
    yield Line("  output score  ", Text(scores))
    if not feature.pairs:
        yield Line("  ", Text(no_factor(choice)))
        return
    yield Line("  ", Text(f"{share_sentence(feature)}; perplexity {_perplexities(row)}"))
    yield from _pairs(feature.pairs[:n_prompts])


def _pairs(pairs: Sequence[Pair]) -> Iterator[Line]:
    for pair in pairs:
        yield Line("  ", Text(visible(pair.prompt), style="dim"))
        yield Line("    unsteered  ", marked(pair.unsteered))
        yield Line("    steered    ", marked(pair.steered))


def marked(text: Continuation) -> Text:
    """Return a continuation in one visible line, with the tokens of the concept highlighted."""
    line, at = Text(), 0
    for start, end in text.successes:
        line.append(visible(text.text[at:start]))
        line.append(visible(text.text[start:end]), style=HIT)
        at = end
    line.append(visible(text.text[at:]))
    return line


def _writes(feature: Toward, n: int) -> str:
    return " ".join(visible_token(token) for token in feature.writes[:n])


def _line(text: str = "", style: str = "") -> Line:
    return Line("", Text(text, style=style))
