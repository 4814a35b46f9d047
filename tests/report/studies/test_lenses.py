"""Lenses beside each other, from tables in which it is known what texts have of their tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steerlens.analysis.series import Series
from steerlens.config.schema import StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies.lenses import answer, counted_texts
from steerlens.results import WORDS
from steerlens.results.folder import RunTables
from tests.support.frames import frame, generations

N = 8
TEXTS = generations(N)
TOKENS = {"logit": [0, 1], "jacobian": [0, 1, 2]}


def tables(lens: str, n: int = N, **columns: Any) -> RunTables:
    own = [TOKENS[lens]] * (2 * n)
    column = "logit_lens_token_ids" if lens == "logit" else "promoted_token_ids"
    precision = np.linspace(0, 1, 2 * n) if lens == "logit" else np.ones(2 * n)
    filled = {column: own, "lens_precision": precision} | columns
    return RunTables(frame((0, 1), n, **filled), generations(n), lens=lens)


def both(**columns: Any) -> list[Series]:
    return [Series(lens, [], tables(lens, **columns)) for lens in TOKENS]


def test_texts_are_counted_beside_the_unsteered_ones_of_the_same_feature() -> None:
    counted = counted_texts(tables("jacobian")).set_index(["layer", "feature", "factor"])
    assert len(counted) == 2 * N * 3
    rows: Any = counted.iterrows()
    for (layer, feature, factor), row in rows:
        of = TEXTS.loc[(TEXTS["layer"] == layer) & (TEXTS["feature"] == feature)]
        for end, at in (("", factor), ("_unsteered", 0.0)):
            hits = [
                sum(token in TOKENS["jacobian"] for token in ids)
                for ids in of.loc[of["factor"] == at, "token_ids"]
            ]
            assert row[f"tokens{end}"] == pytest.approx(np.mean(hits))
            assert row[f"texts_with{end}"] == pytest.approx(np.mean([n > 0 for n in hits]))


def test_each_lens_is_compared_with_the_first_feature_by_feature() -> None:
    found = answer(both(), StudyConfig("lenses"))
    rows: Any = found.tables["lenses"].set_index("lens")
    assert rows["features"].tolist() == [2 * N, 2 * N]
    assert rows["lens_precision"].tolist() == pytest.approx([0.5, 1])
    assert rows.loc["jacobian", "lens_precision_more"] == pytest.approx(0.5)
    assert rows.loc["jacobian", "lens_precision_more_low"] > 0.3
    assert pd.isna(rows.loc["logit", "lens_precision_more"])
    counted = counted_texts(tables("logit"))
    gain = counted["texts_with"] - counted["texts_with_unsteered"]
    assert rows.loc["logit", "texts_with"] == pytest.approx(gain.mean())
    assert "jacobian 100% (100% to 100%), +50%" in found.sentences[0]
    assert len(found.tables["lenses_layers"]) == 4
    assert found.tables["lenses_factors"]["factor"].tolist() == [0.5, 2.0, 8.0] * 2
    titles = [axes.get_title() for axes in found.figures["lenses"]().axes]
    assert titles == ["lens precision", "texts with", "tokens"]


def test_intervals_are_of_features_within_layers() -> None:
    by_layer = np.repeat([0.2, 0.8], N)  # layers differ, the features of a layer don't
    row = answer(both(lens_precision=by_layer), StudyConfig()).tables["lenses"].iloc[0]
    assert (row["lens_precision_low"], row["lens_precision_high"]) == pytest.approx((0.5, 0.5))


def test_a_single_feature_of_a_layer_has_no_interval() -> None:
    few = [Series(lens, [], tables(lens, 1)) for lens in TOKENS]
    rows = answer(few[:1], StudyConfig()).tables["lenses"]
    assert len(rows) == 1
    rows = answer(few[::-1], StudyConfig()).tables["lenses"]
    assert rows["lens"].tolist() == list(TOKENS)
    assert all(rows["lens_precision_low"].isna().tolist())


def test_without_texts_or_without_the_score_the_other_is_told() -> None:
    scored, written = both(), both(lens_precision=None)
    for member in scored:
        empty = member.tables.generations.iloc[:0]
        scored[scored.index(member)] = dataclasses.replace(
            member, tables=dataclasses.replace(member.tables, generations=empty)
        )
    assert "texts_with" not in answer(scored, StudyConfig()).tables["lenses"]
    published = both()
    for index, member in enumerate(published):
        texts = member.tables.generations.assign(token_ids=[[]] * len(TEXTS))
        published[index] = dataclasses.replace(
            member, tables=dataclasses.replace(member.tables, generations=texts)
        )
    assert "texts_with" not in answer(published, StudyConfig()).tables["lenses"]
    assert "lens_precision" not in answer(written, StudyConfig()).tables["lenses"]


def test_what_cannot_be_compared_is_refused() -> None:
    logit, jacobian = both()
    with pytest.raises(SteerlensError, match="two results of lens=logit"):
        answer([logit, logit, jacobian], StudyConfig())
    other = dataclasses.replace(jacobian, tables=jacobian.tables.of_layers([7]))
    with pytest.raises(SteerlensError, match="no feature of all results"):
        answer([logit, other], StudyConfig())


def of_lens(lens: str, added: list[float | None], words: list[str] | None = None) -> Series:
    rows = [
        {
            "word": word,
            "token_ids": [index],
            "concept_success": None if value is None else value + 0.5,
            "concept_success_unsteered": None if value is None else 0.5,
            "reason": "no feature" if value is None else None,
        }
        for index, (word, value) in enumerate(
            zip(words or [f"w{n}" for n in range(len(added))], added, strict=True)
        )
    ]
    # A word that the vocabulary can't form says nothing of a lens.
    rows.append({"word": "zzz", "reason": "no token stands for it"})
    return Series(lens, [], dataclasses.replace(tables(lens), words=WORDS.frame(rows)))


def test_of_words_lenses_are_compared_by_what_features_write_of_them() -> None:
    logit = [1.0, None, 2.0, None, 0.5, 1.0, None, 3.0, 1.5]
    jacobian = [0.5, 1.0, 2.0, None, 0.5, 1.0, 0.25, None, 1.5]
    found = answer([of_lens("jacobian", jacobian), of_lens("logit", logit)], StudyConfig())
    rows: Any = found.tables["lenses"].set_index("lens")
    assert rows["words"].tolist() == [9, 9]
    assert rows["steerable"].tolist() == pytest.approx([6 / 9, 7 / 9])
    assert rows["tokens_added"].tolist() == pytest.approx([9 / 9, 6.75 / 9])
    less = [(b or 0) - (a or 0) for a, b in zip(logit, jacobian, strict=True)]
    assert rows.loc["jacobian", "tokens_added_more"] == pytest.approx(np.mean(less))
    low, high = (rows.loc["jacobian", f"tokens_added_more_{end}"] for end in ("low", "high"))
    assert low < np.mean(less) < high
    assert pd.isna(rows.loc["logit", "steerable_more"])
    assert "9 words): logit 67%" in found.sentences[0]
    axes = found.figures["lenses"]().axes[0]
    assert len(axes.get_yticklabels()) == 9
    few = answer([of_lens("logit", logit[:3]), of_lens("jacobian", jacobian[:3])], StudyConfig())
    assert "3 words can't tell lenses apart" in few.sentences[-1]
    assert few.tables["lenses"]["steerable_low"].isna().tolist() == [True, True]
    with pytest.raises(SteerlensError, match="no word that all of them share"):
        answer([of_lens("logit", [1.0]), of_lens("jacobian", [1.0], ["other"])], StudyConfig())
