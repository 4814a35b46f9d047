"""judge=lexical: its rules by hand, and what it refuses to say."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from steerlens.config.schema import JudgeConfig, RunConfig
from steerlens.errors import SteerlensError
from steerlens.judges import Item, load_judge
from steerlens.judges.items import UNMEASURED
from steerlens.judges.lexical import LexicalJudge, Lexicon, Limits, Reading, fit_reading
from steerlens.judges.vocabulary import (
    PRIOR,
    Present,
    Vocabulary,
    fit_vocabularies,
    fit_vocabulary,
    share,
    words_of,
    z_scores,
)

COMMON = [
    "the",
    "of",
    "a",
    "to",
    "and",
    "in",
    "it",
    "is",
    "that",
    "for",
    "on",
    "with",
    "as",
    "at",
    "by",
    "this",
    "from",
    "or",
    "an",
    "be",
]
BOATS = ["keel", "mast", "sail", "hull", "anchor"]
CARS = ["wheel", "engine", "brake", "gear", "clutch"]


def texts(words: list[str], n: int, seed: int, each: int = 3) -> list[str]:
    """`n` texts of common words, each with `each` of `words` among them."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        chosen = rng.choices(COMMON, k=20) + rng.choices(words, k=each if words else 0)
        rng.shuffle(chosen)
        made.append(" ".join(chosen) + ".")
    return made


def test_words_are_case_folded_and_signs_stand_alone() -> None:
    found = words_of("The KEEL's x_1 = {2};")
    assert found == ["the", "keel", "'", "s", "x_1", "=", "{", "2", "}", ";"]
    assert words_of("Straße") == ["strasse"]
    assert words_of(" \n") == []


def test_z_scores_are_the_formula_of_the_paper() -> None:
    with_W, without_W = np.array([5.0, 1.0, 4.0]), np.array([1.0, 8.0, 6.0])
    found = z_scores(with_W, without_W)
    prior = PRIOR * (with_W + without_W)
    for w, z in enumerate(found):
        odds = [
            math.log((y[w] + prior[w]) / (y.sum() + prior.sum() - y[w] - prior[w]))
            for y in (with_W, without_W)
        ]
        variance = sum(1 / (y[w] + prior[w]) for y in (with_W, without_W))
        assert z == pytest.approx((odds[0] - odds[1]) / math.sqrt(variance))
    assert np.argmax(found) == 0


def test_a_vocabulary_is_the_words_that_tell_the_concept() -> None:
    found = fit_vocabulary(texts(BOATS, 30, 0), texts([], 30, 1))
    assert set(found.words) == set(BOATS)
    assert found.limits is not None
    assert 0 < found.limits.present <= 3 / 24 == pytest.approx(found.limits.shaped)
    assert found.limits.balanced_accuracy == 1
    assert fit_vocabulary(texts(BOATS, 30, 0), texts([], 30, 1)) == found


def test_a_word_of_one_text_or_of_all_is_not_the_concepts() -> None:
    positive = [f"{text} always" for text in texts(BOATS, 40, 0)]
    positive[0] += " once once once once once once"
    negative = [f"{text} always" if n % 3 == 0 else text for n, text in enumerate(texts([], 40, 1))]
    words = fit_vocabulary(positive, negative).words
    assert "once" not in words
    assert "always" not in words
    assert set(words) == set(BOATS)


def test_without_a_difference_there_are_no_limits() -> None:
    found = fit_vocabulary(texts([], 30, 0), texts([], 30, 1))
    assert found.limits is None or found.limits.balanced_accuracy < 0.75
    nothing = fit_vocabulary(["a b c"] * 5, ["a b c"] * 5)
    assert (nothing.words, nothing.limits) == ((), None)


def test_limits_are_chosen_on_texts_that_the_words_were_not_learned_from() -> None:
    # Each text of the concept has two rare words that one other text shares: its own fold's.
    positive = [f"w{n % 5} x{n % 5} {text}" for n, text in enumerate(texts([], 10, 0))]
    found = fit_vocabulary(positive, texts([], 10, 1))
    naive = sum(share(text, found) > 0 for text in positive)
    assert found.limits is None or found.limits.balanced_accuracy < 1
    assert naive <= 10


def test_the_favourite_words_of_a_data_sets_author_are_no_concept() -> None:
    """Both concepts' texts say `moreover`, their negatives never do."""
    style = ["moreover"]
    training = {
        "boats": (texts(BOATS + style * 3, 30, 0, each=5), texts([], 30, 1)),
        "cars": (texts(CARS + style * 3, 30, 2, each=5), texts([], 30, 3)),
    }
    alone = fit_vocabulary(*training["boats"])
    assert "moreover" in alone.words
    found = fit_vocabularies(training)
    assert set(found["boats"].words) == set(BOATS)
    assert set(found["cars"].words) == set(CARS)
    assert fit_vocabularies(dict(reversed(training.items()))) == found


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(SteerlensError, match="there are 1 and 3"):
        fit_vocabulary(["a"], ["a", "b", "c"])


def test_limits_of_reading_are_the_quantiles() -> None:
    perplexity = [math.exp(n) for n in range(21)]
    found = fit_reading([*perplexity, None], [0.0, *[0.3] * 19, 0.5, None])
    assert found.log_perplexity == pytest.approx((19.0, 28.0))  # median 10
    assert found.degeneracy == pytest.approx((0.3, 0.65))
    assert fit_reading(perplexity, [0.0] * 21).degeneracy == pytest.approx((0.1, 0.55))
    with pytest.raises(SteerlensError, match=r"needs 5 of them with a perplexity; there are 4"):
        fit_reading([1.0] * 4 + [None], [0.0] * 9)


VOCABULARY = Vocabulary(tuple(BOATS), Present(0.1, 0.3, 0.9))
LEXICON = Lexicon(
    {"boats": VOCABULARY, "air": Vocabulary((), None)},
    Reading(Limits(math.log(50), math.log(200)), Limits(0.2, 0.6)),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("a b c d e f g h i j", 0),
        ("a b c d e f g h i j keel", 0),
        ("a b c d e f g h i keel", 1),
        ("a b Keel c d KEEL e f g h", 1),
        ("a b keel c mast d e sail f g", 2),
        ("keel keel keel", 2),
    ],
)
def test_concept_is_rated_by_the_share_of_its_words(text: str, value: int) -> None:
    item = Item(text, "boats", perplexity=20.0, degeneracy=0.0)
    assert LexicalJudge(LEXICON).rate([item]).ratings[0]["concept"].value == value


@pytest.mark.parametrize(
    ("perplexity", "degeneracy", "value"),
    [
        (1.01, 0.0, 2),
        (49.9, 0.2, 2),
        (50.1, 0.0, 1),
        (199.0, 0.0, 1),
        (201.0, 0.0, 0),
        (20.0, 0.3, 1),
        (20.0, 0.7, 0),
        (math.inf, 0.0, 0),
        (100.0, 0.7, 0),
        (None, 0.0, None),
        (20.0, None, None),
    ],
)
def test_fluency_is_the_smaller_of_two_ratings(
    perplexity: float | None, degeneracy: float | None, value: int | None
) -> None:
    item = Item("keel", "boats", perplexity=perplexity, degeneracy=degeneracy)
    rating = LexicalJudge(LEXICON).rate([item]).ratings[0]["fluency"]
    assert rating.value == value
    assert rating.missing == (UNMEASURED if value is None else None)


def test_it_is_named_wherever_its_numbers_are_and_rates_no_instruction() -> None:
    run = RunConfig(judge=JudgeConfig("lexical"))
    judge = load_judge(run, LEXICON)
    judge.check()
    item = Item("keel", "boats", "Write of boats.", 20.0, 0.0)
    done: list[int] = []
    rated = judge.rate([item, replace(item, concept="air")], done.append)
    assert (rated.judge, rated.kind, sum(done)) == ("lexical", "lexical", 4)
    assert rated.columns() == {
        "lexical_concept": [2, None],
        "lexical_concept_missing": [None, UNMEASURED],
        "lexical_fluency": [2, 2],
        "lexical_fluency_missing": [None, None],
    }
    assert (judge.estimate([item]).usd, rated.cost.usd) == (0.0, 0.0)


def test_a_concept_without_training_texts_is_refused() -> None:
    with pytest.raises(SteerlensError, match="no training texts of the concept 'trains'"):
        LexicalJudge(LEXICON).rate([Item("keel", "trains")])
    with pytest.raises(SteerlensError, match="judge=lexical needs a concept set"):
        load_judge(RunConfig(judge=JudgeConfig("lexical")))
    with pytest.raises(SteerlensError, match="no judge is chosen"):
        load_judge(RunConfig())


def test_learned_words_rate_new_texts() -> None:
    vocabularies = fit_vocabularies(
        {
            "boats": (texts(BOATS, 30, 0), texts([], 30, 1)),
            "cars": (texts(CARS, 30, 2), texts([], 30, 3)),
        }
    )
    judge = LexicalJudge(Lexicon(vocabularies, LEXICON.reading))

    def rate(words: list[str], each: int) -> set[int | None]:
        items = [Item(text, "boats") for text in texts(words, 20, 9, each)]
        return {rating["concept"].value for rating in judge.rate(items).ratings}

    assert rate([], 0) == rate(CARS, 5) == {0}
    assert rate(BOATS, 3) == {2}
