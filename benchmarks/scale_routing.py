"""How long it takes to choose a replica among 10,000 nodes, while the roster changes: no network, no engine."""

import random
import time
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from felloe import __version__
from felloe.domain.hardware import Hardware
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.models import Model
from felloe.domain.roster import Load, Member, NodeRecord, Replica, Roster
from felloe.routing.model_index import IndexCache
from felloe.routing.rules import Others, Wanted, choose

NODES = 10_000
SLOTS = 4
DECISIONS = 20_000
CHANGES_PER_SNAPSHOT = 50
WANTED = Wanted(ModelName("model-0"), ("chat",))
Figures = dict[str, Any]


def measure() -> Figures:
    """Every case, by name; p50, p99 and mean in microseconds. The mean has the upkeep of the index in it."""
    cases: Figures = {}
    for models in (1, 20):
        for busy in (0.0, 0.9, 1.0):
            name = f"{NODES // models:,} replicas, {busy:.0%} of them busy"
            cases[name] = _decide(models, busy)
    return cases


def table(cases: Figures) -> str:
    """The cases as rows."""
    lines = [f"**A decision among {NODES:,} nodes**, µs", "", "| | p50 | p99 | mean |", "|---|---|---|---|"]
    lines += [f"| {name} | {row['p50']:.1f} | {row['p99']:.1f} | {row['mean']:.1f} |" for name, row in cases.items()]
    return "\n".join(lines)


def _decide(models: int, busy: float) -> Figures:
    """Decide while the roster changes: a snapshot 20 times a second, and 1,000 decisions a second."""
    chance = random.Random(1)
    members = {member.record.id: member for member in (_member(n, models, busy, chance) for n in range(NODES))}
    nodes = list(members)
    roster = Roster(NodeId("z" * 26), MappingProxyType(members), 1)
    # Time goes on by what each decision really takes, and by a pause up to the next one.
    paused = 0.0
    indexes = IndexCache(lambda: time.perf_counter() + paused)
    indexes.get(roster)
    took: list[float] = []
    for number in range(DECISIONS):
        if number % 50 == 0:
            changed = dict(roster.members)
            for node in chance.sample(nodes, CHANGES_PER_SNAPSHOT):
                changed[node] = _changed(changed[node], busy, chance)
            roster = Roster(roster.this, MappingProxyType(changed), roster.version + 1)
        began = time.perf_counter()
        offers = indexes.get(roster).get(WANTED.model)
        others = Others(offers.ready, offers.free, roster.members, {})
        chosen = choose(WANTED, None, others, _excludes_none, chance.random)
        took.append(time.perf_counter() - began)
        paused += 0.001
        del others
        assert chosen is not None
    took.sort()
    return {
        "p50": 1e6 * took[len(took) // 2],
        "p99": 1e6 * took[int(len(took) * 0.99)],
        "mean": 1e6 * sum(took) / len(took),
        "greatest": 1e6 * took[-1],
    }


def _excludes_none(node: NodeId, issued_at: float) -> bool:
    return False


def _member(number: int, models: int, busy: float, chance: random.Random) -> Member:
    model = Model(
        name=ModelName(f"model-{number % models}"),
        digest="",
        size=1,
        architecture="llama",
        quantisation="q8_0",
        context=2048,
        capabilities=("chat",),
    )
    hardware = Hardware(system="Linux", machine="", processor="", cores=1, memory_total=1, memory_available=1)
    record = NodeRecord(
        id=NodeId(f"{number:026d}"),
        name="box",
        roles=("spoke",),
        version=__version__,
        public_key=b"",
        sealing_config=b"",
        hardware=hardware,
        replicas=(Replica(model=model, engine="simulated", state="ready", slots=SLOTS, context=2048),),
        started_at=1.0,
        issued_at=1.0,
    )
    return Member(record=record, load=_load(model.name, busy, chance), alive=True, seen_at=0.0)


def _changed(member: Member, busy: float, chance: random.Random) -> Member:
    """Another load, and now and then a record that was issued anew."""
    record = member.record
    if chance.random() < 0.2:
        record = replace(record, issued_at=record.issued_at + 1)
    return replace(member, record=record, load=_load(record.replicas[0].model.name, busy, chance))


def _load(model: ModelName, busy: float, chance: random.Random) -> Load:
    active = SLOTS + chance.randrange(4) if chance.random() < busy else chance.randrange(SLOTS)
    return Load(active={model: active})
