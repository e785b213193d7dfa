"""When a plan may replace the present one: pure decisions.

What runs stays where it is unless it must go, or what comes instead is clearly better. Who must go makes room at once;
who only could stand better waits for a quiet moment, and stays until the other one answers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby

from msgspec.structs import replace

from felloe.domain.fleet import RAM, Fleet, Machine
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Placement
from felloe.placement.facts import ModelFacts
from felloe.placement.quarantine import Place
from felloe.placement.wishes import Variant, wanted_context, wishes_of, worth_of_context

REST_SECONDS = 300.0
"""How long the plan rests after models were moved only to stand better."""

LEAST_GAIN = 0.02
"""What such a move must gain, as a share of what the models of one priority are worth."""

Wanted = Mapping[ModelName, DesiredModel]
Models = Mapping[ModelName, ModelFacts]


def standing(
    current: Iterable[Placement],
    wanted: Wanted,
    fleet: Fleet,
    models: Models,
    barred: Collection[Place],
    ready: Collection[Placement] = (),
) -> tuple[Placement, ...]:
    """Those of `current` that may stay: wanted as they are, on machines that are there and hold them all.

    Where memory has become short or fewer replicas are wanted, the least important go: lower priorities, those that are
    here on demand, those that are not ready yet.
    """
    machines = {machine.id: machine for machine in fleet.machines}
    free = {machine.id: Room(machine) for machine in fleet.machines}
    counts: dict[ModelName, int] = {}
    kept: set[int] = set()
    listed = list(current)
    order = sorted(range(len(listed)), key=lambda at: (*_importance(listed[at], wanted), listed[at] not in ready))
    for at in order:
        placement = listed[at]
        desired, machine = wanted.get(placement.model), machines.get(placement.node)
        if desired is None or machine is None or (placement.node, placement.variant) in barred:
            continue
        if counts.get(placement.model, 0) >= desired.replicas_max or not _is_as_wanted(
            placement, desired, machine, models.get(placement.variant)
        ):
            continue
        if free[machine.id].take(placement):
            counts[placement.model] = counts.get(placement.model, 0) + 1
            kept.add(at)
    return tuple(placement for at, placement in enumerate(listed) if at in kept)


class Room:
    """What is free on a machine's devices while placements are taken in one by one."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._free = {device.id: device.memory for device in machine.devices}

    def take(self, placement: Placement) -> bool:
        """Take its bytes, if they are free on every device."""
        needs = {part.device: part.need.total for part in placement.parts}
        if not needs.keys() <= self._free.keys():
            return False
        shared = {device.id for device in self._machine.devices if device.shared and device.id != RAM}
        needs[RAM] = needs.get(RAM, 0) + sum(needs.get(device, 0) for device in shared)
        if any(need > self._free.get(device, 0) for device, need in needs.items() if need):
            return False
        for device, need in needs.items():
            if device in self._free:
                self._free[device] -= need
        return True

    def left(self) -> Machine:
        """The machine with what is free now."""
        devices = tuple(replace(device, memory=self._free[device.id]) for device in self._machine.devices)
        return Machine(id=self._machine.id, name=self._machine.name, devices=devices)


def less(fleet: Fleet, taken: Iterable[Placement]) -> Fleet:
    """The fleet with what these placements leave free; they fit in it."""
    rooms = {machine.id: Room(machine) for machine in fleet.machines}
    for placement in taken:
        if placement.node in rooms:
            rooms[placement.node].take(placement)
    return Fleet(machines=tuple(room.left() for room in rooms.values()))


def coverage(placements: Iterable[Placement], wanted: Wanted) -> tuple[int, ...]:
    """How many of the least replicas are placed, by priority from the highest: the greater is the better plan."""
    counts = count(placements)
    return tuple(
        sum(min(counts.get(desired.model, 0), desired.replicas_min) for desired in group)
        for _, group in _by_priority(wanted)
    )


def misses(placements: Iterable[Placement], wanted: Wanted) -> bool:
    """Whether a replica that is wanted has no place."""
    counts = count(placements)
    return any(counts.get(desired.model, 0) < desired.replicas_max for desired in wanted.values())


def count(placements: Iterable[Placement]) -> dict[ModelName, int]:
    """The number of replicas of each model."""
    counts: dict[ModelName, int] = {}
    for placement in placements:
        counts[placement.model] = counts.get(placement.model, 0) + 1
    return counts


def worth(placements: Sequence[Placement], wanted: Wanted, models: Models) -> tuple[float, ...]:
    """What a plan is worth, by priority from the highest: first all the quality served, then how much of it on GPUs.

    Quality is weighed by demand; a smaller variant and a shorter context than wanted have less.
    """
    wishes, _ = wishes_of(list(wanted.values()), models)
    variants = {(wish.desired.model, variant.name): variant for wish in wishes for variant in wish.variants}
    quality: list[float] = []
    speed: list[float] = []
    for _, group in _by_priority(wanted):
        names = {desired.model for desired in group}
        chosen = [placement for placement in placements if placement.model in names]
        values = [wanted[one.model].demand * _quality(one, variants.get((one.model, one.variant))) for one in chosen]
        quality.append(sum(values))
        speed.append(sum(value * _on_gpus(one) for value, one in zip(values, chosen, strict=True)))
    return (*quality, *speed)


def is_better(worth_after: Sequence[float], worth_before: Sequence[float]) -> bool:
    """Whether the first figure in which the two clearly differ grows."""
    for after, before in zip(worth_after, worth_before, strict=True):
        if abs(after - before) > LEAST_GAIN * max(after, before):
            return after > before
    return False


def left_over(
    current: Sequence[Placement], goal: Sequence[Placement], ready: Collection[Placement], fleet: Fleet
) -> tuple[Placement, ...]:
    """Those of `current` that stay until what replaces them is ready, as far as memory allows beside `goal`."""
    rooms = {machine.id: Room(machine) for machine in fleet.machines}
    for placement in goal:
        if placement.node in rooms:
            rooms[placement.node].take(placement)
    taken = {(placement.model, placement.node) for placement in goal}
    stays: list[Placement] = []
    for model, owed in count(placement for placement in goal if placement not in ready).items():
        for placement in current:
            if owed and placement.model == model and (model, placement.node) not in taken:
                room = rooms.get(placement.node)
                if room is not None and room.take(placement):
                    stays.append(placement)
                    owed -= 1
    return tuple(stays)


def first_of(
    leaving: Sequence[Placement],
    goal: Sequence[Placement],
    begun: Collection[Placement],
    ready: Collection[Placement],
    wanted: Wanted,
) -> tuple[Placement, ...]:
    """What of the goal begins at once; the rest waits until models that are moved answer from their new places.

    Only what is new waits, and only for models of its own priority or a higher one. `begun` is what nodes were told
    already.
    """
    moved = {placement.model for placement in leaving} & {one.model for one in goal if one not in ready}
    highest = max((wanted[model].priority for model in moved if model in wanted), default=None)
    return tuple(
        placement
        for placement in goal
        if highest is None
        or placement in begun
        or placement.model in moved
        or placement.model not in wanted
        or wanted[placement.model].priority > highest
    )


def interrupted(
    current: Sequence[Placement], goal: Sequence[Placement], ready: Collection[Placement], fleet: Fleet
) -> frozenset[ModelName]:
    """The models that would have fewer ready replicas for a while, if `goal` replaced `current` now."""
    stays = left_over(current, goal, ready, fleet)
    going_on = count(placement for placement in (*stays, *goal) if placement in ready)
    before = count(placement for placement in current if placement in ready)
    after = count(goal)
    return frozenset(model for model, many in before.items() if going_on.get(model, 0) < min(many, after.get(model, 0)))


def _is_as_wanted(placement: Placement, desired: DesiredModel, machine: Machine, facts: ModelFacts | None) -> bool:
    if placement.variant not in (desired.variants or (desired.model,)):
        return False
    if facts is not None and facts.content and facts.content != placement.content:
        return False
    if (placement.slots, placement.kv_type) != (desired.slots, desired.kv_type):
        return False
    if desired.context and placement.context > desired.context:
        return False
    if facts is not None:
        full = wanted_context(desired, facts.shape.context)
        if placement.context < min(desired.context_least or full, full):
            return False
    return _is_pinned(placement, desired, machine) and _may_use_ram(placement, desired, machine)


def _is_pinned(placement: Placement, desired: DesiredModel, machine: Machine) -> bool:
    """Whether it lies where the pins say; every machine's RAM holds something of every model on it."""
    if not desired.pins:
        return True
    devices: set[str] = set()
    for pin in desired.pins:
        name, slash, device = pin.partition("/")
        if name in (machine.name, machine.id):
            if not slash:
                return True
            devices.add(device)
    return bool(devices) and all(part.device in devices for part in placement.parts if part.layers)


def _may_use_ram(placement: Placement, desired: DesiredModel, machine: Machine) -> bool:
    in_ram = any(part.device == RAM and part.layers for part in placement.parts)
    has_gpu = any(device.id != RAM and device.memory > 0 for device in machine.devices)
    return desired.offload or not in_ram or not has_gpu or any(pin.endswith(f"/{RAM}") for pin in desired.pins)


def _importance(placement: Placement, wanted: Wanted) -> tuple[int, bool]:
    desired = wanted.get(placement.model)
    return (0, True) if desired is None else (-desired.priority, desired.replicas_min == 0)


def _quality(placement: Placement, variant: Variant | None) -> float:
    return 1.0 if variant is None else variant.quality * worth_of_context(placement.context, variant.contexts)


def _on_gpus(placement: Placement) -> float:
    layers = sum(part.layers for part in placement.parts)
    return sum(part.layers for part in placement.parts if part.device != RAM) / layers if layers else 0.0


def _by_priority(wanted: Wanted) -> list[tuple[int, list[DesiredModel]]]:
    order = sorted(wanted.values(), key=lambda desired: (-desired.priority, desired.model))
    return [(priority, list(group)) for priority, group in groupby(order, key=lambda desired: desired.priority)]
