"""How the leader keeps the hubs, and what an owner asks of them."""

import asyncio
import random

import pytest

from felloe.domain.errors import FelloeError
from felloe.hubs.changes import HubChanges
from felloe.hubs.lease import Leadership
from felloe.hubs.members import MemberBook
from felloe.hubs.records import HUBS, MEMBER, NEXT, HubSet, Next, decode, encode
from hubs_fakes import FakeLeadership, FakeNode, HubHouse, settle
from waiting import until


def names(*numbers: int) -> list[str]:
    return [f"node-{number}" for number in numbers]


class Owner:
    """Asks at one hub, and has time pass while it waits."""

    def __init__(self, house: HubHouse, at: FakeNode) -> None:
        self.house = house
        self.told: list[str] = []
        self.changes = HubChanges(
            house.upkeep(at),
            leader=lambda: house.leader().id if house.leader() else None,  # type: ignore[union-attr]
            clock=lambda: house.now,
            sleep=lambda _: house.live(5.0),
        )

    async def promote(self, node: FakeNode) -> None:
        await self.changes.promote(node.id, self.told.append)

    async def demote(self, node: FakeNode) -> None:
        await self.changes.demote(node.id, self.told.append)


async def three_hubs(count: int) -> tuple[HubHouse, Owner]:
    house = HubHouse(count)
    owner = Owner(house, house.nodes[0])
    await owner.promote(house.nodes[1])
    await owner.promote(house.nodes[2])
    assert sorted(house.hubs()) == names(1, 2, 3)
    assert house.keepers() == set(names(1, 2, 3))
    return house, owner


async def test_three_stable_nodes_become_three_hubs_by_themselves_and_the_state_moves_to_them() -> None:
    house = HubHouse(4)
    await house.live(590)
    assert house.hubs() == names(1)
    await house.live(60)
    assert len(house.hubs()) == 3
    assert house.keepers() == set(house.hubs())
    assert len(house.moves) == 1
    await house.live(2000)
    assert len(house.hubs()) == 3
    assert len(house.moves) == 1


async def test_two_nodes_stay_with_one_hub_and_say_what_that_means() -> None:
    house = HubHouse(2)
    await house.live(2000)
    assert house.hubs() == names(1)
    assert "promote another node" in house.upkeep(house.nodes[0]).survives()


async def test_it_goes_to_three_only_when_three_can_be_dialled() -> None:
    house = HubHouse(3)
    house.nodes[2].dialled = False
    await house.live(3000)
    assert house.hubs() == names(1)
    assert len(house.trials) < 30, "who failed waits longer each time"
    house.nodes[2].dialled = True
    await house.live(1200)
    assert sorted(house.hubs()) == names(1, 2, 3)


@pytest.mark.parametrize("unfit", ["old", "hidden", "gone"])
async def test_nodes_that_cannot_be_hubs_are_left_alone(unfit: str) -> None:
    house = HubHouse(3)
    node = house.nodes[2]
    if unfit == "old":
        node.version = "0.0.1"
    elif unfit == "hidden":
        node.endpoints = None
    else:
        node.alive = False
    await house.live(2000)
    assert house.hubs() == names(1)
    assert house.trials.count(node.id) == 0


async def test_promoting_waits_until_the_state_is_there_and_tells_how_far_it_is() -> None:
    house, owner = await three_hubs(3)
    assert any("trying the ports of node-3" in line for line in owner.told)
    assert owner.told[-1] == "the network survives the loss of one hub"
    assert any("cannot survive the loss of node-1" in line for line in owner.told)
    entered = decode(house.read(HUBS), HubSet).hubs[1]
    assert entered.endpoints.hosts == ("host-2", "10.0.0.2"), "the address at which it was reached is first"


async def test_the_leader_may_be_another_hub_than_the_one_asked() -> None:
    house, _ = await three_hubs(4)
    house.elect(house.nodes[2])
    await Owner(house, house.nodes[1]).promote(house.nodes[3])
    assert "node-4" in house.hubs()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"dialled": False}, "node_unreachable", "node-2:8473: Connection refused"),
        ({"alive": False}, "node_unreachable", "not in touch"),
        ({"version": "0.0.1"}, "version_refused", "0.0.1"),
        ({"endpoints": None}, "node_unreachable", "no address"),
    ],
)
async def test_a_node_that_cannot_be_a_hub_is_refused_and_nothing_is_written(
    change: dict[str, object], code: str, words: str
) -> None:
    house = HubHouse(2)
    for name, value in change.items():
        setattr(house.nodes[1], name, value)
    before = len(house.store.log)
    with pytest.raises(FelloeError) as caught:
        await Owner(house, house.nodes[0]).promote(house.nodes[1])
    assert caught.value.code == code
    assert words in caught.value.detail
    assert len(house.store.log) == before


async def test_a_hub_is_not_promoted_twice_and_a_stranger_not_at_all() -> None:
    house, owner = await three_hubs(3)
    with pytest.raises(FelloeError, match="already"):
        await owner.promote(house.nodes[1])
    with pytest.raises(FelloeError, match="not_found"):
        await owner.promote(FakeNode(99))
    with pytest.raises(FelloeError, match="not_found"):
        await owner.demote(FakeNode(99))


async def test_a_promotion_that_does_not_get_on_ends_with_what_it_waits_for_and_goes_on() -> None:
    house = HubHouse(2)
    house.nodes[1].serves = False
    owner = Owner(house, house.nodes[0])
    with pytest.raises(FelloeError, match="node-2 starts its servers") as caught:
        await owner.promote(house.nodes[1])
    assert caught.value.code == "deadline_exceeded"
    assert house.hubs() == names(1, 2)


async def test_demoting_moves_the_state_first_and_the_node_is_not_chosen_again() -> None:
    house, owner = await three_hubs(4)
    await owner.demote(house.nodes[2])
    assert "node-3" not in house.hubs()
    assert house.nodes[2].id not in house.generation().hubs
    await house.live(3000)
    assert sorted(house.hubs()) == names(1, 2, 4), "another node takes its place"
    assert house.keepers() == set(names(1, 2, 4))


async def test_a_stable_node_takes_a_hubs_place_before_the_state_shrinks() -> None:
    house, owner = await three_hubs(4)
    await house.live(1000)
    await owner.demote(house.nodes[2])
    assert [len(hubs) for hubs in house.moves] == [3, 3]


async def test_a_demoted_hub_loses_its_rights_just_before_it_leaves_the_hubs() -> None:
    house, owner = await three_hubs(3)
    left, members = house.nodes[2], house.upkeep(house.nodes[0]).members
    begun = len(house.store.log)
    await owner.demote(left)
    keys = [key for key, _ in house.store.log[begun:] if key in (HUBS, MEMBER + left.id)]
    assert keys == [MEMBER + left.id, MEMBER + left.id, HUBS], "asked for; then, once the state has moved, carried out"
    assert list(members.revocations(house.now)) == [left.public_key]
    await owner.promote(left)
    assert members.revocations(house.now) == {}


async def test_the_leader_resigns_before_it_is_demoted() -> None:
    house, owner = await three_hubs(3)
    assert house.leader() is house.nodes[0]
    await owner.demote(house.nodes[0])
    assert house.leader() in house.nodes[1:]
    assert sorted(house.hubs()) == names(2, 3)


async def test_the_only_keeper_of_the_state_is_not_demoted() -> None:
    house = HubHouse(2)
    owner = Owner(house, house.nodes[0])
    await owner.promote(house.nodes[1])
    with pytest.raises(FelloeError, match="promote a third") as caught:
        await owner.demote(house.nodes[0])
    assert caught.value.code == "quorum_at_risk"
    assert house.keepers() == set(names(1))


async def test_the_last_hub_and_a_needed_hub_are_not_demoted() -> None:
    house = HubHouse(3)
    with pytest.raises(FelloeError, match="last hub"):
        await Owner(house, house.nodes[0]).demote(house.nodes[0])
    house, owner = await three_hubs(3)
    house.nodes[2].alive = False
    with pytest.raises(FelloeError, match="break the quorum") as caught:
        await owner.demote(house.nodes[1])
    assert caught.value.code == "quorum_at_risk"
    await owner.demote(house.nodes[2])
    assert sorted(house.hubs()) == names(1, 2)


async def test_of_two_hubs_that_are_demoted_at_once_one_stays() -> None:
    house = HubHouse(2)
    await Owner(house, house.nodes[0]).promote(house.nodes[1])
    first, second = (Owner(house, node) for node in house.nodes)
    results = await asyncio.gather(first.demote(house.nodes[0]), second.demote(house.nodes[1]), return_exceptions=True)
    errors = [result for result in results if isinstance(result, FelloeError)]
    assert [error.code for error in errors] == ["quorum_at_risk"]


async def test_a_hub_that_is_gone_for_ten_minutes_is_replaced_and_one_that_comes_back_is_not() -> None:
    house, _ = await three_hubs(4)
    await house.live(1000)
    house.nodes[2].alive = False
    await house.live(500)
    house.nodes[2].alive = True
    await house.live(100)
    assert sorted(house.hubs()) == names(1, 2, 3)
    house.nodes[2].alive = False
    await house.live(700)
    assert sorted(house.hubs()) == names(1, 2, 4)
    assert house.keepers() == set(names(1, 2, 4))
    house.nodes[2].alive = True
    await house.live(3000)
    assert sorted(house.hubs()) == names(1, 2, 4)


async def test_a_lost_hub_that_nobody_can_replace_stays_because_two_keepers_are_better_than_one() -> None:
    house, _ = await three_hubs(3)
    house.nodes[2].alive = False
    await house.live(5000)
    assert sorted(house.hubs()) == names(1, 2, 3)
    assert len(house.moves) == 1
    assert "cannot survive the loss of node-1 or node-2" in house.upkeep(house.nodes[0]).survives()


async def test_a_short_absence_moves_no_state_and_a_longer_one_does_where_a_hub_is_spare() -> None:
    house, owner = await three_hubs(4)
    await owner.promote(house.nodes[3])
    house.nodes[2].alive = False
    await house.live(20)
    assert len(house.moves) == 1
    await house.live(30)
    assert house.keepers() == set(names(1, 2, 4))


async def test_a_hub_that_slept_does_not_take_the_others_for_lost() -> None:
    house, _ = await three_hubs(4)
    house.nodes[2].alive = False
    await house.live(10)
    house.now += 3600
    await house.live(300)
    assert "node-3" in house.hubs()


async def test_a_revoked_hub_is_removed_at_once() -> None:
    house, _ = await three_hubs(3)
    await house.upkeep(house.nodes[0]).members.revoke(house.nodes[2].id, house.now)
    await house.live(10)
    assert sorted(house.hubs()) == names(1, 2)
    assert house.keepers() < set(names(1, 2))


async def test_the_owner_sets_how_many_and_the_leader_sees_to_it() -> None:
    house = HubHouse(6)
    owner = Owner(house, house.nodes[0])
    await house.live(1000)
    await owner.changes.set_wanted(5)
    await house.live(300)
    assert len(house.hubs()) == len(house.keepers()) == 5
    await owner.changes.set_wanted(1)
    await house.live(300)
    assert house.hubs() == names(1)
    assert house.keepers() == set(names(1))
    for count in (2, 4, -1, 7):
        with pytest.raises(FelloeError, match="invalid_value"):
            await owner.changes.set_wanted(count)


async def test_promoting_one_more_than_wanted_makes_the_number_automatic() -> None:
    house = HubHouse(2)
    owner = Owner(house, house.nodes[0])
    await owner.changes.set_wanted(1)
    await owner.promote(house.nodes[1])
    assert any("automatic" in line for line in owner.told)
    await house.live(1000)
    assert house.hubs() == names(1, 2)


async def test_a_hub_that_moved_is_entered_anew() -> None:
    house, _ = await three_hubs(3)
    node = house.nodes[1]
    assert node.endpoints is not None
    node.endpoints = type(node.endpoints)(hosts=("10.9.9.9",), peer=1, mesh=2, route=3, state=4)
    await house.live(10)
    hub = decode(house.read(HUBS), HubSet).find(node.id)
    assert hub is not None
    assert hub.endpoints == node.endpoints
    writes = len(house.store.log)
    await house.live(60)
    assert len(house.store.log) == writes


@pytest.mark.parametrize("where", ["next", "closed"])
async def test_a_new_leader_goes_on_with_a_move_that_was_broken_off(where: str) -> None:
    house, owner = await three_hubs(5)
    house.breaks_move_after = where
    with pytest.raises(FelloeError):
        await owner.demote(house.nodes[0])
    house.breaks_move_after = None
    house.elect(house.nodes[1])
    if where == "closed":
        house.finish_move()
    await house.live(60)
    assert "node-1" not in house.keepers()
    assert "node-1" not in house.hubs()


async def test_a_move_that_is_no_longer_wanted_is_dropped_and_one_that_is_closed_is_not() -> None:
    house, _ = await three_hubs(3)
    plan = Next(number=9, hubs=(house.nodes[0].id,))
    house.write(NEXT, encode(plan))
    await house.live(5)
    assert house.read(NEXT) == encode(Next(number=9, hubs=()))
    closed = encode(Next(number=9, hubs=plan.hubs, closed=True))
    house.write(NEXT, closed)
    await house.live(60)
    assert house.read(NEXT) == closed


async def test_only_the_leader_acts_and_an_old_leader_writes_nothing() -> None:
    house = HubHouse(3)
    await house.live(590)
    upkeep = house.upkeep(house.nodes[0])
    house.now += 20

    class Stale:
        def term(self) -> int | None:
            return 1

    class Nobody:
        def term(self) -> int | None:
            return None

    house.elect(house.nodes[1])
    before = len(house.store.log)
    assert await upkeep.step(Nobody()) is None  # type: ignore[arg-type]
    with pytest.raises(FelloeError, match="not_leader"):
        for _ in range(5):
            await upkeep.step(Stale())  # type: ignore[arg-type]
    assert len(house.store.log) == before


async def test_nothing_is_done_without_a_state() -> None:
    house = HubHouse(1)
    upkeep = house.upkeep(house.nodes[0])
    house.write(HUBS, None)
    assert (upkeep.situation(), upkeep.fit_to_lead(), upkeep.survives()) == (None, False, "")


async def test_it_runs_with_a_real_lease() -> None:
    house = HubHouse(3)
    house.now += 700
    upkeep = house.upkeep(house.nodes[0])
    state = house.states[house.nodes[0].id]
    house.write("lease", None)
    leadership = Leadership(
        state, house.nodes[0].id, clock=lambda: house.now, wants=upkeep.fit_to_lead, random=random.Random(1).random
    )
    await MemberBook(state).set_role(house.nodes[1].id, "hub", house.now)
    tasks = [asyncio.create_task(leadership.run()), asyncio.create_task(upkeep.run(leadership))]
    await until(lambda: house.hubs() == names(1, 2))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_hub_that_is_promoted_again_while_it_is_being_removed_stays() -> None:
    house = HubHouse(3)
    owner = Owner(house, house.nodes[0])
    await owner.promote(house.nodes[1])
    leader, other = house.upkeep(house.nodes[0]), house.upkeep(house.nodes[1])
    await leader.members.set_role(house.nodes[1].id, "spoke", house.now)
    state = house.states[house.nodes[0].id]
    state.held = True
    removal = asyncio.create_task(leader.step(FakeLeadership(house, house.nodes[0].id)))  # type: ignore[arg-type]
    await settle()
    assert state.waiting
    await other.members.set_role(house.nodes[1].id, "hub", house.now)
    state.held = False
    state.release()
    await removal
    assert house.hubs() == names(1, 2)
