"""The search behind a plan: knapsacks against all that is possible, bounds above every plan, limits of time."""

from collections.abc import Sequence
from itertools import count, product

import numpy
from hypothesis import given, settings
from hypothesis import strategies as some

from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Plan
from felloe.placement.facts import ModelFacts
from felloe.placement.knapsack import Items, knapsack
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.plan import make_plan

GIB = 2**30
LENGTHS = (
    Lengths(layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128256, tied=True),
    Lengths(layers=28, width=3072, heads=24, kv_heads=8, feed_forward=8192, vocabulary=128256, tied=True),
    Lengths(layers=32, width=4096, heads=32, kv_heads=8, feed_forward=14336, vocabulary=128256),
)
FACTS = {
    ModelName(f"{number}-{quantisation}"): ModelFacts(shape=shape_from_parameters(lengths, quantisation=quantisation))
    for number, lengths in enumerate(LENGTHS)
    for quantisation in ("Q8_0", "Q4_K_M")
}

packable = some.lists(
    some.lists(some.tuples(some.integers(1, 90_000), some.integers(1, 1000)), min_size=1, max_size=3), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(packable, some.integers(0, 100_000))
def test_a_knapsack_is_as_good_as_the_best_of_all_and_its_bound_is_no_less(
    groups: Sequence[Sequence[tuple[int, int]]], room: int
) -> None:
    flat = [(group, *item) for group, items in enumerate(groups) for item in items]
    items = Items(
        numpy.array([group for group, _, _ in flat], dtype=numpy.int64),
        numpy.array([size for _, size, _ in flat], dtype=numpy.int64),
        numpy.array([float(gain) for _, _, gain in flat]),
    )
    packed = knapsack(items, room, bound=True)
    most = max(
        sum(item[1] for item in taken if item)
        for taken in product(*([None, *mine] for mine in groups))
        if sum(item[0] for item in taken if item) <= room
    )
    assert sum(flat[at][1] for at in packed.chosen) <= room
    assert len({flat[at][0] for at in packed.chosen}) == len(packed.chosen)
    assert packed.gain == sum(flat[at][2] for at in packed.chosen)
    assert packed.gain <= most <= packed.bound + 1e-6
    # Sizes are counted in steps of a 4,096th of the room: what fits with that much to spare is found.
    spare = room - room // 4096 * len(groups) - len(groups)
    nearly = max(
        sum(item[1] for item in taken if item)
        for taken in product(*([None, *mine] for mine in groups))
        if sum(item[0] for item in taken if item) <= max(0, spare)
    )
    assert packed.gain >= nearly * (1 - 1e-4) - 1e-6


def fleet_of(cards: Sequence[Sequence[int]]) -> Fleet:
    machines: list[Machine] = []
    for number, mine in enumerate(cards):
        gpus = [Device(id=f"gpu{at}", kind="cuda", memory=size * GIB) for at, size in enumerate(mine)]
        ram = Device(id="ram", kind="cpu", memory=64 * GIB)
        machines.append(Machine(id=NodeId(f"{number:026}"), name=f"m{number}", devices=(ram, *gpus)))
    return Fleet(machines=tuple(machines))


def many_wishes(replicas: int) -> list[DesiredModel]:
    return [
        DesiredModel(
            model=ModelName(f"{name}-{number}"),
            variants=(ModelName(f"{number}-Q8_0"), ModelName(f"{number}-Q4_K_M")),
            replicas_min=replicas,
            replicas_max=replicas,
            demand=demand,
            context=4096,
            context_least=1024,
        )
        for number in range(len(LENGTHS))
        for name, demand in (("chat", 1.0), ("code", 1.7), ("write", 2.3), ("look", 3.1))
    ]


CARDS = [[4], [6, 6], [8], [12], [24], [12, 12, 12, 12], [16], [10], [5], [], [24, 24], [7], [9], [11]] * 2


def ticking(step: float) -> Plan:
    """A plan by a clock on which each look takes a step."""
    clock = count()
    return make_plan(fleet_of(CARDS), many_wishes(14), FACTS, seconds=60.0, now=lambda: step * next(clock))


def used(plan: Plan) -> dict[tuple[NodeId, str], int]:
    taken: dict[tuple[NodeId, str], int] = {}
    for placement in plan.placements:
        for part in placement.parts:
            place = placement.node, part.device
            taken[place] = taken.get(place, 0) + part.need.total
    return taken


def test_a_large_fleet_is_planned_nearly_as_well_as_is_possible_and_that_is_proved() -> None:
    fleet = fleet_of(CARDS)
    plan = ticking(0.06)
    assert 0 < plan.gap < 0.02
    memory = {(machine.id, device.id): device.memory for machine in fleet.machines for device in machine.devices}
    assert all(size <= memory[place] for place, size in used(plan).items())
    assert len({(placement.model, placement.node) for placement in plan.placements}) == len(plan.placements)
    replicas = [placement.model for placement in plan.placements]
    assert all(replicas.count(wish.model) <= 14 for wish in many_wishes(14))


def test_by_the_same_clock_a_large_plan_is_the_same() -> None:
    assert ticking(0.24).placements == ticking(0.24).placements


def test_without_time_there_is_still_a_plan_with_a_bound_and_reasons() -> None:
    plan = ticking(600.0)
    assert plan.placements
    assert plan.value <= plan.bound
    assert plan.refusals
