"""Reading from another member's transfer port: HTTPS in which both sides know each other.

A small client of its own, because every step is bounded: who is dialled, for how long nothing may come, how long a head
and a body may be. It follows no redirects and unpacks nothing.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoint
from felloe.mesh.dialling import first_to_answer
from felloe.mesh.transfer_tls import MemberTls

CONNECTIONS = 4
MOST_HOSTS = 8
_DIAL_SECONDS = 3.0
_SILENT_SECONDS = 10.0
_IDLE_SECONDS = 5.0
_HEAD_START_SECONDS = 0.25
_READ_BYTES = 1 << 16
_BUFFERED_BYTES = 1 << 18
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CODES = {403: "forbidden", 404: "not_found", 416: "invalid_value", 503: "overloaded"}


class Undialable(FelloeError):
    """Nothing was sent: the node's port could not be reached, or what listens there is not the node."""

    def __init__(self, node: NodeId, why: str) -> None:
        super().__init__("node_unreachable", f"the transfer port of {node}: {why}")


Came = Callable[[int], Awaitable[None]]
"""Called with the number of bytes of each piece (at most 64 KiB) as it comes; nothing more is read meanwhile."""


class Span(NamedTuple):
    """A part of a path's content, in bytes; `length` is at least 1."""

    start: int
    length: int


class _Closed(EOFError):
    """The line ended before any byte of an answer."""


class _Head(NamedTuple):
    status: int
    length: int
    stays: bool


class _Line(NamedTuple):
    reader: asyncio.StreamReader
    transport: asyncio.Transport
    used_at: float = 0.0


class HttpsReader:
    """At most four connections to one node, dialled when they are needed."""

    def __init__(self, node: NodeId, place: Endpoint, tls: MemberTls) -> None:
        self._node = node
        self._hosts = place.hosts[:MOST_HOSTS]
        self._port = place.port
        self._tls = tls
        self._name = tls.server_name(node)
        self._context = tls.asking()
        self._idle: list[_Line] = []
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def read(self, path: str, span: Span | None, most: int, came: Came) -> bytes:
        """The bytes of `path`, or of `span` of it; at most `most`.

        Raises `Undialable`, `node_unreachable` when the line breaks or falls silent for 10 s, `not_found`, `forbidden`,
        `invalid_value`, `overloaded`, and `source_failed` for an answer that no transfer port gives.
        """
        request = _request(self._name, path, span)
        async with self._slots:
            try:
                if (line := self._take_idle()) is not None:
                    with contextlib.suppress(_Closed):  # it was closed meanwhile, before the question came there
                        return await self._ask(line, request, span, most, came)
                return await self._ask(await self._dial(), request, span, most, came)
            except (_Closed, ssl.SSLError) as error:
                raise Undialable(self._node, "it does not let this node in") from error
            except (OSError, EOFError) as error:
                why = "it fell silent" if isinstance(error, TimeoutError) else "the line broke"
                raise FelloeError("node_unreachable", f"the transfer port of {self._node}: {why}") from error

    def close(self) -> None:
        """Drop the connections; a reader that is closed may be used again."""
        while self._idle:
            self._idle.pop().transport.abort()

    def _take_idle(self) -> _Line | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            line = self._idle.pop()
            if now - line.used_at < _IDLE_SECONDS and not line.reader.at_eof():
                return line
            line.transport.abort()
        return None

    async def _dial(self) -> _Line:
        """The first of its hosts that answers with the node's certificate; the others are dropped."""
        failures = ["it names no host"]

        async def dial(host: str) -> _Line | None:
            reader = asyncio.StreamReader(limit=_BUFFERED_BYTES)
            try:
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: asyncio.StreamReaderProtocol(reader),
                    host,
                    self._port,
                    ssl=self._context,
                    server_hostname=self._name,
                )
            except (OSError, ValueError) as error:
                failures.append(error.reason if isinstance(error, ssl.SSLError) else str(error))
                return None
            return _Line(reader, transport)

        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                found = await first_to_answer(self._hosts, dial, _drop, head_start=_HEAD_START_SECONDS)
        except TimeoutError as error:
            raise Undialable(self._node, "no answer in time") from error
        if found is None:
            raise Undialable(self._node, failures[-1])
        return found[1]

    async def _ask(self, line: _Line, request: bytes, span: Span | None, most: int, came: Came) -> bytes:
        """One exchange; the line is kept for the next one when it may be."""
        may_stay = False
        try:
            line.transport.write(request)
            head = await _read_head(line.reader)
            self._check(head, span, most)
            body = await _read_body(line.reader, head.length, came)
            may_stay = head.stays
        finally:
            if may_stay:
                self._idle.append(line._replace(used_at=asyncio.get_running_loop().time()))
            else:
                _drop(line)
        return body

    def _check(self, head: _Head, span: Span | None, most: int) -> None:
        if head.status not in (200, 206):
            code = _CODES.get(head.status, "node_unreachable")
            raise FelloeError(code, f"{self._node} answered with status {head.status}")
        wanted = (206, span.length) if span is not None else (200, head.length)
        if (head.status, head.length) != wanted or head.length > most:
            raise FelloeError("source_failed", f"{self._node} answered with status {head.status}, {head.length} bytes")


def _drop(line: _Line) -> None:
    line.transport.abort()


def _request(host: str, path: str, span: Span | None) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    if span is not None:
        lines.append(f"Range: bytes={span.start}-{span.start + span.length - 1}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    """The head of an answer, whose body has a length; raises `source_failed` for another one."""
    try:
        async with asyncio.timeout(_SILENT_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise _Closed if not error.partial else error from error
    except ConnectionError as error:
        raise _Closed from error
    except asyncio.LimitOverrunError as error:
        raise _no_http() from error
    first, *fields = head[:-4].split(b"\r\n")
    status = _STATUS.fullmatch(first)
    found = [field.partition(b":") for field in fields]
    named = {name.lower(): value.strip() for name, _, value in found}
    length = named.get(b"content-length", b"")
    is_encoded = bool({b"transfer-encoding", b"content-encoding"} & named.keys())
    if status is None or _LENGTH.fullmatch(length) is None or len(named) != len(found) or is_encoded:
        raise _no_http()
    return _Head(int(status[1]), int(length), named.get(b"connection", b"").lower() != b"close")


async def _read_body(reader: asyncio.StreamReader, length: int, came: Came) -> bytes:
    """So many bytes; raises `TimeoutError` when none comes for 10 s."""
    body = bytearray()
    while len(body) < length:
        async with asyncio.timeout(_SILENT_SECONDS):
            part = await reader.read(min(_READ_BYTES, length - len(body)))
        if not part:
            raise EOFError("the line broke")
        body += part
        await came(len(part))
    return bytes(body)


def _no_http() -> FelloeError:
    return FelloeError("source_failed", "what answers at the transfer port does not speak HTTP")
