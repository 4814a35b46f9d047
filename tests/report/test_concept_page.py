"""The page of a run toward words: whole in a pipe, wrapped in a terminal, tokens marked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.text import Text

from steerlens.config.schema import ChoiceConfig
from steerlens.report.concept_page import (
    Line,
    concept_page,
    print_hanging,
    subject_words,
    template_sentence,
    words_page,
)
from steerlens.report.toward import toward_sections
from steerlens.results import GENERATIONS, STEERING, WORDS
from steerlens.results.folder import RunTables
from tests.report.test_terminal import console, show, shown
from tests.support.frames import frame

LONG = "and so on and so on and so on and so on and so on and so on and so on and so on to the end"
NASTY = "\x1b[31m [bold]x[/] "


def word_tables(n_words: int = 1, of_concept: bool = True, **columns: Any) -> RunTables:
    """Two features steered toward each word; only the second one writes it."""
    words = ["sun", "moon", "king"][:n_words]
    rows, texts, tried = [], [], []
    for place, word in enumerate(words):
        for feature in (2 * place, 2 * place + 1):
            hits = feature % 2
            key = {"model": "toy", "sae": "s", "hook_name": "h", "layer": 4, "feature": feature}
            rows.append(
                {
                    **key, "concept": word, "best_factor": 2.0, "concept_success": float(hits),
                    "concept_success_unsteered": 0.0, "perplexity": 20.0, "texts": 2,
                    "perplexity_unsteered": 5.0, "concept_score": 0.5 - 0.1 * hits,
                    "output_score": 0.5, "concept_token": f" {word}",
                    "logit_lens_tokens": ["zenith", f" {word}"], "logit_lens_token_ids": [8, 7],
                }
            )  # fmt: skip
            for factor in (0.0, 2.0):
                for prompt in ("Tell me.", "Go on."):
                    hit = bool(factor and hits)
                    text = f"{NASTY}{LONG}{f' {word}' * hit} end"
                    texts.append(
                        {
                            **key, "concept": word, "factor": factor, "prompt": prompt, "sample": 0,
                            "text": text, "token_ids": [7] * hit, "concept_success": int(hit),
                            "perplexity": 5.0,
                        }
                    )  # fmt: skip
        tried.append(
            {
                "word": word, "tokens": [f" {word}"], "token_ids": [7], "layer": 4, "candidates": 2,
                "feature": 2 * place + 1, "concept_success": 1.0, "concept_score": 0.4,
            }
        )  # fmt: skip
    score = {"concept_score": [0.5, 0.4]} if of_concept else {}
    features = frame([4], 2, **score)
    tables = RunTables(features, GENERATIONS.frame(texts), STEERING.frame(rows), chat_template=True)
    return dataclasses.replace(tables, words=WORDS.frame(tried), **columns)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_wraps_texts_beside_their_labels(width: int) -> None:
    where = console(width, terminal=True)
    show(word_tables(), where)
    text = shown(where)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    words = " ".join(text.split())
    assert words.count(LONG) == 2 * 2 + 2  # both prompts of the feature that writes it, and one
    first = next(line for line in text.splitlines() if line.startswith("    unsteered  "))
    following = text.splitlines()[text.splitlines().index(first) + 1]
    if width < 200:
        assert following.startswith(" " * len("    unsteered  "))
        assert following.strip()


def test_a_pipe_gets_every_line_whole() -> None:
    where = console(80)
    show(word_tables(3, of_concept=False), where)
    text = shown(where)
    steered = [line for line in text.splitlines() if line.startswith("    steered    ")]
    assert len(steered) == 3
    assert all(line.endswith(" end") and LONG in line for line in steered)


def test_tokens_of_a_model_cannot_drive_the_terminal() -> None:
    where = console(200, terminal=True)
    show(word_tables(), where)
    assert "\\x1b[31m [bold]x[/]" in shown(where)
    assert "\x1b[31m" not in shown(where)
    report = "\n".join(toward_sections(word_tables()))
    assert "\x1b" not in report
    assert "<strong> sun</strong>" in report


def test_the_feature_that_writes_the_word_comes_first_and_its_token_first_of_what_it_writes() -> (
    None
):
    lines = [line.label + line.text.plain for line in concept_page(word_tables())]
    titles = [line for line in lines if line.startswith("layer 4, feature")]
    assert titles == ["layer 4, feature 1", "layer 4, feature 0"]
    assert [line for line in lines if line.startswith("  writes")] == ["  writes  ␣sun zenith"] * 2
    assert lines[1] == "1 of 2 features steer toward 'sun'."
    assert "in 2 of 2 texts (unsteered 0); perplexity 20 (unsteered 5)" in "\n".join(lines)


def test_tokens_of_the_concept_are_marked() -> None:
    steered = [line.text for line in concept_page(word_tables()) if "steered    " in line.label]
    marks = [[one.plain[span.start : span.end] for span in one.spans] for one in steered]
    assert marks == [[" sun"], [" sun"], []]


def test_a_run_toward_several_words_ends_with_what_to_do_next() -> None:
    tables = word_tables(3, of_concept=False, command="steerlens sae=local 'sae.path=a b' seed=1")
    where = console(80)
    show(tables, where, folder="out/x y")
    text = shown(where)
    assert "Best output features" in text
    lines = text.splitlines()
    next_steps = lines[lines.index("Next:") + 1 : -1]
    assert len(next_steps) == 3
    assert "concept=WORD sae=local 'sae.path=a b'" in next_steps[0]
    assert "export 'out/x y' layer=4 feature=1" in next_steps[1]
    assert not any("seed=1" in line for line in next_steps)
    titles = [one.text.plain for one in words_page(tables) if "which writes" in one.text.plain]
    assert [title.partition(":")[0] for title in titles] == ["sun", "moon", "king"]


def test_the_range_of_factors_or_why_there_is_none_is_told() -> None:
    tables = word_tables()
    steered = tables.steering.assign(safe_factor_low=0.5, safe_factor_high=4.0)
    where = console(200)
    show(dataclasses.replace(tables, steering=steered), where)
    assert "factor 2 (allowed: 0.5 to 4): " in shown(where)
    where = console(200)
    show(tables, where)  # of an earlier run, which has no range
    assert "factor 2: " in shown(where)
    without = tables.steering.assign(best_factor=pd.NA, safe_factor_low=pd.NA)
    choice = ChoiceConfig(rule="kl", kl_budget=0.25)
    where = console(200)
    texts = tables.generations.assign(success_20=1, kl=9.0)
    found = dataclasses.replace(tables, generations=texts, choice=choice)
    show(dataclasses.replace(found, steering=STEERING.frame(without)), where)
    text = shown(where)
    assert "no factor may be chosen: at all of them the divergence from the unsteered" in text
    assert "over 0.25 nat a token (choice.rule=kl)" in text


def test_a_word_that_is_not_found_is_told_with_the_reason() -> None:
    one = {"word": "zebra", "tokens": [" zebra"], "token_ids": [3], "reason": "no such luck"}
    empty = RunTables(frame([4], 1).head(0), words=WORDS.frame([one]))
    where = console(80)
    show(empty, where)
    assert "Nothing here steers toward 'zebra': no such luck." in shown(where)


def test_the_template_is_told() -> None:
    tables = word_tables()
    assert template_sentence(tables) == "Texts answer 2 prompts inside the model's chat template."
    plain = dataclasses.replace(tables, chat_template=False)
    assert template_sentence(plain) == "Texts go on from 2 prompts, without a chat template."


def test_prompts_that_only_chose_the_factor_are_said_not_to_count() -> None:
    tables = dataclasses.replace(word_tables(), choice=ChoiceConfig(split=True))
    assert template_sentence(tables).endswith("chose the factor, only the others count.")
    lines = [str(line.text) for line in concept_page(tables)]
    assert any("in 1 of 1 texts (unsteered 0)" in line for line in lines)


def test_a_label_that_leaves_no_room_is_not_wrapped() -> None:
    where = console(30, terminal=True)
    print_hanging(where, [Line("x" * 30, Text("some words that would be wrapped to nothing"))])
    assert len(shown(where).splitlines()) == 1


def test_only_words_that_choose_the_subject_go_on() -> None:
    command = "steerlens experiment=demo model=local model.path=/a concept=x 'sae.path=b c' layer=3"
    assert subject_words(command) == " model=local model.path=/a 'sae.path=b c'"
    assert subject_words(None) == ""


def test_the_folder_is_quoted_for_the_shell() -> None:
    where = console(80)
    show(word_tables(2, of_concept=False), where, folder=str(Path("a;b")))
    assert "export 'a;b' layer=4" in shown(where)
