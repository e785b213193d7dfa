"""What crosses the wire when a node joins, renews or leaves: JSON bodies of version 1, declared once for both sides."""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from felloe.domain.ids import NetworkId, NodeId
from felloe.mesh.credentials import Credential
from felloe.mesh.membership import Membership

CA_PATH = "/v1/ca"
JOIN_PATH = "/v1/join"
NONCE_PATH = "/v1/nonce"
RENEW_PATH = "/v1/renew"
LEAVE_PATH = "/v1/leave"
INSTANCE_PATH = "/v1/instance"

LARGEST_REQUEST = 16 << 10
LARGEST_REPLY = 256 << 10

_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Short = Annotated[bytes, Meta(max_length=64)]
_Addresses = Annotated[tuple[Annotated[str, Meta(max_length=253)], ...], Meta(max_length=8)]


class JoinRequest(Struct, frozen=True, kw_only=True):
    """`request` is a PEM certificate request: it proves the node key, and its names are ignored."""

    token: _Short
    secret: _Short
    request: Annotated[str, Meta(max_length=4096)]
    name: _Name
    version: Annotated[str, Meta(pattern=r"^[0-9A-Za-z.+-]{1,32}\Z")]


class Nonce(Struct, frozen=True):
    """What a node signs to renew or to leave; good for a minute, at the hub that gave it."""

    nonce: _Short


class RenewRequest(Struct, frozen=True, kw_only=True):
    """`signature` is the node key's, over `renewal_statement`.

    `addresses` are host names and IP addresses at which the node can be dialled when it is a hub.
    """

    node: _Name
    nonce: _Short
    signature: _Short
    version: Annotated[str, Meta(max_length=64)] = ""
    addresses: _Addresses = ()


class Welcome(Struct, frozen=True, kw_only=True):
    """The answer to a join or a renewal. `trust` is the encoded trust list.

    `authority` holds the network's signing keys; only a renewing hub gets them.
    """

    membership: Membership
    credential: Credential
    trust: bytes
    authority: bytes = b""


class LeaveRequest(Struct, frozen=True, kw_only=True):
    """`signature` is the node key's, over `leave_statement`."""

    node: _Name
    nonce: _Short
    signature: _Short


class Left(Struct, frozen=True):
    """The answer to a node that leaves: it is a member no more."""

    node: NodeId


class Instance(Struct, frozen=True):
    """Which process answers: `instance` is random and new at each start of a node."""

    node: NodeId
    instance: str


class ErrorBody(Struct, frozen=True):
    """Why a request failed; `code` is from the error catalogue."""

    code: str
    message: str
    type: str


class ErrorReply(Struct, frozen=True):
    """The JSON of every answer that is not 200."""

    error: ErrorBody


def nonce_time(nonce: bytes) -> int:
    """When the hub gave this nonce, by its clock, in Unix seconds: what it begins with."""
    return int.from_bytes(nonce[:8], "big")


def renewal_statement(
    network: NetworkId, node: NodeId, hub: NodeId, nonce: bytes, version: str, addresses: Sequence[str]
) -> bytes:
    """The bytes that a node key signs to renew: no other protocol signs anything that begins like this.

    `hub` is the node whose key the TLS connection ended at, so that no other hub can use the signature: a stolen one
    could otherwise have it answered with the keys that replaced its own.
    """
    return _statement(b"felloe renew 2", network, node, hub, nonce.hex(), version, *addresses)


def leave_statement(network: NetworkId, node: NodeId, hub: NodeId, nonce: bytes) -> bytes:
    """The bytes that a node key signs to leave."""
    return _statement(b"felloe leave 1", network, node, hub, nonce.hex())


def _statement(purpose: bytes, *parts: str) -> bytes:
    # No part may hold the separator; what comes from a request is checked to be printable.
    return b"\0".join((purpose, *(part.encode() for part in parts)))
