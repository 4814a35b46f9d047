"""How well does each method steer toward concepts, as a judge rates the texts (Table 1)?

A row for every method, the SAE's features also filtered by output score, and a column for every
layer, kind of judge and aggregation: `per_text` is AxBench's, `of_means` the paper's (see
`analysis.ratings`), and they are never mixed. A filtered row is of the concepts that have a feature
left. Beside it what the paper has published for Gemma-2-9B-it, and in the figures AxBench's
leaderboard; other models, concepts and judges have other numbers. Intervals are 95 % bootstrap
intervals over concepts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from steerlens.analysis.rated_arms import (
    arm_numbers,
    aspects_of,
    kinds_of,
    over_concepts,
    paired_difference,
)
from steerlens.analysis.ratings import AGGREGATIONS, PER_TEXT
from steerlens.analysis.resampling import FEWEST, Estimate
from steerlens.analysis.series import Series
from steerlens.config.schema import STEERED_BY, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.figures.rated import (
    Curve,
    References,
    draw_by_factor,
    draw_by_threshold,
)
from steerlens.report.figures.style import n_of
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import CHOOSING, EVALUATING
from steerlens.results.text import interval_of

SAE = "SAE"
UNSTEERED = "No steering"
UNFILTERED = "SAE (no filter)"
THRESHOLDS = (0.0001, 0.001, 0.01, 0.1)
"""Of the output score, as in the paper's Table 1."""
MORE_THRESHOLDS = (1e-6, 1e-5, *THRESHOLDS, 0.3, 0.5, 0.7, 0.9)
"""Those of the figure."""
MAIN = 0.01
"""Below it a feature hardly steers (paper Section 4)."""
SAID = (MAIN, 0.1)
"""Thresholds of which sentences are said."""
BY_CONFIDENCE = "SAE (token_confidence_delta)"
"""As many features as output_score >= `MAIN` leaves, those with the highest."""
BASELINES = ("DiffMean", "ReFT-r1", "RePS", "Random")
"""What SAE rows are compared with, concept by concept; every row is with `UNSTEERED`."""

PUBLISHED = {
    "SAE (output_score >= 0.1)": (0.546, 0.470),
    "SAE (output_score >= 0.01)": (0.338, 0.454),
    "SAE (output_score >= 0.001)": (0.373, 0.415),
    "SAE (output_score >= 0.0001)": (0.325, 0.401),
    UNFILTERED: (0.293, 0.387),
    "Prompt": (1.075, 1.072),
    "LoReFT": (0.777, 0.764),
    "LoRA": (0.602, 0.580),
    "ReFT-r1": (0.630, 0.401),
    "DiffMean": (0.322, 0.158),
    "SAE-A": (0.186, 0.143),
}
"""The paper's Table 1: Gemma-2-9B-it, Concept500, layers 20 and 31, judged by an LLM. The filtered
and unfiltered rows are the paper's `of_means`, the others AxBench's `per_text`."""

PUBLISHED_LAYERS = (20, 31)


LEADERBOARD = References(
    "AxBench's leaderboard: Gemma-2 2B and 9B, Concept500, mean of four layers, rated by "
    "gpt-4o-mini; SAELogits of 9B layer 31 alone; filtered SAE of 9B, rated by Claude 3.7 Sonnet",
    {
        "HyperSteer": 0.917,
        "Prompt": 0.894,
        "RePS": 0.720,
        "filtered SAE, layer 20": 0.546,
        "ReFT-r1": 0.543,
        "filtered SAE, layer 31": 0.470,
        "SAELogits": 0.351,
        "DiffMean": 0.239,
        "SAE": 0.165,
    },
)
"""github.com/stanfordnlp/axbench, `per_text`. Filtered SAE is the paper's, and `of_means`."""


BUDGET = ("train_texts", "epochs", "train_rows", "train_steps", "vectors_measured")
"""What a method has learnt from."""


def threshold_name(threshold: float) -> str:
    """Return what a filtered row is called."""
    return f"SAE (output_score >= {threshold:g})"


class Row(NamedTuple):
    """A row of the table."""

    method: str
    select: Callable[[Any], Any]
    """Which of a layer's numbers it shows."""


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return the table, what SAE rows have more than others, and the two figures; of the first
    result with ratings.

    Raises:
        SteerlensError: nothing was rated.
    """
    member = next((candidate for candidate in series if len(candidate.tables.ratings)), None)
    if member is None:
        raise SteerlensError(
            "no text was rated; add concepts=embedded judge=lexical steer=axbench."
        )
    ratings = member.tables.ratings
    kinds = kinds_of(ratings)
    if not kinds:
        raise SteerlensError("the judge has rated no text.")
    numbers_of = {
        (kind, aggregation): _with_scores(arm_numbers(ratings, kind, aggregation), member)
        for kind in kinds
        for aggregation in AGGREGATIONS
    }
    rows = [
        row._replace(method=row.method + _incomplete(ratings, kinds))
        for row in _rows(next(iter(numbers_of.values())))
    ]
    table = pd.DataFrame([_table_row(row, numbers_of, member) for row in rows])
    differences = pd.DataFrame(_differences(rows, numbers_of))
    first = numbers_of[kinds[0], PER_TEXT]
    tried = _with_scores(arm_numbers(ratings, kinds[0], PER_TEXT, CHOOSING), member)
    judge = f"{kinds[0]} rating, {PER_TEXT.replace('_', ' ')}"
    figures: dict[str, Any] = {}
    if any(row.method == threshold_name(MAIN) for row in rows):
        n = _counted(ratings, EVALUATING)
        figures["table1_threshold"] = partial(
            draw_by_threshold, _by_threshold(first, rows), n, judge, LEADERBOARD
        )
    if tried["factor"].nunique() > 1:
        n = _counted(ratings, CHOOSING)
        figures["table1_factor"] = partial(draw_by_factor, _by_factor(tried), n, judge, LEADERBOARD)
    left_out = [f"Only {member.label} is looked at."] if len(series) > 1 else []
    return Answer(
        sentences=[
            *_judges(ratings, kinds),
            *_difference_sentences(differences),
            *_unsteered_sentences(differences),
            *_missing(ratings, kinds),
            *left_out,
        ],
        tables={"table1": table, "table1_differences": differences},
        figures=figures,
    )


def _counted(ratings: pd.DataFrame, split: str) -> str:
    """Return how many concepts and rated texts a half of the prompts has."""
    rows = ratings.loc[ratings["split"] == split]
    concepts, texts = rows["concept_id"].nunique(), len(rows)
    return f"{n_of([concepts], 'concept')}, {n_of([texts], 'rated text')}"


def _with_scores(numbers: pd.DataFrame, member: Series) -> Any:
    """Return numbers with the scores of the SAE feature that each is of."""
    key = ["layer", "method", "rank", "concept_id"]
    concepts = member.tables.concepts[[*key, "feature", "undecided"]]
    scores: Any = member.tables.features[
        ["layer", "feature", "output_score", "token_confidence_delta"]
    ]
    scores = scores.drop_duplicates(["layer", "feature"])
    return numbers.merge(concepts, how="left", on=key).merge(
        scores, how="left", on=["layer", "feature"]
    )


def _rows(numbers: Any) -> Iterator[Row]:
    """Yield the rows of the table, those that filter where there is something to filter."""

    def of(method: str, rows: Any) -> Any:
        return rows.loc[rows["method"] == method]

    present = set(numbers["method"])
    if SAE in present:
        yield Row(UNFILTERED, partial(of, SAE))
        sae = of(SAE, numbers)
        if sae["output_score"].notna().any():
            for threshold in THRESHOLDS:
                yield Row(threshold_name(threshold), partial(_filtered, threshold))
        if sae["token_confidence_delta"].notna().any():
            yield Row(BY_CONFIDENCE, _by_confidence)
    plugged_in = sorted(present - {*STEERED_BY, UNSTEERED})
    order = (*STEERED_BY, *plugged_in, UNSTEERED)
    methods = [name for name in order if name in present and name != SAE]
    yield from (Row(name, partial(of, name)) for name in methods)


def _incomplete(ratings: pd.DataFrame, kinds: Sequence[str]) -> str:
    """Return what a method's name is followed by where the concept itself wasn't rated: such an
    overall rating isn't the table's.
    """
    aspects = aspects_of(ratings, kinds[0])
    if f"{kinds[0]}_concept" in aspects:
        return ""
    return ", only " + " and ".join(name.removeprefix(f"{kinds[0]}_") for name in aspects)


def _filtered(threshold: float, rows: Any) -> Any:
    is_selected = (rows["method"] == SAE) & (rows["output_score"].fillna(-1.0) >= threshold)
    return rows.loc[is_selected.astype(bool)]


def _by_confidence(rows: Any) -> Any:
    """Return in every layer as many as the main threshold of the output score leaves."""
    sae = rows.loc[rows["method"] == SAE]
    parts = [
        of_layer.nlargest(len(_filtered(MAIN, of_layer)), "token_confidence_delta")
        for _, of_layer in sae.groupby("layer")
    ]
    return pd.concat(parts) if parts else sae


def _table_row(
    row: Row, numbers_of: dict[tuple[str, str], pd.DataFrame], member: Series
) -> dict[str, Any]:
    cells: dict[str, Any] = {"method": row.method}
    for (kind, aggregation), numbers in numbers_of.items():
        of_row = row.select(numbers)
        for layer in sorted(set(numbers["layer"])):
            rows = of_row.loc[of_row["layer"] == layer]
            name = f"{kind}_{aggregation}_layer_{layer}"
            cells |= interval_columns(name, over_concepts(rows))
            decided = over_concepts(rows.loc[~rows["undecided"].fillna(value=False).astype(bool)])
            cells[f"{name}_decided"] = decided.value if decided else None
            cells[f"{name}_concepts"] = rows["concept_id"].nunique()
    of_row = row.select(next(iter(numbers_of.values())))
    texts = member.tables.ratings.loc[member.tables.ratings["split"] == EVALUATING]
    key = ["layer", "method", "rank", "concept_id", "factor"]
    counted = texts.merge(of_row[key].drop_duplicates(), on=key)
    for layer in sorted(set(texts["layer"])):
        cells[f"texts_layer_{layer}"] = int((counted["layer"] == layer).sum())
        # Of features, or concepts, the factor is only the smallest: all were rated 0.
        arms = of_row.loc[of_row["layer"] == layer].drop_duplicates(
            ["method", "rank", "concept_id"]
        )
        undecided = arms["undecided"].fillna(value=False)
        cells[f"undecided_layer_{layer}"] = int(undecided.sum())
        cells[f"auroc_layer_{layer}"] = _auroc(row, member, layer)
    cells |= _learnt_from(row, member)
    published = PUBLISHED.get(row.method, (None, None))
    for layer, number in zip(PUBLISHED_LAYERS, published, strict=True):
        cells[f"published_layer_{layer}"] = number
    return cells


def _auroc(row: Row, member: Series, layer: int) -> float | None:
    """Return the mean area under the ROC curve with which the row's directions detect their
    concepts.
    """
    rows = member.tables.concepts
    of_row = row.select(_with_scores(rows.drop(columns=["feature", "undecided"]), member))
    mean = of_row.loc[of_row["layer"] == layer, "auroc"].dropna()
    return float(mean.mean()) if len(mean) else None


def _learnt_from(row: Row, member: Series) -> dict[str, float | None]:
    """Return what learning a concept took the row's methods, on average."""
    of_row = row.select(
        _with_scores(member.tables.concepts.drop(columns=["feature", "undecided"]), member)
    )
    means = {name: of_row[name].dropna().astype(float) for name in BUDGET}
    return {name: float(of.mean()) if len(of) else None for name, of in means.items()}


def _differences(
    rows: Sequence[Row], numbers_of: dict[tuple[str, str], pd.DataFrame]
) -> Iterator[dict[str, Any]]:
    pairs = [
        (row, baseline)
        for row, baseline in itertools.product(rows, rows)
        if (baseline.method in BASELINES and row.method.startswith(SAE))
        or (baseline.method == UNSTEERED and row is not baseline)
    ]
    for (kind, aggregation), numbers in numbers_of.items():
        for layer in sorted(set(numbers["layer"])):
            of_layer = numbers.loc[numbers["layer"] == layer]
            for row, baseline in pairs:
                less, n = paired_difference(row.select(of_layer), baseline.select(of_layer))
                yield {
                    "judge": kind,
                    "aggregation": aggregation,
                    "layer": layer,
                    "method": row.method,
                    "baseline": baseline.method,
                    "concepts": n,
                    **interval_columns("difference", less),
                }


def _judges(ratings: pd.DataFrame, kinds: Sequence[str]) -> list[str]:
    sentences = []
    for kind in kinds:
        aspects = [name.removeprefix(f"{kind}_") for name in aspects_of(ratings, kind)]
        names = sorted(set(ratings["judge"].dropna()))
        text = f"{' and '.join(names)} rated {', '.join(aspects)}, each 0 to 2"
        if "instruction" not in aspects:
            text += "; there is no rating of instructions"
        sentences.append(text + ".")
    tried = ratings.loc[(ratings["split"] == CHOOSING) & (ratings["factor"] != 0), "factor"]
    if len(tried):
        grid = ", ".join(f"{factor:g}" for factor in sorted(set(tried)))
        sentences.append(
            f"Factors {grid} were tried on other prompts than those that the table is of; the "
            "best by the mean rating of a text was taken for each concept."
        )
    return sentences


def _difference_sentences(differences: pd.DataFrame) -> list[str]:
    """Return how far filtered SAE steering is from supervised methods."""
    if not len(differences):
        return []
    methods = [UNFILTERED, *map(threshold_name, SAID)]
    rows = differences.loc[
        (differences["aggregation"] == PER_TEXT)
        & differences["method"].isin(methods)
        & differences["difference"].notna()
    ]
    few = rows.loc[rows["concepts"] < FEWEST]
    rows = rows.loc[rows["concepts"] >= FEWEST]
    # A threshold that every feature passes says nothing new.
    rows = rows.drop_duplicates(["judge", "layer", "baseline", "concepts", "difference"])
    compared = [
        f"Layer {row['layer']}, {row['judge']}, {PER_TEXT.replace('_', ' ')}: {row['method']} less "
        f"{row['baseline']} is {interval_of(row, 'difference', '+.3f')} on the "
        f"{row['concepts']} concepts that both have."
        for row in rows.to_dict("records")
    ]
    if few.empty:
        return compared
    listed = ", ".join(dict.fromkeys(few["method"]))
    left_out = (
        f"Not compared with others, as they share fewer than {FEWEST} concepts with them: {listed}."
    )
    return [*compared, left_out]


def _unsteered_sentences(differences: pd.DataFrame) -> list[str]:
    """Return which methods' texts are rated apart from those of no steering."""
    if not len(differences):
        return []
    rows = differences.loc[
        (differences["aggregation"] == PER_TEXT)
        & (differences["baseline"] == UNSTEERED)
        & (differences["concepts"] >= FEWEST)
    ]
    sentences = []
    for (layer, kind), of_layer in rows.groupby(["layer", "judge"]):
        above, below = (
            of_layer.loc[of_layer["difference_low"] > 0, "method"],
            of_layer.loc[of_layer["difference_high"] < 0, "method"],
        )
        apart = [
            f"{', '.join(methods)} {side} no steering"
            for methods, side in ((above, "above"), (below, "below"))
            if len(methods)
        ]
        sentences.append(
            f"Layer {layer}, {kind}: of {len(of_layer)} rows, by intervals not corrected for "
            f"their number, {' and '.join(apart) or 'none is told apart from no steering'}."
        )
    return sentences


def _missing(ratings: Any, kinds: Sequence[str]) -> list[str]:
    """Return ratings that are missing, and why."""
    sentences = []
    for kind in kinds:
        for name in aspects_of(ratings, kind):
            n = int(ratings[name].isna().sum())
            if not n:
                continue
            reasons = ratings.get(f"{name}_missing", pd.Series(dtype="string"))
            counts = reasons[ratings[name].isna()].value_counts()
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            of = name.removeprefix(f"{kind}_")
            sentences.append(
                f"{n:,} of {len(ratings):,} ratings of {of} are missing"
                + (f" ({why})" if why else "")
                + ": left out, not counted as 0."
            )
    return sentences


def _by_threshold(numbers: Any, rows: Sequence[Row]) -> dict[int, list[Curve]]:
    """Return, for each layer the SAE's score by threshold, and other methods' as one number."""
    curves_of = {}
    for layer, of_layer in numbers.groupby("layer"):
        estimates = [over_concepts(_filtered(threshold, of_layer)) for threshold in MORE_THRESHOLDS]
        curves = [Curve("SAE, filtered", list(MORE_THRESHOLDS), estimates)]
        for row in rows:
            if row.method in (UNFILTERED, "Prompt", *BASELINES):
                curves.append(Curve(row.method, [], [over_concepts(row.select(of_layer))]))
        curves_of[int(str(layer))] = curves
    return curves_of


def _by_factor(numbers: Any) -> dict[int, list[Curve]]:
    """Return, for each layer and method the score at every factor."""
    curves_of: dict[int, list[Curve]] = {}
    for (layer, method), rows in numbers.groupby(["layer", "method"], sort=False):
        factors = sorted(set(rows["factor"]))
        estimates: list[Estimate | None] = [
            over_concepts(rows.loc[rows["factor"] == factor]) for factor in factors
        ]
        curve = Curve(str(method), factors if len(factors) > 1 else [], estimates)
        curves_of.setdefault(int(str(layer)), []).append(curve)
    return curves_of
