"""Errors as OpenAI clients read them: one JSON object, an HTTP status, Retry-After where waiting helps."""

import math
from http import HTTPStatus

import msgspec

from felloe.domain.errors import FelloeError

RawHeaders = list[tuple[bytes, bytes]]


def error_body(error: FelloeError) -> bytes:
    """The JSON body: `{"error": {"message", "type", "param", "code"}}`."""
    content = {
        "message": f"{error.detail}. {error.spec.next_step}",
        "type": error.spec.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": content})


def error_headers(error: FelloeError) -> RawHeaders:
    """The headers that go with the body, besides its length."""
    headers: RawHeaders = [(b"content-type", b"application/json")]
    if error.status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after or 1))))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def error_event(error: FelloeError) -> bytes:
    """The server-sent event that ends a stream which has failed."""
    return b"data: " + error_body(error) + b"\n\n"


def raw_response(error: FelloeError, request_id: str) -> bytes:
    """A whole HTTP/1.1 response that also closes the connection, for requests that never became one."""
    body = error_body(error)
    lines = [b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode())]
    headers = [
        *error_headers(error),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"connection", b"close"),
    ]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
