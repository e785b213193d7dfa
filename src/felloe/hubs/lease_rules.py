"""Who may lead and for how long: rules that hold without any agreement between the hubs' clocks.

A holder counts its lease from a moment before it began to write it, and stops some seconds before it ends. Another hub
counts from when it first saw that same beat, which is later, and takes over only when it saw nothing newer for the
whole lease. The state orders all writes and each follows the very record it was decided on, so a renewal and a takeover
that cross cannot both succeed. What may go wrong is therefore only a clock that runs wrong by more than the margin
allows; then the state still refuses what the older term writes.

All times are seconds of one clock of this machine that counts sleep, passed in.
"""

from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.ids import NodeId
from felloe.hubs.records import Lease

LEASE_SECONDS = 15.0
LONGEST_LEASE_SECONDS = 60.0
JITTER_SECONDS = 2.0


class Seen(NamedTuple):
    """A beat of the lease, and when this hub first saw it."""

    term: int
    beat: int
    at: float


def see(seen: Seen | None, lease: Lease, now: float) -> Seen:
    """What is remembered of the lease after looking at it now."""
    if seen is not None and (seen.term, seen.beat) == (lease.term, lease.beat):
        return seen
    return Seen(lease.term, lease.beat, now)


def free_at(lease: Lease, seen: Seen) -> float:
    """When others may take the lease, as long as it stays as it was seen."""
    return seen.at + min(max(lease.seconds, 0.0), LONGEST_LEASE_SECONDS)


def lapses_at(begun: float, seconds: float) -> float:
    """When a holder stops acting that began to write its lease of `seconds` at `begun`: a fifth before its end."""
    return begun + seconds * 0.8


def renewal_seconds(seconds: float) -> float:
    """How long after the last renewal was begun the next is due.

    A fifth of the lease, so that three fifths (9 of 15 seconds) are left in which the state may take no writes.
    """
    return seconds / 5


def taken(lease: Lease | None, seen: Seen | None, node: NodeId, beat: int, seconds: float) -> Lease | None:
    """The lease after `node` takes it; None when it is no longer the one that was seen.

    A random first `beat` tells this try from an earlier one that may have been written unnoticed, and from another
    process of the same id.
    """
    if lease is None:
        return Lease(holder=node, term=1, beat=beat, seconds=seconds) if seen is None else None
    if seen is None or (seen.term, seen.beat) != (lease.term, lease.beat):
        return None
    return Lease(holder=node, term=lease.term + 1, beat=beat, seconds=seconds)


def renewed(lease: Lease | None, node: NodeId, term: int, seconds: float) -> Lease | None:
    """The lease after its holder renews it, with 0 `seconds` gives it up; None when another has taken it."""
    if lease is None or lease.holder != node or lease.term != term:
        return None
    return replace(lease, beat=lease.beat + 1, seconds=seconds)
