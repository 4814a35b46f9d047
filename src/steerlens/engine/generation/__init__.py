"""Texts: rows of what is steered with, factor, prompt and sample become continuations.

Every row has its own feature, factor, prompt and seed, so batches are filled with whatever is still
to do, and what a row gives doesn't depend on its neighbours. Finished batches are kept at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import torch

from steerlens.config.registry import source_digest
from steerlens.config.schema import GenerationConfig, SteerConfig
from steerlens.engine.cached_rows import GROUP, cached_groups, cached_rows
from steerlens.engine.generation.decoding import Continuation
from steerlens.engine.generation.row_batches import EditsOf, Watch, texts_in_batches, tokenised
from steerlens.engine.generation.sampling import row_seed
from steerlens.engine.generation.targets import max_activations, row_targets
from steerlens.engine.intervention import (
    Operation,
    Targets,
    feature_targets,
    join_targets,
    looks_back,
)
from steerlens.engine.intervention.hooks import Edits, NoEdits, SteeringHooks
from steerlens.engine.subject import Subject

if TYPE_CHECKING:
    from steerlens.engine.run_context import RunContext

TEXT = ("factor", "prompt", "sample")
"""What tells apart the texts that are steered with the same thing."""

ROW = ("feature", "control", "together", *TEXT)
"""What identifies a text of one subject that is steered with the SAE's features: `control` is ""
for the features themselves, `together` the others that are steered at once ("" for none)."""


TargetsOf = Callable[[pd.DataFrame], Targets]
"""What each row of a batch is steered with."""


class TextVectors(NamedTuple):
    """What a text was made of, T tokens long; None where it wasn't looked at."""

    drawn_TD: torch.Tensor | None = None
    """Final normed vectors that its tokens were drawn from, of a steered text."""
    entering_TD: torch.Tensor | None = None
    """What the token before each of its tokens brought to the first block that the edit can change,
    which without the edit is the same."""
    plain_TD: torch.Tensor | None = None
    """What `drawn_TD` would be, of a text that isn't steered."""


Vectors = dict[tuple[Any, ...], TextVectors]
"""By what identifies a text."""


@dataclass(frozen=True)
class Steering:
    """What rows are steered with that isn't a feature of the SAE."""

    name: str
    """A part of each row's seed."""
    id: str
    """The column, of int64, that says for a row which of its directions or edits is meant."""
    key: Mapping[str, Any]
    """All that it depends on besides model, SAE and row."""
    targets_of: TargetsOf | None = None
    """Of directions, which are added in each row whatever its neighbours are steered with."""
    edits_of: EditsOf | None = None
    """Of what is no direction; its rows have batches of their own."""

    @property
    def row(self) -> tuple[str, ...]:
        """What identifies a text."""
        return (self.id, *TEXT)


def generate(
    subject: Subject,
    rows: pd.DataFrame,
    steer: SteerConfig,
    settings: GenerationConfig,
    ctx: RunContext,
    steering: Steering | None = None,
    watch: Watch | None = None,
    vectors: Vectors | None = None,
) -> pd.DataFrame:
    """Continue the prompt of every row.

    Returns:
        The rows in the same order, with `text`, `token_ids`, `stopped_by`, `near_ties`,
        `first_step_kl`, `relative_dose` and `seed`.

    Args:
        subject: model and SAE.
        rows: columns `ROW`, or those of `steering.row`.
        steer: how features are steered with.
        settings: how texts are continued.
        ctx: memory, seed, progress, and where finished texts are kept.
        steering: what takes the place of the SAE's features.
        watch: told what isn't in the store while it is written; what it raises ends the work.
        vectors: given the vectors of what isn't in the store; None = they aren't wanted.

    Raises:
        SteerlensError: for a prompt that doesn't fit in the model's context, or a chat template
            that the tokenizer doesn't have.
    """
    return generate_groups(subject, [(rows, steering)], steer, settings, ctx, watch, [vectors])[0]


def generate_groups(
    subject: Subject,
    groups: Sequence[tuple[pd.DataFrame, Steering | None]],
    steer: SteerConfig,
    settings: GenerationConfig,
    ctx: RunContext,
    watch: Watch | None = None,
    vectors: Sequence[Vectors | None] | None = None,
) -> list[pd.DataFrame]:
    """Continue the prompts of several groups of rows, each steered with something else, in
    batches that directions share.

    Returns:
        For each group what `generate` gives.

    Args:
        subject: model and SAE.
        groups: rows, and what they are steered with; all have the same columns.
        steer: how features are steered with.
        settings: how texts are continued.
        ctx: memory, seed, progress, and where finished texts are kept.
        watch: as of `generate`.
        vectors: of each group, as of `generate`; None = of none.

    Raises:
        SteerlensError: as `generate`.
    """

    def note(batch: pd.DataFrame, texts: Sequence[Continuation]) -> None:
        keys = batch[by].itertuples(index=False, name=None)
        numbers, factors = batch[GROUP].to_numpy(dtype=int).tolist(), batch["factor"].tolist()
        for number, row, factor, text in zip(numbers, keys, factors, texts, strict=True):
            if (vectors_of_group := vectors_of[number]) is not None:
                drawn, plain = (text.vectors, []) if factor else ([], text.vectors)
                parts = (drawn, text.entering, plain)
                vectors_of_group[row] = TextVectors(
                    *(torch.stack(part) if part else None for part in parts)
                )

    def texts_of(missing: pd.DataFrame) -> Iterator[pa.Table]:
        prompts = tokenised(subject, dict.fromkeys(missing["prompt"].tolist()), settings)
        total = len(missing) * settings.max_new_tokens
        with ctx.task(total, f"layer {subject.layer}: {len(missing):,} texts", "tokens") as advance:
            seeded = pd.concat(
                rows.assign(seed=_seeds(subject, rows, ctx.seed, steerings[number]))
                for number, rows in _by_group(missing)
            )
            for rows, edits_of in _sharing_batches(subject, seeded, steerings, steer, ctx):
                for table in texts_in_batches(
                    subject, rows, prompts, steer, settings, ctx, edits_of, advance, watch,
                    note if any(by_row is not None for by_row in vectors_of) else None,
                ):  # fmt: skip
                    yield pa.Table.from_pandas(table, preserve_index=False)

    vectors = vectors or [None] * len(groups)
    filled = [
        (rows, steering, by_row)
        for (rows, steering), by_row in zip(groups, vectors, strict=True)
        if len(rows)
    ]
    if not filled:
        return [rows for rows, _ in groups]
    steerings = [steering for _, steering, _ in filled]
    vectors_of = [by_row for _, _, by_row in filled]
    keyed = [
        (text_key(subject, steer, settings, ctx, steering), rows) for rows, steering, _ in filled
    ]
    by = list(steerings[0].row if steerings[0] else ROW)
    tables = iter(cached_groups(ctx.store, keyed, by, texts_of))
    return [
        pd.concat([rows.reset_index(drop=True), next(tables).drop_columns(by).to_pandas()], axis=1)
        if len(rows)
        else rows
        for rows, _ in groups
    ]


def unsteered_texts(
    subject: Subject, prompts: Sequence[str], settings: GenerationConfig, ctx: RunContext
) -> pd.DataFrame:
    """Continue every prompt without steering: the same texts for all SAEs of the model.

    Returns:
        A row for each prompt and sample, with `text`, `token_ids` and what else `generate` gives.

    Args:
        subject: the model, and an SAE of its.
        prompts: beginnings of texts, each once.
        settings: how texts are continued.
        ctx: memory, seed, progress, and where finished texts are kept.

    Raises:
        SteerlensError: as `generate`.
    """
    key = {
        **{name: subject.key[name] for name in ("model", "code")},
        "unsteered": text_key(subject, SteerConfig(), settings, ctx)["texts"],
        "seed": ctx.seed,
        "bos": subject.bos,
        "padded": not looks_back(subject.sae),
    }
    by = ["prompt", "sample"]
    every = [(prompt, sample) for prompt in prompts for sample in range(settings.samples)]
    rows = pd.DataFrame(every, columns=pd.Index(by))

    def texts_of(missing: pd.DataFrame) -> Iterator[pa.Table]:
        prompt_ids = tokenised(subject, dict.fromkeys(missing["prompt"].tolist()), settings)
        seeds = [
            row_seed(ctx.seed, "unsteered", prompt, sample)
            for prompt, sample in zip(missing["prompt"], missing["sample"].tolist(), strict=True)
        ]
        total = len(missing) * settings.max_new_tokens
        with ctx.task(total, f"{len(missing):,} unsteered texts", "tokens") as advance:
            for table in texts_in_batches(
                subject, missing.assign(seed=seeds), prompt_ids, SteerConfig(), settings, ctx,
                lambda batch, _: NoEdits(len(batch)), advance, None,
            ):  # fmt: skip
                yield pa.Table.from_pandas(table, preserve_index=False)

    return cached_rows(ctx.store, key, rows, by, texts_of).to_pandas()


def text_key(
    subject: Subject,
    steer: SteerConfig,
    settings: GenerationConfig,
    ctx: RunContext,
    steering: Steering | None = None,
) -> dict[str, Any]:
    """Return everything that a row's text depends on besides the row."""
    of_rows = ("prompts", "n_prompts", "samples", "batch_size")
    how = {k: v for k, v in dataclasses.asdict(settings).items() if k not in of_rows}
    edit = {name: getattr(steer, name) for name in ("operator", "unit", "keep_error", "positions")}
    edit["source"] = [
        source_digest("operators", steer.operator),
        source_digest("units", steer.unit),
    ]
    if steering is not None:
        edit["with"] = steering.key
    elif steer.unit == "max_activation":
        edit["default_max_activation"] = steer.default_max_activation
        edit["corpus"] = ctx.examples_key() or ctx.corpus_key()
    return {**subject.key, "texts": how, "edit": edit, "seed": ctx.seed}


def _seeds(subject: Subject, rows: pd.DataFrame, seed: int, steering: Steering | None) -> list[int]:
    """Return each row's own seed, from all that identifies its text."""
    if steering is None:
        ids = rows["feature"].tolist()
        # Of features steered together the control was named after the others.
        names = [
            f"{control}+{together}" if together else control
            for control, together in zip(rows["control"], rows["together"], strict=True)
        ]
    else:
        ids, names = rows[steering.id].tolist(), [steering.name] * len(rows)
    texts = rows[list(TEXT)].itertuples(index=False, name=None)
    return [
        row_seed(seed, subject.layer, id, name, *text)
        for id, name, text in zip(ids, names, texts, strict=True)
    ]


def _sharing_batches(
    subject: Subject,
    rows: pd.DataFrame,
    steerings: Sequence[Steering | None],
    steer: SteerConfig,
    ctx: RunContext,
) -> Iterator[tuple[pd.DataFrame, EditsOf]]:
    """Yield rows that may share batches, and what gives the edits of a batch: all that directions
    steer together, then those of each other group.
    """
    operation = Operation(steer.operator, steer.unit, steer.keep_error)
    targets_of: dict[int, TargetsOf] = {}
    edits_of: dict[int, EditsOf] = {}
    for number in dict.fromkeys(rows[GROUP].to_numpy(dtype=int).tolist()):
        steering = steerings[number]
        if steering is None:
            targets_of[number] = _with_features(subject, steer, ctx)
        elif steering.targets_of is not None:
            targets_of[number] = steering.targets_of
        else:
            assert steering.edits_of is not None
            edits_of[number] = steering.edits_of

    def added(batch: pd.DataFrame, n_prompt_B: Sequence[int]) -> Edits:
        parts = [targets_of[number](part) for number, part in _by_group(batch)]
        return SteeringHooks(subject, operation, join_targets(parts), steer.positions, n_prompt_B)

    if targets_of:
        yield rows.loc[rows[GROUP].isin(list(targets_of))], added
    for number, edits_of_group in edits_of.items():
        yield rows.loc[rows[GROUP] == number], edits_of_group


def _by_group(rows: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield the number of each group and its rows, in the order in which they stand."""
    for number in dict.fromkeys(rows[GROUP].to_numpy(dtype=int).tolist()):
        yield number, rows.loc[rows[GROUP] == number]


def _with_features(subject: Subject, steer: SteerConfig, ctx: RunContext) -> TargetsOf:
    """Return how rows are steered with the SAE's features and what stands in for them."""
    largest_F = max_activations(subject, steer, ctx) if steer.unit == "max_activation" else None
    return lambda batch: row_targets(subject, batch, largest_F, ctx.seed)


def steering_with_shares(
    subject: Subject,
    features: Sequence[int],
    shares: Sequence[float],
    steer: SteerConfig,
    ctx: RunContext,
) -> Steering:
    """Return what steers rows, whose `feature` is the first, with features at once, each of which
    has its own share of the row's factor.
    """
    pairs = [*zip(features, shares, strict=True)]

    def targets_of(batch: pd.DataFrame) -> Targets:
        size = (len(batch), 1)
        features_BN = torch.tensor([features]).expand(len(batch), -1)
        largest_BN = None
        if steer.unit == "max_activation":
            largest_BN = max_activations(subject, steer, ctx)[features_BN]
        return feature_targets(
            subject.sae,
            features_BN,
            factor_B=torch.tensor(batch["factor"].tolist(), dtype=torch.float64),
            weights_BN=torch.tensor([shares], dtype=torch.float64).repeat(size),
            max_activation_BN=largest_BN,
        )

    name = "+".join(f"{feature}*{share!r}" for feature, share in pairs)
    return Steering(name, "feature", {"shares": pairs}, targets_of)
