"""Rating with a language model: what to ask, what is kept, what may still be paid for, and when to
give up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from steerlens.config.prices import Price, price_of
from steerlens.config.schema import JudgeConfig
from steerlens.engine.cached_rows import cached_values
from steerlens.errors import SteerlensError, Terminated
from steerlens.judges import cost, prompts
from steerlens.judges.cache import AnswerCache
from steerlens.judges.chat import Answer, Chat, Conversation, TooLong, Unanswered
from steerlens.judges.cost import Cost, Estimate
from steerlens.judges.items import (
    BUDGET,
    UNANSWERED,
    UNPARSABLE,
    Item,
    Rated,
    Rating,
    aspects_of,
    nothing,
)
from steerlens.judges.parse import parse

if TYPE_CHECKING:
    from steerlens.judges import JudgeSettings

GIVE_UP = 10
"""Requests that fail in a row, after all of the client's own repeats."""

GRACE = 20.0
"""Seconds that answers under way are waited for at SIGTERM or an error: batch systems kill after
30."""


@dataclass(frozen=True)
class Question:
    """One thing to ask, for every place that wants to know it."""

    number: int
    """Among those of a call; the same in all attempts."""
    conversation: Conversation
    places: Sequence[tuple[int, str]]
    """Items, by number, and aspects."""
    attempt: int = 1


@dataclass(frozen=True)
class LanguageModelJudge:
    """A language model as a judge."""

    chat: Chat
    config: JudgeConfig
    cache: AnswerCache
    price: Price | None

    @property
    def name(self) -> str:
        """Give what tables call the judge."""
        return f"{self.config.name}:{self.config.model}"

    def check(self) -> None:
        """Refuse what can't work, before any text is made. Costs nothing.

        Raises:
            SteerlensError: a key that is refused, no such model, no server, a cache that can't be
                written.
        """
        self.cache.check()
        self.chat.check()

    def estimate(self, items: Sequence[Item]) -> Estimate:
        """Return what rating `items` will take, without asking anything."""
        queue = _RatingQueue(self, tasks(items))
        for task in queue.tasks:
            queue.find(task.number)
        return cost.estimate(
            ratings=queue.n_ratings,
            from_cache=queue.cost.from_cache,
            to_ask=[task.conversation for task in queue.to_ask],
            price=self.price,
            max_tokens=self.config.max_tokens,
        )

    def rate(
        self,
        items: Sequence[Item],
        progress: Callable[[int], None] = nothing,
        spent_usd: float = 0.0,
    ) -> Rated:
        """Rate `items` in every aspect that they have.

        What is kept is looked up first. Each new answer is kept before it counts, so that a run
        that is killed goes on where it was. At SIGTERM what is under way is waited for and kept;
        on Ctrl-C it is given up at once.

        Raises:
            SteerlensError: nothing can be asked any more (key, model, server). What was answered is
                kept.
        """
        self.cache.check()
        queue = _RatingQueue(self, tasks(items), progress, spent_usd)
        # Who gets an answer keeps it: a rating may take several, and the caller may be killed.
        rating_of = cached_values(
            range(len(queue.tasks)), queue.find, queue.ask, save=lambda _number, _rating: None
        )
        ratings: list[dict[str, Rating]] = [{} for _ in items]
        for task in queue.tasks:
            for item, aspect in task.places:
                ratings[item][aspect] = rating_of[task.number]
        return Rated(self.name, "llm", ratings, queue.cost, queue.stopped)


def language_model_judge(chat: Chat, settings: JudgeSettings) -> LanguageModelJudge:
    """Give the judge that asks `chat`, with the run's cache of answers and the price of one."""
    config = settings.judge
    assert config is not None
    cache = AnswerCache(Path(settings.paths.cache_dir), chat.identity)
    return LanguageModelJudge(chat, config, cache, price_of(config))


def tasks(items: Sequence[Item]) -> list[Question]:
    """Return what to ask about `items`, each thing once."""
    places: dict[Conversation, list[tuple[int, str]]] = {}
    for number, item in enumerate(items):
        for aspect in aspects_of(item):
            places.setdefault(prompts.conversation(item, aspect), []).append((number, aspect))
    return [Question(number, *question) for number, question in enumerate(places.items())]


@dataclass
class _RatingQueue:
    """What one call of `rate` still has to ask, what is under way, and what it has cost.

    Only worker threads ask; all else is the caller's thread.
    """

    judge: LanguageModelJudge
    tasks: Sequence[Question]
    progress: Callable[[int], None] = nothing
    spent_usd: float = 0.0
    to_ask: deque[Question] = field(default_factory=deque)
    """The next attempts of all that isn't rated."""
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    under_way: dict[Future[list[Answer | Unanswered]], list[Question]] = field(default_factory=dict)
    failed_in_a_row: int = 0

    def __post_init__(self) -> None:
        if self.judge.price is None:
            self.cost.usd = self.cost.usd_now = None

    @property
    def n_ratings(self) -> int:
        """How many ratings are wanted."""
        return sum(len(task.places) for task in self.tasks)

    def find(self, number: int) -> Rating | None:
        """Return a question's rating if its answers are kept, those of all attempts; or None, and
        what is to be asked next is in the queue.
        """
        task = self.tasks[number]
        while answer := self.judge.cache.find(task.conversation):
            read = self._read(task, answer, from_cache=True)
            if isinstance(read, Rating):
                self.progress(len(task.places))
                return read
            task = read
        self.to_ask.append(task)
        return None

    def ask(self, _numbers: Sequence[int]) -> Iterator[tuple[int, Rating]]:
        """Yield the ratings of all that is in the queue, as they come; as far as the budget goes,
        none beyond.

        Raises:
            SteerlensError: nothing answers.
        """
        pool = ThreadPoolExecutor(self.judge.chat.workers, thread_name_prefix="judge")
        try:
            while self.to_ask or self.under_way:
                self._submit(pool)
                if not self.under_way:
                    self._stop()
                    yield from ((task.number, Rating(None, BUDGET)) for task in self.to_ask)
                    return
                for future in wait(self.under_way, return_when=FIRST_COMPLETED).done:
                    for task, answer in zip(
                        self.under_way.pop(future), future.result(), strict=True
                    ):
                        rating = self._rating(task, answer)
                        if rating is not None:
                            self.progress(len(task.places))
                            yield task.number, rating
        except BaseException as error:
            if isinstance(error, Terminated) or not isinstance(error, KeyboardInterrupt):
                wait(self.under_way, GRACE)
            raise
        finally:
            # More than once, because a thread may be about to ask.
            while wait(self.under_way, 0.1).not_done:
                self.judge.chat.abandon()
            pool.shutdown()

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Fill the threads that are free, with what surely fits in the budget."""
        while self.to_ask and len(self.under_way) < self.judge.chat.workers:
            batch = list(self._affordable())
            if not batch:
                return
            self.under_way[pool.submit(self._ask, batch)] = batch

    def _affordable(self) -> Iterator[Question]:
        """Yield the next tasks, as many as are asked together."""
        promised = sum(self._at_most(item) for batch in self.under_way.values() for item in batch)
        promised += self.spent_usd
        limit = self.judge.config.budget_usd
        for _ in range(min(self.judge.chat.batch, len(self.to_ask))):
            promised += self._at_most(self.to_ask[0])
            if limit is not None and (self.cost.usd or 0.0) + promised > limit:
                return
            yield self.to_ask.popleft()

    def _at_most(self, task: Question) -> float:
        price, max_tokens = self.judge.price, self.judge.config.max_tokens
        return price.usd(cost.tokens_at_most(task.conversation), max_tokens) if price else 0.0

    def _ask(self, batch: Sequence[Question]) -> list[Answer | Unanswered]:
        """Return in a thread: asks, and keeps what comes."""
        answers = self.judge.chat.answers([task.conversation for task in batch])
        for task, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Answer):
                self.judge.cache.keep(task.conversation, answer)
        return answers

    def _rating(self, task: Question, answer: Answer | Unanswered) -> Rating | None:
        """Return what came of a request; None if another attempt is in the queue."""
        if isinstance(answer, Answer):
            self.failed_in_a_row = 0
            read = self._read(task, answer, from_cache=False)
            if isinstance(read, Rating):
                return read
            self.to_ask.appendleft(read)
            return None
        self.failed_in_a_row += not isinstance(answer, TooLong)
        all_failed = self.failed_in_a_row == len(self.tasks)
        if self.failed_in_a_row >= GIVE_UP or all_failed:
            raise SteerlensError(
                f"{self.judge.name} doesn't answer: {answer}; what it has answered so far is kept, "
                "and the same command goes on from there."
            )
        return Rating(None, UNANSWERED, str(answer))

    def _read(self, task: Question, answer: Answer, from_cache: bool) -> Rating | Question:
        """Count an answer, and return the rating in it, or what to ask next."""
        config = self.judge.config
        tokens = cost.tokens_of(answer, task.conversation, config.max_tokens)
        self.cost.add(tokens, self.judge.price, from_cache)
        value, why = parse(answer.text)
        if value is not None:
            return Rating(value, detail=answer.text)
        if task.attempt < config.attempts:
            further = prompts.again(task.conversation, answer.text)
            return replace(task, conversation=further, attempt=task.attempt + 1)
        ended = f" (it ended with {answer.stopped})" if answer.stopped else ""
        zero = 0 if config.unparsable_is_zero else None
        return Rating(zero, UNPARSABLE, f"{why}{ended}: {answer.text}")

    def _stop(self) -> None:
        """Say how far the budget went."""
        n_missing, n_ratings = sum(len(task.places) for task in self.to_ask), self.n_ratings
        self.stopped = (
            f"judge.budget_usd={self.judge.config.budget_usd:g} is reached: the answers have cost "
            f"{self.spent_usd + (self.cost.usd or 0):.4f} USD, {self.cost.usd_now or 0:.4f} of it "
            f"now, and another might exceed it; {n_missing:,} of {n_ratings:,} ratings are "
            "missing. What is rated is kept: the same command with a larger budget goes on."
        )
