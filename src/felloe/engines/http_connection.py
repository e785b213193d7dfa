"""One HTTP/1.1 connection: bytes in, one answer at a time out. Used by `http_client` alone.

Theory of operation: the body is pushed. `pump` names a consumer, and from then on each read of the socket goes through
the parser to the consumer in plain function calls; the pumping task sleeps until the body ends. Only a consumer that
is behind wakes it: the task awaits what the consumer returned while the socket is not read. One timer an exchange
watches the deadline and the silence; a read costs it one addition.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple, Protocol, cast

import httptools

Headers = list[tuple[bytes, bytes]]
HttpErrorKind = Literal["connect", "broken", "malformed", "too_large", "timeout"]
Consume = Callable[[bytes], Awaitable[None] | None]
"""Takes the next bytes of a body; an awaitable must be awaited before more may come."""

_PAUSE_ABOVE = 256 * 1024
_HEADER_LIMIT = 64 * 1024
_SIZED_BY = (b"content-length", b"transfer-encoding")


class Limits(NamedTuple):
    """What one answer may take: seconds for all of it, seconds of silence in its body, bytes of its body."""

    seconds: float
    silence_seconds: float
    body_bytes: int


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
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.lost = self._loop.create_future()
        self._pieces: list[bytes] = []
        # The parser calls it for each part of a body; a read that holds several is given on as one.
        self.on_body = self._pieces.append
        self._timer: asyncio.TimerHandle | None = None
        self._reset(0)

    def _reset(self, body_limit: int) -> None:
        self._pieces.clear()
        self.parser: _Parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.headers_complete = False
        self.complete = False
        self.keep_alive = False
        self.reads = 0
        self.error: HttpError | None = None
        self._header_bytes = 0
        self._body_left = body_limit
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._stopped = False
        self._consume: Consume | None = None
        self._consumer_error: BaseException | None = None
        self._behind: Awaitable[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ends_at = self._silence_seconds = 0.0
        self._reads_before = 0

    def send(self, request: bytes, limits: Limits) -> None:
        """Begin an exchange."""
        self._reset(limits.body_bytes)
        if self.transport is None or self.transport.is_closing():
            self.error = HttpError("broken", "the connection was closed")
        else:
            self.transport.write(request)
            self.expire_in(limits.seconds, limits.silence_seconds)

    def fail(self, error: HttpError) -> None:
        """End the exchange: `pump` gives what has arrived, then raises `error`. The socket is aborted."""
        if self.error is None and not self.complete:
            self.error = error
        if self.transport is not None:
            self.transport.abort()
        self._wake()

    def rest(self) -> None:
        """The exchange is over: nobody listens to it any more."""
        self._consume = None
        self._resume()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # time

    def expire_in(self, seconds: float, silence_seconds: float) -> None:
        """Set both limits anew, counted from now."""
        if self._timer is not None:
            self._timer.cancel()
        self._ends_at = self._loop.time() + seconds
        self._silence_seconds = silence_seconds
        self._watch_on(seconds)

    def _watch_on(self, seconds_left: float) -> None:
        self._reads_before = self.reads
        self._timer = self._loop.call_later(min(seconds_left, self._silence_seconds), self._watch)

    def _watch(self) -> None:
        left = self._ends_at - self._loop.time()
        if left <= 0 and not self.headers_complete:
            self.fail(HttpError("timeout", "the server did not begin to answer in time"))
        elif left <= 0:
            self.fail(HttpError("timeout", "the answer took too long"))
        elif self.reads == self._reads_before and self.headers_complete and not self._paused:
            self.fail(HttpError("timeout", "the server fell silent"))
        else:
            self._watch_on(left)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not its subclasses

    def data_received(self, data: bytes) -> None:
        if self.complete:
            # Bytes after a complete answer: this connection must not be used again.
            self.keep_alive = False
            self.fail(HttpError("malformed", "the server sent more than one answer"))
            return
        self.reads += 1
        if not self.headers_complete and not self._count_header_bytes(data):
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(HttpError("malformed", "the server does not speak HTTP/1.1"))
        if self._pieces:
            self._take_pieces()
        if self._consume is None or self.complete:
            self._wake()

    def _count_header_bytes(self, data: bytes) -> bool:
        before = self._header_bytes
        self._header_bytes += len(data)
        if self._header_bytes <= _HEADER_LIMIT or (before < _HEADER_LIMIT and b"\r\n\r\n" in data[:_HEADER_LIMIT]):
            return True
        self.fail(HttpError("too_large", "the answer's headers are too large"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.complete:
            if self.headers_complete and exc is None and self.error is None and self._ends_with_connection():
                self.complete = True
            elif self.error is None:
                self.error = HttpError("broken", "the server closed the connection in mid-answer")
        self.keep_alive = False
        self._wake()
        if not self.lost.done():
            self.lost.set_result(None)

    def _ends_with_connection(self) -> bool:
        return not any(name.lower() in _SIZED_BY for name, _ in self.headers)

    # httptools callbacks, beside on_body

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headers_complete:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        if self.status >= 200:
            self.headers_complete = True

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue and its like precede the answer
            self.headers = []
            return
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()

    # the body

    def _take_pieces(self) -> None:
        """Give on what the parser found in this read."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._body_left -= len(data)
        if self._body_left < 0:
            self.complete = False
            self.fail(HttpError("too_large", "the answer is too large"))
        elif self._consume is not None and self._behind is None:
            self._give(self._consume, data)
        else:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > _PAUSE_ABOVE:
                self._pause()

    def _give(self, consume: Consume, data: bytes) -> None:
        try:
            self._behind = consume(data)
        except (Exception, asyncio.CancelledError) as error:
            # Raised where the exchange is waited for, not in the event loop.
            self._consumer_error = error
            self._consume = None
            self._pause()
            self._wake()
        else:
            if self._behind is not None:
                self._pause()
                self._wake()

    def _pause(self) -> None:
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        self._paused = False

    # the waiting side

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    async def wait_for_headers(self) -> None:
        while not self.headers_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def pump(self, consume: Consume) -> None:
        self._consume = consume
        try:
            while True:
                if self._behind is not None:
                    await self._behind
                    self._behind = None
                elif self._consumer_error is not None:
                    raise self._consumer_error
                elif self._stopped:
                    return
                elif self._held:
                    data = b"".join(self._held)
                    self._held.clear()
                    self._held_bytes = 0
                    self._give(consume, data)
                elif self.complete:
                    return
                elif self.error is not None:
                    raise self.error
                else:
                    self._resume()
                    await self._wait()
        finally:
            self._consume = self._consumer_error = None
            behind, self._behind = self._behind, None
            if inspect.iscoroutine(behind):  # a cancelled task awaits it no more
                behind.close()

    def stop(self) -> None:
        """What comes now is not wanted: `pump` returns."""
        self._stopped = True
        self._consume = None
        self._wake()
