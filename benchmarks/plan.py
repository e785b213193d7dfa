"""How good plans are and how long they take: random fleets of 10, 100 and 1,000 devices, on one thread.

    python benchmarks/plan.py [--devices 10,100,1000] [--fleets 5] [--seconds 5,5,30] [--json FILE]

The fleets are mixed, as in a network of what people own: machines with one, two or four equal cards of 4 to 80 GiB,
some with none; on a third of them up to 30 % of each memory is taken by something else, so that few machines are
quite alike. The models are of 0.5 to 70 B parameters, each in three quantisations and with contexts of 2,048 to 8,192
tokens; their best variants want one and a half times the memory of the cards, and larger models have more demand.
`value` is the demand-weighted quality served, `bound` the most that any plan could serve (proved), `gap` their
distance; seconds are of the wall, for all of a plan with its refusals. Beside it, on the same choices and with the
same prices, as shares of `value`: first-fit decreasing (each model on the first machines that hold it) and best-fit
decreasing (on those that are then fullest), the largest models first, then the ones with most quality a byte first;
always the best variant that fits.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import msgspec

from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel
from felloe.placement.choices import Pricing
from felloe.placement.facts import ModelFacts
from felloe.placement.machine_kinds import kinds_of
from felloe.placement.packing import Option, Problem, limits_of, problem_of
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.plan import make_plan
from felloe.placement.wishes import Wish, wishes_of

GIB = 2**30
MACHINES = (
    ((), 32),
    ((4,), 32),
    ((8,), 16),
    ((12,), 32),
    ((12,), 32),
    ((16,), 32),
    ((24,), 64),
    ((24,), 64),
    ((24, 24), 128),
    ((12, 12, 12, 12), 128),
    ((48, 48), 256),
    ((80, 80, 80, 80), 512),
)
MODELS = {
    "0.5b": Lengths(24, 896, 14, 2, 4864, 151936, tied=True),
    "1.5b": Lengths(28, 1536, 12, 2, 8960, 151936, tied=True),
    "3b": Lengths(28, 3072, 24, 8, 8192, 128256, tied=True),
    "8b": Lengths(32, 4096, 32, 8, 14336, 128256),
    "14b": Lengths(48, 5120, 40, 8, 13824, 152064),
    "24b": Lengths(40, 5120, 32, 8, 32768, 131072, head_length=128),
    "32b": Lengths(64, 5120, 40, 8, 27648, 152064),
    "70b": Lengths(80, 8192, 64, 8, 28672, 128256),
}
BANDWIDTH = {4: 192e9, 8: 288e9, 12: 360e9, 16: 448e9, 24: 936e9, 48: 864e9, 80: 2039e9}


Rank = Callable[[int, list[int]], float]
"""Of a machine's number and what is left there of the devices that a replica uses: the least is chosen."""

Weigh = Callable[[Wish], float]
"""What a model weighs: the weightiest is placed first."""


class Row(msgspec.Struct, frozen=True):
    """One fleet; `first_fit` and `best_fit` as shares of the plan's value: by size, and by quality a byte."""

    devices: int
    machines: int
    kinds: int
    models: int
    replicas: int
    value: float
    bound: float
    gap: float
    seconds: float
    first_fit: list[float]
    best_fit: list[float]


def fleet_of(devices: int, dice: random.Random) -> Fleet:
    """Random machines with at least so many devices, the memory of a machine without a card counted as one."""
    machines: list[Machine] = []
    count = 0
    while count < devices:
        cards, ram = dice.choice(MACHINES)
        cards = cards[: devices - count]
        taken = dice.random() < 1 / 3
        found = [Device(id="ram", kind="cpu", memory=_left(ram * 0.9, taken, dice), bandwidth=40e9)]
        for at, card in enumerate(cards):
            memory = _left(card * 0.96, taken, dice)
            found.append(Device(id=f"gpu{at}", kind="cuda", memory=memory, bandwidth=BANDWIDTH[card]))
        name = f"m{len(machines)}"
        machines.append(Machine(id=NodeId(f"{len(machines):026}"), name=name, devices=tuple(found)))
        count += max(1, len(cards))
    return Fleet(machines=tuple(machines))


def _left(gibibytes: float, taken: bool, dice: random.Random) -> int:
    """What is left of a memory, in steps of 64 MiB as nodes tell it."""
    free = gibibytes * (1 - (0.3 * dice.random() if taken else 0))
    return int(free * 16) * (GIB // 16)


def wishes_for(fleet: Fleet, dice: random.Random) -> tuple[list[DesiredModel], dict[ModelName, ModelFacts]]:
    """Models that together want about one and a half times the memory of the cards."""
    facts: dict[ModelName, ModelFacts] = {}
    desired: list[DesiredModel] = []
    memory = sum(device.memory for machine in fleet.machines for device in machine.devices[1:])
    count = min(60, max(6, len(fleet.machines)))
    wanted = 0.0
    for at in range(count):
        size = dice.choice(list(MODELS))
        name = f"{size}-{at}"
        names: list[ModelName] = []
        for quantisation in ("Q8_0", "Q5_K_M", "Q4_K_M"):
            variant = ModelName(f"{name}-{quantisation}")
            shape = shape_from_parameters(MODELS[size], quantisation=quantisation, context=32768)
            facts[variant] = ModelFacts(shape=shape)
            names.append(variant)
        left = 1.5 * memory - wanted
        weight = facts[names[0]].shape.weights
        replicas = max(1, min(len(fleet.machines), round(left / (count - at) / weight)))
        wanted += replicas * weight
        demand = round(dice.choice((1, 1, 2, 3, 5)) * (weight / GIB) ** 0.5, 2)
        desired.append(
            DesiredModel(
                model=ModelName(name),
                variants=tuple(names),
                replicas_min=replicas,
                replicas_max=replicas,
                demand=demand,
                context=8192,
                context_least=2048,
            )
        )
    return desired, facts


def decreasing(problem: Problem, weigh: Weigh, rank: Rank) -> float:
    """What is served when each model in turn, the weightiest first, goes on the machines of the least rank.

    It is taken there in the best variant that still fits. A replica changes nothing on other machines, so the order of
    machines is found once a model.
    """
    kinds = [at for at, kind in enumerate(problem.kinds) for _ in kind.machines]
    free = [list(problem.rooms[kind]) for kind in kinds]
    held: list[Option] = []
    left = limits_of(problem)
    by_wish: dict[int, dict[int, list[Option]]] = {}
    for kind, options in enumerate(problem.options):
        for option in options:
            by_wish.setdefault(option.choice.wish, {}).setdefault(kind, []).append(option)
    for wish in sorted(by_wish, key=lambda at: -weigh(problem.wishes[at])):
        places: list[tuple[float, float, int, Option]] = []
        for machine, kind in enumerate(kinds):
            found = [
                (rank(machine, [free[machine][row] - used for row, used in option.uses]), -option.choice.worth, option)
                for option in by_wish[wish].get(kind, ())
                if all(used <= free[machine][row] for row, used in option.uses)
            ]
            if found:
                best = min(found, key=lambda place: place[1])
                places.append((best[0], best[1], machine, best[2]))
        for _, _, machine, option in sorted(places, key=lambda place: place[:3])[: left[wish, False]]:
            held.append(option)
            for row, used in option.uses:
                free[machine][row] -= used
    return sum(option.choice.worth for option in held)


def size(wish: Wish) -> float:
    """Bytes of the best variant."""
    return wish.variants[0].facts.shape.weights


def density(wish: Wish) -> float:
    """Demand-weighted quality a byte, of the variant that has most."""
    return max(wish.desired.demand * one.quality / one.facts.shape.weights for one in wish.variants)


def measure(devices: int, seed: int, seconds: float) -> Row:
    """One fleet, planned three ways."""
    dice = random.Random(seed)
    fleet = fleet_of(devices, dice)
    desired, facts = wishes_for(fleet, dice)
    plan = make_plan(fleet, desired, facts, seconds=seconds, now=time.perf_counter)
    wishes, _ = wishes_of(desired, facts)
    kinds = kinds_of(fleet, wishes, (), ())
    pricing = Pricing(wishes, {}, thorough=len(kinds) <= 12)
    problem = problem_of(wishes, kinds, [pricing.choices(kind) for kind in kinds])
    ranks: tuple[Rank, ...] = (lambda machine, left: float(machine), lambda machine, left: float(sum(left)))
    first, best = ([decreasing(problem, weigh, rank) / plan.value for weigh in (size, density)] for rank in ranks)
    return Row(
        devices=devices,
        machines=len(fleet.machines),
        kinds=len(kinds),
        models=len(desired),
        replicas=sum(wanted.replicas_min for wanted in desired),
        value=plan.value,
        bound=plan.bound,
        gap=plan.gap,
        seconds=plan.seconds,
        first_fit=first,
        best_fit=best,
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Plan quality and time on random fleets.")
    parser.add_argument("--devices", default="10,100,1000")
    parser.add_argument("--seconds", default="5,5,30")
    parser.add_argument("--fleets", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    print("| devices | machines | models x replicas | value / bound | gap mean (worst) | seconds (worst) | FFD | BFD |")
    print("|---|---|---|---|---|---|---|---|")
    for count, seconds in zip(options.devices.split(","), options.seconds.split(","), strict=False):
        mine = [measure(int(count), seed, float(seconds)) for seed in range(options.fleets)]
        rows += mine
        print(_line(mine))
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(msgspec.to_builtins(rows), indent=2))


def _line(rows: list[Row]) -> str:
    gaps, times = [row.gap for row in rows], [row.seconds for row in rows]
    return (
        f"| {rows[0].devices} | {fmean(row.machines for row in rows):.0f} "
        f"| {fmean(row.models for row in rows):.0f} x {fmean(row.replicas / row.models for row in rows):.1f} "
        f"| {fmean(row.value for row in rows):.1f} / {fmean(row.bound for row in rows):.1f} "
        f"| {100 * fmean(gaps):.2f} % ({100 * max(gaps):.2f} %) | {fmean(times):.1f} ({max(times):.1f}) "
        f"| {_shares([row.first_fit for row in rows])} | {_shares([row.best_fit for row in rows])} |"
    )


def _shares(found: list[list[float]]) -> str:
    return ", ".join(f"{100 * fmean(by_order):.1f} %" for by_order in zip(*found, strict=True))


if __name__ == "__main__":
    main()
