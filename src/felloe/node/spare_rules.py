"""Which models are to lie on several nodes, and whose turn it is to fetch one more copy. Pure.

Nobody commands: each node works out the same from its own roster. All nodes that lack a model stand in one line, made
from a hash of the model and the node. As many as there are copies missing act at once, each further one waits a turn
longer, and sees what those before it have done. Sizes are in bytes, times in seconds.
"""

from collections.abc import Iterable, Mapping, Sequence

from blake3 import blake3
from msgspec import Struct

from felloe.domain.approval import Approvals
from felloe.domain.fleet import RAM, Machine
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.plan import DesiredModel, Placement
from felloe.domain.roster import HELD_DIGITS, Roster

CALM_SECONDS = 20.0
"""How long a copy must have been missing before the first in the line acts: nodes that start anew are back by then."""


class Spare(Struct, frozen=True, kw_only=True):
    """A model of which there are to be several copies. `planned` are the nodes that fetch it anyway, to serve it."""

    content: ContentId
    name: ModelName
    size: int
    planned: frozenset[NodeId] = frozenset()


class Keeper(Struct, frozen=True, kw_only=True):
    """A living node that stays: the beginnings of the contents that it holds, and the memory that it has for models.

    `memory` is None where nothing is ever served, so that no copy goes there.
    """

    node: NodeId
    holds: frozenset[str]
    memory: int | None


class Gap(Struct, frozen=True, kw_only=True):
    """Copies of a model are missing `since` then; `holders` are all that were seen to hold it from then on."""

    since: float
    holders: frozenset[NodeId]


def keepers(roster: Roster) -> tuple[Keeper, ...]:
    """The nodes that count now: those that are seen to live and are not being drained."""
    return tuple(
        Keeper(node=node, holds=frozenset(member.record.holds), memory=_memory(member.record.machine))
        for node, member in roster.members.items()
        if (member.alive or node == roster.this) and not member.load.draining
    )


def spares(
    wanted: Iterable[DesiredModel], placements: Sequence[Placement], approvals: Approvals
) -> dict[ContentId, Spare]:
    """What there is to keep copies of: the approved files that the plan uses for wanted models, and the best approved
    variant of those that the plan has nowhere now.
    """
    named = {one.listing.name: one.listing for one in approvals.approved.values()}
    found: dict[ContentId, Spare] = {}
    for desired in wanted:
        placed = [one for one in placements if one.model == desired.model and one.content]
        contents = {one.content for one in placed}
        if not contents:
            names = desired.variants or (desired.model,)
            contents = set([named[name].content for name in names if name in named][:1])
        for content in contents:
            approved = approvals.approved.get(ContentId(content))
            if approved is not None:
                nodes = frozenset(one.node for one in placed if one.content == content)
                before = found.get(approved.listing.content)
                found[approved.listing.content] = Spare(
                    content=approved.listing.content,
                    name=approved.listing.name,
                    size=approved.listing.size,
                    planned=nodes if before is None else nodes | before.planned,
                )
    return found


def turn(spare: Spare, nodes: Iterable[Keeper], this: NodeId, copies: int) -> int | None:
    """How many turns `this` node has to wait before it fetches the model; None while it need not.

    It need not while there are `copies` of it here and there, or on their way, and cannot while nobody else has it.
    """
    known = {one.node: one for one in nodes}
    held = {one.node for one in known.values() if _holds(one, spare)}
    coming = spare.planned & known.keys()
    missing = copies - len(held | coming)
    if missing <= 0 or not held - {this} or this in held | coming or this not in known:
        return None
    line = in_line(spare, (one for one in known.values() if one.node not in held | coming and one.memory is not None))
    return max(0, line.index(this) - missing + 1) if this in line else None


def must_keep(spare: Spare, nodes: Iterable[Keeper], this: NodeId, copies: int) -> bool:
    """Whether the copy on `this` node is one of those that are needed, so that clean-up must not take it."""
    held = [one for one in nodes if _holds(one, spare)]
    return copies > 1 and (this in in_line(spare, held)[:copies] or all(one.node != this for one in held))


def in_line(spare: Spare, nodes: Iterable[Keeper]) -> list[NodeId]:
    """The nodes in the order in which they are to hold a model: those with memory for it first, then by hash.

    The hash of model and node (rendezvous hashing, Thaler and Ravishankar 1996) spreads models over nodes, and moves
    nothing but what concerns a node that comes or goes.
    """
    order = sorted(nodes, key=lambda one: ((one.memory or 0) < spare.size, _hash(spare.content, one.node)))
    return [one.node for one in order]


def gap(before: Gap | None, spare: Spare, nodes: Iterable[Keeper], copies: int, now: float) -> Gap:
    """A gap after a look at who holds the model, where `copies` nodes should.

    Its time begins anew when another node has come to hold it so that, with all that were seen to, the gap must have
    been closed for a moment. A node that comes and goes has that effect once.
    """
    holders = frozenset(one.node for one in nodes if _holds(one, spare))
    if before is None:
        return Gap(since=now, holders=holders)
    all_seen = before.holders | holders
    was_closed = all_seen != before.holders and len(all_seen) >= copies
    return Gap(since=now if was_closed else before.since, holders=all_seen)


def due(turns: Mapping[ContentId, int], gaps: Mapping[ContentId, Gap], now: float) -> list[ContentId]:
    """The models whose copy is to be fetched here now, the longest due first."""
    waits = {content: gaps[content].since + CALM_SECONDS * (1 + turns[content]) for content in turns}
    return sorted((content for content in waits if now >= waits[content]), key=lambda one: (waits[one], one))


def _holds(node: Keeper, spare: Spare) -> bool:
    return spare.content[:HELD_DIGITS] in node.holds


def _hash(content: ContentId, node: NodeId) -> bytes:
    return blake3(f"{content} {node}".encode()).digest(8)


def _memory(machine: Machine | None) -> int | None:
    if machine is None:
        return None
    return sum(device.memory for device in machine.devices if not device.shared or device.id == RAM)
