"""One HTTP request and its answer, over plain ASGI.

Streams go out without a response object or middleware between: one write a piece. A slow client pauses only its own
stream, because a write waits until the connection takes bytes again.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from felloe.domain.errors import FelloeError
from felloe.gateway.errors import RawHeaders, error_body, error_headers

_STREAM_HEADERS: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def new_request_id() -> str:
    """An id for the `x-request-id` header: `req_` and 32 hex digits."""
    return "req_" + secrets.token_hex(16)


class Wire(Protocol):
    """The shortest way to the socket for a stream that has begun; a server may offer it beside ASGI."""

    def write_chunk(self, data: bytes) -> bool:
        """Write one chunk now; false when the connection does not take bytes at the moment."""
        ...

    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        ...

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once if the client closes the connection before it has been answered."""
        ...


WIRE = "felloe.wire"
"""The ASGI extension under which the wire is offered."""


class ClientGone(Exception):
    """The client closed its connection; nobody is left to answer."""


class Exchange:
    """What one endpoint needs of HTTP: headers, the body, one reply or one stream.

    `extra_headers` go out with every answer (request id, CORS).
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, extra_headers: RawHeaders) -> None:
        self.scope = scope
        self.extra_headers = extra_headers
        self.started = False
        self.finished = False
        self._receive = receive
        self._send = send
        self._whole_body_read = False
        self._headers: dict[bytes, tuple[bytes, ...]] = {}
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        for name, value in headers:
            self._headers[name] = (*self._headers[name], value) if name in self._headers else (value,)
        extensions: dict[str, Any] = scope.get("extensions") or {}
        self._wire: Wire | None = extensions.get(WIRE)

    def header_values(self, name: bytes) -> tuple[bytes, ...]:
        """Every value that was sent for a header; `name` in lower case."""
        return self._headers.get(name, ())

    async def read_body(self, most: int, reserve: Callable[[int], None]) -> bytes:
        """The request's body. Raises `body_too_large` as soon as it is known to exceed `most` bytes.

        `reserve` is told how many bytes come in and may raise.
        """
        for value in self.header_values(b"content-length"):
            if value.isdigit() and int(value[:20]) > most:
                raise FelloeError("body_too_large", f"the body is larger than {most} bytes")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            reserve(len(part))
            parts.append(part)
            size += len(part)
            if size > most:
                raise FelloeError("body_too_large", f"the body is larger than {most} bytes")
            if not message.get("more_body", False):
                self._whole_body_read = True
                return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextlib.contextmanager
    def watched(self, callback: Callable[[], None]) -> Generator[None, None, None]:
        """Call back if the client goes away before it has been answered; the body must have been read."""
        if self._wire is not None:
            self._wire.when_gone(callback)
            yield
            return
        watch = asyncio.create_task(self._watch(callback))
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self, callback: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # ASGI says the same when the answer is complete.
        if not self.finished:
            callback()

    async def reply(self, status: int, body: bytes, headers: RawHeaders) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [*headers, length])
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def reply_error(self, error: FelloeError) -> None:
        """Send an error in OpenAI's shape."""
        headers = error_headers(error)
        if not self._whole_body_read and self.header_values(b"expect"):
            # The client may or may not send the body that we no longer ask for, so the connection cannot go on.
            headers.append((b"connection", b"close"))
        await self.reply(error.status, error_body(error), headers)

    async def start_stream(self) -> None:
        """Begin a stream of server-sent events."""
        await self._start(200, _STREAM_HEADERS)

    def write_now(self, events: bytes) -> bool:
        """Send whole events without waiting, if that can be done; it costs a third of `write`."""
        return self._wire is not None and self._wire.write_chunk(events)

    async def write(self, events: bytes) -> None:
        """Send whole events; waits while the client does not take them. Raises `ClientGone`."""
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        if self._wire is not None and self._wire.is_gone():
            # ASGI's send returns at once then, and an answer that never pauses would hold the event loop for good.
            raise ClientGone

    async def end_stream(self, events: bytes = b"") -> None:
        """Send the last events and end the answer."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def _start(self, status: int, headers: RawHeaders) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self.extra_headers})
