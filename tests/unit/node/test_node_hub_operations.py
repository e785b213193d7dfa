"""What an owner does about hubs and members: shown on every node, done on hubs that keep the state."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from felloe.console.hub_messages import ChangeStep, HubsRequest
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, Member, Roster
from felloe.hubs.members import MemberBook
from felloe.hubs.records import GENERATION, HUBS, MEMBER, NEXT, Generation, Hub, HubSet, Next, decode, encode
from felloe.mesh.membership import ListedMember
from felloe.node.hub_operations import HubOperations
from hubs_fakes import FakeNode, FakeState, FakeStore


class FakeChanges:
    """Takes what it is told; `problem` is raised after the first sentence."""

    def __init__(self) -> None:
        self.told: list[tuple[str, NodeId]] = []
        self.wanted: list[int] = []
        self.problem: FelloeError | None = None

    async def promote(self, node: NodeId, progress: Callable[[str], None]) -> None:
        self.told.append(("promote", node))
        progress("trying the ports")
        if self.problem is not None:
            raise self.problem
        progress("done")

    async def demote(self, node: NodeId, progress: Callable[[str], None]) -> None:
        self.told.append(("demote", node))

    async def set_wanted(self, count: int) -> None:
        self.wanted.append(count)


class Network:
    """Some nodes, the first `hubs` of them hubs that keep the state; `on` gives the operations on one of them."""

    def __init__(self, count: int = 4, hubs: int = 3, keepers: int | None = None) -> None:
        self.store = FakeStore()
        self.nodes = [FakeNode(number) for number in range(1, count + 1)]
        self.changes = FakeChanges()
        self.leader = self.nodes[0].id
        for place, node in enumerate(self.nodes):
            role = "hub" if place < hubs else "spoke"
            row = ListedMember(id=node.id, name=node.name, role=role, public_key=node.public_key, joined_at=1.0)
            self.write(MEMBER + node.id, encode(row))
        self.write(HUBS, encode(HubSet(hubs=tuple(map(_hub, self.nodes[:hubs])))))
        kept = tuple(node.id for node in self.nodes[: keepers or hubs])
        self.write(GENERATION, encode(Generation(number=7, hubs=kept)))

    def write(self, key: str, value: bytes | None) -> None:
        self.store.commit(len(self.store.log), key, value)

    def on(self, number: int, *, hears: bool = True) -> HubOperations:
        this = self.nodes[number - 1]
        state = FakeState(self.store)
        listed = decode(state.get(MEMBER + this.id) or b"", ListedMember)
        hub = SimpleNamespace(
            state=state,
            members=MemberBook(state),
            changes=self.changes,
            leadership=SimpleNamespace(leader=lambda: self.leader),
        )
        node = SimpleNamespace(
            hub=hub if listed.role == "hub" else None,
            state=SimpleNamespace(value=lambda topic: state.get(topic) if hears else None),
            roster=SimpleNamespace(snapshot=lambda: self.roster(this.id)),
            membership=SimpleNamespace(node=this.id, name=this.name),
        )
        return HubOperations(cast(Any, node))

    def roster(self, this: NodeId) -> Roster:
        members: dict[NodeId, Member] = {}
        hubs = self.hubs()
        for node in self.nodes:
            record = replace(node.record(), roles=("hub",)) if node.name in hubs else node.record()
            members[node.id] = Member(record=record, load=Load(), alive=node.alive, seen_at=0.0)
        return Roster(this, members)

    def hubs(self) -> list[str]:
        value = next(value for key, value in reversed(self.store.log) if key == HUBS)
        return [hub.name for hub in decode(value or b"", HubSet).hubs]


def _hub(node: FakeNode) -> Hub:
    assert node.endpoints is not None
    return Hub(id=node.id, name=node.name, public_key=node.public_key, endpoints=node.endpoints, since=0.0)


async def steps(following: Any) -> list[ChangeStep]:
    return [step async for step in following]


async def _collect(following: Any, told: list[ChangeStep]) -> None:
    async for step in following:
        told.append(step)  # noqa: PERF401 - what came before a failure counts


# Looking


async def test_a_hub_shows_the_hubs_who_leads_and_what_the_network_survives() -> None:
    network = Network()
    network.nodes[2].alive = False
    view = await network.on(2).view()
    assert [(hub.name, hub.alive, hub.ready, hub.keeps_state, hub.leads, hub.this) for hub in view.hubs] == [
        ("node-1", True, True, True, True, False),
        ("node-2", True, True, True, False, True),
        ("node-3", False, False, True, False, False),
    ]
    assert view.hubs[0].addresses[0] == "10.0.0.1:8471"
    assert (view.generation, view.wanted, view.writable) == (7, 0, True)
    assert view.survives == "cannot survive the loss of node-1 or node-2: promote another node (`felloe promote NODE`)"


async def test_a_spoke_shows_what_hubs_tell_everybody_and_does_not_know_who_leads() -> None:
    view = await Network().on(4).view()
    assert [hub.name for hub in view.hubs] == ["node-1", "node-2", "node-3"]
    assert view.survives == "survives the loss of one hub"
    assert not any(hub.leads for hub in view.hubs)


async def test_a_spoke_that_no_hub_has_told_says_so() -> None:
    with pytest.raises(FelloeError, match="no hub has told this node") as refused:
        await Network().on(4, hears=False).view()
    assert refused.value.code == "network_unreachable"


async def test_a_move_of_the_state_is_shown_until_it_is_done() -> None:
    network = Network()
    network.write(NEXT, encode(Next(number=8, hubs=(network.nodes[0].id,))))
    assert (await network.on(1).view()).moving_to == ("node-1",)
    network.write(GENERATION, encode(Generation(number=8, hubs=(network.nodes[0].id,))))
    assert (await network.on(1).view()).moving_to == ()


async def test_a_lost_majority_is_shown() -> None:
    network = Network()
    network.nodes[1].alive = network.nodes[2].alive = False
    assert not (await network.on(1).view()).writable


# Promoting, demoting, how many


async def test_a_promotion_is_told_by_name_and_each_sentence_comes_back() -> None:
    network = Network()
    assert await steps(network.on(2).promote(NameRequest("node-4"))) == [
        ChangeStep(says="trying the ports"),
        ChangeStep(says="done"),
        ChangeStep(ended=True),
    ]
    assert network.changes.told == [("promote", network.nodes[3].id)]


async def test_a_promotion_that_fails_tells_why_after_its_steps() -> None:
    network = Network()
    network.changes.problem = FelloeError("node_unreachable", "10.0.0.4:8473: no answer")
    told: list[ChangeStep] = []
    with pytest.raises(FelloeError, match="8473"):
        await _collect(network.on(1).promote(NameRequest("node-4")), told)
    assert told == [ChangeStep(says="trying the ports")]


async def test_an_unknown_node_is_refused_before_anything_is_done() -> None:
    network = Network()
    with pytest.raises(FelloeError, match="no node is called garage"):
        await steps(network.on(1).promote(NameRequest("garage")))
    assert network.changes.told == []


async def test_a_demotion_from_three_asks_and_one_from_four_does_not() -> None:
    asks = await Network().on(1).demotion(NameRequest("node-2"))
    assert asks.asks
    assert asks.sentence.startswith("Without node-2 the network cannot survive the loss of node-1")
    calm = await Network(count=4, hubs=4, keepers=3).on(1).demotion(NameRequest("node-2"))
    assert (calm.asks, calm.sentence) == (False, "Without node-2 the network survives the loss of one hub.")


async def test_the_demotion_of_a_spoke_is_refused() -> None:
    with pytest.raises(FelloeError, match="node-4 is not a hub"):
        await Network().on(1).demotion(NameRequest("node-4"))


async def test_a_demotion_is_told() -> None:
    network = Network()
    assert await steps(network.on(1).demote(NameRequest(network.nodes[2].id[:6]))) == [ChangeStep(ended=True)]
    assert network.changes.told == [("demote", network.nodes[2].id)]


async def test_the_number_of_hubs_is_set() -> None:
    network = Network()
    await network.on(3).set_wanted(HubsRequest(5))
    assert network.changes.wanted == [5]


@pytest.mark.parametrize("act", ["promote", "demote", "demotion", "set_wanted", "revocation", "revoke"])
async def test_a_spoke_names_the_hubs_where_it_can_be_done(act: str) -> None:
    network = Network()
    network.nodes[1].alive = False
    operations = network.on(4)
    request = HubsRequest(3) if act == "set_wanted" else NameRequest("node-1")
    with pytest.raises(FelloeError, match="on a hub; run it on node-1 or node-3 ") as refused:
        following = getattr(operations, act)(request)
        await (steps(following) if act in ("promote", "demote") else following)
    assert refused.value.code == "wrong_node"


async def test_a_hub_without_the_state_names_those_that_keep_it() -> None:
    network = Network(hubs=4, keepers=3)
    with pytest.raises(FelloeError, match="this one does not; run it on node-1 or node-2 or node-3 "):
        await network.on(4).revoke(NameRequest("node-2"))


# Removing


async def test_a_spoke_is_removed() -> None:
    network = Network()
    asked = await network.on(1).revocation(NameRequest("node-4"))
    assert asked.asks and "never comes back" in asked.sentence and "rotate" not in asked.sentence
    removal = await network.on(1).revoke(NameRequest("node-4"))
    assert (removal.name, removal.role, removal.was_hub) == ("node-4", "spoke", False)
    assert removal.revoked_at > 0
    assert MemberBook(FakeState(network.store)).is_revoked(network.nodes[3].id)
    assert len(network.hubs()) == 3


async def test_a_hub_that_is_removed_leaves_the_hubs_after_it_left_the_members() -> None:
    network = Network()
    before = len(network.store.log)
    removal = await network.on(1).revoke(NameRequest("node-2"))
    assert removal.was_hub
    assert [key for key, _ in network.store.log[before:]] == [MEMBER + network.nodes[1].id, HUBS]
    assert network.hubs() == ["node-1", "node-3"]


async def test_a_removal_that_was_broken_off_is_finished_by_the_next() -> None:
    network = Network()
    operations = network.on(1)
    cast(Any, operations)._node.hub.state.writes_left = 1
    with pytest.raises(FelloeError, match="no writes"):
        await operations.revoke(NameRequest("node-2"))
    assert network.hubs() == ["node-1", "node-2", "node-3"]
    again = network.on(1)
    assert not (await again.revocation(NameRequest("node-2"))).asks
    await again.revoke(NameRequest("node-2"))
    assert network.hubs() == ["node-1", "node-3"]


async def test_the_node_itself_is_not_removed() -> None:
    network = Network()
    for act in (network.on(1).revocation, network.on(1).revoke):
        with pytest.raises(FelloeError, match="felloe leave"):
            await act(NameRequest("node-1"))


async def test_a_removal_that_would_break_the_majority_is_refused() -> None:
    network = Network()
    network.nodes[2].alive = False
    with pytest.raises(FelloeError, match="only 1 of the 3 hubs") as refused:
        await network.on(1).revoke(NameRequest("node-2"))
    assert refused.value.code == "quorum_at_risk"
    # The one that is gone may go.
    assert (await network.on(1).revoke(NameRequest("node-3"))).was_hub


async def test_somebody_who_is_heard_and_not_listed_is_no_member() -> None:
    network = Network()
    network.write(MEMBER + network.nodes[3].id, None)
    with pytest.raises(FelloeError, match="no member of this network"):
        await network.on(1).revoke(NameRequest("node-4"))
