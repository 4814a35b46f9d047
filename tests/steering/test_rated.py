"""Factors chosen by a judge's ratings of the features' texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens.config.prices import FREE
from steerlens.config.schema import ChoiceConfig, GenerationConfig, RunConfig, SteerConfig
from steerlens.config.settings import SteeringSettings, parse_steering
from steerlens.engine.subject import Subject
from steerlens.errors import SteerlensError
from steerlens.judges.cost import Estimate, estimate
from steerlens.judges.items import BUDGET, Item, Rated, Rating, aspects_of, nothing
from steerlens.judges.session import RatingSession
from steerlens.results import GENERATIONS, STEERING
from steerlens.runs.run_folder import RunFolder
from steerlens.runs.steer import steer
from steerlens.scores import RunContext
from steerlens.steering.features import steer_layer
from steerlens.steering.rated import missing_ratings, side_effects, with_ratings

MakeSubject = Callable[..., Subject]


@dataclass
class CountingJudge:
    """Rates a text by its number of letters, and none of those in `silent`."""

    silent: Callable[[Item], bool] = lambda item: False
    name: str = "stand-in"
    asked: list[Item] = field(default_factory=list)

    def check(self) -> None:
        pass

    def estimate(self, items: Sequence[Item]) -> Estimate:
        return estimate(len(items), 0, [], FREE, 0)

    def rate(self, items: Sequence[Item], progress: Any = nothing, spent_usd: float = 0.0) -> Rated:
        self.asked += items
        ratings = []
        for item in items:
            rating = Rating(None, BUDGET) if self.silent(item) else Rating(len(item.text) % 3)
            ratings.append({**dict.fromkeys(aspects_of(item), Rating(2)), "concept": rating})
        return Rated(self.name, "llm", ratings)


def settings_of(
    search: bool = False, factors: Sequence[float] = (0.5, 1, 3, 5)
) -> SteeringSettings:
    return parse_steering(
        RunConfig(
            steer=SteerConfig(factors=[*factors], search=search),
            generation=GenerationConfig(
                prompts=["Note that", "In my", "We", "It is"], max_new_tokens=4
            ),
            choice=ChoiceConfig(rule="judge"),
            concept="w145",
        )
    )


def test_continuations_are_rated_with_their_prompt_and_answers_beside_it() -> None:
    texts = pd.DataFrame({"prompt": ["We", "We"], "text": [" go", "x"], "factor": [0.0, 1.0]})
    for are_answers, rated_text, instruction in ((False, "We go", None), (True, " go", "We")):
        judge = CountingJudge()
        session = RatingSession(judge)
        rated = with_ratings(texts, "music", are_answers, session, RunContext(), "here")
        assert judge.asked[0] == Item(rated_text, "music", instruction)
        assert ("llm_instruction" in rated) == are_answers
        assert rated["judge"].tolist() == ["stand-in"] * 2
        assert missing_ratings(rated) is None
        # 1 or 2 beside aspects of 2, or 0; harmonic means.
        concept = rated["llm_concept"].tolist()
        n = 3 if are_answers else 2
        expected = [0 if c == 0 else n / (1 / c + (n - 1) / 2) for c in concept]
        assert rated["rating"].tolist() == pytest.approx(expected)


def test_side_effects_are_those_at_the_best_factor_of_each_feature_and_control() -> None:
    rows: list[Any] = [
        # feature, control, factor, prompt, text, fluency
        *((5, None, 0.0, prompt, "plain", 2) for prompt in "abc"),
        *((5, "random_direction", 0.0, prompt, "plain", 2) for prompt in "abc"),
        (5, None, 3.0, "a", "worse", 1),
        (5, None, 3.0, "b", "as good", 2),
        (5, None, 3.0, "c", "plain", 0),
        (5, None, 9.0, "a", "broken", 0),  # not the best factor
        (5, "random_direction", 9.0, "a", "broken", 0),
        (5, "random_direction", 9.0, "b", "broken", 0),
    ]
    names = ["feature", "control", "factor", "prompt", "text", "llm_fluency"]
    texts = pd.DataFrame(rows, columns=pd.Index(names))
    about = {"model": "m", "sae": "s", "layer": 1, "hook_name": "h", "sample": 0}
    texts = GENERATIONS.frame(texts.assign(**about))
    best = texts[
        ["model", "sae", "layer", "hook_name", "feature", "control", "together", "concept"]
    ]
    best = best.drop_duplicates(ignore_index=True).assign(best_factor=[3.0, 9.0])
    effects = side_effects(texts, best)
    assert effects["changed"].tolist() == [2, 2]
    assert effects["worse"].tolist() == [1, 2]
    assert effects["side_effect_ratio"].tolist() == [0.5, 1.0]
    none = side_effects(texts, best.assign(best_factor=None))
    assert none.isna().all(axis=None)


def test_the_search_asks_for_factors_by_their_ratings(tiny_subject: MakeSubject) -> None:
    subject = tiny_subject("llama", "jumprelu")

    settings = settings_of(True, [0.5, 1, 2, 3, 4, 5, 6, 8])
    texts = steer_layer(
        subject, [9], settings, RunContext(),
        rate=lambda texts: texts.assign(rating=9 - texts["factor"]),
    )  # fmt: skip
    assert set(texts["factor"]) == {0, 1, 4, 8, 0.5, 2, 3}


def test_a_run_says_how_many_texts_are_not_rated_and_keeps_all(
    tiny_subject: MakeSubject, tmp_path: Path
) -> None:
    subject = tiny_subject("llama", "jumprelu")
    folder = RunFolder(tmp_path, 0)

    class Models:
        evaluator = None

        def subjects(self, layers: Any) -> list[Subject]:
            return [subject]

    features = pd.DataFrame(
        {"model": subject.lm.name, "sae": subject.name, "hook_name": subject.hook_name,
         "layer": subject.layer, "feature": [9, 5]}
    )  # fmt: skip

    def steered(silent: Callable[[Item], bool]) -> pd.DataFrame:
        session = RatingSession(CountingJudge(silent))
        models: Any = Models()
        return steer(features, settings_of(), RunContext(), models, folder, session)

    steering = steered(lambda item: item.text.startswith("We"))
    texts = GENERATIONS.read(tmp_path)
    assert len(texts) == 2 * 5 * 4
    assert texts["rating"].isna().tolist().count(True) == 2 * 5
    assert "layer 2: 10 of 40 texts have no rating (budget: 10): factors are chosen" in str(
        folder._facts["notes"]
    ).replace("Layer", "layer")
    for row in steering.to_dict("records"):
        own = texts.loc[texts["feature"] == row["feature"]]
        chosen_on = own.loc[own["prompt"].isin(["In my", "Note that"]) & (own["factor"] != 0)]
        by_factor = chosen_on.groupby("factor")["rating"].mean()
        assert by_factor[row["best_factor"]] == by_factor.max()
        reported = own.loc[own["prompt"].isin(["It is", "We"])]
        reported = reported.loc[reported["factor"] == row["best_factor"], "rating"]
        assert row["rating"] == pytest.approx(reported.mean())
    table = STEERING.read(tmp_path)
    assert all(table["rating"].notna().tolist())
    assert not {"llm_concept", "llm_fluency"} & {*table}  # or they would be scores to select by
    with pytest.raises(SteerlensError, match="no text is rated"):
        steered(lambda item: True)
