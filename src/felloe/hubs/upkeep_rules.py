"""What the leader does next, decided from all it knows: one step at a time, each of which may be its last.

A member's role is the wish: `hub` or `spoke`. The hub set is what is. The steps bring the one to the other, and the
state to the right hubs before a hub that keeps it goes. A new leader sees the same and goes on from there.
"""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from felloe.domain.ids import NodeId
from felloe.hubs.records import Generation, HubSet, Next
from felloe.hubs.rules import (
    GONE_SECONDS,
    MOST_HUBS,
    STABLE_SECONDS,
    NodeFacts,
    candidates,
    choose_candidate,
    keeps_majority,
    lost_for_good,
    state_hubs,
    wanted_count,
)

AWAY_SECONDS = 30.0
ARRIVAL_SECONDS = 60.0


class Move(NamedTuple):
    """Have the state kept by these hubs."""

    hubs: tuple[NodeId, ...]


class Abandon(NamedTuple):
    """Drop a move that was begun and is no longer wanted."""

    next: Next


class Resign(NamedTuple):
    """Let another hub lead."""


class Try(NamedTuple):
    """Try the ports of a node."""

    node: NodeId


class Appoint(NamedTuple):
    """Wish a node to be a hub."""

    node: NodeId


class Enter(NamedTuple):
    """Enter a node into the hub set; it was reached at `host`."""

    node: NodeId
    host: str


class Retire(NamedTuple):
    """Wish a hub to be none."""

    node: NodeId


class Remove(NamedTuple):
    """Take a node out of the hub set."""

    node: NodeId


class Correct(NamedTuple):
    """Enter a hub's new name or addresses."""

    node: NodeId


Step = Move | Abandon | Resign | Try | Appoint | Enter | Retire | Remove | Correct


class Situation(Struct, frozen=True, kw_only=True):
    """All that a decision depends on. `nodes` has every member and every hub.

    `reached` are nodes whose ports were reached lately, with the host; `barred` those that were not, or not to be tried
    now. `arriving` are hubs entered or back so lately that their servers need not be up yet.
    """

    this: NodeId
    version: str
    hubs: HubSet
    generation: Generation
    next: Next | None
    nodes: Mapping[NodeId, NodeFacts]
    reached: Mapping[NodeId, str]
    barred: frozenset[NodeId]
    arriving: frozenset[NodeId]
    stable_seconds: float = STABLE_SECONDS
    gone_seconds: float = GONE_SECONDS

    @property
    def alive(self) -> frozenset[NodeId]:
        """The nodes that are alive."""
        return frozenset(node.id for node in self.nodes.values() if node.alive)

    @property
    def staying(self) -> tuple[NodeId, ...]:
        """The hubs that are to remain hubs."""
        return tuple(hub.id for hub in self.hubs.hubs if self.wished(hub.id))

    def wished(self, node: NodeId) -> bool:
        """Whether a node is to be a hub."""
        facts = self.nodes.get(node)
        return facts is not None and facts.role == "hub" and not facts.revoked

    def lost(self, node: NodeId) -> bool:
        """Whether a node has been silent for too long to wait for."""
        facts = self.nodes[node]
        return not facts.alive and lost_for_good(facts.silent_seconds, self.gone_seconds)


def target(now: Situation) -> tuple[NodeId, ...]:
    """The hubs that should keep the state. One that keeps it may be away for a moment, for instance to restart."""
    there = {
        node
        for node in now.staying
        if (now.nodes[node].silent_seconds < AWAY_SECONDS if node in now.generation.hubs else _is_up(now, node))
    }
    leader = now.this if now.this in now.generation.hubs else None
    return state_hubs(now.staying, there, now.generation.hubs, leader=leader)


def fit_to_lead(now: Situation) -> bool:
    """Whether this hub may lead: it keeps the state and is to remain a hub, or there is nobody to take its place."""
    if now.hubs.find(now.this) is None or now.this not in now.generation.hubs or now.nodes[now.this].revoked:
        return False
    return now.wished(now.this) or not any(
        node != now.this and node in now.alive and node in now.generation.hubs for node in now.staying
    )


def next_step(now: Situation) -> Step | None:
    """What the leader should do now; None to wait."""
    if (revoked := _revoked(now)) is not None:
        return revoked
    if not fit_to_lead(now):
        return Resign()
    if now.next is not None and now.next.closed:
        return None
    return _grow(now) or _retire_lost(now) or _recruit(now) or _shrink(now) or _retire_surplus(now) or _correct(now)


def _revoked(now: Situation) -> Step | None:
    for hub in now.hubs.hubs:
        if now.nodes[hub.id].revoked and hub.id != now.this and len(now.hubs.hubs) > 1:
            return Remove(hub.id)
    return None


def _grow(now: Situation) -> Step | None:
    """Move the state to as many hubs or more."""
    hubs = target(now)
    if set(hubs) != set(now.generation.hubs):
        if len(hubs) >= len(now.generation.hubs) and all(_is_up(now, node) for node in hubs):
            return Move(hubs)
    elif now.next is not None:
        return Abandon(now.next)
    return None


def _shrink(now: Situation) -> Step | None:
    """Move the state to fewer hubs, and let those go that keep it no more."""
    hubs = target(now)
    waits_for = set(now.staying) & now.arriving - set(hubs)
    if set(hubs) != set(now.generation.hubs) and all(_is_up(now, node) for node in hubs) and not waits_for:
        return Move(hubs)
    for hub in now.hubs.hubs:
        if not now.wished(hub.id) and hub.id != now.this and not _keeps_state(now, hub.id):
            return Remove(hub.id)
    return None


def _recruit(now: Situation) -> Step | None:
    """Enter who is wished to be a hub, or wish for one more."""
    entered = {hub.id for hub in now.hubs.hubs}
    pending = [n for n in now.nodes.values() if now.wished(n.id) and n.id not in entered]
    coming = [n for n in pending if n.alive and n.endpoints is not None]
    if len(entered) < MOST_HUBS:
        for node in coming:
            if node.id in now.reached:
                return Enter(node.id, now.reached[node.id])
            if node.id not in now.barred:
                return Try(node.id)
    if any(node.id not in now.barred for node in coming):
        return None
    return _appoint(now, entered | {node.id for node in pending})


def _appoint(now: Situation, chosen: set[NodeId]) -> Step | None:
    good = [node for node in now.staying if not now.lost(node)]
    fit = candidates(now.nodes.values(), chosen, now.version, stable_seconds=now.stable_seconds)
    known = [node for node in fit if node.id in now.reached]
    hoped = [node for node in fit if node.id not in now.barred]
    if wanted_count(now.hubs.wanted, len(good) + len(hoped), len(now.staying)) <= len(good):
        return None
    if wanted_count(now.hubs.wanted, len(good) + len(known), len(now.staying)) > len(good):
        best = choose_candidate(known, now.reached)
        if best is not None:
            return Appoint(best.id)
    untried = next((node for node in hoped if node.id not in now.reached), None)
    return None if untried is None else Try(untried.id)


def _retire_lost(now: Situation) -> Step | None:
    """Give up who is lost for good, as soon as the state does without it."""
    hubs = target(now)
    for node in now.nodes.values():
        if now.wished(node.id) and now.lost(node.id) and node.id not in hubs and not _keeps_state(now, node.id):
            return Retire(node.id)
    return None


def _retire_surplus(now: Situation) -> Step | None:
    """Give up hubs that the owner no longer wants: the lost, then those without the state, then the newest."""
    if not now.hubs.wanted or len(now.staying) <= now.hubs.wanted:
        return None
    since = {hub.id: hub.since for hub in now.hubs.hubs}
    order = sorted(
        (node for node in now.staying if node != now.this),
        key=lambda node: (now.nodes[node].alive, _keeps_state(now, node), -since[node], node),
    )
    for node in order:
        if keeps_majority([other for other in now.staying if other != node], now.alive):
            return Retire(node)
    return None


def _correct(now: Situation) -> Step | None:
    for hub in now.hubs.hubs:
        facts = now.nodes[hub.id]
        ours, theirs = hub.endpoints, facts.endpoints
        if not facts.alive or theirs is None:
            continue
        same_ports = (ours.peer, ours.mesh, ours.route, ours.state) == (
            theirs.peer,
            theirs.mesh,
            theirs.route,
            theirs.state,
        )
        if hub.name != facts.name or set(ours.hosts) != set(theirs.hosts) or not same_ports:
            return Correct(hub.id)
    return None


def _is_up(now: Situation, node: NodeId) -> bool:
    facts = now.nodes[node]
    return facts.alive and facts.ready


def _keeps_state(now: Situation, node: NodeId) -> bool:
    return node in now.generation.hubs or (now.next is not None and node in now.next.hubs)
