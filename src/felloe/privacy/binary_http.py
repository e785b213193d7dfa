"""Binary HTTP (RFC 9292): HTTP requests and responses as bytes, of known and of indeterminate length.

Parsing is strict and bounded. Stricter than the RFC: no pseudo-fields at all, and the limits below. Every refusal is
a `FelloeError` `unsealed`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.privacy.varint import decode_varint, encode_varint

Fields = tuple[tuple[bytes, bytes], ...]

_KNOWN_REQUEST, _KNOWN_RESPONSE, _INDETERMINATE_REQUEST, _INDETERMINATE_RESPONSE = range(4)
_MAXIMUM_FIELDS = 128
_MAXIMUM_INFORMATIONAL = 8
_MAXIMUM_CONTENT_CHUNKS = 16384
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_VISIBLE = re.compile(rb"[\x21-\x7e]*")
_VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")


class Request(NamedTuple):
    """One HTTP request. `authority` may be empty; field names are lower case by custom."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()


class Response(NamedTuple):
    """One HTTP response. `informational` holds the (status, headers) that came before the final status."""

    status: int
    headers: Fields = ()
    content: bytes = b""
    trailers: Fields = ()
    informational: tuple[tuple[int, Fields], ...] = ()


class ResponseHead(NamedTuple):
    """What comes before the content of a response. `content_offset` is where the content begins."""

    known_length: bool
    status: int
    headers: Fields
    informational: tuple[tuple[int, Fields], ...]
    content_offset: int


def _prefixed(data: bytes) -> bytes:
    return encode_varint(len(data)) + data


def _encode_fields(fields: Fields, known_length: bool) -> bytes:
    lines = b"".join(_prefixed(name) + _prefixed(value) for name, value in fields)
    return _prefixed(lines) if known_length else lines + b"\x00"


def _encode_content(content: bytes, known_length: bool) -> bytes:
    if known_length:
        return _prefixed(content)
    return (_prefixed(content) if content else b"") + b"\x00"


def encode_request(request: Request, *, known_length: bool = True) -> bytes:
    """The request as bytes, unpadded and not truncated. Padding is any number of zero bytes after it."""
    framing = _KNOWN_REQUEST if known_length else _INDETERMINATE_REQUEST
    control = b"".join(_prefixed(part) for part in request[:4])
    return (
        encode_varint(framing)
        + control
        + _encode_fields(request.headers, known_length)
        + _encode_content(request.content, known_length)
        + _encode_fields(request.trailers, known_length)
    )


def encode_response_head(
    status: int,
    headers: Fields = (),
    informational: Iterable[tuple[int, Fields]] = (),
    *,
    known_length: bool = False,
) -> bytes:
    """What comes before the content of a response."""
    framing = _KNOWN_RESPONSE if known_length else _INDETERMINATE_RESPONSE
    heads = (*informational, (status, headers))
    return encode_varint(framing) + b"".join(
        encode_varint(status) + _encode_fields(fields, known_length) for status, fields in heads
    )


def encode_response(response: Response, *, known_length: bool = True) -> bytes:
    """The response as bytes, unpadded and not truncated. Padding is any number of zero bytes after it."""
    return (
        encode_response_head(response.status, response.headers, response.informational, known_length=known_length)
        + _encode_content(response.content, known_length)
        + _encode_fields(response.trailers, known_length)
    )


class _Reader:
    """A place in a message. Reading past the end raises `FelloeError` `unsealed`."""

    __slots__ = ("data", "offset")

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data = data
        self.offset = offset

    @property
    def at_end(self) -> bool:
        return self.offset >= len(self.data)

    def number(self) -> int:
        value, self.offset = decode_varint(self.data, self.offset)
        return value

    def take(self, length: int) -> bytes:
        end = self.offset + length
        if end > len(self.data):
            raise FelloeError("unsealed", "A binary HTTP message is cut off.")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def prefixed(self) -> bytes:
        return self.take(self.number())

    def padding(self) -> None:
        if self.data.count(0, self.offset) != len(self.data) - self.offset:
            raise FelloeError("unsealed", "The padding of a binary HTTP message is not zero.")


def _field(reader: _Reader, name_length: int) -> tuple[bytes, bytes]:
    name = reader.take(name_length)
    value = reader.prefixed()
    if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise FelloeError("unsealed", "A binary HTTP message holds an invalid field.")
    return name, value


def _append_field(fields: list[tuple[bytes, bytes]], reader: _Reader, name_length: int) -> None:
    if len(fields) >= _MAXIMUM_FIELDS:
        raise FelloeError("unsealed", "A binary HTTP message holds too many fields.")
    fields.append(_field(reader, name_length))


def _fields(reader: _Reader, known_length: bool) -> Fields:
    fields: list[tuple[bytes, bytes]] = []
    if reader.at_end:  # truncated empty sections are left out (section 3.8)
        return ()
    if known_length:
        section = _Reader(reader.prefixed())
        while not section.at_end:
            _append_field(fields, section, section.number())
    else:
        while name_length := reader.number():
            _append_field(fields, reader, name_length)
    return tuple(fields)


def _content(reader: _Reader, known_length: bool) -> bytes:
    if reader.at_end:
        return b""
    if known_length:
        return reader.prefixed()
    chunks: list[bytes] = []
    while length := reader.number():
        if len(chunks) >= _MAXIMUM_CONTENT_CHUNKS:
            raise FelloeError("unsealed", "A binary HTTP message holds too many content chunks.")
        chunks.append(reader.take(length))
    return b"".join(chunks)


def parse_request(data: bytes) -> Request:
    """Read a whole request of either framing, with or without padding; the caller bounds the size of `data`."""
    reader = _Reader(data)
    framing = reader.number()
    if framing not in (_KNOWN_REQUEST, _INDETERMINATE_REQUEST):
        raise FelloeError("unsealed", "A binary HTTP message is not a request.")
    known_length = framing == _KNOWN_REQUEST
    method, scheme, authority, path = (reader.prefixed() for _ in range(4))
    if not (_TOKEN.fullmatch(method) and _SCHEME.fullmatch(scheme) and path):
        raise FelloeError("unsealed", "The control data of a binary HTTP request is invalid.")
    if not (_VISIBLE.fullmatch(authority) and _VISIBLE.fullmatch(path)):
        raise FelloeError("unsealed", "The target of a binary HTTP request is invalid.")
    headers = _fields(reader, known_length)
    content = _content(reader, known_length)
    trailers = _fields(reader, known_length)
    reader.padding()
    return Request(method, scheme, authority, path, headers, content, trailers)


def parse_response_head(data: bytes) -> ResponseHead:
    """Read a response up to its content, which may still be on its way."""
    reader = _Reader(data)
    framing = reader.number()
    if framing not in (_KNOWN_RESPONSE, _INDETERMINATE_RESPONSE):
        raise FelloeError("unsealed", "A binary HTTP message is not a response.")
    known_length = framing == _KNOWN_RESPONSE
    informational: list[tuple[int, Fields]] = []
    while (status := reader.number()) in range(100, 200):
        if len(informational) >= _MAXIMUM_INFORMATIONAL:
            raise FelloeError("unsealed", "A binary HTTP message holds too many informational responses.")
        informational.append((status, _fields(reader, known_length)))
    if status not in range(200, 600):
        raise FelloeError("unsealed", "The status of a binary HTTP response is invalid.")
    headers = _fields(reader, known_length)
    return ResponseHead(known_length, status, headers, tuple(informational), reader.offset)


def parse_response(data: bytes) -> Response:
    """Read a whole response of either framing, with or without padding; the caller bounds the size of `data`."""
    head = parse_response_head(data)
    reader = _Reader(data, head.content_offset)
    content = _content(reader, head.known_length)
    trailers = _fields(reader, head.known_length)
    reader.padding()
    return Response(head.status, head.headers, content, trailers, head.informational)
