"""Which lens tells best what a feature writes? By outcomes that belong to none of the lenses.

Results of the same features and texts, a lens each; of one alone, its own numbers. Of every
feature: how many of its promoted tokens rise after held-out prompts (`lens_precision`), how many of
its steered texts have at least one of them (`texts_with`), and how many of them these have
(`tokens`), both the mean over the factors tried, less the same number of the unsteered texts of its
prompts. So no factor is chosen: choosing one would count the logit lens's tokens. Means are over
features, their 95 % bootstrap intervals over features within layers, each for itself; what a lens
has more than the first one is compared feature by feature.

Of runs that steer toward words (`toward.words`), whose candidates the lens has found: for how many
words a feature steers toward them (`steerable`), and how many of the word's tokens the best
feature's texts have more than unsteered ones (`tokens_added`, 0 where there is none), compared word
by word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steerlens.analysis.equal_share import counts_within
from steerlens.analysis.resampling import FEWEST, RESAMPLES, Estimate, estimate
from steerlens.analysis.series import Series
from steerlens.config.schema import LENSES, StudyConfig
from steerlens.errors import SteerlensError
from steerlens.report.studies import Answer, interval_columns
from steerlens.results import FEATURES, features_alone, promoted_ids
from steerlens.results.folder import RunTables
from steerlens.results.text import counted, interval_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = list(FEATURES.keys)
LOGIT = LENSES[0]
OUTCOMES = {
    "lens_precision": "of its tokens rise after held-out prompts",
    "texts_with": "of the steered texts have one of its tokens, beyond the unsteered ones",
    "tokens": "of its tokens are in a steered text, beyond an unsteered one",
}
OF_TEXTS = ("texts_with", "tokens")
OF_WORDS = {
    "steerable": "of the words have a feature that steers toward them",
    "tokens_added": "of a word's tokens its best feature adds to a text, 0 where it has none",
}


def answer(series: Sequence[Series], config: StudyConfig) -> Answer:
    """Return every lens's outcomes, overall, by layer and by factor, the logit lens first.

    Raises:
        SteerlensError: two results are of the same lens, or nothing was measured of features or
            words that all of them have.
    """
    by_lens: dict[str, RunTables] = {}
    for member in series:
        lens = member.tables.lens or LOGIT
        if lens in by_lens:
            raise SteerlensError(f"there are two results of lens={lens}; this study wants one.")
        by_lens[lens] = member.tables
    by_lens = {lens: by_lens[lens] for lens in LENSES if lens in by_lens}
    if all(len(tables.words) for tables in by_lens.values()):
        return _answer_of_words(by_lens)
    texts_of = {lens: counted_texts(tables) for lens, tables in by_lens.items()}
    outcomes_of = {
        lens: of_features(tables.features, texts_of[lens]) for lens, tables in by_lens.items()
    }
    shared = functools.reduce(
        pd.Index.intersection, [outcomes.index for outcomes in outcomes_of.values()]
    )
    outcomes_of = {lens: outcomes.loc[shared] for lens, outcomes in outcomes_of.items()}
    measured = [
        name
        for name in OUTCOMES
        if len(shared) and all(of[name].notna().all() for of in outcomes_of.values())
    ]
    if not measured:
        raise SteerlensError(
            "no feature of all results has an outcome; add score=lens_precision, or steer=grid."
        )
    overall = pd.DataFrame(_rows(outcomes_of, measured, "features"))
    layers = shared.get_level_values("layer")
    by_layer = pd.DataFrame(
        [
            {"layer": int(layer), **row}
            for layer in sorted(set(layers))
            for row in _rows(
                {k: of.loc[layers == layer] for k, of in outcomes_of.items()}, measured, "features"
            )
        ]
    )
    tables = {"lenses": overall, "lenses_layers": by_layer}
    by_factor = pd.DataFrame(_by_factor(texts_of, shared))
    if len(by_factor):
        tables["lenses_factors"] = by_factor
    return Answer(
        sentences=[*_sentences(overall, {name: OUTCOMES[name] for name in measured}, "feature")],
        tables=tables,
        figures={"lenses": partial(_draw, by_layer, measured)},
    )


def _answer_of_words(by_lens: Mapping[str, RunTables]) -> Answer:
    """Return for how many words each lens finds a feature that steers toward them, and how far."""
    outcomes_of = {lens: of_words(tables.words) for lens, tables in by_lens.items()}
    shared = functools.reduce(
        pd.Index.intersection, [outcomes.index for outcomes in outcomes_of.values()]
    )
    if shared.empty:
        raise SteerlensError("the results have tried no word that all of them share.")
    outcomes_of = {lens: outcomes.loc[shared] for lens, outcomes in outcomes_of.items()}
    overall = pd.DataFrame(_rows(outcomes_of, [*OF_WORDS], "words"))
    by_word = pd.concat(
        [outcomes.reset_index().assign(lens=lens) for lens, outcomes in outcomes_of.items()]
    )
    return Answer(
        sentences=[*_sentences(overall, OF_WORDS, "word")],
        tables={"lenses": overall, "lenses_words": by_word},
        figures={"lenses": partial(_draw_words, by_word)},
    )


def of_words(words: pd.DataFrame) -> pd.DataFrame:
    """Return the outcomes of each word of `words.parquet` that the vocabulary can form."""
    formed = words.loc[words["token_ids"].notna()].set_index("word")
    steers = formed["reason"].isna()
    added: Any = formed["concept_success"] - formed["concept_success_unsteered"]
    return pd.DataFrame(
        {"steerable": steers.astype(float), "tokens_added": added.where(steers, 0.0).astype(float)}
    )


def counted_texts(tables: RunTables) -> pd.DataFrame:
    """Return for each feature and factor `texts_with`, the share of texts that have one of the
    lens's tokens, `tokens`, how many of them a text has, and both of the unsteered texts.
    """
    features: Any = tables.features
    promoted: Any = promoted_ids(features.set_index(KEYS)).dropna()
    rows = []
    texts = features_alone(tables.generations)
    # Tables that are published lack what was written: that isn't 0 tokens of any lens.
    is_written = any(len(ids) for ids in texts["token_ids"])
    groups: Any = texts.groupby(KEYS, sort=False) if is_written else ()
    for key, of_feature in groups:
        own_ids = promoted.get(key)
        if own_ids is None or not len(own_ids):
            continue
        hits_N = np.array([np.isin(ids, own_ids).sum() for ids in of_feature["token_ids"]], float)
        hits = pd.DataFrame(
            {"factor": of_feature["factor"], "texts_with": hits_N > 0, "tokens": hits_N}
        )
        means: Any = hits.groupby("factor")[list(OF_TEXTS)].mean()
        if 0.0 not in means.index:
            continue
        for factor, row in means.drop(index=0.0).iterrows():
            unsteered = {f"{name}_unsteered": means.loc[0.0, name] for name in OF_TEXTS}
            rows.append(dict(zip(KEYS, key, strict=True)) | {"factor": factor, **row, **unsteered})
    columns = [*KEYS, "factor", *OF_TEXTS, *(f"{name}_unsteered" for name in OF_TEXTS)]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def of_features(features: pd.DataFrame, texts: pd.DataFrame) -> pd.DataFrame:
    """Return the outcomes of each feature, NaN where one wasn't measured; by `KEYS`."""
    outcomes: Any = features.set_index(KEYS)[["lens_precision"]].astype(float)
    gains: Any = texts[KEYS].assign(
        **{name: texts[name] - texts[f"{name}_unsteered"] for name in OF_TEXTS}
    )
    return outcomes.join(gains.groupby(KEYS)[list(OF_TEXTS)].mean().astype(float))


def _rows(
    outcomes_of: Mapping[str, pd.DataFrame], measured: Sequence[str], of_what: str
) -> Iterator[dict[str, Any]]:
    """Yield a row of each lens: the mean of each outcome, and how much more that is than the
    first's; `of_what` names the column of how many there are.
    """
    first, *_ = outcomes_of.values()
    layer_keys = [name for name in KEYS[:-1] if name in first.index.names]
    layers_N = (
        first.reset_index().groupby(layer_keys, dropna=False).ngroup().to_numpy()
        if layer_keys
        else np.zeros(len(first), dtype=int)
    )
    for lens, outcomes in outcomes_of.items():
        row: dict[str, Any] = {"lens": lens, of_what: len(outcomes)}
        for name in measured:
            values_N = outcomes[name].to_numpy(dtype=float)
            row |= interval_columns(name, mean_within(values_N, layers_N))
            if outcomes is not first:
                less_N = values_N - first[name].to_numpy(dtype=float)
                row |= interval_columns(f"{name}_more", mean_within(less_N, layers_N))
        yield row


def mean_within(values_N: np.ndarray, layers_N: np.ndarray) -> Estimate:
    """Return the mean with its interval over features within layers, which a layer with a single
    one doesn't have.
    """
    counts_RN = counts_within(layers_N, RESAMPLES, np.random.default_rng(0))
    n = len(values_N) if np.bincount(layers_N).min() > 1 else 0
    return estimate(float(values_N.mean()), counts_RN @ values_N / len(values_N), n)


def _by_factor(texts_of: Mapping[str, pd.DataFrame], shared: pd.Index) -> Iterator[dict[str, Any]]:
    for lens, texts in texts_of.items():
        of_shared: Any = texts.set_index(KEYS)
        of_shared = of_shared.loc[of_shared.index.isin(shared)]
        for factor, rows in of_shared.groupby("factor"):
            means = rows.drop(columns="factor").astype(float).mean()
            yield {"lens": lens, "factor": factor, "features": len(rows), **means}


def _sentences(overall: pd.DataFrame, meanings: Mapping[str, str], of_what: str) -> Iterator[str]:
    first, n = overall["lens"].iloc[0], int(overall[f"{of_what}s"].iloc[0])
    for name, meaning in meanings.items():
        spec = ".2f" if name.startswith("tokens") else ".0%"
        parts = []
        for row in overall.to_dict("records"):
            more = f"{name}_more"
            parts.append(
                f"{row['lens']} {interval_of(row, name, spec)}"
                + (
                    ""
                    if row["lens"] == first
                    else f", {interval_of(row, more, '+' + spec)} beside {first}"
                )
            )
        yield f"How many {meaning} ({counted(n, of_what)}): {'; '.join(parts)}."
    if n < FEWEST:
        yield f"{counted(n, of_what)} can't tell lenses apart; it takes at least {FEWEST}."


def _draw_words(by_word: pd.DataFrame) -> Figure:
    """Return for each word what its best feature adds, a mark for each lens; the words that most
    is added of first.
    """
    from steerlens.report.figures import style

    added: Any = by_word.pivot(index="word", columns="lens", values="tokens_added")
    added = added[list(dict.fromkeys(by_word["lens"]))]
    added = added.loc[added.mean(axis=1).sort_values(kind="stable").index]
    figure = style.new_figure(6.4, 1.4 + 0.2 * len(added))
    axes = figure.subplots()
    rows_W = np.arange(len(added))
    axes.hlines(rows_W, 0, added.max(axis=1), color=style.PALETTE[-1], alpha=0.3, linewidth=1)
    for index, lens in enumerate(added):
        offset = 0.2 * (index - (len(added.columns) - 1) / 2)
        axes.plot(
            added[lens].to_numpy(), rows_W + offset, linestyle="none", label=str(lens),
            color=style.PALETTE[index], marker=style.MARKERS[index], markersize=4,
        )  # fmt: skip
    axes.set_yticks(rows_W, [str(word) for word in added.index])
    axes.set_xlabel("tokens of the word that the best feature adds to a text")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.headline(
        figure,
        "Which lens finds features that steer toward a word?",
        counted(len(added), "word"),
        "at each feature's best factor; 0 where no feature steers toward it",
    )
    return figure


def _draw(by_layer: pd.DataFrame, measured: Sequence[str]) -> Figure:
    """Return a panel for each outcome, a line for each lens, against the layer."""
    from steerlens.report.figures import style

    figure = style.new_figure(1.5 + 3.1 * len(measured), 3.6)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, name in zip(panels, measured, strict=True):
        for index, (lens, rows) in enumerate(by_layer.groupby("lens", sort=False)):
            x, y, low, high = (
                rows[column].to_numpy(dtype=float)
                for column in ("layer", name, f"{name}_low", f"{name}_high")
            )
            color = style.PALETTE[index]
            axes.plot(x, y, label=str(lens), color=color, marker=style.MARKERS[index])
            if np.isfinite(low).any():
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel("layer")
        axes.set_xticks(sorted(set(by_layer["layer"])))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    n = style.n_of(by_layer["features"], "feature")
    style.headline(
        figure,
        "Which lens tells what a feature writes?",
        f"{n} of each layer",
        "means over features, with 95 % intervals where there are at least 8; texts less unsteered",
    )
    return figure
