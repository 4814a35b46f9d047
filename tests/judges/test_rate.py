"""What is asked, kept and paid for, with a judge that answers in process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.prices import FREE, Price
from steerlens.config.schema import JudgeConfig, RunConfig
from steerlens.errors import SteerlensError
from steerlens.judges import Item, load_judge
from steerlens.judges.cache import FOLDER, AnswerCache
from steerlens.judges.chat import Answer, Conversation, Message, Unanswered
from steerlens.judges.cost import tokens_at_most
from steerlens.judges.items import BUDGET, UNANSWERED
from steerlens.judges.rate import GIVE_UP, LanguageModelJudge, tasks
from tests.judges.conftest import ITEMS
from tests.support.judge_server import JudgeServer, Reply

MANY = [Item(f"Text {n}.", "boats", f"Write {n}.") for n in range(20)]
PRICE = Price(1000.0, 10_000.0)
"""A tenth of a cent for a token read, ten times as much for one written."""


@dataclass
class Fake:
    """A chat whose answers are made by `answer`, of 200 tokens read and 20 written."""

    answer: Callable[[Conversation, int], str | Exception] = lambda conversation, number: (
        "Rating: [[2]]"
    )
    workers: int = 3
    batch: int = 1
    identity: dict[str, Any] = field(default_factory=lambda: {"judge": "fake", "model": "m"})
    asked: list[Conversation] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def answers(self, conversations: Sequence[Conversation]) -> list[Answer | Unanswered]:
        self.sizes.append(len(conversations))
        found: list[Answer | Unanswered] = []
        for one in conversations:
            with self.lock:
                self.asked.append(one)
                number = len(self.asked) - 1
            told = self.answer(one, number)
            if isinstance(told, Unanswered):
                found.append(told)
            elif isinstance(told, BaseException):
                raise told
            else:
                found.append(Answer(told, 200, 20))
        return found


def judge(
    folder: Path, chat: Any, price: Price | None = PRICE, **settings: Any
) -> LanguageModelJudge:
    config = JudgeConfig("openai", "m", max_tokens=20, **settings)
    return LanguageModelJudge(chat, config, AnswerCache(folder, chat.identity), price)


def test_an_estimate_asks_nothing_and_knows_what_is_kept(tmp_path: Path) -> None:
    chat = Fake()
    one = judge(tmp_path, chat)
    before = one.estimate(MANY)
    assert (before.ratings, before.from_cache, before.requests, chat.asked) == (60, 0, 60, [])
    conversations = [task.conversation for task in tasks(MANY)]
    read = sum(tokens_at_most(conversation) for conversation in conversations)
    assert before.usd_at_most == pytest.approx(PRICE.usd(read, 60 * 20))
    assert before.usd is not None
    assert before.usd_at_most is not None
    assert before.usd < before.usd_at_most
    rated = one.rate(MANY[:5])
    after = one.estimate(MANY)
    assert (after.from_cache, after.requests) == (15, 45)
    assert rated.cost.usd == pytest.approx(PRICE.usd(15 * 200, 15 * 20))
    assert "15 answers are kept, 45 to ask for" in after.sentence()
    assert "unknown price" in judge(tmp_path, chat, None).estimate(MANY).sentence()


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_budget_is_never_exceeded_and_what_is_left_is_marked(
    workers: int, tmp_path: Path
) -> None:
    chat = Fake(workers=workers)
    one_answer = PRICE.usd(200, 20)
    most = PRICE.usd(max(tokens_at_most(t.conversation) for t in tasks(MANY)), 20)
    budget = 12.5 * one_answer + most
    rated = judge(tmp_path, chat, budget_usd=budget).rate(MANY)
    assert rated.cost.usd is not None
    assert 12 * one_answer <= rated.cost.usd <= budget
    assert rated.stopped is not None
    assert f"judge.budget_usd={budget:g} is reached" in rated.stopped
    n = len(chat.asked)
    assert f"{60 - n} of 60 ratings are missing" in rated.stopped
    left = [one for rating in rated.ratings for one in rating.values() if one.missing == BUDGET]
    assert (len(left), {one.value for one in left}) == (60 - n, {None})


def test_the_same_budget_pays_nothing_more_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    chat = Fake()
    budget = 20 * PRICE.usd(200, 20)
    first = judge(tmp_path, chat, budget_usd=budget).rate(MANY)
    n = len(chat.asked)
    again = judge(tmp_path, chat, budget_usd=budget).rate(MANY)
    assert len(chat.asked) == n
    assert again.ratings == first.ratings
    assert (again.cost.usd, again.cost.usd_now) == (pytest.approx(first.cost.usd), 0.0)
    whole = judge(tmp_path, chat, budget_usd=100 * budget).rate(MANY)
    assert (len(chat.asked), whole.stopped) == (60, None)
    assert len(set(chat.asked)) == 60


def test_a_budget_of_nothing_asks_nothing(tmp_path: Path) -> None:
    chat = Fake()
    rated = judge(tmp_path, chat, budget_usd=0.0).rate(MANY)
    assert chat.asked == []
    assert rated.stopped is not None
    assert judge(tmp_path, chat, FREE, budget_usd=0.0).rate(MANY).stopped is None


def test_usage_that_the_server_does_not_tell_is_counted_as_the_most_there_can_be(
    tmp_path: Path, serve: Callable[..., JudgeServer], configure: Callable[..., RunConfig]
) -> None:
    server = serve(lambda prompt, number: Reply(usage=False))
    settings = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0, "max_tokens": 7}
    rated = load_judge(configure(server, **settings)).rate(ITEMS)
    read = sum(tokens_at_most(task.conversation) for task in tasks(ITEMS))
    assert (rated.cost.input_tokens, rated.cost.output_tokens) == (read, 6 * 7)
    assert rated.cost.usd == pytest.approx((read + 42) / 1e6)


def test_without_a_price_tokens_are_counted_and_the_cost_is_unknown(tmp_path: Path) -> None:
    rated = judge(tmp_path, Fake(), None).rate(MANY)
    assert (rated.cost.input_tokens, rated.cost.usd) == (60 * 200, None)


def test_failures_in_a_row_stop_the_run_and_lose_nothing(tmp_path: Path) -> None:
    def fails(conversation: Conversation, number: int) -> str | Exception:
        return Unanswered("500: down") if number >= 6 else "Rating: [[1]]"

    chat = Fake(fails, workers=1)  # with more, a late answer can come among the failures
    with pytest.raises(SteerlensError, match="doesn't answer: 500: down; what it has answered"):
        judge(tmp_path, chat).rate(MANY)
    assert len(chat.asked) == 6 + GIVE_UP
    well = Fake()
    rated = judge(tmp_path, well).rate(MANY)
    assert (len(well.asked), rated.cost.from_cache) == (54, 6)


def test_a_judge_that_is_down_is_given_up_with_many_under_way(tmp_path: Path) -> None:
    chat = Fake(lambda conversation, number: Unanswered("500: down"), workers=8)
    with pytest.raises(SteerlensError, match="doesn't answer: 500: down"):
        judge(tmp_path, chat).rate(MANY)
    assert GIVE_UP <= len(chat.asked) <= GIVE_UP + 2 * 8


def test_failures_here_and_there_are_missing_ratings(tmp_path: Path) -> None:
    def fails(conversation: Conversation, number: int) -> str | Exception:
        return Unanswered("500: down") if number % 2 else "Rating: [[1]]"

    rated = judge(tmp_path, Fake(fails, workers=1)).rate(MANY)
    assert sum(counts[UNANSWERED] for counts in rated.missing().values()) == 30
    assert rated.stopped is None


def test_a_refusal_keeps_what_came_before(tmp_path: Path) -> None:
    def refuses(conversation: Conversation, number: int) -> str | Exception:
        return SteerlensError("the key is used up.") if number == 7 else "Rating: [[1]]"

    with pytest.raises(SteerlensError, match="the key is used up"):
        judge(tmp_path, Fake(refuses, workers=1)).rate(MANY)
    chat = Fake()
    assert judge(tmp_path, chat).rate(MANY).cost.from_cache == 7


def test_several_are_asked_together_by_a_chat_that_can(tmp_path: Path) -> None:
    chat = Fake(workers=1, batch=8)
    rated = judge(tmp_path, chat).rate(MANY)
    assert chat.sizes == [8] * 7 + [4]
    assert rated.ratings == judge(tmp_path / "other", Fake()).rate(MANY).ratings


def test_another_judge_finds_nothing_of_this_one(tmp_path: Path) -> None:
    judge(tmp_path, Fake()).rate(MANY)
    for changed in ({"model": "n"}, {"temperature": 1.0}, {"base_url": "http://x"}):
        other = Fake(identity={"judge": "fake", "model": "m", **changed})
        judge(tmp_path, other).rate(MANY[:1])
        assert len(other.asked) == 3


def test_a_broken_or_foreign_file_in_the_cache_is_no_answer(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"judge": "fake"})
    asked = (Message("user", "a ☃ text"),)
    assert cache.find(asked) is None
    cache.keep(asked, Answer("yes", 1, 2, "stop"))
    assert cache.find(asked) == Answer("yes", 1, 2, "stop")
    (file,) = (tmp_path / FOLDER).rglob("*.json")
    whole = json.loads(file.read_text())
    for content in (
        "{",
        "[]",
        json.dumps({**whole, "asked": {}}),
        json.dumps({**whole, "answer": {"text": None, "input_tokens": 1, "output_tokens": 2}}),
        json.dumps({**whole, "answer": {"words": 1}}),
    ):
        file.write_text(content)
        assert cache.find(asked) is None
    cache.keep(asked, Answer("again", None, None))
    assert cache.find(asked) == Answer("again", None, None)


def test_nothing_is_asked_where_answers_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    chat = Fake()
    for call in (
        judge(tmp_path / "file", chat).check,
        lambda: judge(tmp_path / "file", chat).rate(MANY),
    ):
        with pytest.raises(SteerlensError, match=r"can't be kept in .*paths\.cache_dir=DIR"):
            call()
    assert chat.asked == []


def test_columns_are_named_after_the_kind_and_only_those_that_are_rated(tmp_path: Path) -> None:
    texts = [replace(item, instruction=None) for item in MANY[:2]]
    columns = judge(tmp_path, Fake()).rate(texts).columns()
    assert columns == {
        "llm_concept": [2, 2],
        "llm_concept_missing": [None, None],
        "llm_fluency": [2, 2],
        "llm_fluency_missing": [None, None],
    }
    mixed = judge(tmp_path, Fake()).rate([MANY[0], texts[1]]).columns()
    assert mixed["llm_instruction"] == [2, None]
    assert mixed["llm_instruction_missing"] == [None, None]


def test_no_items_cost_nothing(tmp_path: Path) -> None:
    rated = judge(tmp_path, Fake()).rate([])
    assert (rated.ratings, rated.columns(), rated.stopped) == ([], {}, None)


KILLED = """
import sys
from steerlens.config.schema import JudgeConfig, PathsConfig, RunConfig
from steerlens.judges import Item, load_judge

run = RunConfig(paths=PathsConfig("unused", sys.argv[2]))
run.judge = JudgeConfig("openai", "judge-small", sys.argv[1] + "/v1", concurrency=2)
load_judge(run).rate([Item(f"Text {n}.", "boats", f"Write {n}.") for n in range(20)])
"""


def test_a_killed_run_goes_on_and_no_answer_is_paid_twice(
    tmp_path: Path, serve: Callable[..., JudgeServer], configure: Callable[..., RunConfig]
) -> None:
    process: list[subprocess.Popen[bytes]] = []

    def answer(prompt: str, number: int) -> Reply:
        if number == 12:
            process[0].send_signal(signal.SIGKILL)
        return Reply()

    server = serve(answer)
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
    process.append(subprocess.Popen(command))
    assert process[0].wait() == -signal.SIGKILL
    before = len(server.asked)
    rated = load_judge(configure(server)).rate(MANY)
    assert rated.stopped is None
    kept = rated.cost.from_cache
    # Two were under way when it was killed, and one or two may have been answered but not kept.
    assert 12 - 2 <= kept <= before < 60
    assert len(server.asked) == before + 60 - kept
