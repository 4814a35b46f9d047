"""One run, from the settings to the report: load, score, select, steer, measure, report."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerlens.config.compose import usual_values
from steerlens.config.kinds import CONCEPT, CONCEPTS, PUBLISHED, SCORES, WORDS
from steerlens.config.schema import JUDGE, RunConfig
from steerlens.config.settings import Settings, parse_settings
from steerlens.config.sources import source_note, unread_note
from steerlens.data.reference import read_reference
from steerlens.data.tasks import load_tasks
from steerlens.engine.run_context import RunContext
from steerlens.report import tracking, write_report
from steerlens.report.terminal import phase, print_summary, progress
from steerlens.report.tracking.tables import answer_rows, table_rows
from steerlens.results import PAGE_FILE, STEERING
from steerlens.results.folder import RunTables, changed_settings, read_settings, read_tables
from steerlens.results.replace import replacing
from steerlens.results.status import Status, refuse_foreign
from steerlens.results.text import visible
from steerlens.runs.concepts import steer_toward_concepts
from steerlens.runs.downloads import refuse_unreachable
from steerlens.runs.memory_check import refuse_absent_device, refuse_if_too_big
from steerlens.runs.models import RunModels
from steerlens.runs.plan import print_plan, weights_are_here
from steerlens.runs.published import write_published_ratings, write_published_scores
from steerlens.runs.run_folder import RunFolder
from steerlens.runs.score import score
from steerlens.runs.steer import evaluate, measure_pmi, select, steer, write_answer
from steerlens.runs.toward import steer_toward_words
from steerlens.storage.files import CONFIG_FILE, JOB_FILE, write_text
from steerlens.storage.store import Store

if TYPE_CHECKING:
    from steerlens.engine.subject import WeightCache
    from steerlens.judges.session import RatingSession
    from steerlens.results.reference import Reference

logger = logging.getLogger(__name__)


def run(config: RunConfig, weight_cache: WeightCache | None = None) -> float | None:
    """Carry out what `config` asks for; all that it finds lies in `paths.output_dir` afterwards.

    Args:
        config: a checked configuration.
        weight_cache: what earlier runs of this process have loaded.

    Returns:
        The run's `objective`, if it has one.

    Raises:
        SteerlensError: bad input, in one sentence; `status.json` then says `failed` and why.
    """
    settings = parse_settings(config)
    folder = Path(config.paths.output_dir)
    if config.plan:
        _plan(config, settings)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra has made it; a plan leaves nothing behind
        return None
    refuse_foreign(folder)
    with Status(folder) as status:
        if settings.loads_subject:
            refuse_unloadable(settings, weight_cache.size() if weight_cache else 0)
        reference = read_reference(config.reference) if config.reference.model else None
        tree = dataclasses.asdict(config)
        _tell_other_settings(folder, tree)
        with phase("starting W&B"):
            tracker = tracking.start(config.tracking, folder, tree)
        try:
            with replacing(status) as target:
                write_text(target / CONFIG_FILE, yaml.safe_dump(tree, sort_keys=False))
                if settings.loads_subject:
                    with phase("importing torch and SAELens"):
                        import sae_lens  # noqa: F401

                        from steerlens.engine.subject.sae import sae_sources
                    status.expect(layers=len(sae_sources(settings.subject)))
                _carry_out(config, settings, reference, weight_cache, target)
                # What is shown is what lies in the folder: `steerlens report` shows the same.
                tables = read_tables(target)
                # Of the jobs of a sweep the joined result has a page.
                wants_page = config.paths.report
                if wants_page is None:
                    wants_page = not (folder / JOB_FILE).is_file()
                with phase("drawing the figures and writing the report"):
                    summary, figures = write_report(tables, target, wants_page)
                with phase("logging to W&B"):
                    _log(tracker, tables, summary, figures)
                    tracker.log_page(target / PAGE_FILE)
        except BaseException:
            tracker.finish({}, failed=True)
            raise
        with phase("finishing W&B"):
            tracker.finish(summary)
        print_summary(tables, summary, folder)
    return summary["objective"]["value"] if summary["objective"] else None


def _plan(config: RunConfig, settings: Settings) -> None:
    """Print what the run would do."""
    if settings.loads_subject:
        # What isn't here yet may be planned for another machine.
        if config.plan == "measure" or weights_are_here(settings.subject):
            refuse_unloadable(settings)
        print_plan(settings, measures=config.plan == "measure")
        _tell_sources(config, settings)
        return
    if config.reference.alone:
        read_reference(config.reference)
    print("This would show what is published; nothing is scored (plan=true stops here).")


def _tell_sources(config: RunConfig, settings: Settings) -> None:
    """Print what isn't read in the place of something else, or not at all."""
    if settings.kind is not PUBLISHED:
        for note in filter(None, (source_note(config), unread_note(config, usual_values))):
            print(note)


def refuse_unloadable(settings: Settings, spare: int = 0) -> None:
    """Refuse what this machine can't load, before torch is imported and anything downloaded.

    Args:
        settings: the run's.
        spare: bytes that this process holds and could give back.

    Raises:
        SteerlensError: it hasn't the device, or no way to the weights, or too little memory.
    """
    refuse_absent_device(settings.subject)
    refuse_unreachable(settings)
    refuse_if_too_big(settings, spare)


def _log(
    tracker: tracking.Tracker,
    tables: RunTables,
    summary: dict[str, Any],
    figures: dict[str, list[Path]],
) -> None:
    tracker.log_tables(tables, summary)
    if len(tables.words):
        tracker.log_rows("words", table_rows(tables.words))
    for name, rows in answer_rows(summary).items():
        tracker.log_rows(name, rows)
    tracker.log_figures(figures)


def _carry_out(
    config: RunConfig,
    settings: Settings,
    reference: Reference | None,
    weight_cache: WeightCache | None,
    target: Path,
) -> None:
    """Write the tables of all that the run was asked for into `target`."""
    folder = RunFolder(target, settings.seed)
    for warning in settings.warnings:
        logger.warning("%s", warning)
        folder.note_line(warning)
    _tell_sources(config, settings)
    if reference:
        reference.write(target)
    if reference and reference.alone:
        write_published_scores(reference, settings.reference, settings.cache_dir, folder)
        return
    if settings.reference.ratings:
        write_published_ratings(Path(settings.reference.ratings), settings.cache_dir, folder)
        return
    ctx = context_of(settings)
    models = RunModels(settings.subject, settings.evaluator, weight_cache)
    if settings.kind is CONCEPTS:
        steer_toward_concepts(settings, _rating_session(config), ctx, models, folder)
    else:
        by_rating = settings.steering.choice.rule == JUDGE and settings.kind is not SCORES
        session = _rating_session(config) if by_rating else None
        score_and_steer(settings, ctx, models, folder, session)


def context_of(settings: Settings) -> RunContext:
    """Give what work on the run's subjects may know of it."""
    return RunContext(
        memory_budget=settings.subject.memory_budget,
        seed=settings.seed,
        task=progress,
        corpus=settings.corpus,
        lens=settings.lens,
        examples=settings.shipped_examples,
        store=Store(settings.cache_dir / "scores"),
    )


def score_and_steer(
    settings: Settings,
    ctx: RunContext,
    models: RunModels,
    folder: RunFolder,
    session: RatingSession | None = None,
) -> None:
    """Load, score, select, steer and measure, as far as the run is asked for.

    Args:
        settings: the run's.
        ctx: memory, seed, corpus and store.
        models: loads the model, the SAEs and the evaluator.
        folder: where each table goes as soon as a layer is finished.
        session: the judge by whose ratings factors are chosen; None for other rules.
    """
    # Before hours of work: their items may have to be fetched.
    tasks = load_tasks(settings.evaluate) if settings.evaluate.tasks else []
    features = score(settings, ctx, models, folder)
    lm = models.lm
    assert lm is not None
    if settings.kind is SCORES:
        return
    if settings.kind is WORDS:
        steer_toward_words(features, settings, ctx, models, lm, folder, session)
        return
    selected = select(features, settings)
    steered = STEERING.frame([])
    if len(selected):
        steered = steer(selected, settings.steering, ctx, models, folder, session)
        if tasks:
            evaluate(selected, settings, tasks, ctx, models, folder)
    if settings.kind is CONCEPT:
        write_answer(features, steered, settings, lm, folder)
    elif len(selected):
        measure_pmi(settings, ctx, folder)
    if session:
        for line in filter(None, (session.sentence(), session.stopped)):
            print(line)


def _rating_session(config: RunConfig) -> RatingSession:
    """Load the run's judge, unless it is lexical, and refuse one that can't work."""
    from steerlens.judges import load_judge
    from steerlens.judges.session import RatingSession

    assert config.judge is not None
    if config.judge.name == "lexical":
        return RatingSession(None)
    judge = load_judge(config)
    judge.check()
    return RatingSession(judge)


def _tell_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Say in one line in what the results that will be replaced differ from those to come."""
    plain = yaml.safe_load(yaml.safe_dump(settings))
    if changes := changed_settings(read_settings(folder), plain):
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        logger.warning(
            "%s has results of other settings, %s%s; this run's will take their place.",
            visible(str(folder)),
            visible(", ".join(changes[:3])),
            more,
        )
