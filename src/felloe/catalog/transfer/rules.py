"""Which chunk is asked of which peer, who is asked no more, and for how long. Pure.

Sets of chunks are integers: bit n stands for chunk n, so that a file of 100,000 chunks costs a few microseconds.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from felloe.domain.ids import NodeId

MOST_IN_FLIGHT = 32
MOST_IN_FLIGHT_OF_PEER = 4
MOST_PEERS = 32
STALL_SECONDS = 10.0
SLOW_REST_SECONDS = 30.0
_LEAST_LOOK_SECONDS = 0.1
_AHEAD_SECONDS = 0.5
_LEAST_FLIGHT_RATE = 128 * 2**10
_QUIET_SECONDS = 2.0
_LATE_FACTOR = 3.0
_SLOW_FRACTION = 1 / 8
_LEAST_BUSY_SECONDS = 2.0
_FIRST_BAN_SECONDS, _LONGEST_BAN_SECONDS = 600.0, 7 * 86_400.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0


class Holder(NamedTuple):
    """A peer that may be asked now. `have`: its chunks, `in_flight`: how many are asked of it, `rate`: bytes a second.

    `most`: how many may be asked of it at once. `is_whole`: it has all of the file. `is_slow`: asked only for what
    no other has. `rate` 0: not known yet.
    """

    node: NodeId
    have: int
    in_flight: int = 0
    rate: float = 0.0
    is_whole: bool = False
    is_slow: bool = False
    most: int = MOST_IN_FLIGHT_OF_PEER


class Flight(NamedTuple):
    """A chunk that was asked of a peer. `age` and `quiet` (since the last byte came) in seconds."""

    node: NodeId
    chunk: int
    age: float
    quiet: float


class Request(NamedTuple):
    """A chunk to be asked of a peer."""

    node: NodeId
    chunk: int


class Pace(NamedTuple):
    """What a peer has brought: `rate` in bytes a second over `busy` seconds in which something was asked of it."""

    rate: float
    busy: float


def choose(
    wanted: int, asked: int, holders: Sequence[Holder], stripe: int, room: int, chance: random.Random
) -> list[Request]:
    """What to ask now, at most `room` requests: of `wanted` chunks those that are not `asked` yet.

    Each peer gets the rarest that it has, ties by chance. Who has the whole file is asked last for what others have in
    part, and first for the chunks of `stripe`, so that many nodes that begin at once fetch different ones from it.
    """
    open_ = wanted & ~asked
    levels = by_rarity([holder.have for holder in holders])
    counts = {holder.node: holder.in_flight for holder in holders}
    chosen: list[Request] = []
    rows = list(holders)
    chance.shuffle(rows)
    rows.sort(key=lambda holder: holder.is_whole)
    found = True
    while found and open_:
        found = False
        for holder in rows:
            if len(chosen) >= room or not open_:
                return chosen
            if counts[holder.node] >= holder.most:
                continue
            chunk = _for_holder(holder, open_, holders, levels, stripe, chance)
            if chunk is not None:
                chosen.append(Request(holder.node, chunk))
                counts[holder.node] += 1
                open_ &= ~(1 << chunk)
                found = True
    return chosen


def _for_holder(
    holder: Holder, open_: int, holders: Sequence[Holder], levels: Sequence[int], stripe: int, chance: random.Random
) -> int | None:
    useful = open_ & holder.have
    if holder.is_slow:
        useful &= ~_union(other.have for other in holders if not other.is_slow)
    if holder.is_whole and useful:
        parts = [other for other in holders if not other.is_whole and not other.is_slow and other.have & open_]
        if not _whole_helps(holder, parts):
            useful &= ~_union(other.have for other in parts)
    for level in levels:
        if rarest := useful & level:
            mine = rarest & stripe if holder.is_whole else 0
            return _any_bit(mine or rarest, chance)
    return None


def _whole_helps(holder: Holder, parts: Sequence[Holder]) -> bool:
    """Whether a whole holder is so much faster than those that have parts that it should help with these, too."""
    return all(part.rate > 0 for part in parts) and holder.rate > sum(part.rate for part in parts)


def ask_again(
    wanted: int, flights: Sequence[Flight], holders: Sequence[Holder], typical: float, room: int
) -> list[Request]:
    """When nothing else can be asked: chunks that are late, asked a second time of another peer.

    `typical` is how many seconds a chunk takes; 0: not known yet.
    """
    counts = {holder.node: holder.in_flight for holder in holders}
    askers: dict[int, list[Flight]] = {}
    for flight in flights:
        askers.setdefault(flight.chunk, []).append(flight)
    late = [asked[0] for asked in askers.values() if len(asked) == 1 and _is_late(asked[0], typical)]
    chosen: list[Request] = []
    for flight in sorted(late, key=lambda each: (-each.quiet, -each.age)):
        others = [
            holder
            for holder in holders
            if holder.node != flight.node
            and wanted & holder.have & (1 << flight.chunk)
            and counts[holder.node] < holder.most
        ]
        if others and len(chosen) < room:
            best = min(others, key=lambda holder: (holder.is_slow, counts[holder.node], -holder.rate))
            chosen.append(Request(best.node, flight.chunk))
            counts[best.node] += 1
    return chosen


def _is_late(flight: Flight, typical: float) -> bool:
    return flight.quiet >= _QUIET_SECONDS or (typical > 0 and flight.age >= max(_QUIET_SECONDS, _LATE_FACTOR * typical))


def by_rarity(haves: Sequence[int]) -> list[int]:
    """The chunks that exactly one has, those that exactly two have, and so on."""
    at_least: list[int] = []
    for have in haves:
        carry = have
        for number, level in enumerate(at_least):
            at_least[number], carry = level | carry, level & carry
        at_least.append(carry)
    return [level & ~above for level, above in zip(at_least, [*at_least, 0][1:], strict=True)]


def stripe_of(own: NodeId, others: Iterable[NodeId], count: int) -> int:
    """This node's share of `count` chunks among all that fetch the file: every nth, by the order of their ids."""
    nodes = sorted({own, *others})
    first, step = nodes.index(own), len(nodes)
    mask, length = 1 << first, step
    while length < count:
        mask, length = mask | mask << length, length * 2
    return mask & ((1 << count) - 1)


def slow_peers(paces: Mapping[NodeId, Pace]) -> set[NodeId]:
    """Those that bring less than an eighth of what is usual; nobody is called slow alone or too soon."""
    known = {node: pace.rate for node, pace in paces.items() if pace.busy >= _LEAST_BUSY_SECONDS}
    if len(known) < 2:
        return set()
    usual = median(known.values())
    return {node for node, rate in known.items() if rate < usual * _SLOW_FRACTION}


def most_of_peer(seconds: float) -> int:
    """How many chunks may be asked at once of a peer that needs so many `seconds` for each; 0: not known yet.

    As many as it sends in a short while: more would not come sooner, but later and all together, and until a chunk is
    whole nobody else can have it.
    """
    return max(1, min(MOST_IN_FLIGHT_OF_PEER, int(_AHEAD_SECONDS / seconds))) if seconds > 0 else 1


def most_in_flight(rate: float) -> int:
    """How many chunks may be asked for at once when `rate` bytes a second may come (0: any): none should starve."""
    return MOST_IN_FLIGHT if rate <= 0 else max(1, min(MOST_IN_FLIGHT, int(rate / _LEAST_FLIGHT_RATE)))


def look_seconds(typical: float, most: float) -> float:
    """How long what peers said of their chunks is good: no longer than half of the seconds that a chunk takes.

    0: not known yet. Chunks that come fast are soon had by others, who should then be asked.
    """
    return min(most, max(_LEAST_LOOK_SECONDS, typical / 2)) if typical > 0 else most


def ban_seconds(times: int) -> float:
    """How long a peer that lied the nth time (from 1) is not asked."""
    return min(_LONGEST_BAN_SECONDS, _FIRST_BAN_SECONDS * 2 ** min(times - 1, 32))


def pause_seconds(failures: int) -> float:
    """How long a peer is left alone after the nth failure in a row (from 1)."""
    return min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 32))


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _any_bit(mask: int, chance: random.Random) -> int:
    """One of the bits that are set; those behind a gap are a little likelier."""
    above = chance.randrange(mask.bit_length())
    rest = mask >> above
    return above + (rest & -rest).bit_length() - 1
