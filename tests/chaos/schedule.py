"""Which faults come when: pure, the same for the same seed, abilities and kinds.

A schedule is an endless row of waves. A wave is one fault, or, once each kind had its turn alone, sometimes two that
overlap. Every fault in a wave ends within LONGEST_WAVE_SECONDS; after each wave comes a quiet time of up to
SETTLE_SECONDS, in which the network must become whole again. Targets are drawn when a fault begins, from what the
network is then: `pick` says which, so that the draw is part of the schedule.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Literal, NamedTuple

from chaos.records import Happening
from felloe.engines.rules import RestartPolicy

Role = Literal["node", "server", "spoke", "mover", "hub", "leader", "hubs", "candidate", "guest"]
"""Any node; one with a model; one that is no hub; one that may change its address; a hub; the leading one; all of
them; a spoke that may become a hub; a newcomer."""

SETTLE_SECONDS = 30.0
LONGEST_WAVE_SECONDS = 30.0
_SECOND_FAULT_SHARE = 0.3
_CRASH_WINDOW_SECONDS = RestartPolicy().crash_window + LONGEST_WAVE_SECONDS
_CRASHES_ALLOWED = RestartPolicy().crashes_allowed


class Kind(NamedTuple):
    """One kind of fault. `needs` are abilities of the laboratory or the program, durations in seconds."""

    role: Role
    shortest: float
    longest: float
    needs: frozenset[str] = frozenset()
    alone: bool = False


_LINKS = frozenset({"links"})
_HUBS = frozenset({"hubs"})

KINDS: dict[str, Kind] = {
    "node killed": Kind("node", 1, 6),
    "node frozen": Kind("node", 2, 12),
    "engine killed": Kind("server", 0, 1),
    "engine frozen": Kind("server", 2, 8),
    "message server killed": Kind("hub", 0, 1),
    "all hubs killed": Kind("hubs", 2, 6, alone=True),
    "link cut": Kind("node", 2, 15, _LINKS),
    "link cut outwards": Kind("node", 2, 15, _LINKS),
    "link cut inwards": Kind("node", 2, 15, _LINKS),
    "30 % packets lost": Kind("node", 6, 15, _LINKS),
    "300 ms delay": Kind("node", 6, 15, _LINKS),
    "disk full": Kind("node", 4, 12, frozenset({"disk"})),
    "disk of a hub full": Kind("hub", 4, 12, frozenset({"disk"})),
    "clock jumps": Kind("node", 5, 15, frozenset({"clock"})),
    "restart after a wrong clock": Kind("node", 6, 12, frozenset({"clock"})),
    "spoke moved": Kind("mover", 1, 3, frozenset({"address"})),
    "leader killed": Kind("leader", 1, 6, _HUBS),
    "leader frozen": Kind("leader", 5, 25, _HUBS),
    "leader killed while it writes": Kind("leader", 1, 6, _HUBS),
    "leader cut from the hubs": Kind("leader", 5, 25, _HUBS | _LINKS),
    "hub killed while promoted": Kind("candidate", 1, 5, frozenset({"promote", "demote"}), alone=True),
    "node revoked": Kind("guest", 8, 12, frozenset({"revoke"}), alone=True),
}


class Fault(NamedTuple):
    """One planned fault: seconds after its wave's begin, and the number that draws its target."""

    kind: str
    begin: float
    duration: float
    pick: int

    @property
    def end(self) -> float:
        """When it is undone, in seconds after its wave's begin."""
        return self.begin + self.duration


class Scene(NamedTuple):
    """Who can be a target now, by name. `leader` is "" when nobody leads or nobody tells."""

    nodes: tuple[str, ...]
    serving: frozenset[str]
    hubs: tuple[str, ...]
    leader: str
    movers: frozenset[str] = frozenset()
    candidates: frozenset[str] = frozenset()
    guests: tuple[str, ...] = ()


def possible(abilities: Collection[str]) -> list[str]:
    """The kinds that these abilities allow."""
    return [name for name, kind in KINDS.items() if kind.needs <= set(abilities)]


def left_out(abilities: Collection[str]) -> dict[str, frozenset[str]]:
    """The other kinds, each with the abilities that are missing."""
    return {name: missing for name, kind in KINDS.items() if (missing := kind.needs - set(abilities))}


def waves(seed: int, kinds: Collection[str]) -> Iterator[tuple[Fault, ...]]:
    """Endless; within one round every kind comes once as a wave's first fault."""
    if not kinds:
        return
    draw = random.Random(seed)
    ordered = sorted(kinds)
    first_round = True
    while True:
        draw.shuffle(ordered)
        for kind in tuple(ordered):
            yield _wave(draw, kind, ordered, alone=first_round)
        first_round = False


def spared_engines(happenings: Iterable[Happening], now: float) -> frozenset[str]:
    """The nodes whose engine is not to be killed now: one time more, and the node gives the model up, as it should."""
    killed = Counter(
        name
        for one in happenings
        if one.kind == "engine killed" and now - one.begin < _CRASH_WINDOW_SECONDS
        for name in one.targets
    )
    return frozenset(name for name, times in killed.items() if times >= _CRASHES_ALLOWED)


def _wave(draw: random.Random, kind: str, kinds: list[str], *, alone: bool) -> tuple[Fault, ...]:
    first = _fault(draw, kind, draw.uniform(0.0, 1.0))
    others = [name for name in kinds if name != kind and not KINDS[name].alone]
    if alone or KINDS[kind].alone or not others or draw.random() >= _SECOND_FAULT_SHARE:
        return (first,)
    return (first, _fault(draw, draw.choice(others), draw.uniform(first.begin, min(first.end, 4.0))))


def _fault(draw: random.Random, kind: str, begin: float) -> Fault:
    shortest, longest = KINDS[kind].shortest, KINDS[kind].longest
    return Fault(kind, begin, draw.uniform(shortest, longest), draw.randrange(1 << 16))


def targets(fault: Fault, scene: Scene, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Whom a fault hits in this scene; nobody when there is none of its role that no other fault has."""
    pools: dict[Role, Collection[str]] = {
        "node": scene.nodes,
        "server": scene.serving,
        "spoke": set(scene.nodes) - set(scene.hubs),
        "mover": scene.movers - set(scene.hubs),
        "hub": scene.hubs,
        "leader": [scene.leader] if scene.leader else [],
        "hubs": scene.hubs,
        "candidate": scene.candidates - set(scene.hubs),
        "guest": scene.guests,
    }
    role = KINDS[fault.kind].role
    pool = sorted(name for name in pools[role] if name not in taken)
    if not pool:
        return ()
    return tuple(pool) if role == "hubs" else (pool[fault.pick % len(pool)],)
