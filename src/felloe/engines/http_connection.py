"""One HTTP/1.1 connection: bytes in, one answer at a time out. Used by `http_client` alone."""

import asyncio
import socket
from typing import Literal, Protocol, cast

import httptools

Headers = list[tuple[bytes, bytes]]
HttpErrorKind = Literal["connect", "broken", "malformed", "too_large", "timeout"]

_PAUSE_ABOVE = 256 * 1024
_HEADER_LIMIT = 64 * 1024


class HttpError(Exception):
    """An exchange failed below HTTP; `kind` says how."""

    def __init__(self, kind: HttpErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: HttpErrorKind = kind


class _Parser(Protocol):
    def feed_data(self, data: bytes) -> None: ...
    def get_status_code(self) -> int: ...
    def should_keep_alive(self) -> bool: ...


class Connection(asyncio.Protocol):
    """One socket. All fields but `transport` describe the exchange that it carries now."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self.lost = asyncio.get_running_loop().create_future()
        self._reset(0)

    def _reset(self, body_limit: int) -> None:
        self.parser: _Parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.headers_complete = False
        self.complete = False
        self.keep_alive = False
        self.until_close = True
        self.answered = False
        self.error: HttpError | None = None
        self._pieces: list[bytes] = []
        self._queued = 0
        self._header_bytes = 0
        self._body_left = body_limit
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None

    def send(self, request: bytes, body_limit: int) -> None:
        self._reset(body_limit)
        if self.transport is None or self.transport.is_closing():
            self.error = HttpError("broken", "the connection was closed")
        else:
            self.transport.write(request)

    def fail(self, error: HttpError) -> None:
        """End the exchange: the reader gets `error` after what has arrived, the socket is aborted."""
        if self.error is None and not self.complete:
            self.error = error
        if self.transport is not None:
            self.transport.abort()
        self._wake()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not its subclasses
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.complete:
            # Bytes after a complete answer: this connection must not be used again.
            self.keep_alive = False
            self.fail(HttpError("malformed", "the server sent more than one answer"))
            return
        self.answered = True
        if not self.headers_complete:
            self._header_bytes += len(data)
            if self._header_bytes > _HEADER_LIMIT and not self._has_body_start(data):
                self.fail(HttpError("too_large", "the answer's headers are too large"))
                return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(HttpError("malformed", "the server does not speak HTTP/1.1"))
        self._wake()

    def _has_body_start(self, data: bytes) -> bool:
        return self._header_bytes - len(data) < _HEADER_LIMIT and b"\r\n\r\n" in data[:_HEADER_LIMIT]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.complete:
            if self.headers_complete and self.until_close and exc is None and self.error is None:
                self.complete = True
            elif self.error is None:
                self.error = HttpError("broken", "the server closed the connection in mid-answer")
        self.keep_alive = False
        self._wake()
        if not self.lost.done():
            self.lost.set_result(None)

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding"):
            self.until_close = False
        self.headers.append((lower, value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        if self.status >= 200:
            self.headers_complete = True

    def on_body(self, body: bytes) -> None:
        self._body_left -= len(body)
        if self._body_left < 0:
            self.fail(HttpError("too_large", "the answer is too large"))
            return
        self._pieces.append(body)
        self._queued += len(body)
        if self._queued > _PAUSE_ABOVE and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue and its like precede the answer
            self.headers = []
            return
        if self.error is not None:  # what follows a refused piece in the same read
            return
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()

    # the reader's side

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def wait_for_headers(self) -> None:
        while not self.headers_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """What has arrived of the body, in one piece; empty at its end."""
        while not self._pieces:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._wait()
        pieces, self._pieces, self._queued = self._pieces, [], 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
