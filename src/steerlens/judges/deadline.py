"""Requests with a limit on how long each may take in all, and that others can end.

HTTP clients limit how long each step may take: a server that sends a byte a second never exceeds
that. And a thread that waits for a server hears nothing else. So requests are tasks of an event
loop, where a timeout holds for all that a task does, and a task can be cancelled.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def limited_client(sdk: Any, seconds: float) -> Any:
    """Give an HTTP client for the package `sdk` whose requests take at most `seconds` in all.

    Each attempt counts by itself, from connecting to its last byte, redirects included. One that
    takes longer is a ReadTimeout, which `sdk` repeats like any other.
    """
    base = sdk.DefaultAsyncHttpxClient
    # Which is httpx, or a successor of it.
    library = importlib.import_module(base.__base__.__module__.partition(".")[0])

    class LimitedClient(base):
        async def send(self, request: Any, **settings: Any) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **settings)
            except TimeoutError as error:
                message = "the request has taken too long in all"
                raise library.ReadTimeout(message, request=request) from error

    return LimitedClient(timeout=seconds)


class EventLoop:
    """An event loop in a thread of its own, for threads that wait."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._under_way: set[Future[Any]] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine`, and wait for what it gives.

        Raises:
            CancelledError: another thread has called `end`.
        """
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="judge's requests", daemon=True
                ).start()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._under_way.add(future)
        try:
            return future.result()
        finally:
            future.cancel()  # on Ctrl-C in the thread that waits
            with self._lock:
                self._under_way.discard(future)

    def end(self) -> None:
        """Cancel all that is under way, at once."""
        with self._lock:
            for future in self._under_way:
                future.cancel()
