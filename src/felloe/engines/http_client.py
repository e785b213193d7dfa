"""A small pooled HTTP/1.1 client for engine sockets: one protocol object a connection, no task, no needless copy.

Theory of operation: a connection carries one exchange at a time. It goes back to the pool only after a complete
answer on a keep-alive connection; in every other case closing the exchange aborts the socket, which is how an engine
learns that nobody waits any more. Reading pauses when the reader falls behind. Redirects are never followed.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Literal, Self

from msgspec import Struct

from felloe.engines.http_connection import Connection, HttpError

_IDLE_CONNECTIONS = 64


class TcpAddress(Struct, frozen=True):
    """Where a server listens; `tls` holds the context for HTTPS."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class UnixAddress(Struct, frozen=True):
    """A unix socket's path."""

    path: str


Address = TcpAddress | UnixAddress


class Exchange:
    """An answer whose headers have arrived. Whoever holds it closes it; closing early aborts the connection."""

    def __init__(self, connection: Connection, pool: "HttpClient", reuse: bool) -> None:
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
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
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
        self, connection: Connection, message: bytes, header_seconds: float, body_limit: int, reuse: bool
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

    async def _connect(self) -> Connection:
        if self._closed:
            raise HttpError("connect", "the client is closed")
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            async with asyncio.timeout(self._connect_seconds):
                if isinstance(address, UnixAddress):
                    _, connection = await loop.create_unix_connection(Connection, address.path)
                else:
                    _, connection = await loop.create_connection(
                        Connection, address.host, address.port, ssl=address.tls
                    )
        except (OSError, TimeoutError) as error:
            raise HttpError("connect", f"cannot connect: {type(error).__name__}") from error
        return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def take_back(self, connection: Connection, reuse: bool) -> None:
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
