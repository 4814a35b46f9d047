"""Requests that need the model: one after the other, on a thread of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from steerlens.errors import SteerlensError
from steerlens.report.play import Event, Tell

MOST_WAITING = 32
"""More are refused."""

logger = logging.getLogger(__name__)


class Left(Exception):
    """The client has left; nobody reads what would be written."""


class Full(SteerlensError):
    """So many requests wait that another one is refused."""


class ModelQueue:
    """Carries work out in the order in which it comes; what nobody waits for any more is left."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "steerlens-play")
        self._n_open = 0

    async def events(self, work: Callable[[Tell], None]) -> AsyncIterator[Event]:
        """Yield what `work` tells until it ends. A reader that leaves ends it at what it would tell
        next, or before it begins.

        Raises:
            Full: too many are waiting.
        """
        if self._n_open >= MOST_WAITING:
            raise Full(f"{self._n_open} requests are waiting; try again in a while.")
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        has_left = threading.Event()

        def put(event: Event | None) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        def tell(event: Event) -> None:
            if has_left.is_set():
                raise Left
            put(event)

        def run() -> None:
            try:
                work(tell)
            except Left:
                pass
            except SteerlensError as error:
                put({"error": str(error)})
            except Exception as error:  # told, and the next request is carried out
                logger.warning("A request failed: %s: %s", type(error).__name__, error)
                put({"error": f"the request failed: {type(error).__name__}."})
            finally:
                put(None)

        n_ahead = self._n_open
        self._n_open += 1
        future = self._executor.submit(run)
        try:
            if n_ahead:
                yield {"waiting": n_ahead}
            while (event := await events.get()) is not None:
                yield event
        finally:
            self._n_open -= 1
            has_left.set()
            future.cancel()

    def close(self) -> None:
        """Begin nothing more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
