"""Regular English forms."""

from __future__ import annotations

import pytest

from steerlens.scores.concepts.inflection import content_words, forms


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("network", "networks networked networking networker"),
        ("Exception", "exception exceptions"),
        ("class", "classes"),
        ("box", "boxes boxed boxing boxer"),
        ("query", "queries queried querying querier"),
        ("array", "arrays arrayed arraying"),
        ("cache", "caches cached caching cacher"),
        ("agree", "agrees agreed agreeing"),
        ("stop", "stops stopped stopping stopper"),
        ("visit", "visits visited visiting"),
        ("label", "labeled labelled labeling labelling"),
        ("hero", "heroes heros"),
        ("files", "file files filed filing"),
        ("queries", "query querying"),
        ("matches", "match matching"),
        ("caches", "cache caching"),
    ],
)
def test_has_the_regular_forms(word: str, expected: str) -> None:
    assert forms(word) >= {word.lower(), *expected.split()}


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("news", "new"),
        ("lens", "len"),
        ("status", "statu"),
        ("class", "clas"),
        ("stop", "stoped"),
        ("cache", "cacheing"),
        ("query", "querys"),
        ("show", "showwed"),
        ("c++", "c++s"),
    ],
)
def test_has_no_other(word: str, other: str) -> None:
    assert other not in forms(word)


def test_content_words_leave_stop_words_out_unless_there_is_nothing_else() -> None:
    assert content_words("the State of the Art") == ["state", "art"]
    assert content_words("If") == ["if"]
