"""Tasks of lm-evaluation-harness: those that ship, in a folder in its format, and all others.

`NAME.yaml` says how a task is asked, `NAME.jsonl` has its items, which
`experiments.capability.items` has made. The folder serves the harness itself, too:
`lm_eval --include_path FOLDER --tasks NAME`. The items of definitions and opposites are from
WordNet, whose licence lies beside them. A task without items of its own reads those of a package
(`pairs`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.config.schema import EvaluateConfig
from steerlens.data.tasks import pairs
from steerlens.errors import SteerlensError, unknown

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent

INSTALL = "pip install 'steerlens[capability]'"


def shipped_tasks() -> list[str]:
    """Return the names of the tasks whose items ship."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def read(name: str, **_metadata: Any) -> dict[str, Any]:
    """Return the items of a task that ships, for the harness: its test split."""
    from datasets import Dataset

    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def check_tasks(config: EvaluateConfig) -> None:
    """Refuse, before anything is loaded, tasks that can't be run.

    Raises:
        SteerlensError: the harness isn't installed, or what a task reads; there is no such task.
    """
    if not config.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise SteerlensError(
            f"evaluate.tasks needs lm-evaluation-harness, which isn't installed: {INSTALL}"
        )
    if pairs.TASK in config.tasks:
        pairs.pairs_file(pairs.CONCEPT)  # refuses where there are none
    if {*config.tasks} <= {*shipped_tasks(), pairs.TASK}:
        return
    names = _manager(tuple(config.tasks), config.folder).all_tasks
    for name in config.tasks:
        if name not in names:
            raise unknown("evaluate.tasks", name, names)


def load_tasks(config: EvaluateConfig) -> list[Task]:
    """Return the tasks of a run, those of groups one by one, with their requests built.

    Data sets that aren't on this machine are fetched from the Hugging Face hub.

    Raises:
        SteerlensError: a task's items can't be had, there are none, or it can't be run here.
    """
    manager = _manager(tuple(config.tasks), config.folder)
    tasks: dict[str, Task] = {}
    for name in config.tasks:
        try:
            with quiet():
                tasks |= manager.load([name])["tasks"]
        except (IndexError, StopIteration) as error:  # the harness looks at the first one
            raise SteerlensError(f"evaluate.tasks=[{name}] has no items.") from error
        except Exception as error:
            # Whatever of the harness, of `datasets` or of the network it is.
            why = str(error).strip().split("\n")[0] or type(error).__name__
            offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
            raise SteerlensError(
                f"the items of evaluate.tasks=[{name}] can't be read{offline}: {why}; the tasks "
                f"that need no download are {', '.join(shipped_tasks())}."
            ) from error
    for name, task in tasks.items():
        _build_requests(name, task, config)
    return list(tasks.values())


def metric_of(task: Task) -> str:
    """Return the name of the number that the harness gives an item first: its accuracy."""
    aggregation: Any = task.aggregation()
    return str(next(iter(aggregation)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness from showing progress and warnings of its own."""
    harness = logging.getLogger("lm_eval")
    level = harness.level
    harness.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        harness.setLevel(level)


@functools.cache
def _manager(names: tuple[str, ...], folder: str | None) -> TaskManager:
    """Return the harness' task manager, with its own tasks only where one of them is asked for:
    reading their 14,000 files takes 13 s of a core.
    """
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [FOLDER, *([folder] if folder else [])]
    with quiet():
        of_folders = TaskManager(include_path=folders, include_defaults=False)
        if {*names} <= {*of_folders.all_tasks}:
            return of_folders
        return TaskManager(include_path=folders)


def _build_requests(name: str, task: Task, config: EvaluateConfig) -> None:
    """Give a task its requests for its first `n_items` items."""
    if getattr(task, "UNSAFE_CODE", False):
        raise SteerlensError(f"evaluate.tasks=[{name}] runs code that the model writes; refused.")
    if getattr(task, "MULTIMODAL", False):
        raise SteerlensError(f"evaluate.tasks=[{name}] asks about more than text; refused.")
    if config.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=config.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=0)
    n_there = len(task.eval_docs)
    if not n_there:
        raise SteerlensError(f"evaluate.tasks=[{name}] has no items.")
    if config.n_items is not None and config.n_items > n_there:
        logger.warning(
            "evaluate.n_items=%s is more than the %s items of %s: all of them are asked.",
            config.n_items,
            n_there,
            name,
        )
    with quiet():
        task.build_all_requests(limit=config.n_items)
