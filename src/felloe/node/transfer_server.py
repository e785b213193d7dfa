"""Where other members fetch models from this node: HTTPS on a port of its own, for members of this network only.

Who asks is decided by the certificate that the connection began with, held against the trust list and the list of
removed nodes at each request. Bounded: four connections a member, 256 in all, 16 answers in memory, heads of 8 KiB, ten
idle seconds, and a reader slower than about 20 KB/s is cut off.
"""

import asyncio
import errno
import logging
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

from starlette.types import Receive, Scope, Send

from felloe.catalog.transfer.pacing import Pacer
from felloe.catalog.transfer.serving import Answer
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.gateway.config import Limits
from felloe.gateway.exchange import WIRE
from felloe.gateway.http_server import HttpServer
from felloe.mesh.transfer_https import CONNECTIONS
from felloe.mesh.transfer_tls import MemberTls
from felloe.node.http_server import listen_on_port

logger = logging.getLogger(__name__)

_LIMITS = Limits(
    connections=256,
    connections_per_certificate=CONNECTIONS,
    header_bytes=8 * 1024,
    discarded_bytes=64 * 1024,
    idle_seconds=10.0,
    stalled_seconds=20.0,
)
_ANSWERS_AT_ONCE = 16
_PIECE_BYTES = 1 << 16
_BACKLOG = 128
_STOP_SECONDS = 0.5
_RANGE = re.compile(rb"bytes=([0-9]{1,15})-([0-9]{1,15})")
_STATUSES = {"not_found": 404, "forbidden": 403, "invalid_value": 416, "overloaded": 503}

Read = Callable[[str, int, int | None], Awaitable[Answer]]
"""Gives the span (start, length; None: to the end) of a path, or raises `not_found` or `invalid_value`."""


class _Client(Protocol):
    """What is known of a connection."""

    certificate: bytes

    def is_gone(self) -> bool:
        """Whether it was closed."""
        ...


class TransferServer:
    """One listener from `start` to `stop`. `may_ask` says whether a node is still a member."""

    def __init__(self, tls: MemberTls, read: Read, upload: Pacer, may_ask: Callable[[NodeId], bool]) -> None:
        self._tls = tls
        self._read = read
        self._upload = upload
        self._may_ask = may_ask
        self._answers = asyncio.Semaphore(_ANSWERS_AT_ONCE)
        self._server: HttpServer | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Take requests when this returns. A port that is taken gives way to any free one. Raises `bad_config`."""
        listener = _listen(host, port)
        self._server = HttpServer(self._answer, listener, self._tls.serving, _LIMITS)
        await self._server.start()
        self.port = listener.getsockname()[1]
        if port not in (0, self.port):
            logger.info("port %d is taken; other nodes fetch models from this one at port %d", port, self.port)

    async def stop(self) -> None:
        """Cut what is being read; whoever reads goes on elsewhere."""
        self.port = 0
        if self._server is not None:
            await self._server.stop(_STOP_SECONDS)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = cast("_Client", scope["extensions"][WIRE])
        try:
            self._check_asker(client)
            if scope["method"] != "GET":
                raise FelloeError("method_not_allowed", "only GET is answered here")
            span = _span_of(scope["headers"])
            async with self._answers:
                answer = await self._read(scope["path"], *(span or (0, None)))
                await self._send(answer, span, client, send)
        except FelloeError as error:
            status = _STATUSES.get(error.code, error.status)
            allow = [(b"allow", b"GET")] if status == 405 else []
            await send(_start(status, 0, [(b"connection", b"close"), *allow]))
            await send({"type": "http.response.body"})

    def _check_asker(self, client: _Client) -> None:
        try:
            node = self._tls.member(client.certificate)
        except FelloeError as error:
            raise FelloeError("forbidden", error.detail) from error
        if not self._may_ask(node):
            raise FelloeError("forbidden", f"{node} was removed from the network")

    async def _send(self, answer: Answer, span: "tuple[int, int] | None", client: _Client, send: Send) -> None:
        if span is None:
            await send(_start(200, len(answer.body), []))
        else:
            last = span[0] + len(answer.body) - 1
            place = f"bytes {span[0]}-{last}/{answer.size}".encode()
            await send(_start(206, len(answer.body), [(b"content-range", place)]))
        body = memoryview(answer.body)
        for at in range(0, len(body), _PIECE_BYTES):
            piece = body[at : at + _PIECE_BYTES]
            await self._upload.take(len(piece))
            if client.is_gone():
                return
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        await send({"type": "http.response.body"})


def _start(status: int, length: int, headers: list[tuple[bytes, bytes]]) -> dict[str, object]:
    fixed = [(b"content-type", b"application/octet-stream"), (b"content-length", str(length).encode())]
    return {"type": "http.response.start", "status": status, "headers": [*fixed, *headers]}


def _span_of(headers: list[tuple[bytes, bytes]]) -> tuple[int, int] | None:
    """The start and length that a request asks for; raises `invalid_value` for what is no single range of bytes."""
    values = [value for name, value in headers if name == b"range"]
    if not values:
        return None
    found = _RANGE.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or int(found[2]) < int(found[1]):
        raise FelloeError("invalid_value", "the range is none")
    return int(found[1]), int(found[2]) - int(found[1]) + 1


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `port`, or where that is taken at any free one."""
    for wanted in (port, 0):
        try:
            listener = listen_on_port(host, wanted, "peer.transfer_port")
            # Only now is it certain: two may have bound the same port.
            listener.listen(_BACKLOG)
        except FelloeError as error:
            if error.code != "port_taken" or not wanted:
                raise
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not wanted:
                raise FelloeError("bad_config", f"cannot listen on {host}:{wanted}: {error.strerror}") from error
        else:
            return listener
    raise AssertionError("unreachable")
