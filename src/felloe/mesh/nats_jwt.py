"""NATS keys and JSON web tokens (decentralised JWT, version 2): who may connect, decided without asking a server.

Sources: the key encoding of github.com/nats-io/nkeys and the claims of github.com/nats-io/jwt (v2). Keys are plain
Ed25519 keys; only their spelling is NATS's own.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh.permissions import MAXIMUM_PAYLOAD, REPLY_SECONDS, Template

KeyKind = Literal["operator", "account", "user"]

_PREFIX: dict[KeyKind, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_HEADER = '{"typ":"JWT","alg":"ed25519-nkey"}'
_UNLIMITED = -1
_LONGEST_TOKEN = 65536


def public_name(kind: KeyKind, raw_public_key: bytes) -> str:
    """The 56-character public nkey of a raw 32-byte Ed25519 public key."""
    if len(raw_public_key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    body = bytes([_PREFIX[kind]]) + raw_public_key
    return base64.b32encode(body + _checksum(body)).decode()


def raw_public_key(kind: KeyKind, name: str) -> bytes:
    """The raw 32 bytes of a public nkey of that kind; raises `ValueError` when it is not one."""
    if len(name) != 56:
        raise ValueError("a public nkey has 56 characters")
    decoded = base64.b32decode(name)
    body, checksum = decoded[:-2], decoded[-2:]
    if checksum != _checksum(body) or body[0] != _PREFIX[kind]:
        raise ValueError(f"not a public nkey of kind {kind}")
    return body[1:]


def node_of_user(name: str) -> NodeId:
    """The node whose key a user's public nkey is, as server events name it; raises `ValueError`."""
    return NodeId(id_from_public_key(raw_public_key("user", name)))


def _checksum(data: bytes) -> bytes:
    # CRC-16/XMODEM, least significant byte first.
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")


class Scope(msgspec.Struct, frozen=True):
    """A signing key of an account that can only make users of one role; `key` is its public nkey."""

    role: str
    key: str
    template: Template


def operator_token(operator: Ed25519PrivateKey, *, name: str, system_account: str, issued_at: int) -> str:
    """The operator's self-signed token: what a server trusts to sign accounts."""
    return _encode(
        operator,
        "operator",
        {
            "sub": public_name("operator", _raw(operator)),
            "name": name,
            "nats": {"type": "operator", "version": 2, "system_account": system_account},
        },
        issued_at,
    )


def account_token(
    operator: Ed25519PrivateKey,
    *,
    account: str,
    name: str,
    scopes: Sequence[Scope],
    issued_at: int,
    revoked: Mapping[str, int] | None = None,
) -> str:
    """An account's token, signed by the operator.

    `revoked` maps a user's public nkey to a time in Unix seconds: tokens issued until then are refused and live
    connections that use them are dropped.
    """
    limits: dict[str, Any] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), _UNLIMITED)
    # Without a limit for storage an account has no JetStream.
    limits |= {"wildcards": True, "leaf": 0}
    nats: dict[str, Any] = {
        "type": "account",
        "version": 2,
        "limits": limits,
        "signing_keys": [_scope_claim(scope) for scope in scopes],
    }
    if revoked:
        nats["revocations"] = dict(revoked)
    return _encode(operator, "operator", {"sub": account, "name": name, "nats": nats}, issued_at)


def _scope_claim(scope: Scope) -> dict[str, Any]:
    template: dict[str, Any] = {
        "pub": {"allow": list(scope.template.publish)},
        "sub": {"allow": list(scope.template.subscribe)},
        "subs": scope.template.subscriptions,
        "data": _UNLIMITED,
        "payload": MAXIMUM_PAYLOAD,
        # Neither leaf nodes nor web sockets nor MQTT: a user is one plain client.
        "allowed_connection_types": ["STANDARD"],
    }
    if scope.template.replies:
        template["resp"] = {"max": _UNLIMITED, "ttl": REPLY_SECONDS * 1_000_000_000}
    return {"kind": "user_scope", "key": scope.key, "role": scope.role, "template": template}


def user_token(
    signing_key: Ed25519PrivateKey, *, account: str, user: str, name: str, issued_at: int, expires_at: int
) -> str:
    """A user's token, signed by a scoped signing key, which alone decides what the user may do.

    `user` is the public nkey; the server drops the connection at `expires_at` (Unix seconds).
    """
    claims: dict[str, Any] = {
        "sub": user,
        "name": name,
        "exp": expires_at,
        "nats": {"type": "user", "version": 2, "issuer_account": account},
    }
    return _encode(signing_key, "account", claims, issued_at)


def _encode(issuer: Ed25519PrivateKey, kind: KeyKind, claims: dict[str, Any], issued_at: int) -> str:
    claims = claims | {"iss": public_name(kind, _raw(issuer)), "iat": issued_at}
    digest = hashlib.sha256(msgspec.json.encode(claims, order="sorted")).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_base64url(_HEADER.encode())}.{_base64url(msgspec.json.encode(claims))}"
    return f"{signed}.{_base64url(issuer.sign(signed.encode()))}"


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a checked user or account token says, as far as this program reads it; times in Unix seconds."""

    issuer: str = msgspec.field(name="iss")
    subject: str = msgspec.field(name="sub")
    name: str
    issued_at: int = msgspec.field(name="iat")
    expires_at: int = msgspec.field(name="exp", default=0)


def read_token(token: str) -> Claims:
    """The claims of a token whose signature fits its own issuer; whether to trust the issuer is the caller's matter.

    Raises `bad_state` when it is no such token.
    """
    try:
        if len(token) > _LONGEST_TOKEN:
            raise ValueError("too long")
        header, body, signature = token.split(".")
        claims = msgspec.json.decode(_unbase64url(body), type=Claims)
        issuer_kind: KeyKind = "operator" if claims.issuer.startswith("O") else "account"
        key = Ed25519PublicKey.from_public_bytes(raw_public_key(issuer_kind, claims.issuer))
        key.verify(_unbase64url(signature), f"{header}.{body}".encode())
    except (ValueError, msgspec.MsgspecError, InvalidSignature) as error:
        raise FelloeError("bad_state", "a NATS token is damaged or forged") from error
    return claims


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
