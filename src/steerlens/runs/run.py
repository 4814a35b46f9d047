"""One run: its stages, and what is kept and shown of them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_subject
from steerlens.config.steering import parse_factors
from steerlens.data.reference import read_reference
from steerlens.report import tracking, write_report
from steerlens.report.terminal import print_summary
from steerlens.report.tracking.tables import answer_rows, table_rows
from steerlens.results.folder import changed_settings, read_settings, read_tables
from steerlens.results.replace import replacing
from steerlens.results.status import Status, refuse_foreign
from steerlens.results.text import visible
from steerlens.runs.downloads import refuse_unreachable
from steerlens.runs.memory_check import refuse_absent_device, refuse_if_too_big
from steerlens.runs.plan import print_plan
from steerlens.runs.preflight import loads_subject
from steerlens.runs.stages import Stages
from steerlens.scores.selection import chosen
from steerlens.storage.files import CONFIG_FILE, write_text

if TYPE_CHECKING:
    from steerlens.engine.subject import WeightCache
    from steerlens.results.reference import Reference

logger = logging.getLogger(__name__)


def run(config: RunConfig, weight_cache: WeightCache | None = None) -> float | None:
    """Scores what `config` asks for; everything it finds lies in `paths.output_dir` afterwards.

    Args:
        config: a checked configuration.
        weight_cache: what earlier runs of this process have loaded.

    Returns:
        The run's `objective`, if it has one.

    Raises:
        SteerlensError: bad input, in one sentence; `status.json` then says `failed` and why.
    """
    folder = Path(config.paths.output_dir)
    if config.plan:
        if loads_subject(config):
            refuse_absent_device(config)
            refuse_unreachable(config)
            refuse_if_too_big(config)
            print_plan(config)
        else:
            if config.reference.alone:
                read_reference(config.reference)
            print("This would show what is published; nothing is scored (plan=true stops here).")
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra has made it; a plan leaves nothing behind
        return None
    refuse_foreign(folder)
    with Status(folder) as status:
        if loads_subject(config):
            refuse_absent_device(config)
            refuse_unreachable(config)
            refuse_if_too_big(config, weight_cache.size() if weight_cache else 0)
        reference = read_reference(config.reference) if config.reference.model else None
        settings = dataclasses.asdict(config)
        _tell_other_settings(folder, settings)
        tracker = tracking.start(config.tracking, folder, settings)
        try:
            with replacing(status) as target:
                write_text(target / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))
                if loads_subject(config):
                    status.expect(layers=_count_layers(config))
                _run_stages(Stages(config, target, weight_cache), config, reference, target)
                # What is shown is what lies in the folder: `steerlens report` shows the same.
                tables = read_tables(target)
                summary, figures = write_report(tables, target)
                tracker.log_tables(tables, summary)
                if len(tables.words):
                    tracker.log_rows("words", table_rows(tables.words))
                for name, rows in answer_rows(summary).items():
                    tracker.log_rows(name, rows)
                tracker.log_figures(figures)
        except BaseException:
            tracker.finish({}, failed=True)
            raise
        tracker.finish(summary)
        print_summary(tables, summary, folder)
    return summary["objective"]["value"] if summary["objective"] else None


def _count_layers(config: RunConfig) -> int:
    from steerlens.engine.subject.sae import sae_sources

    return len(sae_sources(parse_subject(config)))


def _run_stages(
    stages: Stages, config: RunConfig, reference: Reference | None, target: Path
) -> None:
    """Write the tables of all that the run was asked for."""
    if reference:
        reference.write(target)
    if reference and reference.alone:
        stages.published(reference)
    elif config.reference.ratings:
        stages.published_ratings()
    elif config.concepts:
        stages.concepts()
    else:
        _score_and_steer(stages, config)


def _score_and_steer(stages: Stages, config: RunConfig) -> None:
    """Score features, and steer with those that are chosen if the run has factors."""
    frame = stages.score()
    if not parse_factors(config.steer.factors):
        return
    if config.toward.words is not None:
        stages.steer_toward(frame)
        return
    # Another shard may have features over the threshold where this one has none.
    may_be_none = config.shard is not None or config.concept is not None
    rows = chosen(frame, config.selection, may_be_none) if len(frame) else frame
    if len(rows):
        stages.steer(rows)
    if config.features.concept is not None:
        stages.answer(frame)
    elif len(rows):
        stages.pmi()


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
