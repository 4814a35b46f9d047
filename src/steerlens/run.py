"""One run: its stages, and what is kept and shown of them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from steerlens import tracking
from steerlens.config.check import loads_subject
from steerlens.config.schema import RunConfig
from steerlens.config.steering import parse_factors
from steerlens.figures import FIGURES_FOLDER
from steerlens.files import CONFIG_FILE, write_text
from steerlens.fit import refuse_if_too_big
from steerlens.plan import print_plan
from steerlens.provenance import PROVENANCE_FILE
from steerlens.reference import read_reference
from steerlens.report import REPORT_FILE, write_report
from steerlens.report.terminal import print_summary
from steerlens.results import SUMMARY_FILE, TABLES
from steerlens.results.folder import read_tables
from steerlens.results.pmi import PMI_FILE
from steerlens.results.reference import REFERENCE, REFERENCE_FILE
from steerlens.selection import chosen
from steerlens.stages import Stages
from steerlens.status import Status
from steerlens.tracking.tables import answer_rows, table_rows

if TYPE_CHECKING:
    from steerlens.subject import Kept


def run(config: RunConfig, kept: Kept | None = None) -> float | None:
    """Scores what `config` asks for; everything it finds lies in `paths.output_dir` afterwards.

    Args:
        config: a checked configuration.
        kept: what earlier runs of this process have loaded.

    Returns:
        The run's `objective`, if it has one.

    Raises:
        SteerlensError: bad input, in one sentence; `status.json` then says `failed` and why.
    """
    folder = Path(config.paths.output_dir)
    if config.plan:
        if loads_subject(config):
            refuse_if_too_big(config)
            print_plan(config)
        else:
            if config.reference.alone:
                read_reference(config.reference)
            print("This would show what is published; nothing is scored (plan=true stops here).")
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # Hydra has made it; a plan leaves nothing behind
        return None
    with Status(folder):
        if loads_subject(config):
            refuse_if_too_big(config, kept.size() if kept else 0)
        reference = read_reference(config.reference) if config.reference.model else None
        _clear(folder)
        settings = dataclasses.asdict(config)
        write_text(folder / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))
        tracker = tracking.start(config.tracking, folder, settings)
        try:
            stages = Stages(config, folder, kept)
            if reference:
                reference.write(folder)
            alone = reference is not None and reference.alone
            if reference and alone:
                stages.published(reference)
            elif config.reference.ratings:
                stages.published_ratings()
            elif config.concepts:
                stages.concepts()
            else:
                _score_and_steer(stages, config)
            # What is shown is what lies in the folder: `steerlens report` shows the same.
            tables = read_tables(folder)
            summary, figures = write_report(tables, folder)
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


def _clear(folder: Path) -> None:
    """Removes what an earlier run left in the folder: it would pass for this run's."""
    tables = (*(table.file for table in (*TABLES, REFERENCE)), REFERENCE_FILE)
    for name in (*tables, PMI_FILE, SUMMARY_FILE, REPORT_FILE, PROVENANCE_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES_FOLDER, ignore_errors=True)
