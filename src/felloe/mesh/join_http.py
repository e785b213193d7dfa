"""How the peer port's handlers read JSON and answer: bounded in size and time, failures as the catalogue says."""

import asyncio
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from felloe.domain.errors import FelloeError
from felloe.mesh.join_wire import LARGEST_REQUEST, ErrorBody, ErrorReply

_BODY_SECONDS = 10.0

_Shape = TypeVar("_Shape")


async def read_body(request: Request, shape: type[_Shape]) -> _Shape:
    """The request's JSON body; bounded in size and time, checked strictly."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise FelloeError("unsupported_media_type", "the body is not application/json")
    if "content-encoding" in request.headers:
        raise FelloeError("unsupported_media_type", "the body has a content encoding")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_REQUEST:
                    raise FelloeError("body_too_large", f"the body is larger than {LARGEST_REQUEST} bytes")
    except TimeoutError as error:
        raise FelloeError("request_timeout", f"the body did not arrive in {_BODY_SECONDS:.0f} s") from error
    try:
        return msgspec.json.decode(bytes(body), type=shape)
    except msgspec.ValidationError as error:
        raise FelloeError("invalid_type", str(error)) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FelloeError("invalid_json", "the body is not one JSON object in UTF-8") from error


def json_answer(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def error_answer(error: FelloeError) -> Response:
    """A failure with its status and code, on a connection that ends."""
    headers = {"Retry-After": str(int(error.retry_after) + 1)} if error.retry_after is not None else None
    body = ErrorReply(ErrorBody(error.code, error.detail, error.spec.type))
    # What is left of a refused body is not worth reading.
    return json_answer(body, error.status, (headers or {}) | {"Connection": "close"})


async def http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_answer(FelloeError("method_not_allowed" if status == 405 else "not_found", "there is nothing here"))
