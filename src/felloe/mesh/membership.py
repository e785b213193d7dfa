"""Who belongs to the network: the hub's list of members, and what a node knows of its own membership."""

from collections.abc import Callable

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh.credentials import CREDENTIAL_SECONDS

_MOST_MEMBERS = 4096
LONGEST_NAME = 64


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What a node keeps of its network, beside its credential and trust list. `account` is a public nkey.

    `hubs` are peer addresses (`host:port`) to renew at, `nats_urls` where to connect.
    """

    network: NetworkId
    node: NodeId
    name: str
    role: Role
    account: str
    nats_urls: tuple[str, ...]
    hubs: tuple[str, ...]


class ListedMember(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the hub's list; times in Unix seconds. `revoked_at` is 0 for members in good standing.

    `never_hub`: the owner demoted it, so it is not chosen as a hub again unless the owner promotes it.
    """

    id: NodeId
    name: str
    role: Role
    public_key: bytes
    joined_at: float
    revoked_at: float = 0.0
    never_hub: bool = False


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    members: tuple[ListedMember, ...]


class MemberList:
    """Owns the list of members. `save` stores its bytes durably before it returns, or raises."""

    def __init__(self, save: Callable[[bytes], None], *, stored: bytes = b"") -> None:
        self._save = save
        self._members = {member.id: member for member in _read(stored)}

    async def add(self, public_key: bytes, name: str, role: Role, now: float) -> ListedMember:
        """List a node by its raw key; one that is listed already keeps its date and takes the new name and role.

        Raises `forbidden` for a revoked key: it never comes back.
        """
        node = NodeId(id_from_public_key(public_key))
        listed = self._members.get(node)
        if listed is not None and listed.revoked_at:
            raise FelloeError("forbidden", "this node was removed from the network; it needs a new identity")
        if listed is None and len(self._members) >= _MOST_MEMBERS:
            raise FelloeError("forbidden", f"the network is full: it has {_MOST_MEMBERS} members")
        joined_at = now if listed is None else listed.joined_at
        member = ListedMember(id=node, name=name, role=role, public_key=public_key, joined_at=joined_at)
        if member != listed:
            self._replace(member)
        return member

    def find(self, node: NodeId) -> ListedMember | None:
        """The row of a node, revoked or not."""
        return self._members.get(node)

    def is_revoked(self, node: NodeId) -> bool:
        """Whether the node was a member and is none any more."""
        member = self._members.get(node)
        return member is not None and member.revoked_at > 0

    def revoke(self, node: NodeId, now: float) -> ListedMember:
        """Mark a node as removed; the caller then pushes the account's new token. Raises `not_found`."""
        member = self._members.get(node)
        if member is None:
            raise FelloeError("not_found", f"there is no member {node}")
        if not member.revoked_at:
            member = msgspec.structs.replace(member, revoked_at=now)
            self._replace(member)
        return member

    async def leave(self, node: NodeId, now: float) -> None:
        """Mark a node as removed by its own wish. Raises `not_found`."""
        self.revoke(node, now)

    def revocations(self, now: float) -> dict[bytes, float]:
        """Raw key and time of each revocation that a live token could still predate."""
        oldest = now - 2 * CREDENTIAL_SECONDS
        return {m.public_key: m.revoked_at for m in self._members.values() if m.revoked_at > oldest}

    def all(self) -> tuple[ListedMember, ...]:
        """Every row, oldest member first."""
        return tuple(sorted(self._members.values(), key=lambda member: member.joined_at))

    def _replace(self, member: ListedMember) -> None:
        members = self._members | {member.id: member}
        self._save(msgspec.json.encode(_Stored(version=1, members=tuple(members.values()))))
        self._members = members


def _read(stored: bytes) -> tuple[ListedMember, ...]:
    if not stored:
        return ()
    try:
        record = msgspec.json.decode(stored, type=_Stored)
    except msgspec.MsgspecError as error:
        raise FelloeError("bad_state", "the list of members is damaged") from error
    if record.version != 1:
        raise FelloeError("bad_state", f"the list of members is of version {record.version}, not 1")
    return record.members
