"""A server on loopback that speaks OpenAI's and Anthropic's dialects, and misbehaves as told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-right-key"
MODELS = ["judge-large", "judge-small"]


@dataclass(frozen=True)
class Reply:
    """What the server does with one request."""

    text: str = "It is there.\nRating: [[1]]"
    """The answer, in the right form."""
    status: int = 200
    raw: bytes | None = None
    """A body of any form instead."""
    content_type: str = "application/json"
    delay: float = 0.0
    """Seconds until it answers."""
    drop: bool = False
    """Close the connection instead of answering."""
    usage: bool = True
    stopped: str = "stop"
    trickles: bool = False
    """Send the body a byte at a time, without an end."""


@dataclass
class JudgeServer:
    """Answers each request with `answer(prompt, number)`, numbers counted from 0."""

    answer: Callable[[str, int], Reply | str] = lambda prompt, number: Reply()
    key: str | None = None
    """Refuses any other, if given."""
    lists_models: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests for an answer, in their order."""
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._closed = threading.Event()
        handler = type("Handler", (_Handler,), {"judge": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    @property
    def under_way(self) -> int:
        """How many requests wait for their answers."""
        with self._lock:
            return self._at_once

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            number = len(self.asked)
            self.asked.append(body)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            told = self.answer(body["messages"][-1]["content"], number)
            reply = Reply(text=told) if isinstance(told, str) else told
            self._closed.wait(reply.delay)
            return reply
        finally:
            with self._lock:
                self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]}
        if self.path.startswith("/v1/models") and self.judge.lists_models:
            name = self.path.partition("?")[0].removeprefix("/v1/models").strip("/")
            if not name:
                self._send(200, {**listed, "has_more": False})
                return
            if name in MODELS or name == "an-alias":
                self._send(200, {"id": name, "object": "model"})
                return
        self._send(404, {"error": {"message": f"nothing at {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._is_allowed():
            return
        if self.path not in ("/v1/chat/completions", "/v1/messages"):
            self._send(404, {"error": {"message": f"nothing at {self.path}"}})
            return
        if body["model"] not in (*MODELS, "an-alias"):
            self._send(404, {"error": {"message": f"there is no model {body['model']}"}})
            return
        reply = self.judge.reply(
            body, {name.lower(): value for name, value in self.headers.items()}
        )
        if reply.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply.trickles:
            self._trickle()
            return
        is_openai = self.path.endswith("completions")
        content = (_openai if is_openai else _anthropic)(body, reply)
        if reply.status != 200:
            content = {"error": {"message": f"a failure {reply.status}", "type": "failure"}}
        self._send(reply.status, content, reply.raw, reply.content_type)

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(200):
                self.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            pass  # a client that doesn't wait any longer

    def _is_allowed(self) -> bool:
        key = self.headers.get("x-api-key") or (self.headers.get("authorization") or "")[7:]
        if self.judge.key in (None, key):
            return True
        self._send(401, {"error": {"message": f"wrong key {key[:3]}***"}})
        return False

    def _send(
        self, status: int, content: Any, raw: bytes | None = None, kind: str = "application/json"
    ) -> None:
        data = json.dumps(content).encode() if raw is None else raw
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "1")  # so that the clients' repeats take no time
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # a client that doesn't wait any longer

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _openai(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.stopped}],
        **({"usage": usage} if reply.usage else {}),
    }


def _anthropic(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": reply.text}],
        "stop_reason": {"stop": "end_turn", "length": "max_tokens"}[reply.stopped],
        "usage": {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 10},
    }
