"""Slow cards among fast ones: how long answers take with the speeds that nodes measure, and without. Simulated time.

Replicas of one model on cards of different speed, several asking nodes, questions at random times. The askers choose
with the program's own rule (`felloe.routing.rules`), by loads that are told every 50 ms and by what each has sent
itself. Answers have 200 tokens on average, exponentially distributed; a card makes them slot by slot at its speed.
Compared: the speeds told; no speeds (pressure alone decides); and whichever card would be done first, known exactly.

    PYTHONPATH=tests python benchmarks/slow_cards.py      prints the table of docs/benchmarks.md
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from statistics import quantiles
from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.ids import ModelName, NodeId
from felloe.domain.roster import Load, Member
from felloe.routing.model_index import ModelIndex
from felloe.routing.rules import Others, Wanted, choose
from routing_fakes import MODEL, make_member, make_replica, make_roster, node_id

QUESTIONS = 20_000
ASKERS = 3
SLOTS = 4
TOKENS = 200.0
TOLD_EVERY = 0.05
WANTED = Wanted(MODEL, ("chat",))
FLEETS = {
    "1 card of 50 tokens/s, 1 of 10": (50.0, 10.0),
    "2 cards of 50 tokens/s, 4 of 10": (50.0,) * 2 + (10.0,) * 4,
    "10 cards of 50 tokens/s, 40 of 10": (50.0,) * 10 + (10.0,) * 40,
    "6 cards of 50 tokens/s": (50.0,) * 6,
}
WAYS = ("speeds told", "no speeds", "known exactly")


class Card:
    """A replica: `SLOTS` answers at once, the others in turn."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._free_at = [0.0] * SLOTS
        self._ends: list[tuple[float, int]] = []
        self.sent: Counter[int] = Counter()

    def done_at(self, now: float, tokens: float) -> float:
        """When an answer that comes now would be done."""
        return max(now, self._free_at[0]) + tokens / self.speed

    def take(self, now: float, tokens: float, asker: int) -> float:
        """Answer; returns when it is done."""
        end = self.done_at(now, tokens)
        heapq.heapreplace(self._free_at, end)
        heapq.heappush(self._ends, (end, asker))
        self.sent[asker] += 1
        return end

    def look(self, now: float) -> int:
        """Requests here now, being answered and waiting."""
        while self._ends and self._ends[0][0] <= now:
            self.sent[heapq.heappop(self._ends)[1]] -= 1
        return len(self._ends)


class Outcome(NamedTuple):
    """Seconds from question to end."""

    mean: float
    p50: float
    p99: float


def simulate(speeds: tuple[float, ...], utilisation: float, way: str) -> Outcome:
    """Ask `QUESTIONS` times."""
    chance = random.Random(7)
    cards = {node_id(number): Card(speed) for number, speed in enumerate(speeds, 1)}
    members = {
        node: make_member(node, make_replica(slots=SLOTS, speed=card.speed if way == WAYS[0] else 0.0))
        for node, card in cards.items()
    }
    index = ModelIndex(make_roster(*members.values()))
    rate = utilisation * sum(speeds) * SLOTS / TOKENS
    now, told_at, took = 0.0, 0.0, list[float]()
    for _ in range(QUESTIONS):
        now += chance.expovariate(rate)
        if now - told_at >= TOLD_EVERY:
            told_at = now
            members = {node: _told(member, cards[node].look(now)) for node, member in members.items()}
            index.follow(make_roster(*members.values()))
        tokens, asker = chance.expovariate(1 / TOKENS), chance.randrange(ASKERS)
        if way == WAYS[2]:
            card = min(cards.values(), key=lambda card: card.done_at(now, tokens))
        else:
            card = cards[_chosen(index, cards, asker, now, chance.random)]
        took.append(card.take(now, tokens, asker) - now)
    cuts = quantiles(took, n=100)
    return Outcome(sum(took) / len(took), cuts[49], cuts[98])


def _told(member: Member, here: int) -> Member:
    load = Load(active={MODEL: min(here, SLOTS)}, waiting={MODEL: max(0, here - SLOTS)})
    return member if load == member.load else replace(member, load=load)


def _chosen(
    index: ModelIndex, cards: dict[NodeId, Card], asker: int, now: float, chance: Callable[[], float]
) -> NodeId:
    outstanding: dict[tuple[NodeId, ModelName], int] = {}
    for node, card in cards.items():
        card.look(now)
        outstanding[node, MODEL] = card.sent[asker]
    offers = index.get(MODEL)
    target = choose(
        WANTED, None, Others(offers.ready, offers.free, index.roster.members, outstanding), lambda *_: False, chance
    )
    assert target is not None
    return target.node


def main() -> None:
    """Print one table: a row for each fleet and utilisation."""
    columns = [f"{way}: mean | {way}: p50 | {way}: p99" for way in WAYS]
    print("| cards, 4 slots each | used | " + " | ".join(columns) + " |")
    print("|---|---" + "|---" * 3 * len(WAYS) + "|")
    for name, speeds in FLEETS.items():
        for utilisation in (0.3, 0.6, 0.9):
            cells = [f"{figure:.1f}" for way in WAYS for figure in simulate(speeds, utilisation, way)]
            print(f"| {name} | {utilisation:.0%} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
