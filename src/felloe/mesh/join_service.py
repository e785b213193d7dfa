"""The hub's HTTPS side of joining and renewing: a Starlette app for the peer port.

GET /v1/ca gives the root and issuing certificates; POST /v1/join trades a token's secret and a certificate request for
a credential; GET /v1/nonce and POST /v1/renew trade a signature of a member's key for a new one, also after the old one
has run out. Every body is bounded in size and time; addresses that fail often have to wait.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import key_of_request
from felloe.mesh.failure_limiter import FailureLimiter
from felloe.mesh.invitations import Invitations
from felloe.mesh.join_wire import (
    CA_PATH,
    JOIN_PATH,
    LARGEST_REQUEST,
    NONCE_PATH,
    RENEW_PATH,
    ErrorBody,
    ErrorReply,
    JoinRequest,
    Nonce,
    RenewRequest,
    Welcome,
    renewal_statement,
)
from felloe.mesh.membership import ListedMember, MemberList, Membership

_LOG = logging.getLogger(__name__)
_BODY_SECONDS = 10.0
_NONCE_SECONDS = 60
_NONCE_RANDOM = 16
_TAG_BYTES = 16

_T = TypeVar("_T")
_Handler = Callable[[Request], Awaitable[Response]]


class HubAddresses(msgspec.Struct, frozen=True):
    """Where this network's hubs are: `tls://host:port` for NATS, `host:port` for peers."""

    nats_urls: tuple[str, ...]
    peers: tuple[str, ...]


class JoinService:
    """Lets nodes in and keeps them in; owns only its nonce key and its count of failures.

    `hubs` gives the addresses to hand out; `now` gives Unix seconds.
    """

    def __init__(
        self,
        authority: NetworkAuthority,
        invitations: Invitations,
        members: MemberList,
        *,
        hubs: Callable[[], HubAddresses],
        now: Callable[[], float] = time.time,
        limiter: FailureLimiter | None = None,
    ) -> None:
        self._authority = authority
        self._invitations = invitations
        self._members = members
        self._hubs = hubs
        self._now = now
        self._limiter = limiter or FailureLimiter()
        self._nonce_key = secrets.token_bytes(32)

    def app(self) -> Starlette:
        """The ASGI app. Serve it with TLS and without trust in forwarding headers."""
        return Starlette(
            routes=[
                Route(CA_PATH, self._guarded(self._ca, counted=False), methods=["GET"]),
                Route(NONCE_PATH, self._guarded(self._nonce, counted=False), methods=["GET"]),
                Route(JOIN_PATH, self._guarded(self._join), methods=["POST"]),
                Route(RENEW_PATH, self._guarded(self._renew), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def _guarded(self, handler: _Handler, *, counted: bool = True) -> _Handler:
        """Turn failures into answers, and where they are `counted`, hold them against the caller's address."""

        async def guarded(request: Request) -> Response:
            address = request.client.host if request.client is not None else ""
            if counted and (wait := self._limiter.wait(address, self._now())):
                return _error(FelloeError("rate_limited", "too many failed attempts", retry_after=wait))
            try:
                return await handler(request)
            except FelloeError as error:
                if error.status < 500:
                    self._limiter.note_failure(address, self._now())
                return _error(error)
            except ClientDisconnect:
                self._limiter.note_failure(address, self._now())
                return Response(status_code=400)
            except Exception:
                _LOG.exception("the join service failed")
                return _error(FelloeError("internal", "the hub could not carry this out"))

        return guarded

    async def _ca(self, request: Request) -> Response:
        return PlainTextResponse(self._authority.root + self._authority.issuer)

    async def _join(self, request: Request) -> Response:
        asked = await _read(request, JoinRequest)
        if not asked.name.isprintable() or asked.name != asked.name.strip():
            raise FelloeError("invalid_value", "a node's name has printable characters only", param="name")
        key = key_of_request(asked.request).public_bytes_raw()
        node = NodeId(id_from_public_key(key))
        if self._members.is_revoked(node):
            raise FelloeError("forbidden", "this node was removed from the network; it needs a new identity")
        role = self._invitations.redeem(asked.token, asked.secret, node, self._now())
        member = self._members.add(key, asked.name, role, self._now())
        _LOG.info("node %s joined as %s", node, role)
        return self._welcome(member)

    async def _nonce(self, request: Request) -> Response:
        fresh = int(self._now()).to_bytes(8, "big") + secrets.token_bytes(_NONCE_RANDOM)
        return _json(Nonce(fresh + self._tag(fresh)))

    async def _renew(self, request: Request) -> Response:
        asked = await _read(request, RenewRequest)
        self._check_nonce(asked.nonce)
        member = self._members.find(NodeId(asked.node))
        if member is None or not _is_signed(member, self._authority, asked):
            raise FelloeError("forbidden", "no member of this network signed that")
        if member.revoked_at:
            raise FelloeError("forbidden", "this node was removed from the network")
        _LOG.debug("node %s renews its credential", member.id)
        return self._welcome(member)

    def _check_nonce(self, nonce: bytes) -> None:
        # Stateless: a nonce used twice within its minute only gives the same key another credential.
        fresh, tag = nonce[:-_TAG_BYTES], nonce[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(fresh)):
            raise FelloeError("forbidden", "the nonce is not of this hub")
        age = self._now() - int.from_bytes(fresh[:8], "big")
        if not -1 <= age <= _NONCE_SECONDS:
            raise FelloeError("forbidden", "the nonce is too old")

    def _tag(self, fresh: bytes) -> bytes:
        return hmac.digest(self._nonce_key, fresh, hashlib.sha256)[:_TAG_BYTES]

    def _welcome(self, member: ListedMember) -> Response:
        hubs = self._hubs()
        membership = Membership(
            network=self._authority.network,
            node=member.id,
            name=member.name,
            role=member.role,
            root=self._authority.root,
            issuer=self._authority.issuer,
            account=self._authority.application_account,
            nats_urls=hubs.nats_urls,
            hubs=hubs.peers,
        )
        credential = self._authority.issue(member.public_key, member.role, self._now())
        return _json(Welcome(membership=membership, credential=credential))


def _is_signed(member: ListedMember, authority: NetworkAuthority, asked: RenewRequest) -> bool:
    statement = renewal_statement(authority.network, member.id, asked.nonce)
    try:
        Ed25519PublicKey.from_public_bytes(member.public_key).verify(asked.signature, statement)
    except InvalidSignature:
        return False
    return True


async def _read(request: Request, shape: type[_T]) -> _T:
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


def _json(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _error(error: FelloeError) -> Response:
    headers = {"Retry-After": str(int(error.retry_after) + 1)} if error.retry_after is not None else None
    body = ErrorReply(ErrorBody(error.code, error.detail, error.spec.type))
    # What is left of a refused body is not worth reading.
    return _json(body, error.status, (headers or {}) | {"Connection": "close"})


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(FelloeError("method_not_allowed" if status == 405 else "not_found", "there is nothing here"))
