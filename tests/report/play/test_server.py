"""The server of `steerlens play`: what it answers, whom it refuses, and what it stands."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from steerlens.errors import SteerlensError
from steerlens.report.play import queue
from steerlens.report.play.server import Guard, address_of, is_loopback, open_socket
from tests.report.page.runs import HOSTILE, hostile_tables
from tests.report.play.served import ASKED, TOKEN, Served, Written, served

BODY = json.dumps(ASKED).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(hostile_tables(), tmp_path_factory.mktemp("served"), Written()) as running:
        yield running


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_texts_grow_and_end_with_their_numbers(server: Served) -> None:
    events = server.write()
    assert events[0]["repeat"]["command"] == "steerlens layer=1"
    growing = [event["texts"] for event in events if "texts" in event]
    assert [len(texts[0]["segments"]) for texts in growing] == [1, 2, 3, 4, 5]
    [texts] = [event["done"] for event in events if "done" in event]
    assert [text["factor"] for text in texts] == [0, 0.5, 2]
    assert texts[0]["segments"][2] == [" goes", 1]
    assert texts[0]["perplexity"] == 9.5


def test_what_fails_is_told_and_the_next_is_carried_out(server: Served) -> None:
    assert server.write(prompt="fail")[-1] == {"error": "the prompt has failed."}
    assert server.write(prompt="break")[-1] == {"error": "the request failed: ZeroDivisionError."}
    assert "done" in server.write()[-1]


def test_a_concept_gives_features_and_a_vector_a_file(server: Served) -> None:
    status, body = server.ask("find", b'{"concept": "going"}')
    assert (status, json.loads(body)[0]["feature"]) == (200, 3)
    status, body = server.ask("find", b'{"concept": "nothing"}')
    assert (status, json.loads(body)["error"][:8]) == (400, "no token")
    assert server.ask("vector", BODY) == (200, b"PK")


def test_the_page_is_served_with_its_data_and_a_strict_policy(server: Served) -> None:
    status, body = server.ask("", None, "GET")
    page = body.decode()
    assert status == 200
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert "default-src &#39;none&#39;" in policy
    assert "connect-src &#39;self&#39;" in policy
    assert "unsafe" not in policy
    assert not any(f">{text}" in page for text in HOSTILE if text.startswith("<"))
    assert server.ask("report.data/999.js", None, "GET")[0] == 404
    assert server.ask("report.data/..%2f..%2fetc%2fpasswd", None, "GET")[0] == 404
    assert server.ask("write", None, "GET")[0] == 405


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"where": "/"}, 404),
        ({"where": "/another-token/"}, 404),
        ({"where": f"/{TOKEN}x/"}, 404),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": "evil.example:80"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"content_type": "text/plain"}, 415),
    ],
)
def test_only_the_page_itself_may_ask(server: Served, asked: dict[str, str], status: int) -> None:
    begun = len(server.written.begun)
    answered, body = server.ask("write", BODY, **asked)
    assert answered == status
    assert TOKEN not in body.decode()
    assert len(server.written.begun) == begun


def test_the_page_itself_may(server: Served) -> None:
    origin = f"http://127.0.0.1:{server.port}"
    assert server.ask("write", BODY, origin=origin, sec_fetch_site="same-origin")[0] == 200
    host = f"localhost:{server.port}"
    assert server.ask("write", BODY, host=host, origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b'{"layer": 1}', 400),
        (b'{"prompt": "' + b"x" * 40_000 + b'"}', 413),
        (b"[" * 30_000, 400),
        (json.dumps(ASKED | {"prompt": "x" * 5_000}).encode(), 400),
    ],
)
def test_wrong_and_huge_bodies_are_refused(server: Served, body: bytes, status: int) -> None:
    begun = len(server.written.begun)
    answered, text = server.ask("write", body)
    assert answered == status
    assert json.loads(text)["error"]
    assert len(server.written.begun) == begun


def test_a_body_that_never_ends_is_refused(server: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr("steerlens.report.play.server.BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        head = f"POST /{TOKEN}/write HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        client.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode()
        )
        assert b" 408 " in client.recv(100)


def test_eight_clients_at_once_and_some_that_leave(tmp_path: Path) -> None:
    written = Written(pause=0.02)
    with served(hostile_tables(), tmp_path, written) as server, ThreadPoolExecutor(12) as clients:
        leaving = [clients.submit(server.leave, seed=100 + n, max_new_tokens=200) for n in range(2)]
        staying = [clients.submit(server.write, seed=n) for n in range(8)]
        wrong = [clients.submit(server.ask, "write", b"{" * n) for n in (1, 1_000, 60_000)]
        assert [future.result()[0] for future in wrong] == [400, 400, 413]
        assert all("done" in future.result()[-1] for future in staying)
        assert all(future.result() is None for future in leaving)
        # Whoever has left was written for no longer than until the next token.
        assert {writing.seed for writing in written.ended} == set(range(8))


def test_who_leaves_before_the_turn_comes_is_never_written_for(tmp_path: Path) -> None:
    written = Written(pause=0.1)
    with served(hostile_tables(), tmp_path, written) as server, ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.write, seed=1, max_new_tokens=10)
        wait_until(lambda: len(written.begun) == 1)
        server.leave(seed=2)
        assert "done" in first.result()[-1]
        assert "done" in server.write(seed=3)[-1]
    assert [writing.seed for writing in written.begun] == [1, 3]


def test_a_full_queue_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MOST_WAITING", 1)
    written = Written(pause=0.1)
    with served(hostile_tables(), tmp_path, written) as server, ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.write, max_new_tokens=10)
        wait_until(lambda: len(written.begun) == 1)
        status, body = server.ask("write", BODY)
        assert status == 503
        assert "1 requests are waiting" in json.loads(body)["error"]
        assert "done" in first.result()[-1]


def test_a_port_in_use_and_a_foreign_address_are_one_sentence() -> None:
    with open_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address_of(bound, "t") == f"http://127.0.0.1:{port}/t/"
        with pytest.raises(SteerlensError, match=rf"port {port} .*; choose another, port=8766"):
            open_socket("127.0.0.1", port)
    with pytest.raises(SteerlensError, match=r"host=no\.such\.host\.invalid is no address"):
        open_socket("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)],
)
def test_loopback_is_told_from_other_addresses(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_on_all_addresses_a_host_is_an_address_and_no_name() -> None:
    async def nothing(*_: Any) -> None: ...

    with open_socket("0.0.0.0", 0) as bound:
        guard, port = Guard(nothing, bound, TOKEN), bound.getsockname()[1]
    assert guard._is_known(f"192.168.0.7:{port}")
    assert guard._is_known(f"localhost:{port}")
    assert not guard._is_known(f"evil.example:{port}")
    assert not guard._is_known("192.168.0.7:1")
