"""One client connection: uvicorn's HTTP/1.1 protocol with bounds on size, time and count.

uvicorn bounds neither header size nor the time in which a request must arrive, and it queues pipelined requests without
end; this subclass does. It uses names inside uvicorn (`cycle`, `parser`, `connections`), so the version is pinned.

A connection's life: head (line and headers arrive) → body → answer → head of the next request. A timer runs while
bytes are awaited and while the client does not take ours. What cannot be answered properly is refused with a whole
response, and what still arrives is discarded for a moment so that the client gets to read that response.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from felloe.domain.errors import FelloeError
from felloe.gateway.config import Limits
from felloe.gateway.errors import raw_response
from felloe.gateway.exchange import WIRE, new_request_id

_log = logging.getLogger(__name__)


class _HeadTooLarge(Exception):
    """Raised out of the parser's callbacks."""


class _Pipelined(Exception):
    """Raised out of the parser's callbacks."""


class GatewayProtocol(HttpToolsProtocol):
    """A connection that cannot hold more than its share."""

    def __init__(
        self, config: Config, server_state: ServerState, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, server_state, {}, loop)
        self._limits = limits
        self._in_head = True
        self._fed = 0
        self._head_bytes = 0
        self._discarding = False
        self.certificate = b""
        self._gone_callback: Callable[[], None] | None = None
        self._reading_timer: asyncio.TimerHandle | None = None
        self._stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.certificate = _certificate_of(transport)
        if len(self.connections) > self._limits.connections or self._has_too_many():
            self._refuse(FelloeError("overloaded", "too many connections", retry_after=1))
        else:
            self._await_bytes(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        unanswered = self._unanswered()
        super().connection_lost(exc)
        self.resume_writing()
        if unanswered is not None and self._gone_callback is not None:
            self._gone_callback()
        self._gone_callback = None

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unset_keepalive_if_required()
        if self._in_head and self._reading_timer is None and self._unanswered() is None:
            self._await_bytes(self._limits.header_seconds)
        self._fed += len(data)
        try:
            cast(httptools.HttpRequestParser, self.parser).feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here; the request itself has been read and is being answered.
            self._finish_without_reading()
        except httptools.HttpParserError as error:
            self._refuse_malformed(error)
        else:
            self._check_size()

    def on_message_begin(self) -> None:
        if self._unanswered() is not None:
            raise _Pipelined
        self._head_bytes = 0
        self._gone_callback = None
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {WIRE: self}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes + len(self.url) > self._limits.header_bytes:
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.url) > self._limits.header_bytes:
            raise _HeadTooLarge
        self._in_head = False
        self._fed = 0
        self._await_bytes(self._limits.body_seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._fed = 0
        self._stop_timer()
        if self.cycle.response_complete:
            # The request was answered before its body had ended, so nothing else will close an idle connection.
            self._await_bytes(self._limits.idle_seconds)

    def write_chunk(self, data: bytes) -> bool:
        """Write a chunk of the stream being answered, past ASGI's message and coroutine for each."""
        cycle = self.cycle
        if self.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        return self.cycle.disconnected

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once if the connection closes before the request at hand has been answered."""
        if self.cycle.disconnected:
            callback()
        else:
            self._gone_callback = callback

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled_timer is None:
            self._stalled_timer = self.loop.call_later(self._limits.stalled_seconds, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None

    def _has_too_many(self) -> bool:
        """Whether the client holds more than its share of the connections."""
        most = self._limits.connections_per_certificate
        if not most or not self.certificate:
            return False
        others = cast("set[GatewayProtocol]", self.connections)
        return sum(other.certificate == self.certificate for other in others) > most

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request being answered; uvicorn leaves `cycle` None until the first one."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _check_size(self) -> None:
        if self._in_head and self._fed > self._limits.header_bytes:
            self._refuse(FelloeError("headers_too_large", "the request's headers are too large"))
        elif self._fed > self._limits.discarded_bytes:
            self._abort()

    def _refuse_malformed(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, _Pipelined):
            self._finish_without_reading()
        elif isinstance(cause, _HeadTooLarge):
            self._refuse(FelloeError("headers_too_large", "the request's headers are too large"))
        else:
            self._refuse(FelloeError("invalid_http", "this is not a well-formed HTTP/1.1 request"))

    def _finish_without_reading(self) -> None:
        """Answer the request at hand, then close; a client that sent more at once sends it again (RFC 9112, 9.3.2)."""
        self._discarding = True
        self._stop_timer()
        cycle = self._unanswered()
        if cycle is None:
            self.transport.close()
        else:
            cycle.keep_alive = False

    def _refuse(self, error: FelloeError) -> None:
        """Write an error, take no more requests, and close once the client had time to read."""
        self._discarding = True
        self._stop_timer()
        cycle = self._unanswered()
        if cycle is not None:
            if cycle.response_started:
                self._abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(raw_response(error, new_request_id()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._reading_timer = self.loop.call_later(self._limits.linger_seconds, self._abort)
        else:
            self.transport.close()

    def _await_bytes(self, seconds: float) -> None:
        self._stop_timer()
        self._reading_timer = self.loop.call_later(seconds, self._too_late)

    def _stop_timer(self) -> None:
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def _too_late(self) -> None:
        self._reading_timer = None
        answered = not self._in_head and self.cycle.response_started
        if answered or (self._in_head and self._fed == 0):
            self._abort()
        else:
            self._refuse(FelloeError("request_timeout", "the request did not arrive in time"))

    def _abort(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def _certificate_of(transport: asyncio.Transport) -> bytes:
    """The certificate (DER) that the client has shown in TLS; empty when it was not asked for one."""
    connection = transport.get_extra_info("ssl_object")
    return b"" if connection is None else connection.getpeercert(binary_form=True) or b""


def protocol_factory(config: Config, server_state: ServerState, limits: Limits) -> Any:
    """What `loop.create_server` calls for each connection."""
    loop = asyncio.get_running_loop()
    return lambda: cast(asyncio.BaseProtocol, GatewayProtocol(config, server_state, limits, loop))
