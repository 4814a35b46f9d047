"""A loaded subject, and all that is asked of it: texts, the features of a concept, vectors."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.config.parse import parse_ids
from steerlens.config.registry import parts_of
from steerlens.config.schema import POSITIONS, RunConfig
from steerlens.config.settings import Settings, SteeringSettings
from steerlens.config.steering import check_steer, shares_of
from steerlens.errors import SteerlensError
from steerlens.report.page.cards import segments
from steerlens.report.page.contents import plain
from steerlens.report.play import Bench, Live, Match, Tell, Text
from steerlens.report.play.requests import LIMITS, NEW_TOKENS, Writing
from steerlens.report.terminal import phase
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables
from steerlens.results.text import visible_token
from steerlens.runs.api import FACTORS
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.play.repeat import repeated, subject_words
from steerlens.runs.run import context_of
from steerlens.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

OWN_TOKENS = 20
"""Logit-lens tokens of a feature that are marked in texts, as those of success@20."""

MATCHES = 100
"""Features that a search for a concept gives at most."""


@dataclass(frozen=True)
class Player:
    """A loaded subject with all that is asked of it."""

    tables: RunTables
    live: Live
    bench: Bench


def load_player(
    config: RunConfig, settings: Settings, tables: RunTables | None, finished: Path
) -> Player:
    """Load the model and its SAEs; without a run's tables, look up what each feature promotes.

    Args:
        config: of the run, or what was typed.
        settings: the same, parsed.
        tables: of the run; None = there is no run.
        finished: folder where texts are kept that are asked for again while it plays.
    """
    from steerlens.engine.subject import WeightCache
    from steerlens.scores.concepts import Vocabulary

    with phase("importing torch and SAELens"):
        import sae_lens  # noqa: F401
    models = RunModels(settings.subject, weight_cache=WeightCache())
    ctx = context_of(settings)
    if tables is None:
        tables = RunTables(_features(models, settings, ctx))
    layers = sorted(set(tables.features["layer"].tolist()))

    def subject_of(layer: int) -> Subject:
        if layer not in layers:
            raise SteerlensError(f"there is no layer {layer}: {', '.join(map(str, layers))}.")
        return next(models.subjects([layer]))

    lm = subject_of(layers[0]).lm
    steering = steering_of(lm, settings.steering)
    vocabulary = Vocabulary(lm.tokenizer)
    words = subject_words(config)
    # Nothing is kept in the cache: these texts are asked for again now or never.
    ctx = replace(ctx, store=Store(finished))

    def write(writing: Writing, tell: Tell) -> None:
        write_texts(writing, tell, subject_of, steering, ctx, words)

    def find(concept: str) -> list[Match]:
        ids = vocabulary.tokens(concept).texts
        return _matches(tables.features, ids)

    def vector(writing: Writing) -> tuple[str, bytes]:
        return vector_file(writing, subject_of, steering)

    has_template = bool(lm.tokenizer.chat_template)
    generation = steering.generation
    live = Live(
        layers=layers,
        has_template=has_template,
        chat_template=bool(generation.chat_template),
        prompt=steering.prompts[0],
        operators=sorted(parts_of("operators")),
        operator=steering.steer.operator,
        positions=POSITIONS,
        position=steering.steer.positions,
        factors=FACTORS,
        max_new_tokens=min(max(generation.max_new_tokens, 40), NEW_TOKENS),
        temperature=generation.temperature,
        seed=settings.seed,
        limits=LIMITS,
    )
    with phase("writing a first token"), suppress(SteerlensError):  # which the page tells then
        write(_usual(live, int(tables.features["feature"].iloc[0])), lambda _: None)
    return Player(tables, live, Bench(write, find, vector))


def _usual(live: Live, feature: int) -> Writing:
    """Return what the page asks for at first, but for the number of tokens: once it is written, the
    prompt is kept, and all has been done that happens once.
    """
    return Writing(
        layer=live.layers[0],
        features=(feature,),
        weights=(1.0,),
        factors=tuple(live.factors),
        prompt=live.prompt,
        chat_template=live.chat_template,
        operator=live.operator,
        positions=live.position,
        max_new_tokens=1,
        temperature=live.temperature,
        seed=live.seed,
    )


def _features(models: RunModels, settings: Settings, ctx: RunContext) -> pd.DataFrame:
    """Return rows of all features with the tokens that they promote, and no score."""
    import pandas as pd

    from steerlens.scores.scoring import score_layer

    frames = []
    for subject in models.subjects():
        with phase(f"layer {subject.layer}: what its {subject.d_sae:,} features promote"):
            ids = range(subject.d_sae)
            frames.append(FEATURES.frame(score_layer(subject, ids, {}, settings.logit_lens_k, ctx)))
    return pd.concat(frames, ignore_index=True)


def write_texts(
    writing: Writing,
    tell: Tell,
    subject_of: Callable[[int], Subject],
    base: SteeringSettings,
    ctx: RunContext,
    words: Sequence[str] | None,
) -> None:
    """Write one text at each factor and the unsteered one, in one batch, telling them as they grow.

    They are those of `steer=grid` with the same settings and seed.

    Args:
        writing: what is asked for.
        tell: told first what repeats the request, then the texts after each token, and at last
            their numbers.
        subject_of: the subject of a layer.
        base: the settings that aren't asked for.
        ctx: memory and corpus.
        words: overrides that choose the subject; None = they can't be said.
    """
    from steerlens.engine.logit_lens import logit_lens
    from steerlens.scores.scoring import decode_tokens
    from steerlens.steering.features import steer_together

    settings = steering_for(writing, base)
    shares = shares_of(writing.weights, len(writing.features))
    tell({"repeat": repeated(writing, settings, words)})
    subject = subject_of(writing.layer)
    features = parse_ids(list(writing.features), subject.d_sae, where="features")
    import torch

    lens_FK = logit_lens(subject, torch.tensor(features), OWN_TOKENS, ctx.memory_budget)
    tokens = decode_tokens(subject, lens_FK)
    text_of_token = {
        id_: text
        for ids, texts in zip(lens_FK.tolist(), tokens, strict=True)
        for id_, text in zip(ids, texts, strict=True)
    }
    tell({"own": [visible_token(text) for text in text_of_token.values()]})

    def texts_of(rows: pd.DataFrame) -> list[Text]:
        return [_text(row, text_of_token) for row in rows.to_dict("records")]

    @contextmanager
    def task(*_: Any, **__: Any) -> Iterator[Callable[..., None]]:
        yield lambda *_: tell({})  # so that whoever has left isn't measured for

    own_ctx = replace(ctx, seed=writing.seed, task=task)
    table = steer_together(
        subject,
        features,
        shares,
        settings,
        own_ctx,
        watch=lambda rows: tell({"texts": texts_of(rows)}),
    )
    tell({"done": texts_of(table)})


def _text(row: Mapping[Any, Any], text_of_token: Mapping[int, str]) -> Text:
    stopped_by = row.get("stopped_by")
    return Text(
        factor=row["factor"],
        segments=segments(row["text"], row["token_ids"], text_of_token, {}),
        kl=plain(row["first_step_kl"]),
        success=plain(row.get("success_20")),  # type: ignore[arg-type]
        perplexity=plain(row.get("perplexity")),
        stopped_by=stopped_by if isinstance(stopped_by, str) and stopped_by else None,
    )


def steering_for(writing: Writing, base: SteeringSettings) -> SteeringSettings:
    """Return the settings of a request: `base` with what is asked for.

    Raises:
        SteerlensError: an operator or positions that don't exist.
    """
    steer = replace(
        base.steer,
        factors=list(writing.factors),
        operator=writing.operator,
        positions=writing.positions,
        search=False,
        controls=[],
        together=[],
        weights=[],
    )
    check_steer(steer)
    generation = replace(
        base.generation,
        prompts=[writing.prompt],
        n_prompts=None,
        samples=1,
        chat_template=writing.chat_template,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
    )
    return replace(
        base,
        factors=writing.factors,
        steer=steer,
        generation=generation,
        prompts=(writing.prompt,),
        concept=(),
        shares={},
    )


def _matches(features: pd.DataFrame, tokens: Mapping[int, str]) -> list[Match]:
    """Return the features that have one of `tokens` among those that they promote: those in which
    it comes first, of these the ones with the highest output score.
    """
    matches = []
    columns = features[["layer", "feature", "logit_lens_token_ids", "output_score"]]
    for layer, feature, ids, score in columns.itertuples(index=False, name=None):
        ranks = [rank for rank, id_ in enumerate(list(ids)[:OWN_TOKENS]) if id_ in tokens]
        if ranks:
            written = [visible_token(tokens[ids[rank]]) for rank in ranks]
            match = Match(layer, feature, written, plain(score))
            matches.append((ranks[0], -(match.output_score or 0.0), -len(ranks), match))
    return [match for *_, match in sorted(matches, key=lambda row: row[:3])[:MATCHES]]


def vector_file(
    writing: Writing, subject_of: Callable[[int], Subject], base: SteeringSettings
) -> tuple[str, bytes]:
    """Return the vectors of what is steered with, at the last factor, as the files of
    `steerlens export` in one archive.

    Raises:
        SteerlensError: it isn't added in units of a_max, or there is no factor.
    """
    from steerlens.runs.export import measured_a_max, steering_vector
    from steerlens.runs.export.tensors import export_safetensors, export_snippet

    settings = steering_for(writing, base)
    if settings.steer.operator != "add" or settings.steer.unit != "a_max":
        raise SteerlensError(
            f"exports can only add a multiple of a_max, not operator {settings.steer.operator} in "
            f"units of {settings.steer.unit}."
        )
    if not writing.factors:
        raise SteerlensError("there is no vector at factor 0; choose another.")
    subject, factor = subject_of(writing.layer), writing.factors[-1]
    shares = shares_of(writing.weights, len(writing.features))
    prompts = [writing.prompt]
    a_max = measured_a_max(subject, prompts, writing.chat_template)
    vectors = [
        steering_vector(subject, feature, factor * share, a_max, prompts, writing.chat_template)
        for feature, share in zip(writing.features, shares, strict=True)
    ]
    name = f"layer_{writing.layer}_feature_{'_'.join(map(str, writing.features))}"
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive, "w") as files:
        export_safetensors(Path(folder) / f"{name}.safetensors", vectors)
        export_snippet(Path(folder) / "steer.py")
        for path in sorted(Path(folder).iterdir()):
            files.write(path, path.name)
    return f"{name}.zip", archive.getvalue()
