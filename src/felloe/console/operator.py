"""The operator API: HTTP over a unix socket in the home folder, for the `felloe` commands of the same user.

One table maps paths to operations. The socket's folder is 0700, so the file system is the access control.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from felloe.console.catalog_operator import CatalogOperations, catalog_table
from felloe.console.hardware_operator import HardwareOperations, hardware_table
from felloe.console.hub_messages import ChangeStep
from felloe.console.hub_operator import HubOperations, RootOperations, network_table
from felloe.console.messages import (
    DrainRequest,
    DrainStep,
    ErrorBody,
    InvitationCreated,
    InvitationRequest,
    InvitationRow,
    KeyCreated,
    KeyRequest,
    KeyRow,
    LoadRequest,
    MemberRow,
    NameRequest,
    Nothing,
    Progress,
    PullRequest,
    Status,
    UnloadRequest,
    UpstreamRequest,
    UpstreamRow,
)
from felloe.console.model_messages import VerifyStep
from felloe.console.model_operator import ModelOperations, model_table
from felloe.console.operator_table import Table
from felloe.console.serving_operator import ServingOperations, serving_table
from felloe.domain.errors import FelloeError
from felloe.domain.roster import Replica

logger = logging.getLogger(__name__)
_MOST_BODY_BYTES = 64 * 1024
Step = type[Progress] | type[DrainStep] | type[ChangeStep] | type[VerifyStep]


class Operations(Protocol):
    """Everything that the owner of a node can see and do."""

    @property
    def hubs(self) -> HubOperations: ...
    @property
    def root(self) -> RootOperations: ...
    @property
    def library(self) -> ModelOperations: ...
    @property
    def catalog(self) -> CatalogOperations: ...
    @property
    def hardware(self) -> HardwareOperations: ...
    @property
    def serving(self) -> ServingOperations: ...
    async def status(self) -> Status: ...
    async def members(self) -> list[MemberRow]: ...
    def pull(self, request: PullRequest) -> AsyncGenerator[Progress, None]: ...
    async def load(self, request: LoadRequest) -> Replica: ...
    async def unload(self, request: UnloadRequest) -> Nothing: ...
    def drain(self, request: DrainRequest) -> AsyncGenerator[DrainStep, None]: ...
    async def invite(self, request: InvitationRequest) -> InvitationCreated: ...
    async def invitations(self) -> list[InvitationRow]: ...
    async def withdraw_invitation(self, request: NameRequest) -> Nothing: ...
    async def create_key(self, request: KeyRequest) -> KeyCreated: ...
    async def keys(self) -> list[KeyRow]: ...
    async def revoke_key(self, request: NameRequest) -> KeyRow: ...
    async def upstreams(self) -> list[UpstreamRow]: ...
    async def add_upstream(self, request: UpstreamRequest) -> UpstreamRow: ...
    async def remove_upstream(self, request: NameRequest) -> Nothing: ...
    async def stop(self) -> Nothing: ...


def create_operator_app(operations: Operations) -> Starlette:
    """The ASGI application; errors of the catalogue become their status with an `ErrorBody`."""
    own = Table(
        asked={
            "/status": operations.status,
            "/members": operations.members,
            "/invitations": operations.invitations,
            "/keys": operations.keys,
            "/upstreams": operations.upstreams,
        },
        told={
            "/models/load": (LoadRequest, operations.load),
            "/models/unload": (UnloadRequest, operations.unload),
            "/invitations/create": (InvitationRequest, operations.invite),
            "/invitations/withdraw": (NameRequest, operations.withdraw_invitation),
            "/keys/create": (KeyRequest, operations.create_key),
            "/keys/revoke": (NameRequest, operations.revoke_key),
            "/upstreams/add": (UpstreamRequest, operations.add_upstream),
            "/upstreams/remove": (NameRequest, operations.remove_upstream),
        },
        followed={
            "/models/pull": (PullRequest, operations.pull, Progress),
            "/drain": (DrainRequest, operations.drain, DrainStep),
        },
    )
    routes: list[Route] = []
    for table in (
        own,
        network_table(operations.hubs, operations.root),
        model_table(operations.library),
        catalog_table(operations.catalog),
        serving_table(operations.serving),
        hardware_table(operations.hardware),
    ):
        routes += [Route(path, _asking(operation), methods=["GET"]) for path, operation in table.asked.items()]
        routes += [Route(path, _telling(kind, act), methods=["POST"]) for path, (kind, act) in table.told.items()]
        routes += [Route(path, _following(*row), methods=["POST"]) for path, row in table.followed.items()]
    routes.append(Route("/stop", _asking(operations.stop), methods=["POST"]))
    return Starlette(routes=routes, exception_handlers={FelloeError: _refused, HTTPException: _http, Exception: _bug})


def _asking(operation: Callable[[], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        return _json(await operation())

    return endpoint


def _telling(kind: Any, act: Callable[[Any], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return _json(await act(await _decoded(request, kind)))

    return endpoint


def _following(
    kind: Any, act: Callable[[Any], AsyncGenerator[Any, None]], step: Step
) -> Callable[[Request], Awaitable[Response]]:
    """Long work: each step goes out as one line of JSON, and a failure as the last `step`, with its `error`."""

    async def endpoint(request: Request) -> Response:
        wanted = await _decoded(request, kind)
        return StreamingResponse(_lines(act(wanted), step), media_type="application/x-ndjson")

    return endpoint


async def _lines(steps: AsyncGenerator[Any, None], kind: Step) -> AsyncIterator[bytes]:
    try:
        async with aclosing(steps):
            async for step in steps:
                yield msgspec.json.encode(step) + b"\n"
    except FelloeError as error:
        yield msgspec.json.encode(kind(error=ErrorBody(error.code, error.detail))) + b"\n"


async def _decoded(request: Request, kind: Any) -> Any:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY_BYTES:
            raise FelloeError("body_too_large", f"the request is larger than {_MOST_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("invalid_value", f"the request does not fit: {error}") from error


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, FelloeError)  # noqa: S101 - Starlette types every handler alike
    return _json(ErrorBody(error.code, error.detail), error.status)


async def _http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _json(ErrorBody("method_not_allowed" if status == 405 else "not_found", str(error)), status)


async def _bug(_: Request, error: Exception) -> Response:
    logger.error("an operation failed: %s", type(error).__name__, exc_info=error)
    return _json(ErrorBody("internal", f"the operation failed: {type(error).__name__}"), 500)
