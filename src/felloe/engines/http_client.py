"""A small pooled HTTP/1.1 client for engine sockets: one protocol object a connection, no task, no needless copy.

Theory of operation: a connection carries one exchange at a time. It goes back to the pool only after a complete
answer on a keep-alive connection; in every other case closing the exchange aborts the socket, which is how an engine
learns that nobody waits any more. Reading pauses when the reader falls behind. Redirects are never followed.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Literal, Protocol, Self, cast

import httptools
from msgspec import Struct

Headers = list[tuple[bytes, bytes]]
HttpErrorKind = Literal["connect", "broken", "malformed", "too_large", "timeout"]

_PAUSE_ABOVE = 256 * 1024
_HEADER_LIMIT = 64 * 1024
_IDLE_CONNECTIONS = 64


class HttpError(Exception):
    """An exchange failed below HTTP; `kind` says how."""

    def __init__(self, kind: HttpErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: HttpErrorKind = kind


class TcpAddress(Struct, frozen=True):
    """Where a server listens; `tls` holds the context for HTTPS."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class UnixAddress(Struct, frozen=True):
    """A unix socket's path."""

    path: str


Address = TcpAddress | UnixAddress


class _Parser(Protocol):
    def feed_data(self, data: bytes) -> None: ...
    def get_status_code(self) -> int: ...
    def should_keep_alive(self) -> bool: ...


class _Connection(asyncio.Protocol):
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


class Exchange:
    """An answer whose headers have arrived. Whoever holds it closes it; closing early aborts the connection."""

    def __init__(self, connection: _Connection, pool: "HttpClient", reuse: bool) -> None:
        self._connection = connection
        self._pool = pool
        self._reuse = reuse
        self._timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def status(self) -> int:
        return self._connection.status

    def header(self, name: bytes) -> bytes:
        """The last value of a header, by its lower-case name; empty when absent."""
        return next((value for key, value in reversed(self._connection.headers) if key == name), b"")

    def expire_in(self, seconds: float) -> None:
        """Break the answer off with a `timeout` error when it is not complete by then."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._connection.fail, HttpError("timeout", "the answer took too long"))

    def expire_when_silent(self, seconds: float) -> None:
        """Break the answer off with a `timeout` error when nothing comes for `seconds`, found within twice that."""
        self._watch_silence(seconds, -1)

    def _watch_silence(self, seconds: float, received_before: int) -> None:
        received = self._connection.received
        if received == received_before and not self._connection.complete:
            self._connection.fail(HttpError("timeout", "the server fell silent"))
            return
        loop = asyncio.get_running_loop()
        self._silence_timer = loop.call_later(seconds, self._watch_silence, seconds, received)

    async def read(self) -> bytes:
        """The next bytes of the body as they come, merged when several are queued; empty at the end."""
        return await self._connection.read()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._connection.read():
            yield data

    async def read_all(self) -> bytes:
        """The rest of the body; its size is bounded by the request's `body_limit`."""
        pieces: list[bytes] = []
        while data := await self._connection.read():
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timer in (self._timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        self._pool.take_back(self._connection, self._reuse)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HttpClient:
    """Requests to one address. `headers` go with every request; they may hold a key and are never logged."""

    def __init__(
        self,
        address: Address,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: str = "",
        connect_seconds: float = 5.0,
    ) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._prefix = prefix
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False
        host = "localhost" if isinstance(address, UnixAddress) else _host_header(address)
        fixed = {"host": host, "accept-encoding": "identity", **(headers or {})}
        for name, value in fixed.items():
            if any(character in value for character in "\r\n\0"):
                raise ValueError(f"the header {name} holds a control character")
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items()).encode("latin-1")

    async def request(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: bytes = b"",
        *,
        header_seconds: float = 30.0,
        body_limit: int = 16 * 1024 * 1024,
        reuse: bool = True,
    ) -> Exchange:
        """Send one request and wait for the answer's headers; raises `HttpError`.

        A pooled connection that turns out to be closed before any byte of an answer came is replaced once.
        With `reuse=False` the connection is closed after the answer.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode("latin-1") + self._fixed
        if body:
            head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        message = head + b"\r\n" + body
        pooled = self._take_idle()
        if pooled is not None:
            try:
                return await self._exchange(pooled, message, header_seconds, body_limit, reuse)
            except HttpError as error:
                if error.kind != "broken" or pooled.answered:
                    raise
        return await self._exchange(await self._connect(), message, header_seconds, body_limit, reuse)

    async def _exchange(
        self, connection: _Connection, message: bytes, header_seconds: float, body_limit: int, reuse: bool
    ) -> Exchange:
        self._busy.add(connection)
        try:
            connection.send(message, body_limit)
            async with asyncio.timeout(header_seconds):
                await connection.wait_for_headers()
        except BaseException as error:
            self.take_back(connection, reuse=False)
            if isinstance(error, TimeoutError):
                raise HttpError("timeout", "the server did not begin to answer in time") from error
            raise
        return Exchange(connection, self, reuse)

    async def _connect(self) -> _Connection:
        if self._closed:
            raise HttpError("connect", "the client is closed")
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            async with asyncio.timeout(self._connect_seconds):
                if isinstance(address, UnixAddress):
                    _, connection = await loop.create_unix_connection(_Connection, address.path)
                else:
                    _, connection = await loop.create_connection(
                        _Connection, address.host, address.port, ssl=address.tls
                    )
        except (OSError, TimeoutError) as error:
            raise HttpError("connect", f"cannot connect: {type(error).__name__}") from error
        return connection

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def take_back(self, connection: _Connection, reuse: bool) -> None:
        """Pool a connection whose exchange is complete, end any other."""
        self._busy.discard(connection)
        transport = connection.transport
        if transport is None:
            return
        usable = reuse and connection.complete and connection.keep_alive and not transport.is_closing()
        if usable and not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            transport.abort()

    async def close(self) -> None:
        """Abort every connection; exchanges under way fail as `broken`."""
        self._closed = True
        connections = [each for each in (*self._idle, *self._busy) if each.transport is not None]
        self._idle.clear()
        for connection in connections:
            connection.fail(HttpError("broken", "the client was closed"))
        if connections:
            await asyncio.wait([connection.lost for connection in connections])


def _host_header(address: TcpAddress) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    default = 443 if address.tls is not None else 80
    return host if address.port == default else f"{host}:{address.port}"
