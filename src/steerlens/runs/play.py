"""`steerlens play`: a subject loaded once, and texts written with its features as they are asked.

The part that knows the model; `report.play` is page and transport.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.config.compose import compose, literal, read_config
from steerlens.config.entries import needed_keys
from steerlens.config.overrides import override, parse
from steerlens.config.parse import parse_ids
from steerlens.config.registry import parts_of
from steerlens.config.schema import POSITIONS, RunConfig
from steerlens.config.settings import Settings, SteeringSettings, parse_settings
from steerlens.config.steering import check_steer, shares_of
from steerlens.errors import SteerlensError, unknown
from steerlens.report.page.cards import segments
from steerlens.report.page.contents import plain
from steerlens.report.play import Bench, Live, Match, Tell, Text
from steerlens.report.play.page import write_play_page
from steerlens.report.play.requests import LIMITS, NEW_TOKENS, Writing
from steerlens.report.play.server import (
    address_of,
    is_loopback,
    make_server,
    new_token,
    open_socket,
)
from steerlens.report.terminal import phase
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables, read_tables, unfinished
from steerlens.results.text import visible_token
from steerlens.runs.api import FACTORS
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.preflight import check, tell_begin
from steerlens.runs.run import context_of, refuse_unloadable
from steerlens.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.engine.run_context import RunContext
    from steerlens.engine.subject import Subject

PORT, HOST = 8765, "127.0.0.1"

OWN_TOKENS = 20
"""Logit-lens tokens of a feature that are marked in texts, as those of success@20."""

MATCHES = 100
"""Features that a search for a concept gives at most."""

SUBJECT_KEYS = (
    *("model", "sae", "subject", "layer", "device", "dtype", "device_map", "memory_budget", "seed"),
    *("steer", "generation", "labels", "paths", "debug", "hydra"),
)
"""What `steerlens play` reads of the configuration; the rest is refused."""


TRIED = ("steer=grid", "generation.stop=null", "generation.chat_template=auto")
"""How texts are written unless something else is asked for: as `steerlens concept=WORD` does."""


@dataclass(frozen=True)
class Typed:
    """What was typed behind `steerlens play`."""

    run: Path | None
    overrides: tuple[str, ...]
    host: str
    port: int


def play(arguments: Sequence[str]) -> None:
    """Serve the page of a run, or of a subject's features, with a card that steers.

    Args:
        arguments: perhaps the folder of a run, `port=`, `host=`, and without a folder overrides.

    Raises:
        SteerlensError: for what isn't there, doesn't fit, or can't be had, in one sentence.
    """
    typed = parse_arguments(arguments)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise SteerlensError(
            f"steerlens play needs {' and '.join(missing)}, of the extra `play`: pip install "
            f"{' '.join(missing)}."
        )
    config, tables = _what_is_played(typed)
    check(config)
    settings = parse_settings(config)
    refuse_unloadable(settings)
    with open_socket(typed.host, typed.port) as bound, tempfile.TemporaryDirectory() as folder:
        tell_begin(config)
        player = load_player(config, settings, tables, Path(folder) / "texts")
        token = new_token()
        with phase("writing the page"):
            title = f"{config.model.title} with {config.sae.title}"
            write_play_page(player.tables, player.live, title, typed.run, Path(folder))
        if not is_loopback(typed.host):
            print(
                f"Warning: whoever reaches {typed.host} and knows this address can use the model, "
                "and nothing on the way is encrypted.",
                file=sys.stderr,
            )
        print(f"Open {address_of(bound, token)} (Ctrl-C ends it)", flush=True)
        make_server(player.bench, Path(folder), bound, token).run(sockets=[bound])


def parse_arguments(arguments: Sequence[str]) -> Typed:
    """Return what was typed.

    Raises:
        SteerlensError: it makes no sense, in one sentence.
    """
    run, overrides = None, []
    settings = {"host": HOST, "port": str(PORT)}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            if run is not None:
                raise SteerlensError(f"steerlens play shows one run, not both {run} and {word}.")
            run = Path(word)
        elif key in settings:
            settings[key] = value
        else:
            first = key.lstrip("+~").partition(".")[0].partition("@")[0]
            if first not in SUBJECT_KEYS:
                raise unknown("setting of steerlens play", first, [*SUBJECT_KEYS, *settings])
            overrides.append(word)
    port = settings["port"]
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise SteerlensError(f"port={port} is no port; ports are 0 (any) to 65535.")
    if run is not None and overrides:
        raise SteerlensError(
            f"{overrides[0]} can't go with a run's folder, whose settings are the run's; leave one "
            "of them out."
        )
    return Typed(run, tuple(overrides), settings["host"], int(port))


def _what_is_played(typed: Typed) -> tuple[RunConfig, RunTables | None]:
    """Return the settings, and the tables where there is a run."""
    if typed.run is None:
        return compose([*TRIED, *typed.overrides]), None
    if not typed.run.is_dir():
        raise SteerlensError(f"there is no folder {typed.run}.")
    tables = replace(read_tables(typed.run), unfinished=unfinished(typed.run))
    if tables.features.empty:
        raise SteerlensError(f"the run in {typed.run} has no feature to steer with.")
    of_run, usual = read_config(typed.run), compose(["steer=grid"])
    # What the run asks for besides its subject and its texts isn't carried out again.
    names = (
        *("model", "sae", "layer", "seed", "device", "dtype", "device_map", "memory_budget"),
        *("corpus", "generation"),
    )
    config = replace(usual, **{name: getattr(of_run, name) for name in names})
    cache = replace(usual.paths, cache_dir=of_run.paths.cache_dir)
    steer = usual.steer if of_run.steer.factors is None else of_run.steer
    return replace(config, steer=steer, paths=cache), tables


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
    from steerlens.engine.generation.decoding import PromptStates
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
    words = _subject_words(config)
    # Nothing is kept in the cache: these texts are asked for again now or never.
    states = PromptStates(ctx.memory_budget // 8)
    ctx = replace(ctx, store=Store(finished), prompt_states=states)

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
    own = {
        id_: text
        for ids, texts in zip(lens_FK.tolist(), tokens, strict=True)
        for id_, text in zip(ids, texts, strict=True)
    }
    tell({"own": [visible_token(text) for text in own.values()]})

    def texts_of(rows: pd.DataFrame) -> list[Text]:
        return [_text(row, own) for row in rows.to_dict("records")]

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


def _text(row: Mapping[Any, Any], own: Mapping[int, str]) -> Text:
    stopped_by = row.get("stopped_by")
    return Text(
        factor=row["factor"],
        segments=segments(row["text"], row["token_ids"], own, {}),
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


def repeated(
    writing: Writing, settings: SteeringSettings, words: Sequence[str] | None
) -> dict[str, str | None]:
    """Return the command and the Python that write the same texts; None where there is none: of a
    subject that is no entry, and the command without a factor.
    """
    if words is None:
        return {"command": None, "python": None}
    generation, steer = settings.generation, settings.steer
    of_request: dict[str, Any] = {
        "layer": writing.layer,
        "features.ids": list(writing.features),
        "steer.factors": list(writing.factors),
        "steer.operator": writing.operator,
        "steer.positions": writing.positions,
        "generation.prompts": [writing.prompt],
        "generation.chat_template": writing.chat_template,
        "generation.max_new_tokens": writing.max_new_tokens,
        "generation.temperature": writing.temperature,
        "seed": writing.seed,
    }
    if len(writing.features) > 1:
        of_request["steer.weights"] = list(writing.weights)
    overrides = [*words, "steer=grid", *(_word(*item) for item in of_request.items())]
    command = shlex.join(["steerlens", *overrides]) if writing.factors else None
    chosen = {
        "operator": writing.operator,
        "positions": writing.positions,
        **{name: getattr(steer, name) for name in ("unit", "keep_error")},
        **{name: getattr(generation, name) for name in ("max_new_tokens", "temperature", "stop")},
        **{name: getattr(generation, name) for name in ("top_k", "top_p", "chat_template")},
        "default_max_activation": steer.default_max_activation,
        "seed": writing.seed,
    }
    usual = {"top_k": None, "top_p": None, "default_max_activation": None}
    keywords = {
        **({"weights": list(writing.weights)} if len(writing.features) > 1 else {}),
        **{name: value for name, value in chosen.items() if usual.get(name, ...) != value},
    }
    arguments = [repr(list(writing.features)), repr(list(writing.factors)), repr([writing.prompt])]
    arguments += [f"{name}={value!r}" for name, value in keywords.items()]
    lines = [
        "import steerlens",
        "",
        f"subject = steerlens.load_subject(layer={writing.layer}, {_as_python(words)})",
        "texts = steerlens.generate(",
        *(f"    {argument}," for argument in ["subject", *arguments]),
        ")",
        'print(texts[["factor", "text", "success_20", "perplexity"]])',
    ]
    return {"command": command, "python": "\n".join(lines)}


def _as_python(words: Sequence[str]) -> str:
    """Return the overrides that choose a subject as arguments of `load_subject`."""
    chosen = {
        parsed.key_or_group: parsed.value()
        for parsed in parse(words)
        if not parsed.key_or_group.startswith(("steer.", "generation."))
    }
    names = ", ".join(f"{name}={chosen.pop(name)!r}" for name in ("model", "sae"))
    return f"{names}, **{chosen!r}" if chosen else names


def _subject_words(config: RunConfig) -> list[str] | None:
    """Return overrides that choose the subject of `config`, and what of steering and texts a
    request leaves as it is; None where its model or SAE is no entry any more.
    """
    names = [_word("model", config.model.name), _word("sae", config.sae.name)]
    try:
        for group, entry in (("model", config.model), ("sae", config.sae)):
            for key in needed_keys(group, entry.name):
                names.append(_word(key, attrgetter(key)(config)))
        usual = asdict(compose([*names, "steer=grid"]))
    except (SteerlensError, OSError):
        return None
    of_request = {
        "steer": ("factors", "operator", "positions", "search", "controls", "together", "weights"),
        "generation": (
            *("prompts", "n_prompts", "samples", "chat_template", "max_new_tokens"),
            *("temperature", "batch_size"),
        ),
    }
    words = list(names)
    settings = asdict(config)
    for group in ("model", "sae", "steer", "generation"):
        for name, value in settings[group].items():
            if name not in of_request.get(group, ()) and usual[group][name] != value:
                words.append(_word(f"{group}.{name}", value))
    for name in ("device", "dtype", "device_map"):
        if settings[name] != usual[name]:
            words.append(_word(name, settings[name]))
    return words


def _word(key: str, value: Any) -> str:
    """Return an override, of plain names without the quotes that they don't need."""
    is_name = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value)
    if is_name and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{key}={value}"
    return override(key, literal(value))


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
