"""Outcome: how the feature's activation in texts goes with what comes of them.

CorrSteer (arXiv 2508.12535): the correlation `Cov(z, y) / sqrt(Var z Var y)` over texts, `z` the
largest activation of the feature over the tokens that were generated, `y` the outcome of the text.
The texts are sampled without steering and the same for all features, or they are those of an
earlier run, where a feature isn't judged by the texts that it was steered with itself. Either are
read again by the model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from steerlens.config.parse import parse_concept
from steerlens.config.prompts import PROMPTS
from steerlens.config.registry import TIMED_PROMPTS
from steerlens.errors import SteerlensError, unknown
from steerlens.results import CONCEPTS, FEATURES, GENERATIONS, RATINGS
from steerlens.results.folder import read_tables
from steerlens.scores import RunContext, ScoreConfig

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.engine.subject import Subject

SUCCESS, CONCEPT_SUCCESS = "success", "concept_success"

FEWEST = 30
"""Of fewer texts there is no correlation."""

TIMED_SAMPLES, TIMED_TOKENS = 16, 8
"""Of each prompt's texts that a plan times."""


@dataclass
class OutcomeConfig(ScoreConfig):
    """Settings of the outcome's correlation."""

    method: str = "outcome"
    outcome: str = SUCCESS
    """success (how many of the generated tokens are among the feature's own logit-lens tokens),
    concept_success (how many stand for `concept`), or with `run` a column of numbers of its
    `generations.parquet` or `ratings.parquet`."""
    run: str | None = None
    """Folder of a run whose texts are read; null = texts sampled without steering."""
    concept: Any = None
    """outcome=concept_success: a word or a phrase, or several for the same."""
    top_k: int = 20
    """outcome=success: number of logit-lens tokens that stand for the feature."""
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS[:20]))
    """Beginnings of sampled texts."""
    samples: int = 25
    """Sampled texts of each prompt: 500 in all."""
    max_new_tokens: int = 30
    """Longest continuation, in tokens."""
    temperature: float = 1.0
    """Of the sampling."""

    FILLS: ClassVar[Sequence[str]] = ("outcome_correlation", "outcome_texts")

    def check(self) -> None:
        """Refuse settings that can't work; see `ScoreConfig.check`."""
        super().check()
        if self.outcome == CONCEPT_SUCCESS:
            if self.concept is None:
                raise self.refusal("outcome", "counts a concept's tokens: give score.concept=WORD")
            parse_concept(self.concept)
        if self.run is not None:
            outcomes_of_run(Path(self.run), self.outcome)
            return
        if self.outcome not in (SUCCESS, CONCEPT_SUCCESS):
            raise self.refusal(
                "outcome",
                "is known of the texts of a run alone: add score.run=DIR, or choose success or "
                "concept_success",
            )
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise self.refusal(name, "must be at least 1")
        if not 0 < self.temperature < np.inf:
            raise self.refusal("temperature", "must be above 0, so that samples differ")
        if not all(prompt.strip() for prompt in self.prompts):
            raise SteerlensError("prompts of score outcome: give at least one, none empty.")
        if (n_texts := self.n_sampled()) < FEWEST:
            raise self.refusal(
                "samples",
                f"gives {n_texts} texts, and fewer than {FEWEST} have no correlation",
            )

    def reduced(self) -> tuple[ScoreConfig, float]:
        """Return the settings with fewer and shorter texts; see `ScoreConfig.reduced`."""
        if self.run is not None:
            return self, 1.0
        fewer = replace(
            self,
            prompts=self.prompts[:TIMED_PROMPTS],
            samples=min(self.samples, TIMED_SAMPLES),
            max_new_tokens=min(self.max_new_tokens, TIMED_TOKENS),
        )
        return fewer, self._most_tokens() / fewer._most_tokens()

    def _most_tokens(self) -> int:
        return len(set(self.prompts)) * self.samples * self.max_new_tokens

    def n_sampled(self) -> int:
        """Return how many texts are sampled; 0 where a run's are read."""
        return 0 if self.run is not None else len(set(self.prompts)) * self.samples

    def check_subject(self, model: str, sae: str) -> None:
        """Refuse a run of another model or SAE; see `ScoreConfig.check_subject`."""
        if self.run is not None:
            refuse_other_subject(Path(self.run), read_tables(Path(self.run)).features, model, sae)

    def warnings(self) -> list[str]:
        """Say how many texts of the run lack the outcome; see `ScoreConfig.warnings`."""
        lines = super().warnings()
        if self.run is None or self.outcome in (SUCCESS, CONCEPT_SUCCESS):
            return lines
        texts: Any = _texts_of_run(Path(self.run), self.outcome)
        n_without = len(texts) - texts[self.outcome].count()
        if n_without:
            lines.append(
                f"{n_without:,} of {len(texts):,} texts in {self.run} have no {self.outcome}: "
                "score outcome is over the others."
            )
        return lines

    def looks_up(self) -> Any:
        """Return the concept whose tokens are counted; see `ScoreConfig.looks_up`."""
        return self.concept if self.outcome == CONCEPT_SUCCESS and self.run is None else None

    def uses(self) -> Sequence[str]:
        """Return which of the run's seed and corpus the numbers depend on."""
        return ("seed",) if self.run is None else ()

    def files(self) -> Sequence[Path]:
        """Return the files that the numbers depend on."""
        if self.run is None:
            return ()
        tables = (Path(self.run) / table.file for table in (GENERATIONS, RATINGS, CONCEPTS))
        return [file for file in tables if file.is_file()]


Config = OutcomeConfig


class ReadTexts(NamedTuple):
    """N texts, as token ids, and what came of them."""

    pieces: list[np.ndarray]
    """Token ids of prompt and text, with BOS where the SAE was trained with one."""
    first: list[int]
    """Where each text's own tokens begin."""
    outcome_N: np.ndarray | None
    """What came of each; None = each feature's own success."""
    is_own: Mapping[int, np.ndarray]
    """By feature, which of the texts were steered with it, (N,) bool; no entry = none."""


def score(
    subject: Subject, features: np.ndarray, config: OutcomeConfig, ctx: RunContext
) -> Mapping[str, np.ndarray]:
    """Score `features`, shape (n,).

    Returns:
        `outcome_correlation` (NaN over fewer than 30 texts, or where activation or outcome is the
        same in all), and over how many texts it is, `outcome_texts`.

    Raises:
        SteerlensError: for a run of another model or SAE, a prompt that is too long, or NaN
            activations.
    """
    import torch

    from steerlens.engine.activations.pooled import largest_activations
    from steerlens.engine.logit_lens import logit_lens

    features = np.asarray(features, dtype=np.int64)
    texts = _sampled(subject, config, ctx) if config.run is None else _of_run(subject, config)
    largest_NF = largest_activations(
        subject, texts.pieces, texts.first, features, ctx.memory_budget
    )
    lens_FK = logit_lens(
        subject, torch.from_numpy(features), config.top_k, ctx.memory_budget
    ).numpy()
    correlation_F = np.full(len(features), np.nan)
    n_texts_F = np.zeros(len(features), dtype=np.int64)
    new = [piece[first:] for piece, first in zip(texts.pieces, texts.first, strict=True)]
    for index, feature in enumerate(features.tolist()):
        outcome_N = texts.outcome_N
        if outcome_N is None:
            outcome_N = counts_of_tokens(new, lens_FK[index])
        counts_N = ~np.isnan(outcome_N) & ~texts.is_own.get(feature, np.zeros(len(new), bool))
        n_texts_F[index] = counts_N.sum()
        correlation_F[index] = correlation(largest_NF[counts_N, index], outcome_N[counts_N])
    ctx.progress(len(features))
    return {"outcome_correlation": correlation_F, "outcome_texts": n_texts_F}


def correlation(z_N: np.ndarray, y_N: np.ndarray) -> float:
    """Return Pearson's correlation; NaN of fewer than `FEWEST` pairs, or where one is constant."""
    if len(z_N) < FEWEST or np.ptp(z_N) == 0 or np.ptp(y_N) == 0:
        return np.nan
    z_N, y_N = (values - values.mean() for values in (z_N.astype(float), y_N.astype(float)))
    return float(z_N @ y_N / np.sqrt((z_N @ z_N) * (y_N @ y_N)))


def counts_of_tokens(texts: Sequence[np.ndarray], token_ids: np.ndarray) -> np.ndarray:
    """Return how many tokens of each text are among `token_ids`: (N,) float."""
    text_T = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
    hit_T = np.isin(np.concatenate(texts), token_ids)
    return np.bincount(text_T[hit_T], minlength=len(texts)).astype(float)


def outcomes_of_run(folder: Path, outcome: str) -> pd.DataFrame:
    """Return the texts of a run that have the outcome, with `layer`, `feature`, `together`,
    `prompt`, `token_ids` and `outcome`, NaN where it is each feature's own success.

    Raises:
        SteerlensError: there is no run, it has no texts or no tokens of them, or none with this
            outcome.
    """
    texts = _texts_of_run(folder, outcome)
    if outcome in (SUCCESS, CONCEPT_SUCCESS):
        return texts.assign(outcome=np.nan)
    texts = texts.loc[texts[outcome].notna()]
    return texts.assign(outcome=texts[outcome].to_numpy(dtype=float))


def _texts_of_run(folder: Path, outcome: str) -> pd.DataFrame:
    """Return the texts of a run, of the table that has the outcome; refuse a run without."""
    if not folder.is_dir():
        raise SteerlensError(f"score.run: there is no folder {folder}.")
    if not (folder / FEATURES.file).is_file():
        raise SteerlensError(
            f"score.run={folder} is no run's folder: it has no {FEATURES.file}; name the folder "
            "that a run has printed as its results."
        )
    tables = read_tables(folder)
    texts = tables.generations
    has_own = outcome in (SUCCESS, CONCEPT_SUCCESS)
    if texts.empty or not (has_own or outcome in _numbers(texts)):
        of_ratings = tables.ratings
        if not of_ratings.empty:
            keys = [*CONCEPTS.keys]
            texts = of_ratings.merge(tables.concepts[[*keys, "feature"]], how="left", on=keys)
            texts = texts.assign(together=None)
    if texts.empty:
        raise SteerlensError(f"score.run={folder} has no texts; name a run that has steered.")
    if not any(len(ids) for ids in texts["token_ids"]):
        raise SteerlensError(
            f"score.run={folder} has no tokens of its texts, which are read again: stored tables "
            "lack them; name the folder of the run itself."
        )
    if not has_own and outcome not in (columns := _numbers(texts)):
        raise unknown(f"outcome of the texts in {folder}", outcome, columns)
    return texts


def refuse_other_subject(folder: Path, rows: pd.DataFrame, model: str, sae: str) -> None:
    """Refuse a run none of whose `rows` is of the model and the SAE."""
    models, saes = ({*rows[name]} for name in ("model", "sae"))
    if model not in models or sae not in saes:
        raise SteerlensError(
            f"score.run={folder} has texts of {', '.join(sorted(models))} and "
            f"{', '.join(sorted(saes))}, not of {model} and {sae}, whose features are scored."
        )


def _numbers(texts: pd.DataFrame) -> list[str]:
    """Return the columns that may be an outcome."""
    numbers = [str(name) for name in texts if getattr(texts[name].dtype, "kind", "") in "iuf"]
    ids = ("layer", "feature", "sample", "seed", "rank", "concept_id")
    return [name for name in numbers if name not in ids and any(texts[name].notna().tolist())]


def _outcome(
    subject: Subject, config: OutcomeConfig, new: Sequence[np.ndarray], column: np.ndarray
) -> np.ndarray | None:
    """Return the outcome of each text, a `column` of a run or counted; None = the feature's own."""
    if config.outcome == SUCCESS:
        return None
    if config.outcome == CONCEPT_SUCCESS:
        from steerlens.scores.concepts import concept_tokens

        tokens = concept_tokens(subject.lm.tokenizer, parse_concept(config.concept))
        return counts_of_tokens(new, np.array(list(tokens.texts)))
    return column


def _sampled(subject: Subject, config: OutcomeConfig, ctx: RunContext) -> ReadTexts:
    from steerlens.config.schema import GenerationConfig
    from steerlens.engine.generation import unsteered_texts

    settings = GenerationConfig(
        samples=config.samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        stop=None,
    )
    rows = unsteered_texts(subject, list(dict.fromkeys(config.prompts)), settings, ctx)
    return _read(subject, config, rows.assign(outcome=np.nan), chat_template=False)


def _of_run(subject: Subject, config: OutcomeConfig) -> ReadTexts:
    folder = Path(str(config.run))
    rows = outcomes_of_run(folder, config.outcome)
    refuse_other_subject(folder, rows, subject.lm.name, subject.name)
    rows = rows.loc[(rows["model"] == subject.lm.name) & (rows["sae"] == subject.name)]
    return _read(subject, config, rows, bool(read_tables(folder).chat_template))


def _read(
    subject: Subject, config: OutcomeConfig, rows: pd.DataFrame, chat_template: bool
) -> ReadTexts:
    prompts = {
        prompt: subject.to_tokens(prompt, chat_template)[0].cpu().numpy()
        for prompt in dict.fromkeys(rows["prompt"])
    }
    n_ctx = int(subject.lm.bridge.cfg.n_ctx)
    rows = rows.loc[[len(ids) > 0 for ids in rows["token_ids"]]]
    new = [np.asarray(ids, dtype=np.int64) for ids in rows["token_ids"]]
    first = [len(prompts[prompt]) for prompt in rows["prompt"]]
    pieces = [
        np.concatenate([prompts[prompt], ids])[:n_ctx]
        for prompt, ids in zip(rows["prompt"], new, strict=True)
    ]
    is_own: dict[int, np.ndarray] = {}
    if "feature" in rows:
        here_N = (rows["layer"] == subject.layer) & (rows["factor"] != 0)
        steered_with = [
            {int(feature), *map(int, filter(None, str(together or "").split("+")))}
            for feature, together in zip(
                rows["feature"].fillna(-1), rows["together"].fillna(""), strict=True
            )
        ]
        for index in np.flatnonzero(here_N.to_numpy(dtype=bool)).tolist():
            for feature in steered_with[index] - {-1}:
                is_own.setdefault(feature, np.zeros(len(rows), dtype=bool))[index] = True
    outcome_N = _outcome(subject, config, new, rows["outcome"].to_numpy(dtype=float))
    return ReadTexts(pieces, first, outcome_N, is_own)
