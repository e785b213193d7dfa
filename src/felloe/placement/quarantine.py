"""Which models are kept from which nodes after they failed there: pure decisions; times of the leader's clock."""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from felloe.domain.ids import ModelName, NodeId
from felloe.domain.roster import LoadFailure

FIRST_BAR_SECONDS = 60.0
LONGEST_BAR_SECONDS = 6 * 3600.0
LONGEST_ABSENCE_SECONDS = 300.0

NOT_THE_NODES_FAULT = frozenset(
    {"no_holder", "not_approved", "model_withdrawn", "catalog_expired", "bad_model_file", "bad_manifest"}
)
"""Failures that another node would have as well: its files are nowhere, or must not be loaded."""

Place = tuple[NodeId, ModelName]
"""A node, and the model (variant) that failed there."""


class Bar(Struct, frozen=True, kw_only=True):
    """A model is kept from a node `until` then. `stamp` tells the node's failures apart; `times` counts them."""

    until: float
    times: int
    stamp: tuple[float, int]
    code: str
    detail: str


def noted(bars: Mapping[Place, Bar], told: Mapping[NodeId, Iterable[LoadFailure]], now: float) -> dict[Place, Bar]:
    """The bars after the nodes have told their failures; each new one doubles the time, up to six hours.

    A bar that ended is remembered six hours more, so that the next failure there counts as one more.
    """
    after = {place: bar for place, bar in bars.items() if now < bar.until + LONGEST_BAR_SECONDS}
    for node, failure in new_failures(after, told):
        place = (node, failure.variant)
        before = after.get(place)
        times = max(failure.times, 1 if before is None else before.times + 1)
        longest = LONGEST_ABSENCE_SECONDS if failure.code in NOT_THE_NODES_FAULT else LONGEST_BAR_SECONDS
        seconds = min(FIRST_BAR_SECONDS * 2.0 ** min(times - 1, 30), longest)
        stamp = (failure.at, failure.times)
        after[place] = Bar(until=now + seconds, times=times, stamp=stamp, code=failure.code, detail=failure.detail)
    return after


def new_failures(
    bars: Mapping[Place, Bar], told: Mapping[NodeId, Iterable[LoadFailure]]
) -> list[tuple[NodeId, LoadFailure]]:
    """The failures that no bar speaks of yet, with their nodes."""
    return [
        (node, failure)
        for node, failures in told.items()
        for failure in failures
        if (bar := bars.get((node, failure.variant))) is None or bar.stamp != (failure.at, failure.times)
    ]


def in_force(bars: Mapping[Place, Bar], nodes: Collection[NodeId], now: float) -> frozenset[Place]:
    """Where nothing may be placed now; what is not the node's own fault bars a model from all `nodes`."""
    barred: set[Place] = set()
    for (node, variant), bar in bars.items():
        if now < bar.until:
            barred.add((node, variant))
            if bar.code in NOT_THE_NODES_FAULT:
                barred.update((other, variant) for other in nodes)
    return frozenset(barred)
