"""The hub's invitations: who may still join, counted so that a crash never gives one use too many.

A use is stored before it is acknowledged. The same node key may present the same token again (its first answer may
have been lost), which costs no second use. Whoever does not know the secret learns nothing about a token.
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable
from typing import Literal

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Role
from felloe.mesh.join_token import ID_BYTES, SECRET_BYTES

_LOG = logging.getLogger(__name__)
_MOST_INVITATIONS = 256
_MOST_USES = 1000
_LONGEST_SECONDS = 30 * 24 * 3600
_KEEP_SECONDS = 7 * 24 * 3600

Standing = Literal["open", "expired", "used up", "withdrawn"]


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """One invitation as it is stored; times in Unix seconds. `joined` are the nodes that used it."""

    id: bytes
    secret_hash: bytes
    role: Role
    uses: int
    created_at: float
    expires_at: float
    joined: tuple[NodeId, ...] = ()
    withdrawn: bool = False

    def standing(self, now: float) -> Standing:
        """Whether it still lets anybody in, and if not, why."""
        if self.withdrawn:
            return "withdrawn"
        if now >= self.expires_at:
            return "expired"
        return "used up" if len(self.joined) >= self.uses else "open"


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    invitations: tuple[Invitation, ...]


class Invitations:
    """Owns the invitations of a network. `save` stores its bytes durably before it returns, or raises."""

    def __init__(
        self,
        save: Callable[[bytes], None],
        *,
        stored: bytes = b"",
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._save = save
        self._random = random
        self._invitations = {invitation.id: invitation for invitation in _read(stored)}

    def invite(self, role: Role, uses: int, seconds: float, now: float) -> tuple[Invitation, bytes]:
        """A new invitation and its secret, which is not kept. Raises `invalid_value` for odd counts and times."""
        if not 1 <= uses <= _MOST_USES:
            raise FelloeError("invalid_value", f"an invitation has 1 to {_MOST_USES} uses", param="uses")
        if not 1 <= seconds <= _LONGEST_SECONDS:
            days = _LONGEST_SECONDS // 86400
            raise FelloeError("invalid_value", f"an invitation lasts from a second to {days} days", param="seconds")
        secret = self._random(SECRET_BYTES)
        invitation = Invitation(
            id=self._random(ID_BYTES),
            secret_hash=_hash(secret),
            role=role,
            uses=uses,
            created_at=now,
            expires_at=now + seconds,
        )
        kept = self._worth_keeping(now)
        if len(kept) >= _MOST_INVITATIONS:
            raise FelloeError("invalid_value", f"there are {_MOST_INVITATIONS} invitations; withdraw some first")
        self._replace(kept | {invitation.id: invitation})
        return invitation, secret

    async def redeem(self, identifier: bytes, secret: bytes, node: NodeId, now: float) -> Role:
        """The role that `node` joins with, after storing the use.

        Raises `token_refused`: with the reason for who knows the secret, without any for who does not. Raises what
        `save` raises; nothing is used up then.
        """
        invitation = self._invitations.get(identifier)
        # The same work for an unknown id as for a wrong secret.
        expected = invitation.secret_hash if invitation is not None else bytes(32)
        if not hmac.compare_digest(expected, _hash(secret)) or invitation is None:
            _LOG.warning("a join was refused: %s", "unknown token" if invitation is None else "wrong secret")
            raise FelloeError("token_refused", "the token is not valid here")
        standing = invitation.standing(now)
        if node in invitation.joined and standing in ("open", "used up"):
            return invitation.role
        if standing != "open":
            _LOG.warning("a join with token %s was refused: it is %s", identifier.hex(), standing)
            raise FelloeError("token_refused", f"the token is {standing}")
        used = msgspec.structs.replace(invitation, joined=(*invitation.joined, node))
        self._replace(self._invitations | {identifier: used})
        return invitation.role

    def withdraw(self, identifier: bytes) -> None:
        """Let nobody else in by this invitation; raises `not_found`."""
        invitation = self._invitations.get(identifier)
        if invitation is None:
            raise FelloeError("not_found", f"there is no invitation {identifier.hex()}")
        self._replace(self._invitations | {identifier: msgspec.structs.replace(invitation, withdrawn=True)})

    def all(self) -> tuple[Invitation, ...]:
        """Every invitation, newest first, those that ended within a week included."""
        return tuple(sorted(self._invitations.values(), key=lambda invitation: -invitation.created_at))

    def _worth_keeping(self, now: float) -> dict[bytes, Invitation]:
        return {
            identifier: invitation
            for identifier, invitation in self._invitations.items()
            if invitation.expires_at + _KEEP_SECONDS > now
        }

    def _replace(self, invitations: dict[bytes, Invitation]) -> None:
        # Stored first: if storing fails, memory still says what the disk says.
        self._save(msgspec.json.encode(_Stored(version=1, invitations=tuple(invitations.values()))))
        self._invitations = invitations


def _read(stored: bytes) -> tuple[Invitation, ...]:
    if not stored:
        return ()
    try:
        record = msgspec.json.decode(stored, type=_Stored)
    except msgspec.MsgspecError as error:
        raise FelloeError("bad_state", "the list of invitations is damaged") from error
    if record.version != 1:
        raise FelloeError("bad_state", f"the list of invitations is of version {record.version}, not 1")
    return record.invitations


def _hash(secret: bytes) -> bytes:
    # The secret has 160 random bits, so a fast hash is enough.
    return hashlib.sha256(b"felloe invitation 1\0" + secret).digest()
