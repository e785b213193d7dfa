"""Whatever is asked, dies, comes back or breaks off: no step of a leader costs the state its majority."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from felloe.domain.errors import FelloeError
from felloe.hubs.changes import HubChanges
from felloe.hubs.records import NEXT, Next, decode
from hubs_fakes import FakeNode, HubHouse

COUNT = 6
NODES = st.integers(0, COUNT - 1)
REFUSALS = {
    "invalid_value",
    "node_unreachable",
    "quorum_at_risk",
    "forbidden",
    "deadline_exceeded",
    "network_unreachable",
    "not_leader",
}


class Hubs(RuleBasedStateMachine):
    @initialize(hubs=st.sampled_from([1, 3, 3, 5]), wanted=st.sampled_from([0, 3]), old=st.booleans())
    def begin(self, hubs: int, wanted: int, old: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.house = HubHouse(COUNT)
        self.revoked: set[str] = set()
        for node in self.house.nodes:
            self.house.upkeep(node)
        first = self.house.nodes[0]
        for node in self.house.nodes[1:hubs]:
            self.ask(self.house.upkeep(first).members.set_role(node.id, "hub", self.house.now))
        self.loop.run_until_complete(self.house.live(100))
        assert len(self.house.keepers()) == hubs
        if old:
            self.loop.run_until_complete(self.house.live(800))
        self.ask(self.changes(first).set_wanted(wanted))

    def changes(self, at: FakeNode) -> HubChanges:
        house = self.house
        return HubChanges(
            house.upkeep(at), leader=lambda: None, clock=lambda: house.now, sleep=lambda _: asyncio.sleep(0)
        )

    def ask(self, work: object) -> str:
        """Carry out what an owner asks, without waiting for the leader."""
        try:
            self.loop.run_until_complete(work)  # type: ignore[arg-type]
        except FelloeError as error:
            assert error.code in REFUSALS, error
            return error.code
        return ""

    def asked(self) -> FakeNode | None:
        keepers = self.house.generation().hubs
        living = [node for node in self.house.nodes if node.alive and node.id in keepers]
        return living[0] if living and self.house.has_majority() else None

    def spare(self) -> int:
        keepers = self.house.generation().hubs
        return sum(self.house.by_id[node].alive for node in keepers) - (len(keepers) // 2 + 1)

    @rule(node=NODES)
    def promote(self, node: int) -> None:
        if (at := self.asked()) is not None:
            self.ask(self.changes(at).promote(self.house.nodes[node].id, lambda _: None, seconds=0))

    @rule(node=NODES)
    def demote(self, node: int) -> None:
        if (at := self.asked()) is not None:
            self.ask(self.changes(at).demote(self.house.nodes[node].id, lambda _: None, seconds=0))

    @rule(count=st.sampled_from([0, 1, 3, 5]))
    def want(self, count: int) -> None:
        if (at := self.asked()) is not None:
            self.ask(self.changes(at).set_wanted(count))

    @rule(node=NODES)
    def revoke(self, node: int) -> None:
        at = self.asked()
        target = self.house.nodes[node]
        # Few, so that nodes are left; and never one that the state cannot do without.
        if at is None or self.revoked or len(self.house.generation().hubs) == 1:
            return
        if target.id in self.house.generation().hubs and self.spare() < 1:
            return
        self.ask(self.house.upkeep(at).members.revoke(target.id, self.house.now))
        self.revoked.add(target.name)

    @rule(node=NODES)
    def kill(self, node: int) -> None:
        """Any one dies, but nothing survives the death of the state's only keeper: that is told to the owner."""
        target = self.house.nodes[node]
        if target.id not in self.house.generation().hubs or len(self.house.generation().hubs) > 1:
            target.alive = False

    @rule(node=NODES)
    def come_back(self, node: int) -> None:
        self.house.nodes[node].alive = True

    @rule(node=NODES, serves=st.booleans(), dialled=st.booleans())
    def trouble(self, node: int, serves: bool, dialled: bool) -> None:
        self.house.nodes[node].serves, self.house.nodes[node].dialled = serves, dialled

    @rule(
        gone=st.lists(NODES, max_size=2),
        out=NODES,
        slow=st.lists(NODES, max_size=3),
        seconds=st.sampled_from([0, 40, 200, 700]),
    )
    def demote_in_trouble(self, gone: list[int], out: int, slow: list[int], seconds: int) -> None:
        """One goes while others are dead or do not come up."""
        for number in slow:
            self.house.nodes[number].serves = False
        self.demote(out)
        self.steps(2)
        for number in gone:
            self.kill(number)
        self.time_passes(seconds)

    @rule(where=st.sampled_from([None, "next", "closed"]))
    def break_moves(self, where: str | None) -> None:
        self.house.breaks_move_after = where

    @rule()
    def finish_a_move(self) -> None:
        plan = self.house.read(NEXT) if any(key == NEXT for key, _ in self.house.store.log) else b""
        if plan and all(self.house.is_ready(node) for node in decode(plan, Next).hubs):
            self.house.finish_move()

    @rule(node=NODES)
    def lead(self, node: int) -> None:
        """Another takes over in between, as after a death."""
        target = self.house.nodes[node]
        keeps = target.alive and target.id in self.house.generation().hubs
        if keeps and self.house.has_majority() and self.house.upkeep(target).fit_to_lead():
            self.house.elect(target)

    @rule(writes=st.integers(0, 3))
    def leader_dies_after_some_writes(self, writes: int) -> None:
        leader = self.house.elect_the_fittest()
        if leader is None:
            return
        state = self.house.states[leader.id]
        state.writes_left = writes
        for _ in range(4):
            self.step()
        state.writes_left, state.reachable = None, True

    @rule(times=st.integers(1, 10))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    @rule(seconds=st.sampled_from([6, 70, 400, 700]))
    def time_passes(self, seconds: int) -> None:
        for _ in range(-(-seconds // 20)):
            self.house.now += 20
            self.step()

    def step(self) -> None:
        had, spare, hubs = self.house.has_majority(), self.spare(), self.house.hubs()
        alive = {node.name for node in self.house.nodes if node.alive}
        keepers = self.house.keepers()

        async def one() -> None:
            try:
                await self.house.step()
            except FelloeError as error:
                assert error.code in REFUSALS, error

        self.loop.run_until_complete(one())
        if not had:
            assert self.house.keepers() == keepers, "without a majority nothing moves"
        else:
            assert self.house.has_majority()
            if self.house.keepers() != keepers:
                assert self.house.keepers() <= alive, "the state moves to the living only"
                if not self.leaving & keepers:
                    assert self.spare() > spare, "it moves of itself only for the better"
        gone = set(hubs) - set(self.house.hubs())
        assert len(gone) <= 1
        assert not gone - self.revoked & keepers, "who keeps the state leaves only when revoked"

    @property
    def leaving(self) -> set[str]:
        members = self.house.upkeep(self.house.nodes[0]).members
        wished = {member.name for member in members.all() if member.role == "hub" and not member.revoked_at}
        return {node.name for node in self.house.nodes} - wished

    @invariant()
    def the_state_is_kept_by_an_odd_number_of_hubs(self) -> None:
        if hasattr(self, "house"):
            assert len(self.house.keepers()) in (1, 3, 5)
            assert self.house.hubs()

    def teardown(self) -> None:
        if not hasattr(self, "house"):
            return
        house = self.house
        house.breaks_move_after = None
        for node in house.nodes:
            node.alive = node.serves = node.dialled = True
        self.finish_a_move()
        self.loop.run_until_complete(house.live(2500))
        situation = house.upkeep(house.nodes[0]).situation()
        assert situation is not None
        assert house.leader() is not None
        assert set(house.hubs()) == {node.name for node in house.nodes} - self.leaving, "what is wished for is so"
        assert house.keepers() <= set(house.hubs())
        assert situation.next is None
        barred = {node.id for node in situation.nodes.values() if node.never_hub or node.revoked}
        possible = COUNT - len(barred - {hub.id for hub in situation.hubs.hubs})
        wanted = situation.hubs.wanted
        if wanted:
            assert len(house.hubs()) == min(wanted, possible) or len(house.hubs()) == wanted
        elif possible >= 3:
            assert len(house.hubs()) >= 3
        self.loop.close()


TestHubs = Hubs.TestCase
TestHubs.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
