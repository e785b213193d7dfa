"""How far away other nodes are."""

import asyncio
import contextlib

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Roster
from felloe.node.links import AGAIN_SECONDS, Links
from routing_fakes import HERE, make_member, make_roster, node_id

NEAR, FAR, DEAD, OLD = (node_id(number) for number in (1, 2, 3, 4))
MIB = 1 << 20


class Lines:
    """Members at known distances; time passes only by asking, reading and sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.distance = {NEAR: 0.001, FAR: 0.08}
        self.answers: dict[NodeId, str] = {}
        self.asked: list[NodeId] = []
        self.roster: Roster = make_roster(
            make_member(HERE),
            make_member(NEAR),
            make_member(FAR),
            make_member(DEAD, alive=False),
            make_member(OLD, version="9.0.0"),
        )
        self.links = Links(
            self._ask, lambda: self.roster, clock=lambda: self.now, now=lambda: self.now, sleep=self._sleep
        )
        self._rounds = 0

    async def _ask(self, node: NodeId) -> None:
        self.asked.append(node)
        self.now += self.distance[node]
        if node in self.answers:
            raise FelloeError(self.answers[node], "no")

    async def _sleep(self, seconds: float) -> None:
        if self._rounds == 0:
            raise asyncio.CancelledError
        self._rounds -= 1
        self.now += seconds

    async def rounds(self, count: int) -> None:
        self._rounds = count
        with contextlib.suppress(asyncio.CancelledError):
            await self.links.run()

    def round_trips(self) -> dict[str, float]:
        return {row.node: row.round_trip_seconds for row in self.links.rows()}


async def test_each_living_member_is_asked_once_in_a_while() -> None:
    lines = Lines()
    await lines.rounds(10)
    assert sorted(lines.asked) == [NEAR, FAR]
    assert lines.round_trips() == pytest.approx({NEAR: 0.001, FAR: 0.08})
    lines.now += AGAIN_SECONDS
    await lines.rounds(10)
    assert sorted(lines.asked) == [NEAR, NEAR, FAR, FAR]


async def test_the_shortest_of_the_last_few_counts() -> None:
    lines = Lines()
    for distance in (0.5, 0.02, 0.3, 0.3):
        lines.distance[NEAR] = distance
        await lines.rounds(3)
        lines.now += AGAIN_SECONDS
    assert lines.round_trips()[NEAR] == pytest.approx(0.02)
    lines.distance[NEAR] = 0.4
    for _ in range(4):
        await lines.rounds(3)
        lines.now += AGAIN_SECONDS
    assert lines.round_trips()[NEAR] == pytest.approx(0.4)


async def test_a_refusal_measures_as_well_as_an_answer_and_silence_does_not() -> None:
    lines = Lines()
    lines.answers = {NEAR: "not_found", FAR: "deadline_exceeded"}
    await lines.rounds(4)
    assert list(lines.round_trips()) == [NEAR]


async def test_a_member_that_left_is_forgotten() -> None:
    lines = Lines()
    await lines.rounds(3)
    lines.roster = make_roster(make_member(HERE), make_member(NEAR))
    assert list(lines.round_trips()) == [NEAR]
    await lines.rounds(1)
    lines.roster = make_roster(make_member(HERE), make_member(NEAR), make_member(FAR))
    assert list(lines.round_trips()) == [NEAR]


def test_reads_at_the_same_time_count_together_and_pauses_do_not_count() -> None:
    lines = Lines()
    with lines.links.reading(NEAR) as first:
        lines.now += 1
        first(4 * MIB)
        with lines.links.reading(NEAR) as second:
            lines.now += 1
            second(4 * MIB)
    lines.now += 60
    assert lines.links.rows()[0].bytes_per_second == 4 * MIB
    with pytest.raises(FelloeError), lines.links.reading(NEAR) as third:
        lines.now += 1
        third(8 * MIB)
        raise FelloeError("node_unreachable", "it went away")
    assert lines.links.rows()[0].bytes_per_second == 6 * MIB


def test_what_was_too_little_to_measure_is_kept_until_it_is_enough() -> None:
    lines = Lines()
    for _ in range(8):
        assert lines.links.rows() == ()
        with lines.links.reading(FAR) as came:
            lines.now += 0.01
            came(MIB)
    assert lines.links.rows()[0].bytes_per_second == pytest.approx(100 * MIB)
    assert lines.links.rows()[0].round_trip_seconds == 0
