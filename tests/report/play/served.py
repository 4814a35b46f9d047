"""A served page whose texts nobody's model writes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.report.page.contents import Segment
from steerlens.report.play import Bench, Live, Match, Tell, Text
from steerlens.report.play.page import write_play_page
from steerlens.report.play.requests import LIMITS, Writing
from steerlens.report.play.server import make_server, open_socket
from steerlens.results.folder import RunTables

TOKEN = "a-token-of-tests"

LIVE = Live(
    layers=[0, 1],
    has_template=True,
    chat_template=False,
    prompt="Note that",
    operators=["add", "clamp"],
    operator="add",
    positions=["last", "all"],
    position="last",
    factors=[0.5, 1.0, 2.0, 4.0],
    max_new_tokens=5,
    temperature=0.7,
    seed=0,
    limits=LIMITS,
)

ASKED: dict[str, Any] = {
    "layer": 1,
    "features": [3],
    "weights": [1],
    "factors": [2, 0.5],
    "prompt": "Note that",
    "chat_template": False,
    "operator": "add",
    "positions": "last",
    "max_new_tokens": 5,
    "temperature": 0.7,
    "seed": 0,
}
"""A request that is carried out."""


@dataclass
class Written:
    """What the bench has done."""

    begun: list[Writing] = field(default_factory=list)
    ended: list[Writing] = field(default_factory=list)
    pause: float = 0.0
    """Seconds for each token."""
    words: Sequence[str] = ("so", " it", " goes", " on", " then")

    def bench(self) -> Bench:
        """Write `words`, a word a token."""

        def write(writing: Writing, tell: Tell) -> None:
            self.begun.append(writing)
            tell({"repeat": {"command": "steerlens layer=1", "python": "import steerlens"}})
            tell({"own": [" goes"]})
            if writing.prompt == "fail":
                raise SteerlensError("the prompt has failed.")
            if writing.prompt == "break":
                raise ZeroDivisionError
            for n in range(1, writing.max_new_tokens + 1):
                time.sleep(self.pause)
                tell({"texts": self.texts(writing, n)})
            tell({"done": self.texts(writing, writing.max_new_tokens, success=1, perplexity=9.5)})
            self.ended.append(writing)

        def find(concept: str) -> list[Match]:
            if concept == "nothing":
                raise SteerlensError("no token of the vocabulary stands for 'nothing'.")
            return [Match(1, 3, ["␣goes"], 0.25)]

        return Bench(write, find, lambda writing: ("vector.zip", b"PK"))

    def texts(self, writing: Writing, n: int, **numbers: Any) -> list[Text]:
        segments: list[Segment] = [(word, int(word == " goes")) for word in self.words[:n]]
        factors = [0.0, *writing.factors]
        return [Text(factor, segments, 0.1 * factor, **numbers) for factor in factors]


@dataclass
class Served:
    """A server on this machine."""

    port: int
    written: Written

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        method: str = "POST",
        where: str = f"/{TOKEN}/",
        **headers: str,
    ) -> tuple[int, bytes]:
        """Give the status and the body of an answer; headers have `_` for `-`."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        usual = {"content-type": "application/json"} if body is not None else {}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, where + path, body, usual | named)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def write(self, **asked: Any) -> list[dict[str, Any]]:
        """Give the events of a request to write."""
        status, body = self.ask("write", json.dumps(ASKED | asked).encode())
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]

    def leave(self, **asked: Any) -> None:
        """Ask for texts, read the first event, and leave."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(ASKED | asked).encode()
        headers = {"content-type": "application/json"}
        connection.request("POST", f"/{TOKEN}/write", body, headers)
        answer = connection.getresponse()
        assert answer.readline()
        answer.close()
        connection.close()


@contextmanager
def served(
    tables: RunTables, folder: Path, written: Written, run: Path | None = None
) -> Iterator[Served]:
    """Serve a page of `tables`, or of the run that they are of, on a free port."""
    write_play_page(tables, LIVE, "toy with toy-sae", run, folder)
    with open_socket("127.0.0.1", 0) as bound:
        server = make_server(written.bench(), folder, bound, TOKEN)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Served(bound.getsockname()[1], written)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
