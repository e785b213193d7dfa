"""What crosses the wire when a node joins or renews: JSON bodies of version 1, declared once for both sides."""

from typing import Annotated

from msgspec import Meta, Struct

from felloe.domain.ids import NetworkId, NodeId
from felloe.mesh.credentials import Credential
from felloe.mesh.membership import Membership

CA_PATH = "/v1/ca"
JOIN_PATH = "/v1/join"
NONCE_PATH = "/v1/nonce"
RENEW_PATH = "/v1/renew"

LARGEST_REQUEST = 16 << 10
LARGEST_REPLY = 256 << 10

_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Short = Annotated[bytes, Meta(max_length=64)]


class JoinRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`request` is a PEM certificate request: it proves the node key, and its names are ignored."""

    token: _Short
    secret: _Short
    request: Annotated[str, Meta(max_length=4096)]
    name: _Name
    version: Annotated[str, Meta(pattern=r"^[0-9A-Za-z.+-]{1,32}\Z")]


class Nonce(Struct, frozen=True, forbid_unknown_fields=True):
    """What a node signs to renew; good for a minute, at the hub that gave it."""

    nonce: _Short


class RenewRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`signature` is the node key's, over `renewal_statement`."""

    node: _Name
    nonce: _Short
    signature: _Short


class Welcome(Struct, frozen=True, kw_only=True):
    """The answer to a join or a renewal."""

    membership: Membership
    credential: Credential


class ErrorBody(Struct, frozen=True):
    """Why a request failed; `code` is from the error catalogue."""

    code: str
    message: str
    type: str


class ErrorReply(Struct, frozen=True):
    """The JSON of every answer that is not 200."""

    error: ErrorBody


def renewal_statement(network: NetworkId, node: NodeId, nonce: bytes) -> bytes:
    """The bytes that a node key signs to renew: no other protocol signs anything that begins like this."""
    return b"felloe renew 1\0" + network.encode() + b"\0" + node.encode() + b"\0" + nonce
