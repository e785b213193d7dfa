"""A small pooled HTTP/1.1 client for engine sockets: one protocol object a connection, no task, no needless copy.

Theory of operation: a connection carries one exchange at a time. It goes back to the pool only after a complete
answer on a keep-alive connection; in every other case closing the exchange aborts the socket, which is how an engine
learns that nobody waits any more. The body is pushed to whoever pumps it (`http_connection` says how); reading pauses
when that one falls behind. Redirects are never followed.
"""

import asyncio
import math
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

from msgspec import Struct

from felloe.engines.http_connection import Connection, Consume, HttpError, Limits

_IDLE_CONNECTIONS = 256


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
        self._closed = False

    @property
    def status(self) -> int:
        return self._connection.status

    @property
    def complete(self) -> bool:
        """Whether the end of the body has arrived."""
        return self._connection.complete

    def header(self, name: bytes) -> bytes:
        """The last value of a header, by its lower-case name; empty when absent."""
        return next((value for key, value in reversed(self._connection.headers) if key.lower() == name), b"")

    def expire_in(self, seconds: float) -> None:
        """Allow this many seconds from now on instead of what the request allowed."""
        self._connection.expire_in(seconds, math.inf)

    async def pump(self, consume: Consume) -> None:
        """Give the body to `consume` as it comes, what has arrived first; returns at its end, raises `HttpError`.

        `consume` is called in the event loop, once for each read of the socket. While an awaitable that it returned is
        awaited, nothing is read. What it raises is raised here, after the reading has stopped.
        """
        await self._connection.pump(consume)

    def stop(self) -> None:
        """Let `pump` return now: the rest of the body is not wanted."""
        self._connection.stop()

    async def read_all(self) -> bytes:
        """The rest of the body; its size is bounded by the request's `body_limit`."""
        pieces: list[bytes] = []
        await self._connection.pump(pieces.append)
        return b"".join(pieces)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
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
        self._reads_before = 0
        host = "localhost" if isinstance(address, UnixAddress) else _host_header(address)
        fixed = {"host": host, "accept-encoding": "identity", **(headers or {})}
        for name, value in fixed.items():
            if any(character in value for character in "\r\n\0"):
                raise ValueError(f"the header {name} holds a control character")
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items()).encode("latin-1")

    @property
    def reads(self) -> int:
        """How often anything came from the server so far; it grows with every sign of life."""
        return self._reads_before + sum(connection.reads for connection in self._busy)

    async def request(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: bytes = b"",
        *,
        seconds: float = 30.0,
        silence_seconds: float = math.inf,
        body_limit: int = 16 * 1024 * 1024,
        reuse: bool = True,
    ) -> Exchange:
        """Send one request and wait for the answer's headers; raises `HttpError`.

        The whole answer must come within `seconds`, connecting apart; its body must not be silent for
        `silence_seconds`, which is found within twice that time. Else it breaks off with a `timeout` error.
        A pooled connection that turns out to be closed before any byte of an answer came is replaced once.
        With `reuse=False` the connection is closed after the answer.
        """
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode("latin-1") + self._fixed
        if body:
            head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        message = head + b"\r\n" + body
        limits = Limits(seconds, silence_seconds, body_limit)
        pooled = self._take_idle()
        if pooled is not None:
            try:
                return await self._exchange(pooled, message, limits, reuse)
            except HttpError as error:
                if error.kind != "broken" or pooled.reads:
                    raise
        return await self._exchange(await self._connect(), message, limits, reuse)

    async def _exchange(self, connection: Connection, message: bytes, limits: Limits, reuse: bool) -> Exchange:
        self._busy.add(connection)
        try:
            connection.send(message, limits)
            await connection.wait_for_headers()
        except BaseException:
            self.take_back(connection, reuse=False)
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
        if connection in self._busy:
            self._busy.remove(connection)
            self._reads_before += connection.reads
        connection.rest()
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
