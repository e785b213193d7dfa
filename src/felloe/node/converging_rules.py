"""Decisions of a node that follows the plan: what to end, what to begin, whether it fits, when to try again. Pure.

Times are in seconds, sizes in bytes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from felloe.domain.fleet import Device, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import Part, Placement
from felloe.domain.roster import LoadFailure, Replica

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 6 * 3600.0
PROVEN_SECONDS = 600.0
"""A replica that was ready for so long has outlived its earlier failures."""

SLACK = 0.05
"""Smaller changes of a device's memory are not told, as a share of it."""

MOST_HERE = 64
"""More engines than this are no plan for one machine."""

_FIRST_RATE = 500e6
_WEIGHT_OF_NEWEST = 0.5


class Steps(Struct, frozen=True):
    """What to end and what to begin; whatever is in both ends first."""

    end: tuple[ModelName, ...] = ()
    begin: tuple[Placement, ...] = ()


def placements_here(placements: Iterable[Placement], node: NodeId) -> dict[ModelName, Placement]:
    """What a plan has for `node`, by the name that requests use: the first of each name, and no more than a few."""
    found: dict[ModelName, Placement] = {}
    for placement in placements:
        if placement.node == node and len(found) < MOST_HERE:
            found.setdefault(placement.model, placement)
    return found


def is_same(one: Placement, other: Placement) -> bool:
    """Whether both load the same in the same way; what it is thought to need may have been corrected meanwhile."""
    return _how(one) == _how(other)


def _how(placement: Placement) -> tuple[object, ...]:
    lying = tuple((part.device, part.layers) for part in placement.parts)
    return (placement.variant, placement.content, lying, placement.context, placement.slots, placement.kv_type)


def steps(
    wanted: Mapping[ModelName, Placement],
    running: Mapping[ModelName, Placement],
    over: Collection[ModelName],
    failed: Mapping[ModelName, tuple[Placement, LoadFailure]],
    now: float,
) -> Steps:
    """What leads from what runs to what is wanted. What is `over` ends, and what has failed waits for its time."""
    end = tuple(
        model
        for model, placement in running.items()
        if model in over or model not in wanted or not is_same(wanted[model], placement)
    )
    begin = (
        placement
        for model, placement in wanted.items()
        if (model not in running or model in end) and not _must_wait(placement, failed.get(model), now)
    )
    return Steps(end, tuple(begin))


def _must_wait(placement: Placement, failed: tuple[Placement, LoadFailure] | None, now: float) -> bool:
    return failed is not None and is_same(failed[0], placement) and now < failed[1].at + failed[1].retry_in


def next_try(failed: Iterable[LoadFailure], now: float) -> float | None:
    """In how many seconds the next failed placement may be tried again; None when none waits."""
    waits = [failure.at + failure.retry_in - now for failure in failed if failure.at + failure.retry_in > now]
    return min(waits, default=None)


def pause(times: int) -> float:
    """How long a placement rests after so many failures in a row: it doubles with each."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(max(times, 1) - 1, 32))


def held(replicas: Iterable[Replica]) -> dict[str, int]:
    """Bytes that these replicas have taken or were promised, by device."""
    taken: dict[str, int] = {}
    for replica in replicas:
        for part in replica.parts:
            taken[part.device] = taken.get(part.device, 0) + part.need.total
    return taken


def short_of(parts: Sequence[Part], now: Machine, told: Machine, free: Mapping[str, int]) -> dict[str, int]:
    """What is missing on which device for these parts to lie there; empty when they fit.

    `free` is what is left of the machine as it is `now`, `told` is what the network plans with. A device that has a
    little less than was told still takes what was planned for it. One that is not there is short of all.
    """
    missing: dict[str, int] = {}
    for part in parts:
        room = free.get(part.device, 0) + _untold(now.device(part.device), told.device(part.device))
        if part.need.total > room:
            missing[part.device] = part.need.total - room
    return missing


def _untold(now: Device | None, told: Device | None) -> int:
    """By how much a device has shrunk without that being told; 0 where it has grown, or will be told."""
    if now is None or told is None or now.memory < (1 - SLACK) * told.memory:
        return 0
    return max(0, told.memory - now.memory)


def in_words(missing: Mapping[str, int]) -> str:
    """For a person: what is short where."""
    return ", ".join(f"{device} is short of {size / 2**20:,.0f} MiB" for device, size in sorted(missing.items()))


def rate_after(rate: float, size: int, seconds: float) -> float:
    """Bytes a second at which engines start here, after one of `size` bytes took `seconds`; 0: none did so far."""
    if size <= 0 or seconds <= 0:
        return rate
    newest = size / seconds
    return newest if rate <= 0 else rate + _WEIGHT_OF_NEWEST * (newest - rate)


def start_seconds(size: int, rate: float) -> float:
    """How long an engine takes to start with a file of so many bytes."""
    return size / (rate if rate > 0 else _FIRST_RATE)
