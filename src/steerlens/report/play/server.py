"""The transport of `steerlens play`: who may ask, in what form, and how answers go back.

Only this machine, unless another address is asked for; only with the token that the address holds,
so that no other page and no other user of this machine can; and only from the page itself, whatever
name another page has found for this machine (Host and Origin).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError
from steerlens.report.page.render import to_json
from steerlens.report.play import Bench, Event
from steerlens.report.play.queue import Full, ModelQueue
from steerlens.report.play.requests import (
    BODY_BYTES,
    CONCEPT_CHARS,
    parse_body,
    parse_text,
    parse_writing,
)
from steerlens.results import PAGE_DATA, PAGE_FILE

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn import Server

BODY_SECONDS = 10
"""How long a client may take to send what it asks for."""

CONNECTIONS = 64
"""At once; more are refused."""

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def open_socket(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded.

    Raises:
        SteerlensError: it is taken, or no address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        if error.errno is None or isinstance(error, socket.gaierror):
            raise SteerlensError(f"host={host} is no address of this machine.") from error
        raise SteerlensError(
            f"port {port} of {host} can't be had ({error.strerror}); choose another, port=8766, "
            "say, or port=0 for any that is free."
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(bound: socket.socket, token: str) -> str:
    """Return what to open in a browser."""
    return f"http://{_authority(*bound.getsockname()[:2])}/{token}/"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_server(bench: Bench, folder: Path, bound: socket.socket, token: str) -> Server:
    """Return what serves the page in `folder`, and what it asks for: `run(sockets=[bound])`.

    Args:
        bench: what carries requests out.
        folder: of `report.html` and `report.data/`.
        bound: from `open_socket`.
        token: what the address holds.
    """
    import uvicorn

    config = uvicorn.Config(
        application(bench, folder, bound, token),
        log_level="warning",
        access_log=False,
        http="h11",
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    return uvicorn.Server(config)


def new_token() -> str:
    """Return what nobody guesses."""
    return secrets.token_urlsafe(24)


def application(bench: Bench, folder: Path, bound: socket.socket, token: str) -> ASGIApp:
    """Return what answers requests; the arguments are those of `make_server`."""
    return Guard(_routes(bench, folder, token), bound, token)


class Guard:
    """Lets pass only what comes from the page itself, or from whoever has its address."""

    def __init__(self, app: ASGIApp, bound: socket.socket, token: str) -> None:
        self._app = app
        self._token = token
        host, self._port = bound.getsockname()[:2]
        self._hosts = {_authority(host, self._port)}
        if is_loopback(host):
            self._hosts |= {f"{name}:{self._port}" for name in ("localhost", "127.0.0.1", "[::1]")}
        self._is_everywhere = ipaddress.ip_address(host).is_unspecified

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.responses import JSONResponse

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            status, why = refusal
            await JSONResponse({"error": why}, status, HEADERS)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        names = [name for name, _ in scope["headers"]]
        if names.count(b"host") != 1 or names.count(b"origin") > 1:
            return 400, "the request has no Host, or two."
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers[b"host"].lower()
        if not self._is_known(host):
            return 403, "this name isn't the server's."
        if headers.get(b"origin", f"http://{host}") != f"http://{host}":
            return 403, "other pages may not ask."
        if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "other pages may not ask."
        token = scope["path"].split("/")[1]
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return 404, "there is nothing here; open the address that steerlens play has printed."
        return None

    def _is_known(self, host: str) -> bool:
        if host in self._hosts:
            return True
        if not self._is_everywhere:
            return False
        # Any address of this machine, but no name that another's server could give to it.
        name, _, port = host.rpartition(":")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name == "localhost" and port == str(self._port)
        return port == str(self._port)


def _routes(bench: Bench, folder: Path, token: str) -> Starlette:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Mount, Route

    queue = ModelQueue()

    async def fields_of(request: Request) -> dict[str, Any]:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "the request is no JSON.")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > BODY_BYTES:
                        raise HTTPException(413, f"a request has at most {BODY_BYTES:,} bytes.")
        except TimeoutError as error:
            raise HTTPException(408, "the request took too long to arrive.") from error
        return parse_body(bytes(body))

    async def page(_: Request) -> Response:
        return FileResponse(folder / PAGE_FILE, headers=HEADERS)

    async def data(request: Request) -> Response:
        name = request.path_params["name"]
        path = folder / PAGE_DATA / name
        if not re.fullmatch(r"\d{3}\.js", name) or not path.is_file():
            raise HTTPException(404, f"there is no {name[:40]}.")
        return FileResponse(path, headers=HEADERS, media_type="text/javascript")

    async def write(request: Request) -> Response:
        writing = parse_writing(await fields_of(request))
        events = queue.events(lambda tell: bench.write(writing, tell))
        first = await anext(events, None)  # so that a full queue has its own status

        async def lines() -> AsyncIterator[str]:
            try:
                if first is not None:
                    yield _line(first)
                async for event in events:
                    yield _line(event)
            finally:
                await events.aclose()  # type: ignore[attr-defined]

        return StreamingResponse(lines(), headers=HEADERS, media_type="application/x-ndjson")

    async def find(request: Request) -> Response:
        concept = parse_text("concept", (await fields_of(request)).get("concept"), CONCEPT_CHARS)
        matches = await asyncio.to_thread(bench.find, concept)
        return Response(to_json(matches), headers=HEADERS, media_type="application/json")

    async def vector(request: Request) -> Response:
        writing = parse_writing(await fields_of(request))
        files: list[tuple[str, bytes]] = []
        async for event in queue.events(lambda _: files.append(bench.vector(writing))):
            if "error" in event:
                raise SteerlensError(str(event["error"]))
        [(name, content)] = files
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, headers=HEADERS | disposition, media_type="application/zip")

    async def refused(_: Request, error: Exception) -> Response:
        status = 503 if isinstance(error, Full) else 400
        return JSONResponse({"error": str(error)}, status, HEADERS)

    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, HEADERS)

    async def disconnected(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # which nobody reads

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        queue.close()

    inside = [
        Route("/", page),
        Route(f"/{PAGE_DATA}/{{name}}", data),
        Route("/write", write, methods=["POST"]),
        Route("/find", find, methods=["POST"]),
        Route("/vector", vector, methods=["POST"]),
    ]
    handlers: Mapping[Any, Any] = {
        SteerlensError: refused,
        HTTPException: failed,
        ClientDisconnect: disconnected,
    }
    routes = [Mount(f"/{token}", routes=inside)]
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def _line(event: Event) -> str:
    return f"{to_json(event)}\n"
