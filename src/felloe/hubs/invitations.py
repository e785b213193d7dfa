"""Invitations: who may still join, one key each, counted exactly whichever hubs are asked at once.

A use is acknowledged by most of the hubs before the node hears of it. The same node key may present the same token
again (its first answer may have been lost), which costs no second use. Whoever does not know the secret learns nothing
about a token.
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
from felloe.hubs.records import INVITATION, State, decode, encode
from felloe.mesh.join_token import ID_BYTES, SECRET_BYTES

_LOG = logging.getLogger(__name__)
MOST_INVITATIONS = 256
_MOST_USES = 1000
_LONGEST_SECONDS = 30 * 24 * 3600
_KEEP_SECONDS = 7 * 24 * 3600
_UNKNOWN = bytes(32)

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


class InvitationBook:
    """The invitations on the state. Writes raise what `State.change` raises; then nothing may be used up, or one use
    by the same node, which costs it no second one.
    """

    def __init__(self, state: State, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._state = state
        self._random = random

    def all(self) -> tuple[Invitation, ...]:
        """Every invitation, newest first, those that ended within a week included."""
        invitations = [decode(value, Invitation) for value in self._state.items(INVITATION).values()]
        return tuple(sorted(invitations, key=lambda invitation: (-invitation.created_at, invitation.id)))

    async def invite(self, role: Role, uses: int, seconds: float, now: float) -> tuple[Invitation, bytes]:
        """A new invitation and its secret, which is not kept. Raises `invalid_value` for odd counts and times."""
        if not 1 <= uses <= _MOST_USES:
            raise FelloeError("invalid_value", f"an invitation has 1 to {_MOST_USES} uses", param="uses")
        if not 1 <= seconds <= _LONGEST_SECONDS:
            days = _LONGEST_SECONDS // 86400
            raise FelloeError("invalid_value", f"an invitation lasts from a second to {days} days", param="seconds")
        await self._forget_old(now)
        secret = self._random(SECRET_BYTES)
        invitation = Invitation(
            id=self._random(ID_BYTES),
            secret_hash=_hash(secret),
            role=role,
            uses=uses,
            created_at=now,
            expires_at=now + seconds,
        )

        def add(before: bytes | None) -> bytes:
            if before is not None and before != encode(invitation):
                raise FelloeError("internal", "two invitations have the same id")
            if before is None and len(self._state.items(INVITATION)) >= MOST_INVITATIONS:
                raise FelloeError("invalid_value", f"there are {MOST_INVITATIONS} invitations; withdraw some first")
            return encode(invitation)

        await self._state.change(_key(invitation.id), add)
        return invitation, secret

    async def redeem(self, identifier: bytes, secret: bytes, node: NodeId, now: float) -> Role:
        """The role that `node` joins with, after the use is acknowledged.

        Raises `token_refused`: with the reason for who knows the secret, without any for who does not.
        """
        invitation = self._find(identifier)
        # The same work for an unknown id as for a wrong secret; only the right secret reaches the state.
        expected = invitation.secret_hash if invitation is not None else _UNKNOWN
        if not hmac.compare_digest(expected, _hash(secret)) or invitation is None:
            _LOG.warning("a join was refused: %s", "unknown token" if invitation is None else "wrong secret")
            raise _not_valid()

        def use(before: bytes | None) -> bytes | None:
            if before is None:
                raise _not_valid()
            present = decode(before, Invitation)
            used = _used(present, node, now)
            return before if used is present else encode(used)

        try:
            await self._state.change(_key(identifier), use)
        except FelloeError as error:
            _LOG.warning("a join with token %s was refused: %s", identifier.hex(), error.detail)
            raise
        return invitation.role

    async def withdraw(self, identifier: bytes) -> None:
        """Let nobody else in by this invitation; raises `not_found`."""

        def withdraw(before: bytes | None) -> bytes:
            if before is None:
                raise FelloeError("not_found", f"there is no invitation {identifier.hex()}")
            return encode(msgspec.structs.replace(decode(before, Invitation), withdrawn=True))

        await self._state.change(_key(identifier), withdraw)

    async def withdraw_open(self, now: float) -> int:
        """Withdraw every invitation that would still let somebody in; how many those were."""
        standing = [invitation.id for invitation in self.all() if invitation.standing(now) == "open"]
        for identifier in standing:
            await self.withdraw(identifier)
        return len(standing)

    def _find(self, identifier: bytes) -> Invitation | None:
        value = self._state.get(_key(identifier))
        return None if value is None else decode(value, Invitation)

    async def _forget_old(self, now: float) -> None:
        def forget(before: bytes | None) -> bytes | None:
            return None if before is None or _is_old(decode(before, Invitation), now) else before

        for invitation in self.all():
            if _is_old(invitation, now):
                await self._state.change(_key(invitation.id), forget)


def _used(invitation: Invitation, node: NodeId, now: float) -> Invitation:
    """The invitation after `node` used it; the same one when it had done so before."""
    standing = invitation.standing(now)
    if node in invitation.joined and standing in ("open", "used up"):
        return invitation
    if standing != "open":
        raise FelloeError("token_refused", f"the token is {standing}")
    return msgspec.structs.replace(invitation, joined=(*invitation.joined, node))


def _not_valid() -> FelloeError:
    return FelloeError("token_refused", "the token is not valid here")


def _is_old(invitation: Invitation, now: float) -> bool:
    return invitation.expires_at + _KEEP_SECONDS <= now


def _key(identifier: bytes) -> str:
    # An id of another length is none of ours; it must not be read as part of a key.
    return INVITATION + (identifier.hex() if len(identifier) == ID_BYTES else "none")


def _hash(secret: bytes) -> bytes:
    # The secret has 160 random bits, so a fast hash is enough.
    return hashlib.sha256(b"felloe invitation 1\0" + secret).digest()
