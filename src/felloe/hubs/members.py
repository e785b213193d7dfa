"""Who belongs to the network, as the state holds it: one key a member.

A decision is made inside the write that follows from it, so it holds at that very revision of the state, whatever other
hubs do meanwhile.
"""

from collections.abc import Callable

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.hubs.records import HUBS, MEMBER, HubSet, State, decode, encode
from felloe.mesh.credentials import CREDENTIAL_SECONDS
from felloe.mesh.membership import ListedMember

MOST_MEMBERS = 4096

Check = Callable[[ListedMember], None]
"""Raises when a member may not be changed; called at the revision that the change follows."""


class MemberBook:
    """The members on the state. Reading never waits; writes raise what `State.change` raises."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._read: dict[str, tuple[bytes, ListedMember]] = {}

    def find(self, node: NodeId) -> ListedMember | None:
        """The row of a node, revoked or not; `bad_state` when it is damaged."""
        value = self._state.get(MEMBER + node)
        return None if value is None else self._decode(MEMBER + node, value)

    def is_revoked(self, node: NodeId) -> bool:
        """Whether the node was a member and is none any more."""
        member = self.find(node)
        return member is not None and member.revoked_at > 0

    def all(self) -> tuple[ListedMember, ...]:
        """Every row, oldest member first."""
        members = [self._decode(key, value) for key, value in self._state.items(MEMBER).items()]
        return tuple(sorted(members, key=lambda member: (member.joined_at, member.id)))

    def revocations(self, now: float) -> dict[bytes, float]:
        """Raw key and Unix time of each removal and demotion that a live token could still predate.

        What was issued to the key until then is refused: all of it for a removed member, which is issued nothing more,
        and a hub's rights for one that is a spoke now.
        """
        oldest = now - 2 * CREDENTIAL_SECONDS
        ended = {member.public_key: max(member.revoked_at, member.demoted_at) for member in self.all()}
        return {key: at for key, at in ended.items() if at and at > oldest}

    async def add(self, public_key: bytes, name: str, role: Role, now: float) -> ListedMember:
        """List a node by its raw key; one that is listed already keeps its date and role, and takes the new name.

        Raises `forbidden` for a revoked key: it never comes back; also when the network is full.
        """
        node = NodeId(id_from_public_key(public_key))

        def added(listed: ListedMember | None) -> ListedMember:
            if listed is None:
                if len(self._state.items(MEMBER)) >= MOST_MEMBERS:
                    raise FelloeError("forbidden", f"the network is full: it has {MOST_MEMBERS} members")
                return ListedMember(id=node, name=name, role=role, public_key=public_key, joined_at=now)
            if listed.revoked_at:
                raise FelloeError("forbidden", "this node was removed from the network; it needs a new identity")
            return replace(listed, name=name)

        return await self._change(node, added)

    async def revoke(self, node: NodeId, now: float) -> ListedMember:
        """Mark a node as removed for ever; every hub then drops its connections. Raises `not_found`."""
        return await self._change(node, lambda listed: _revoked(_known(listed, node), now))

    async def leave(self, node: NodeId, now: float) -> ListedMember:
        """Mark a node as removed by its own wish. Raises `not_found`, `forbidden` while it is a hub."""

        def left(listed: ListedMember | None) -> ListedMember:
            member = _known(listed, node)
            if member.role == "hub" and not member.revoked_at:
                raise FelloeError("forbidden", f"{member.name} is a hub; demote it before it leaves")
            return _revoked(member, now)

        return await self._change(node, left)

    async def set_role(
        self,
        node: NodeId,
        role: Role,
        now: float,
        *,
        never_hub: bool = False,
        check: Check | None = None,
        term: int | None = None,
    ) -> ListedMember:
        """Give a member a role; `never_hub` bars it from being chosen as a hub automatically.

        A hub that others dial keeps its rights until `end_hub`, because it still has its state to hand over. Raises
        `not_found`, `forbidden` for a revoked member, what `check` raises; with `term`, `not_leader`.
        """

        def changed(listed: ListedMember | None) -> ListedMember:
            member = _known(listed, node)
            if member.revoked_at:
                raise FelloeError("forbidden", f"{member.name} was removed from the network")
            if check is not None:
                check(member)
            return replace(_demoted(member, now, role, self._is_entered(node)), role=role, never_hub=never_hub)

        return await self._change(node, changed, term)

    async def end_hub(self, node: NodeId, now: float, *, term: int) -> None:
        """Take a hub's rights from a member that is to be none any more, just before it leaves the list of hubs.

        Nothing is done for one that was promoted again. Raises `not_found`, `not_leader`.
        """

        def ended(listed: ListedMember | None) -> ListedMember:
            member = _known(listed, node)
            return member if member.role == "hub" or member.demoted_at else replace(member, demoted_at=now)

        await self._change(node, ended, term)

    def _is_entered(self, node: NodeId) -> bool:
        hubs = self._state.get(HUBS)
        return hubs is not None and decode(hubs, HubSet).find(node) is not None

    async def _change(
        self, node: NodeId, function: Callable[[ListedMember | None], ListedMember], term: int | None = None
    ) -> ListedMember:
        key = MEMBER + node

        def change(before: bytes | None) -> bytes | None:
            listed = None if before is None else decode(before, ListedMember)
            after = function(listed)
            return before if after == listed else encode(after)

        value = await self._state.change(key, change, term=term)
        return _known(None if value is None else decode(value, ListedMember), node)

    def _decode(self, key: str, value: bytes) -> ListedMember:
        known = self._read.get(key)
        if known is not None and known[0] is value:
            return known[1]
        member = decode(value, ListedMember)
        if key != MEMBER + member.id or member.id != id_from_public_key(member.public_key):
            raise FelloeError("bad_state", f"the network's state holds another member under {key}")
        self._read[key] = (value, member)
        return member


def _known(listed: ListedMember | None, node: NodeId) -> ListedMember:
    if listed is None:
        raise FelloeError("not_found", f"there is no member {node}")
    return listed


def _demoted(member: ListedMember, now: float, role: Role, entered: bool) -> ListedMember:
    """The member before it takes `role`, with the date at which a hub's rights end, if they end now."""
    if role == "hub":
        return replace(member, demoted_at=0.0)
    return replace(member, demoted_at=now) if member.role == "hub" and not entered else member


def _revoked(member: ListedMember, now: float) -> ListedMember:
    return member if member.revoked_at else replace(member, revoked_at=now)
