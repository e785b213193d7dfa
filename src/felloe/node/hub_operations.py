"""What an owner sees and does about the hubs and the members, carried out on the parts of a running node."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from felloe.console.hub_messages import ChangeStep, Consequence, HubRow, HubsRequest, HubsView, Removal
from felloe.console.messages import NameRequest, Nothing
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.addresses import peer_addresses
from felloe.hubs.changes import HubChanges
from felloe.hubs.records import GENERATION, HUBS, MEMBER, NEXT, Generation, HubSet, Next, decode, encode
from felloe.hubs.records import Hub as HubRecord
from felloe.hubs.rules import majority, state_hubs, survives
from felloe.mesh.membership import ListedMember
from felloe.node.hub import Hub
from felloe.node.naming import Known, resolve

if TYPE_CHECKING:
    from felloe.node.node import Node

Record = TypeVar("Record", bound=Struct)
Work = Callable[[Callable[[str], None]], Awaitable[None]]


class HubOperations:
    """Implements the console's `HubOperations` for one node: everything on a hub, looking on every node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def view(self) -> HubsView:
        """The hubs as this node knows them. Raises `network_unreachable` when no hub has told it yet."""
        hubs, generation = self._told(HUBS, HubSet), self._generation()
        if hubs is None or generation is None:
            raise FelloeError("network_unreachable", "no hub has told this node yet which nodes are hubs")
        alive, following = self.alive(), self._told(NEXT, Next)
        moving = following is not None and following.number > generation.number
        names = {hub.id: hub.name for hub in hubs.hubs}
        kept_up = sum(node in alive for node in generation.hubs)
        return HubsView(
            hubs=tuple(self._row(hub, generation, alive) for hub in hubs.hubs),
            wanted=hubs.wanted,
            generation=generation.number,
            survives=survives(hubs, generation, alive),
            writable=kept_up >= majority(len(generation.hubs)),
            moving_to=tuple(names.get(node, node) for node in following.hubs) if moving and following else (),
        )

    async def set_wanted(self, request: HubsRequest) -> HubsView:
        """Keep this many hubs; the leader sees to it."""
        await self._changes("the number of hubs is set").set_wanted(request.wanted)
        return await self.view()

    async def promote(self, request: NameRequest) -> AsyncGenerator[ChangeStep, None]:
        """Make a node a hub; ends when its servers are up and the state is where it belongs."""
        changes, node = self._changes("a node is promoted"), self.find(request.name).id
        async for step in _followed(lambda progress: changes.promote(node, progress)):
            yield step

    async def demotion(self, request: NameRequest) -> Consequence:
        """What the network would survive without this hub."""
        self._changes("a hub is demoted")
        node = self.find(request.name)
        hubs, generation = self._told(HUBS, HubSet), self._generation()
        if hubs is None or generation is None or hubs.find(node.id) is None:
            raise FelloeError("invalid_value", f"{node.name} is not a hub")
        alive = self.alive()
        rest = replace(hubs, hubs=tuple(hub for hub in hubs.hubs if hub.id != node.id))
        keepers = state_hubs([hub.id for hub in rest.hubs], alive, generation.hubs)
        spare = sum(one in alive for one in keepers) - majority(len(keepers))
        afterwards = replace(generation, hubs=keepers)
        return Consequence(
            id=node.id,
            name=node.name,
            sentence=f"Without {node.name} the network {survives(rest, afterwards, alive)}.",
            asks=spare < 1 and bool(rest.hubs),
        )

    async def demote(self, request: NameRequest) -> AsyncGenerator[ChangeStep, None]:
        """Make a hub a spoke; ends when the state and the hubs do without it."""
        changes, node = self._changes("a hub is demoted"), self.find(request.name).id
        async for step in _followed(lambda progress: changes.demote(node, progress)):
            yield step

    async def recovery(self) -> Consequence:
        """What it means to go on without the hubs that are lost. Raises as `recover`."""
        hub = self._recoverable()
        this, alive = hub.identity.membership, self.alive()
        lost = sorted(one.name for one in hub.hubs.hubs if one.id != this.node and one.id not in alive)
        return Consequence(
            id=this.node,
            name=this.name,
            sentence=(
                f"{this.name} keeps the network's state alone from now on, as it saw it last. "
                f"{', '.join(lost) or 'The other hubs'} will be spokes when they come back."
            ),
            asks=True,
        )

    async def recover(self, request: Nothing) -> HubsView:
        """Go on without the hubs that are lost for good; this one becomes the only one.

        Raises `wrong_node` where the state was never kept, `forbidden` while it is well.
        """
        hub = self._recoverable()
        this = hub.identity.membership.node
        own = tuple(one for one in hub.hubs.hubs if one.id == this)
        replacing = {HUBS: encode(replace(hub.hubs, hubs=own))}
        for member in hub.members.all():
            if member.role == "hub" and member.id != this:
                replacing[MEMBER + member.id] = encode(replace(member, role="spoke"))
        await hub.state.start_over(replacing)
        return await self.view()

    def _recoverable(self) -> Hub:
        hub = self._node.hub
        if hub is None or not hub.state.generations.keeps:
            raise FelloeError("wrong_node", "the state can be recovered on a hub that kept it only")
        return hub

    async def revocation(self, request: NameRequest) -> Consequence:
        """What it means to remove this member. Raises as `revoke`."""
        hub = self.acting_hub("a node is removed")
        member = self._check_revocation(hub, self._member(hub, request.name))
        sentence = f"{member.name} ({member.role}, {member.id}) is removed for good: its key never comes back."
        if self._is_hub(member):
            sentence += " It is a hub; after this, replace the network's signing keys with `felloe rotate --now`."
        return Consequence(id=member.id, name=member.name, sentence=sentence, asks=not member.revoked_at)

    async def revoke(self, request: NameRequest) -> Removal:
        """Remove a member for good, and from the hubs when it is one.

        The member goes first: every hub lets it in no more from that moment, and drops its routes when it sees a
        removed node leave the hubs. If this ends in between, the leading hub takes it from the hubs; the other way
        round it would enter it again.
        """
        hub = self.acting_hub("a node is removed")
        member = self._check_revocation(hub, self._member(hub, request.name))
        was_hub = self._is_hub(member)
        removed = await hub.members.revoke(member.id, time.time())
        await hub.state.change(HUBS, lambda before: _without(before, member.id))
        return Removal(
            id=removed.id,
            name=removed.name,
            role=removed.role,
            joined_at=removed.joined_at,
            revoked_at=removed.revoked_at,
            was_hub=was_hub,
        )

    def find(self, asked: str) -> Known:
        """The node meant by a name, an id or the beginning of one, of the members and of who is heard."""
        heard = {node: Known(node, member.record.name) for node, member in self._node.roster.snapshot().members.items()}
        listed: dict[NodeId, Known] = {}
        if self._node.hub is not None:
            listed = {one.id: Known(one.id, one.name, one.revoked_at > 0) for one in self._node.hub.members.all()}
        return resolve(asked, (heard | listed).values())

    def acting_hub(self, what: str) -> Hub:
        """This node as a hub that can change the state; `what` is a sentence's beginning, such as "a key is made".

        Raises `wrong_node` naming the hubs where it can be done.
        """
        generation = self._generation()
        hub, this = self._node.hub, self._node.membership.node
        if hub is None:
            raise FelloeError("wrong_node", f"{what} on a hub; {self.elsewhere()}")
        if generation is not None and this not in generation.hubs:
            raise FelloeError(
                "wrong_node",
                f"{what} on a hub that keeps the network's state, and this one does not; {self.elsewhere()}",
            )
        return hub

    def elsewhere(self) -> str:
        """Where the owner should run a command that is refused here."""
        hubs, generation = self._told(HUBS, HubSet), self._generation()
        if hubs is None:
            return "run it there"
        alive = self.alive()
        living = [hub for hub in hubs.hubs if hub.id in alive] or list(hubs.hubs)
        keepers = [hub for hub in living if generation is None or hub.id in generation.hubs] or living
        return f"run it on {' or '.join(sorted(hub.name for hub in keepers))}"

    def alive(self) -> set[NodeId]:
        """The nodes that are alive as far as this one knows."""
        members = self._node.roster.snapshot().members
        return {node for node, member in members.items() if member.alive} | {self._node.membership.node}

    def leader(self) -> NodeId | None:
        """The hub that leads; None where this node does not know."""
        hub = self._node.hub
        return None if hub is None or hub.leadership is None else hub.leadership.leader()

    def _generation(self) -> Generation | None:
        """The newest one heard of: a hub that keeps no state may have an old copy."""
        own = self._node.hub.state.get(GENERATION) if self._node.hub is not None else None
        found = [decode(value, Generation) for value in (own, self._node.state.value(GENERATION)) if value is not None]
        return max(found, key=lambda generation: generation.number, default=None)

    def _told(self, key: str, kind: type[Record]) -> Record | None:
        """The newest value known: a hub's own state, else what hubs tell everybody."""
        own = self._node.hub.state.get(key) if self._node.hub is not None else None
        value = own if own is not None else self._node.state.value(key)
        return None if value is None else decode(value, kind)

    def _changes(self, what: str) -> HubChanges:
        changes = self.acting_hub(what).changes
        if changes is None:
            raise FelloeError("not_leader", "this hub is still starting")
        return changes

    def _row(self, hub: HubRecord, generation: Generation, alive: set[NodeId]) -> HubRow:
        heard = self._node.roster.snapshot().members.get(hub.id)
        return HubRow(
            id=hub.id,
            name=hub.name,
            addresses=peer_addresses(hub.endpoints),
            alive=hub.id in alive,
            ready=hub.id in alive and heard is not None and "hub" in heard.record.roles,
            keeps_state=hub.id in generation.hubs,
            leads=hub.id == self.leader(),
            this=hub.id == self._node.membership.node,
        )

    def _member(self, hub: Hub, asked: str) -> ListedMember:
        found = self.find(asked)
        member = hub.members.find(found.id)
        if member is None:
            raise FelloeError("not_found", f"{found.name} is no member of this network")
        return member

    def _is_hub(self, member: ListedMember) -> bool:
        hubs = self._told(HUBS, HubSet)
        return member.role == "hub" or (hubs is not None and hubs.find(member.id) is not None)

    def _check_revocation(self, hub: Hub, member: ListedMember) -> ListedMember:
        if member.id == self._node.membership.node:
            raise FelloeError("wrong_node", "this is the node itself; to take it out of the network use `felloe leave`")
        hubs, generation = self._told(HUBS, HubSet), self._generation()
        if hubs is not None and {one.id for one in hubs.hubs} == {member.id}:
            raise FelloeError("quorum_at_risk", f"{member.name} is the last hub of the network")
        if generation is not None and member.id in generation.hubs:
            left = len((set(generation.hubs) & self.alive()) - {member.id})
            if left < majority(len(generation.hubs)):
                raise FelloeError(
                    "quorum_at_risk",
                    f"without {member.name} only {left} of the {len(generation.hubs)} hubs that keep the network's "
                    "state would be alive, and it could not be changed any more",
                )
        return member


async def _followed(work: Work) -> AsyncGenerator[ChangeStep, None]:
    """Each sentence of the work as a step. Who stops listening ends the waiting, not the change."""
    said: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(said.put_nowait))
    task.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (sentence := await said.get()) is not None:
            yield ChangeStep(says=sentence)
        await task
        yield ChangeStep(ended=True)
    finally:
        task.cancel()
        await asyncio.wait({task})


def _without(before: bytes | None, node: NodeId) -> bytes | None:
    """The hubs without a node; a network never has none."""
    if before is None:
        return None
    hubs = decode(before, HubSet)
    rest = tuple(hub for hub in hubs.hubs if hub.id != node)
    return before if not rest or len(rest) == len(hubs.hubs) else encode(replace(hubs, hubs=rest))
