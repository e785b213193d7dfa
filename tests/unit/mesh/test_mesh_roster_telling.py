"""A large network: hubs hear everybody and tell how all stand; the others listen to the hubs alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mesh_box import Box, open_boxes
from mesh_rosters import alive, make_replica

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord
from felloe.mesh import roster_telling, telling_rules
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import digest, roster_load, roster_record
from felloe.mesh.roster_service import RosterService
from felloe.mesh.roster_telling import Telling
from felloe.mesh.roster_wire import BadRecord, Digest, Heartbeat, Standing, decode_digest, encode_record
from felloe.mesh.rules import Census
from plain_hubs import PlainHubs
from waiting import until

CROWD = 4


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[list[Box]]:
    async with open_boxes(6, tmp_path) as opened:
        yield opened


async def crowd(boxes: list[Box]) -> list[RosterService]:
    """A hub and four others, who listen to the hub alone by now."""
    rosters = [await box.run(is_hub=number == 0, crowd=CROWD) for number, box in enumerate(boxes[:5])]
    await until(lambda: not any(roster._listening.to_all for roster in rosters[1:]))
    await until(lambda: all(len(alive(roster)) == 5 for roster in rosters))
    return rosters


# What everybody learns


async def test_in_a_small_network_everybody_hears_everybody(boxes: list[Box]) -> None:
    hub, spoke = await boxes[0].run(is_hub=True, crowd=CROWD), await boxes[1].run(crowd=CROWD)
    await until(lambda: len(alive(spoke)) == 2)
    heard: list[bytes] = []
    line = await boxes[2].line()
    await line.subscribe("digest.*", lambda message: heard.append(message.data))
    await asyncio.sleep(1.5)
    assert heard == []
    assert spoke._listening.to_all and hub._listening.to_all


async def test_loads_and_records_reach_all_by_the_hub(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    speaker = boxes[1].id
    rosters[1].set_load(lambda: Load(active={"m": 3}))
    rosters[1].set_record(
        boxes[1].record(started_at=rosters[1]._speaking.record.started_at, replicas=(make_replica("m"),))
    )
    for roster in rosters:
        await until(lambda: roster.snapshot().members[speaker].load.active == {"m": 3})  # noqa: B023
        await until(lambda: roster.snapshot().members[speaker].record.replicas != ())  # noqa: B023


async def test_a_node_that_leaves_is_dead_for_all_at_once_and_alive_when_it_is_back(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    line = await boxes[0].line()
    await boxes[4].close()
    await line.publish(f"roster.gone.{boxes[4].id}", b"")
    await until(lambda: all(boxes[4].id not in alive(roster) for roster in rosters[:4]))
    again = await boxes[4].run(crowd=CROWD)
    await until(lambda: all(boxes[4].id in alive(roster) for roster in rosters[:4]))
    await until(lambda: len(alive(again)) == 5)


async def test_the_hub_judges_who_is_silent(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    lost: list[NodeId] = []
    rosters[1].on_loss(lost.append)
    await boxes[4].close()
    await until(lambda: lost == [boxes[4].id])
    assert {box.id for box in boxes[:4]} == alive(rosters[1])


async def test_a_new_line_is_told_as_a_move_and_with_a_newer_record(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    speaker = boxes[1].id
    await until(lambda: rosters[2]._census.known[speaker].session > 0)
    moved: list[NodeId] = []
    rosters[2].on_move(moved.append)
    before = rosters[2].snapshot().members[speaker].record.issued_at
    rosters[1]._connection.redial()
    await until(lambda: moved == [speaker])
    await until(lambda: rosters[2].snapshot().members[speaker].record.issued_at > before)


async def test_a_node_that_was_cut_off_asks_how_all_stand(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    cut = rosters[1]
    for box in boxes[2:5]:
        cut._note(cut._census.hear_gone(box.id, time.monotonic()))
    assert len(alive(cut)) == 2
    cut._connection.redial()
    await until(lambda: len(alive(cut)) == 5, 3)


async def test_a_node_learns_of_a_record_that_it_has_missed(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    rosters[1]._census.drop([boxes[2].id])
    await until(lambda: boxes[2].id in alive(rosters[1]))


async def test_a_node_listens_itself_when_no_hub_tells_any_more(
    boxes: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    rosters = await crowd(boxes)
    monkeypatch.setattr(telling_rules, "LISTEN_SECONDS", 2.0)
    lost: list[NodeId] = []
    rosters[1].on_loss(lost.append)
    await boxes[0].close()
    await until(lambda: rosters[1]._listening.to_all)
    rosters[2].set_load(lambda: Load(active={"m": 7}))
    await until(lambda: rosters[1].snapshot().members[boxes[2].id].load.active == {"m": 7})
    await until(lambda: lost == [boxes[0].id])


async def test_a_copy_of_a_home_shows_in_a_large_network_too(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    heard: list[NodeRecord] = []
    rosters[1].on_double(heard.append)
    copy = Box(boxes[1].hubs, boxes[1].key)
    await copy.run(crowd=CROWD)
    await until(lambda: heard)
    await copy.close()


# What is not believed


async def test_a_hub_cannot_make_up_records_nor_harm_with_junk(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    victim, other = boxes[2], boxes[5]
    lies = [
        b"",
        b"\xc1",
        bytes(2 << 20)[: 1 << 19],
        msgspec.msgpack.encode(Digest([], [], [b"junk"])),
        msgspec.msgpack.encode(
            Digest([], [], [encode_record(victim.record(name="lie", issued_at=time.time() + 60), other.key.sign)])
        ),
        msgspec.msgpack.encode(Digest([Standing("no id", 1.0, 1.0, 0, True, 0.0, Load())])),
        msgspec.msgpack.encode(Digest([Standing(victim.id, 1.0, 1.0, 0, True, float("nan"), Load())])),
        msgspec.msgpack.encode(Digest([Standing(victim.id, 1.0, 1.0, 0, False, 0.0, Load())])),
        msgspec.msgpack.encode(Digest([Standing(boxes[1].id, 1.0, 1.0, 0, False, 0.0, Load())])),
        msgspec.msgpack.encode(Digest([Standing(victim.id, 1.0, 1.0, 0, True, 0.0, Load({"../etc": 1}))])),
    ]
    line = await boxes[0].line()
    for lie in lies:
        await line.publish(digest(boxes[0].id), lie)
    await line.publish("digest.nobody", msgspec.msgpack.encode(Digest()))
    rosters[3].set_load(lambda: Load(active={"m": 1}))
    await until(lambda: rosters[1].snapshot().members[boxes[3].id].load.active == {"m": 1})
    assert len(alive(rosters[1])) == 5
    assert rosters[1].snapshot().members[victim.id].record.name == "box"


def test_too_large_a_digest_is_refused() -> None:
    with pytest.raises(BadRecord):
        decode_digest(bytes(2 << 20))


async def test_the_expelled_are_not_taken_from_a_digest(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    rosters[1].ban(frozenset({boxes[2].id}))
    await asyncio.sleep(2.5)
    assert boxes[2].id not in rosters[1].snapshot().members
    rosters[1].ban(frozenset())
    await until(lambda: boxes[2].id in alive(rosters[1]))


# What goes into a digest


class Hub:
    """The telling side with a clock of its own."""

    def __init__(self, hubs: PlainHubs, crowd: int = 1) -> None:
        self.now = 1000.0
        self.census = Census(self.now)
        self.me = Box(hubs)
        self.telling = Telling(Connection(hubs.urls, self.me.id), self.census, clock=lambda: self.now, crowd=crowd)
        self.telling._tells = True

    def hear(self, box: Box, **changes: Any) -> None:
        record = box.record(**changes)
        self.census.hear_record(record, encode_record(record, box.key.sign), self.now)
        self.telling.note((box.id,))

    def digest(self) -> Digest:
        found = self.telling.next_digest(self.now)
        return Digest() if found is None else found


@pytest.fixture
async def hub(boxes: list[Box]) -> Hub:
    return Hub(boxes[0].hubs)


async def test_a_newcomer_is_told_with_its_record(hub: Hub, boxes: list[Box]) -> None:
    hub.hear(boxes[0], started_at=50.0, issued_at=51.0, changed_at=50.0)
    told = hub.digest()
    assert len(told.news) == 1
    assert [standing.id for standing in told.changes] == [boxes[0].id]


async def test_of_those_who_only_come_back_to_a_hub_that_started_no_record_is_told(hub: Hub, boxes: list[Box]) -> None:
    for box in boxes:
        hub.hear(box, started_at=50.0, issued_at=5000.0, changed_at=50.0)
    told = hub.digest()
    assert told.news == []
    assert len(told.changes) == len(boxes)


async def test_what_is_only_issued_anew_is_not_told(hub: Hub, boxes: list[Box]) -> None:
    hub.hear(boxes[0], started_at=50.0, issued_at=5000.0, changed_at=50.0)
    hub.digest()
    hub.hear(boxes[0], started_at=50.0, issued_at=5010.0, changed_at=50.0)
    told = hub.digest()
    assert (told.news, told.changes) == ([], [])
    hub.hear(boxes[0], started_at=50.0, issued_at=5020.0, changed_at=5020.0)
    assert len(hub.digest().news) == 1


async def test_everybody_has_their_turn(hub: Hub, boxes: list[Box], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_telling, "IN_PASSING", 2)
    for box in boxes:
        hub.hear(box)
    seen: list[str] = []
    for _ in range(3):
        hub.now += 1.0
        seen += [standing.id for standing in hub.digest().in_passing]
    assert sorted(seen) == sorted(box.id for box in boxes)


async def test_a_digest_is_bounded_and_the_rest_comes_later(
    hub: Hub, boxes: list[Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_telling, "MAX_NEWS_BYTES", 1)
    monkeypatch.setattr(roster_telling, "MAX_CHANGES", 4)
    for box in boxes:
        hub.hear(box, started_at=50.0, issued_at=51.0, changed_at=50.0)
    told: list[bytes] = []
    for _ in range(len(boxes)):
        each = hub.digest()
        assert len(each.news) <= 1
        told += each.news
    assert len(set(told)) == len(boxes)


async def test_two_hubs_share_the_members(boxes: list[Box]) -> None:
    first, second = Hub(boxes[0].hubs), Hub(boxes[0].hubs)
    first.telling.heard(second.me.id)
    second.telling.heard(first.me.id)
    nodes = [Box(boxes[0].hubs) for _ in range(20)]
    for node in nodes:
        first.hear(node)
        second.hear(node)
    told = [{standing.id for standing in hub.digest().changes} for hub in (first, second)]
    assert told[0] | told[1] == {node.id for node in nodes}
    assert not told[0] & told[1]
    first.now += telling_rules.TOLD_SECONDS + 1
    for node in nodes:
        first.hear(node, started_at=1e9 + 1, issued_at=time.time() + 9)
    assert {standing.id for standing in first.digest().changes} >= {node.id for node in nodes}


# When


def test_the_size_from_which_hubs_tell_has_some_play() -> None:
    assert not telling_rules.tells(63, 64, told_before=False)
    assert telling_rules.tells(64, 64, told_before=False)
    assert telling_rules.tells(48, 64, told_before=True)
    assert not telling_rules.tells(47, 64, told_before=True)


def test_when_one_of_three_hubs_goes_only_its_share_moves() -> None:
    hubs = [NodeId(letter * 26) for letter in "abc"]
    nodes = [NodeId(f"{number:026d}") for number in range(900)]
    before = {node: telling_rules.teller_of(node, hubs) for node in nodes}
    after = {node: telling_rules.teller_of(node, hubs[:2]) for node in nodes}
    assert all(after[node] == before[node] for node in nodes if before[node] != hubs[2])
    assert all(200 < list(before.values()).count(hub) < 400 for hub in hubs)


def test_what_all_say_together_is_bounded() -> None:
    assert telling_rules.spacing(2) == telling_rules.SHORTEST_SECONDS
    assert all(n / telling_rules.spacing(n) <= telling_rules.MESSAGES_PER_SECOND for n in (1, 64, 1000, 10_000))


def test_who_was_told_gives_hubs_time_before_it_listens_itself() -> None:
    def listens(now: float, last_told: float | None, up_since: float | None, listens_now: bool = False) -> bool:
        return telling_rules.listens(now, last_told=last_told, up_since=up_since, listens_now=listens_now)

    assert listens(0.0, None, None, True)
    assert listens(100.0, None, 99.0)
    assert not listens(100.0, 99.0, 0.0)
    assert listens(100.0, 80.0, 0.0)
    assert not listens(100.0, 80.0, 98.0), "its line has just come up"
    assert not listens(100.0, 10.0, None), "without a line nothing changes"


async def test_a_heartbeat_goes_only_to_those_who_listen(boxes: list[Box]) -> None:
    rosters = await crowd(boxes)
    heard: list[str] = []
    hear = rosters[1]._hear
    rosters[1]._hear = lambda subject, data: (heard.append(subject), hear(subject, data))[1]  # type: ignore[method-assign]
    await asyncio.sleep(2.5)
    own = {roster_load(boxes[1].id), roster_record(boxes[1].id)}
    assert set(heard) <= own
    line = await boxes[5].line()
    await line.publish(roster_load(boxes[5].id), msgspec.msgpack.encode(Heartbeat(Load(), 1.0)))
