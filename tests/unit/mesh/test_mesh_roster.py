"""The roster over the real server: who is there, what they say, and how fast a death is known."""

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
from mesh_network import Member, Network, child, hub, join
from mesh_rosters import alive, make_replica, name_of

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, Roster
from felloe.mesh.permissions import roster_gone, roster_load, roster_record
from felloe.mesh.roster_service import RosterService
from felloe.mesh.roster_wire import Heartbeat, RosterPage, RosterRequest, SignedRecord, encode_record
from felloe.mesh.services import HubClient, HubServices
from waiting import until


async def test_all_nodes_know_each_other_and_themselves(network: Network) -> None:
    members = [network.member() for _ in range(3)]
    rosters = [await hub(network), *[await join(network, member) for member in members]]
    everyone = {network.hub.id, *[member.id for member in members]}
    await until(lambda: all(alive(roster) == everyone for roster in rosters))


async def test_a_newcomer_learns_from_the_hub_whom_it_has_never_heard(network: Network) -> None:
    await hub(network)
    quiet = network.member()
    line = await network.connect(quiet)
    await line.publish(roster_record(quiet.id), encode_record(quiet.record(issued_at=5.0), quiet.key.sign))
    await line.flush()
    newcomer = await join(network, network.member())
    await until(lambda: quiet.id in newcomer.snapshot().members)


async def test_a_node_knows_itself_before_it_has_any_line(network: Network) -> None:
    member = network.member()
    line = await network.connect(member, wait_seconds=None)
    roster = RosterService(line, member.record(), sign=member.key.sign)
    assert alive(roster) == {member.id}


async def test_a_change_of_record_or_load_reaches_everybody(network: Network) -> None:
    speaker = network.member()
    listening, speaking = await join(network, network.member()), await join(network, speaker)
    changes: list[Roster] = []
    listening.on_change(changes.append)
    await until(lambda: speaker.id in alive(listening))
    speaking.set_record(speaker.record(replicas=(make_replica("tiny-python"),)))
    speaking.set_load(lambda: Load(active={"tiny-python": 3}, waiting={"tiny-python": 1}))
    await until(
        lambda: (
            bool(changes)
            and changes[-1].members[speaker.id].record.replicas != ()
            and changes[-1].members[speaker.id].load.active == {"tiny-python": 3}
        )
    )
    versions = [change.version for change in changes]
    assert versions == sorted(set(versions))


async def test_a_load_that_changes_all_the_time_is_asked_for_only_when_it_is_told(network: Network) -> None:
    speaker = network.member()
    listening, speaking = await join(network, network.member()), await join(network, speaker)
    await until(lambda: speaker.id in alive(listening))
    asked: list[int] = []

    def load() -> Load:
        asked.append(1)
        return Load(active={"tiny-python": 1000 + len(asked)})

    for _ in range(1000):
        speaking.set_load(load)
    await until(lambda: listening.snapshot().members[speaker.id].load.active.get("tiny-python", 0) > 1000)
    assert len(asked) < 10


async def test_a_load_that_the_others_would_refuse_is_not_told(network: Network) -> None:
    speaker = network.member()
    listening, speaking = await join(network, network.member()), await join(network, speaker)
    await until(lambda: speaker.id in alive(listening))
    speaking.set_load(lambda: Load(active={"no name\n": 1}))
    speaking.set_load(lambda: Load(active={"no name\n": 2}))
    await asyncio.sleep(0)
    speaking.set_load(lambda: Load(active={"tiny-python": 2}))
    await until(lambda: listening.snapshot().members[speaker.id].load.active == {"tiny-python": 2})
    assert speaker.id in alive(listening)


async def test_a_snapshot_never_changes_under_its_reader(network: Network) -> None:
    roster = await join(network, network.member())
    before = roster.snapshot()
    other = network.member()
    await join(network, other)
    await until(lambda: other.id in alive(roster))
    assert other.id not in before.members
    with pytest.raises(TypeError):
        before.members[other.id] = before.members[roster.snapshot().this]  # type: ignore[index]


async def test_a_node_that_a_hub_calls_gone_is_dead_until_it_speaks_again(network: Network) -> None:
    watcher_line = await network.connect(network.hub)
    speaker = network.member()
    listening = await join(network, network.member())
    line = await network.connect(speaker)
    signed = encode_record(speaker.record(issued_at=5.0), speaker.key.sign)
    lost: list[NodeId] = []
    listening.on_loss(lost.append)
    await line.publish(roster_record(speaker.id), signed)
    await until(lambda: speaker.id in alive(listening))
    await watcher_line.publish(roster_gone(speaker.id), b"")
    await until(lambda: lost == [speaker.id])
    assert speaker.id not in alive(listening)
    assert not listening.snapshot().members[speaker.id].alive
    await line.publish(roster_load(speaker.id), msgspec.msgpack.encode(Heartbeat(Load(), 5.0)))
    await until(lambda: speaker.id in alive(listening))


async def test_a_node_that_starts_anew_is_announced_as_lost_once(network: Network) -> None:
    speaker = network.member()
    listening = await join(network, network.member())
    line = await network.connect(speaker)
    lost: list[NodeId] = []
    listening.on_loss(lost.append)
    for issued_at, started_at in ((5.0, 1.0), (6.0, 1.0), (7.0, 2.0)):
        record = speaker.record(issued_at=issued_at, started_at=started_at, name=f"box {issued_at}")
        await line.publish(roster_record(speaker.id), encode_record(record, speaker.key.sign))
    await until(lambda: name_of(listening, speaker.id) == "box 7.0")
    assert lost == [speaker.id]


async def test_an_older_record_never_replaces_a_newer_one(network: Network) -> None:
    speaker, marker = network.member(), network.member()
    listening = await join(network, network.member())
    line = await network.connect(speaker)
    for issued_at in (7.0, 6.0, 7.0):
        record = speaker.record(issued_at=issued_at, name=f"box {issued_at}")
        await line.publish(roster_record(speaker.id), encode_record(record, speaker.key.sign))
    await line.flush()
    await join(network, marker)
    await until(lambda: marker.id in alive(listening))
    assert name_of(listening, speaker.id) == "box 7.0"


def forged(member: Member, other: Member) -> list[bytes]:
    """Records that `member` might publish about itself, none of which may be believed."""
    good = member.record(issued_at=5.0)
    sign = member.key.sign
    encoded = msgspec.msgpack.encode(good)
    return [
        b"",
        b"\xc1",
        b"\x91" * 60_000,
        bytes(70_000),
        msgspec.msgpack.encode(SignedRecord(encoded, bytes(64))),
        msgspec.msgpack.encode(SignedRecord(encoded, sign(encoded))),
        msgspec.msgpack.encode(SignedRecord(encoded, b"")),
        encode_record(good, other.key.sign),
        encode_record(other.record(issued_at=5.0), other.key.sign),
        encode_record(member.record(id=other.id), sign),
        encode_record(member.record(public_key=other.public_key), other.key.sign),
        encode_record(member.record(public_key=b"short"), sign),
        encode_record(member.record(issued_at=-1.0), sign),
        encode_record(member.record(issued_at=1e12), sign),
        encode_record(member.record(issued_at=float("inf")), sign),
        encode_record(member.record(issued_at=float("nan")), sign),
        encode_record(member.record(started_at=float("nan")), sign),
        encode_record(member.record(name="\x1b[2J"), sign),
        encode_record(member.record(name="x" * 600), sign),
        encode_record(member.record(replicas=(make_replica("../../etc"),)), sign),
        encode_record(member.record(replicas=(msgspec.structs.replace(make_replica("m"), slots=-1),)), sign),
    ]


async def test_no_forged_record_is_believed(network: Network) -> None:
    speaker, other = network.member(), network.member()
    listening = await join(network, network.member())
    line = await network.connect(speaker)
    for record in forged(speaker, other):
        await line.publish(roster_record(speaker.id), record)
    await line.publish(roster_load(speaker.id), b"\xc1")
    await line.publish(roster_load(speaker.id), bytes(70_000))
    good = encode_record(speaker.record(issued_at=5.0, name="good"), speaker.key.sign)
    await line.publish(roster_record(speaker.id), good)
    await until(lambda: speaker.id in alive(listening))
    assert name_of(listening, speaker.id) == "good"
    assert other.id not in listening.snapshot().members


async def test_nobody_speaks_for_another(network: Network) -> None:
    victim, liar = network.member(), network.member()
    listening, victims = await join(network, network.member()), await join(network, victim)
    await until(lambda: victim.id in alive(listening))
    lies = await network.connect(liar)
    await lies.publish(roster_gone(victim.id), b"")
    busy = msgspec.msgpack.encode(Heartbeat(Load(active={"m": 9}), 9.0))
    await lies.publish(roster_load(victim.id), busy)
    await lies.publish(roster_record(victim.id), encode_record(victim.record(name="lie"), liar.key.sign))
    await lies.flush()
    victims.set_load(lambda: Load(active={"m": 1}))
    await until(lambda: listening.snapshot().members[victim.id].load.active == {"m": 1})
    assert victim.id in alive(listening)
    assert name_of(listening, victim.id) == "box"


async def test_a_hub_cannot_make_up_members(network: Network) -> None:
    listening = await join(network, network.member())
    line = await network.connect(network.hub)
    services = HubServices(line)
    network.closers.append(services.close)
    other, liar = network.member(), network.member()
    entries = [
        [encode_record(other.record(name="lie"), liar.key.sign), Load(), 0.0],
        [b"junk", Load(), 0.0],
        [encode_record(liar.record(name="true"), liar.key.sign), Load(), -5.0],
    ]

    async def page(request: RosterRequest) -> RosterPage:
        return msgspec.convert([entries, False], RosterPage)

    await services.serve("roster", RosterRequest, page)
    await line.flush()
    listening._sync.want_all()
    await until(lambda: liar.id in alive(listening))
    assert other.id not in listening.snapshot().members


async def test_a_record_that_others_would_refuse_is_an_error_here(network: Network) -> None:
    member = network.member()
    roster = await join(network, member)
    for bad in ({"name": "\n"}, {"replicas": tuple(make_replica(f"model-{n}") for n in range(2000))}):
        with pytest.raises(FelloeError) as refused:
            roster.set_record(member.record(**bad))
        assert refused.value.code == "bad_config"


async def test_the_hubs_roster_comes_in_bounded_pages(network: Network) -> None:
    roster = await hub(network)
    line = await network.connect(network.member())
    for _ in range(25):
        member = network.member()
        record = member.record(issued_at=5.0, replicas=tuple(make_replica(f"model-{n}") for n in range(200)))
        signed = encode_record(record, member.key.sign)
        roster._note(roster._census.hear_record(record, signed, time.monotonic()))
    after, seen, pages = "", 0, 0
    more = True
    while more:
        page = await HubClient(line).ask("roster", RosterRequest(after), RosterPage)
        pages += 1
        seen += len(page.entries)
        record = msgspec.msgpack.decode(msgspec.msgpack.decode(page.entries[-1].signed, type=SignedRecord).record)
        after, more = record["id"], page.more
    assert seen == 26
    assert pages > 1


async def test_a_killed_node_is_known_dead_within_a_second(network: Network, tmp_path: Path) -> None:
    await hub(network)
    watching, member = await join(network, network.member()), network.member()
    async with child(network, member, tmp_path) as process:
        await until(lambda: member.id in alive(watching))
        lost = asyncio.Event()
        watching.on_loss(lambda node: lost.set() if node == member.id else None)
        process.kill()
        await asyncio.wait_for(lost.wait(), 1.0)
        assert member.id not in alive(watching)


async def test_a_frozen_node_is_known_dead_within_six_seconds_and_alive_when_it_thaws(
    network: Network, tmp_path: Path
) -> None:
    await hub(network)
    watching, member = await join(network, network.member()), network.member()
    async with child(network, member, tmp_path) as process:
        await until(lambda: member.id in alive(watching))
        lost = asyncio.Event()
        watching.on_loss(lambda node: lost.set() if node == member.id else None)
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.wait_for(lost.wait(), 6.0)
        assert member.id not in alive(watching)
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: member.id in alive(watching))


async def test_a_node_with_a_second_line_outlives_the_first(network: Network) -> None:
    watching = await hub(network)
    member = network.member()
    first = await network.connect(member)
    await join(network, member)
    await until(lambda: member.id in alive(watching))
    lost: list[NodeId] = []
    watching.on_loss(lost.append)
    await first.close()
    other = network.member()
    short = await network.connect(other)
    await short.publish(roster_record(other.id), encode_record(other.record(issued_at=5.0), other.key.sign))
    await until(lambda: other.id in alive(watching))
    await short.close()
    await until(lambda: lost == [other.id])
    assert member.id in alive(watching)


async def test_a_hub_that_comes_late_counts_the_lines_that_are_there(network: Network) -> None:
    member = network.member()
    first = await network.connect(member)
    joined = await join(network, member)
    watching = await hub(network)
    await until(lambda: member.id in alive(watching))
    lost: list[NodeId] = []
    watching.on_loss(lost.append)
    await first.close()
    joined.set_load(lambda: Load(active={"m": 1}))
    await until(lambda: watching.snapshot().members[member.id].load.active == {"m": 1})
    assert lost == []
