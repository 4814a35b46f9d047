"""A limit on how long one request may take in all.

HTTP clients limit how long each step may take: a server that sends a byte a second never exceeds
that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx


def limit_requests(client: httpx.Client, seconds: float) -> None:
    """Make every request of `client` a timeout once it has taken `seconds` in all.

    Each attempt and each redirect counts by itself, from connecting to its last byte.
    """
    clock = _Clock()
    client.event_hooks["request"].append(lambda _request: clock.start(seconds))
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = _Backend(pool._network_backend, clock)


class _Clock(threading.local):
    """When the request of a thread has to be over."""

    end: float | None = None

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def at_most(self, timeout: float | None) -> float | None:
        """The seconds that are left of `timeout` for one step.

        Raises:
            httpcore.ReadTimeout: none are.
        """
        if self.end is None:
            return timeout
        left = self.end - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the request has taken too long in all")
        return left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend, clock: _Clock) -> None:
        self._inner, self._clock = inner, clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._clock.at_most(timeout)
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self._clock)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._clock.at_most(timeout)
        return _Stream(self._inner.connect_unix_socket(path, timeout, socket_options), self._clock)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, clock: _Clock) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.at_most(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.at_most(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._clock.at_most(timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
