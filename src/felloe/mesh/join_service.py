"""The hub's HTTPS side of joining, renewing and leaving: a Starlette app for the peer port.

GET /v1/ca gives the trust list; POST /v1/join trades a token's secret and a certificate request for a credential;
GET /v1/nonce, POST /v1/renew and POST /v1/leave trade a signature of a member's key for a new credential, also after
the old one has run out, or for its removal. GET /v1/instance tells which process answers. Every body is bounded in
size and time; addresses that fail often have to wait.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.domain.versions import compatible, refusal
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificate_requests import key_of_request
from felloe.mesh.failure_limiter import FailureLimiter
from felloe.mesh.join_http import error_answer, http_error, json_answer, read_body
from felloe.mesh.join_token import is_host
from felloe.mesh.join_wire import (
    CA_PATH,
    INSTANCE_PATH,
    JOIN_PATH,
    LEAVE_PATH,
    NONCE_PATH,
    RENEW_PATH,
    Instance,
    JoinRequest,
    LeaveRequest,
    Left,
    Nonce,
    RenewRequest,
    Welcome,
    leave_statement,
    nonce_time,
    renewal_statement,
)
from felloe.mesh.membership import ListedMember, Membership
from felloe.mesh.trust import Trust

_LOG = logging.getLogger(__name__)
_NONCE_SECONDS = 60
_NONCE_RANDOM = 16
_TAG_BYTES = 16

_Handler = Callable[[Request], Awaitable[Response]]


class HubAddresses(msgspec.Struct, frozen=True):
    """Where this network's hubs are: `tls://host:port` for NATS, `host:port` for peers."""

    nats_urls: tuple[str, ...]
    peers: tuple[str, ...]


class ThisHub(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: the node, what its process calls itself until it ends, and the program's version."""

    node: NodeId
    instance: str
    version: str


class Keys(Protocol):
    """The newest keys of the network; both change together when the owner replaces them."""

    @property
    def authority(self) -> NetworkAuthority:
        """What issues credentials."""
        ...

    @property
    def trust(self) -> Trust:
        """What every node is told to trust."""
        ...


class Members(Protocol):
    """The network's list of members. Changes are durable when they return; reading waits for nothing."""

    def find(self, node: NodeId) -> ListedMember | None:
        """The row of a node, removed or not."""
        ...

    def is_revoked(self, node: NodeId) -> bool:
        """Whether the node was a member and is none any more."""
        ...

    async def add(self, public_key: bytes, name: str, role: Role, now: float) -> ListedMember:
        """List a node by its raw key; one that is listed keeps its role: only the owner changes it.

        Raises `forbidden` for a removed one.
        """
        ...

    async def leave(self, node: NodeId, now: float) -> ListedMember:
        """Remove a node for good by its own wish."""
        ...


class InvitationBook(Protocol):
    """The network's invitations."""

    async def redeem(self, identifier: bytes, secret: bytes, node: NodeId, now: float) -> Role:
        """The role that `node` joins with, its use stored. Raises `token_refused`."""
        ...


class JoinService:
    """Lets nodes in and keeps them in; owns only its nonce key and its count of failures.

    `hubs` gives the addresses to hand out; `now` gives Unix seconds.
    """

    def __init__(
        self,
        this: ThisHub,
        keys: Keys,
        invitations: InvitationBook,
        members: Members,
        *,
        hubs: Callable[[], HubAddresses],
        now: Callable[[], float] = time.time,
        limiter: FailureLimiter | None = None,
    ) -> None:
        self._this = this
        self._keys = keys
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
                Route(INSTANCE_PATH, self._guarded(self._instance, counted=False), methods=["GET"]),
                Route(JOIN_PATH, self._guarded(self._join), methods=["POST"]),
                Route(RENEW_PATH, self._guarded(self._renew), methods=["POST"]),
                Route(LEAVE_PATH, self._guarded(self._leave), methods=["POST"]),
            ],
            exception_handlers={HTTPException: http_error},
        )

    def _guarded(self, handler: _Handler, *, counted: bool = True) -> _Handler:
        """Turn failures into answers, and where they are `counted`, hold them against the caller's address."""

        async def guarded(request: Request) -> Response:
            address = request.client.host if request.client is not None else ""
            if counted and (wait := self._limiter.wait(address, self._now())):
                return error_answer(FelloeError("rate_limited", "too many failed attempts", retry_after=wait))
            try:
                return await handler(request)
            except FelloeError as error:
                if error.status < 500:
                    self._limiter.note_failure(address, self._now())
                return error_answer(error)
            except ClientDisconnect:
                self._limiter.note_failure(address, self._now())
                return Response(status_code=400)
            except Exception:
                _LOG.exception("the join service failed")
                return error_answer(FelloeError("internal", "the hub could not carry this out"))

        return guarded

    async def _ca(self, request: Request) -> Response:
        return Response(self._keys.trust.encoded, media_type="application/json")

    async def _instance(self, request: Request) -> Response:
        return json_answer(Instance(self._this.node, self._this.instance))

    async def _join(self, request: Request) -> Response:
        asked = await read_body(request, JoinRequest)
        if not asked.name.isprintable() or asked.name != asked.name.strip():
            raise FelloeError("invalid_value", "a node's name has printable characters only", param="name")
        key = key_of_request(asked.request).public_bytes_raw()
        node = NodeId(id_from_public_key(key))
        self._check_version(asked.version)
        if self._members.is_revoked(node):
            raise FelloeError("forbidden", "this node was removed from the network; it needs a new identity")
        role = await self._invitations.redeem(asked.token, asked.secret, node, self._now())
        member = await self._members.add(key, asked.name, role, self._now())
        _LOG.info("node %s joined as %s", node, member.role)
        return self._welcome(member)

    async def _nonce(self, request: Request) -> Response:
        fresh = int(self._now()).to_bytes(8, "big") + secrets.token_bytes(_NONCE_RANDOM)
        return json_answer(Nonce(fresh + self._tag(fresh)))

    async def _renew(self, request: Request) -> Response:
        asked = await read_body(request, RenewRequest)
        network = self._keys.authority.network
        self._check_version(asked.version)
        _check_addresses(asked.addresses)
        statement = renewal_statement(
            network, NodeId(asked.node), self._this.node, asked.nonce, asked.version, asked.addresses
        )
        member = self._check_signature(asked, statement)
        if member.revoked_at:
            raise FelloeError("forbidden", "this node was removed from the network")
        _LOG.debug("node %s renews its credential", member.id)
        # Only here: the statement names this hub, so that no other can have fetched the keys in the member's name.
        authority = self._keys.authority.to_bytes() if member.role == "hub" else b""
        return self._welcome(member, asked.addresses, authority)

    async def _leave(self, request: Request) -> Response:
        asked = await read_body(request, LeaveRequest)
        network = self._keys.authority.network
        statement = leave_statement(network, NodeId(asked.node), self._this.node, asked.nonce)
        member = self._check_signature(asked, statement)
        if not member.revoked_at:
            await self._members.leave(member.id, self._now())
            _LOG.info("node %s left", member.id)
        return json_answer(Left(member.id))

    def _check_version(self, version: str) -> None:
        if not compatible(self._this.version, version):
            raise FelloeError("version_refused", refusal(self._this.version, version, "the node"))

    def _check_signature(self, asked: RenewRequest | LeaveRequest, statement: bytes) -> ListedMember:
        self._check_nonce(asked.nonce)
        member = self._members.find(NodeId(asked.node))
        if member is None or not _is_signed(member, asked.signature, statement):
            raise FelloeError("forbidden", "no member of this network signed that for this hub")
        return member

    def _check_nonce(self, nonce: bytes) -> None:
        # Stateless: a nonce used twice within its minute only gives the same key another credential.
        fresh, tag = nonce[:-_TAG_BYTES], nonce[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(fresh)):
            raise FelloeError("forbidden", "the nonce is not of this hub")
        age = self._now() - nonce_time(fresh)
        if not -1 <= age <= _NONCE_SECONDS:
            raise FelloeError("forbidden", "the nonce is too old")

    def _tag(self, fresh: bytes) -> bytes:
        return hmac.digest(self._nonce_key, fresh, hashlib.sha256)[:_TAG_BYTES]

    def _welcome(self, member: ListedMember, addresses: tuple[str, ...] = (), authority: bytes = b"") -> Response:
        hubs, issuing = self._hubs(), self._keys.authority
        membership = Membership(
            network=issuing.network,
            node=member.id,
            name=member.name,
            role=member.role,
            account=issuing.application_account,
            nats_urls=hubs.nats_urls,
            hubs=hubs.peers,
        )
        credential = issuing.issue(
            member.public_key, member.role, self._now(), addresses=addresses, after=member.demoted_at
        )
        return json_answer(
            Welcome(
                membership=membership,
                credential=credential,
                trust=self._keys.trust.encoded,
                authority=authority,
            )
        )


def _check_addresses(addresses: tuple[str, ...]) -> None:
    """Names below `felloe.internal` say who a node is; nobody may ask for one."""
    for address in addresses:
        if not is_host(address) or f".{address.lower().rstrip('.')}".endswith(".felloe.internal"):
            raise FelloeError("invalid_value", "this can be no address of a node", param="addresses")


def _is_signed(member: ListedMember, signature: bytes, statement: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(member.public_key).verify(signature, statement)
    except InvalidSignature:
        return False
    return True
