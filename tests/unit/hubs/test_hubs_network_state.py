"""The network's state on real state servers: writes, moves, kills, repairs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.hubs.network_state import NetworkState
from felloe.hubs.records import NEXT, Next, decode
from state_house import TERM, StateHouse
from waiting import until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[StateHouse]:
    async with StateHouse(tmp_path) as opened:
        yield opened


def appended(text: str) -> Callable[[bytes | None], bytes]:
    return lambda before: (before or b"") + text.encode()


async def test_what_a_hub_alone_wrote_is_there_after_a_restart(house: StateHouse) -> None:
    hub = house.add()
    state = await hub.found()
    assert state.get("keys") == b"[]"
    assert await state.change("keys", lambda _: b"[1]") == b"[1]"
    await state.change("member.a", lambda _: b"x")
    await state.change("member.a", lambda _: None)
    await hub.close()
    again = await hub.start()
    assert again.get("keys") == b"[1]"
    assert again.items("member.") == {}


async def test_a_write_while_a_hub_alone_looks_after_its_store_is_not_taken_for_a_loss(house: StateHouse) -> None:
    state = await house.add().found()
    store, number = state.generations.store, state.generations.current.number
    assert store is not None
    ask = store.last_sequence

    async def last_sequence() -> int:
        last = await ask()
        await state.change("keys", appended("x"))
        return last

    store.last_sequence = last_sequence  # type: ignore[method-assign]
    await until(lambda: (state.get("keys") or b"").count(b"x") >= 2)
    assert state.generations.current.number == number


def pass_on(leader: NetworkState, others: list[NetworkState]) -> None:
    """Tell others where the state is and goes, as the mesh would."""

    def tell(_: str) -> None:
        value = leader.get(NEXT)
        for state in others:
            state.generations.learn(leader.generations.current, None if value is None else decode(value, Next))

    leader.on_change("", tell)


async def three(house: StateHouse) -> list[NetworkState]:
    hubs = [house.add() for _ in range(3)]
    leader = await hubs[0].found()
    states = [leader, *[await hub.follow(leader) for hub in hubs[1:]]]

    pass_on(leader, states[1:])
    await leader.move(tuple(hub.node for hub in hubs), TERM)
    for state in states[1:]:
        state.generations.learn(leader.generations.current, None)
    await until(lambda: all(state.generations.current.number == 2 and state.generations.keeps for state in states), 30)
    return states


async def test_the_state_moves_from_one_hub_to_three_and_every_hub_writes(house: StateHouse) -> None:
    states = await three(house)
    await asyncio.gather(*(state.change("keys", appended(f"{n}")) for n, state in enumerate(states) for _ in range(10)))
    value = states[0].get("keys") or b""
    await until(lambda: len({state.get("keys") for state in states}) == 1, 30)
    value = states[0].get("keys") or b""
    assert sorted(value.decode().removeprefix("[]")) == sorted("0" * 10 + "1" * 10 + "2" * 10)


async def test_a_hub_whose_copy_is_late_does_not_find_that_nothing_is_to_be_done(house: StateHouse) -> None:
    states = await three(house)
    late = states[1].generations.store
    assert late is not None
    await until(lambda: {state.get("keys") for state in states} == {b"[]"})
    await late.close()
    await states[0].change("keys", lambda _: b"[1]")
    assert states[1].get("keys") == b"[]", "it has not read that yet"
    revoking = asyncio.create_task(states[1].change("keys", lambda _: b"[]"))
    await asyncio.wait({revoking}, timeout=0.3)
    await late.start()
    assert await revoking == b"[]"
    await until(lambda: {state.get("keys") for state in states} == {b"[]"})
    assert states[1].revision.sequence == max(state.revision.sequence for state in states)


async def test_a_write_is_not_lost_when_a_server_is_killed(house: StateHouse) -> None:
    states = await three(house)
    hubs = list(house.hubs.values())
    written = 0
    for victim in hubs[:2]:
        process = victim.state.generations.process_ids[0]  # type: ignore[union-attr]
        os.kill(process, signal.SIGKILL)
        for _ in range(3):
            await states[2].change("keys", appended("x"))
            written += 1
    await until(lambda: all((state.get("keys") or b"").count(b"x") == written for state in states), 30)


async def test_writes_go_on_while_the_state_moves_and_none_is_lost(house: StateHouse) -> None:
    hubs = [house.add() for _ in range(3)]
    leader = await hubs[0].found()
    followers = [await hub.follow(leader) for hub in hubs[1:]]
    pass_on(leader, followers)
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        while leader.generations.current.number == 1:
            await leader.change("keys", appended("x"))
            acknowledged += 1

    writer = asyncio.create_task(write())
    await leader.move(tuple(hub.node for hub in hubs), TERM)
    await writer
    assert (leader.get("keys") or b"").count(b"x") == acknowledged > 3


async def test_a_term_that_is_over_writes_nothing(house: StateHouse) -> None:
    state = await house.add().found()
    with pytest.raises(FelloeError) as caught:
        await state.change("keys", lambda _: b"[2]", term=TERM + 1)
    assert caught.value.code == "not_leader"
    assert state.get("keys") == b"[]"
