"""What is wanted and what there is, made into a plan: which replicas run where, and why others do not.

Theory of operation. Every way in which a kind of machine can hold a replica is a *choice*: a variant, a context, a set
of devices and the layers on each, with its exact price (`choices.py`). A plan takes choices so that no device holds
more than it has. Levels are served one after the other: the minima of the highest priority first, replicas beyond the
minima last. In a level the plan with the most demand-weighted quality is searched; far below that weigh speed, then
replicas that stay where they are. A greedy plan comes first (`greedy.py`), then prices make a better one and prove
how far from the best it may be (`auction.py`), machines that gain too little are filled anew (`mending.py`), and HiGHS
searches all choices of a small fleet at once (`joint.py`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Fleet, Machine
from felloe.domain.fleet_rules import check_machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Part, Placement, Plan
from felloe.domain.serving import LEAST_CONTEXT
from felloe.placement.choices import Choice, Pricing
from felloe.placement.corrections import NO_CORRECTIONS, Corrections
from felloe.placement.facts import ModelFacts
from felloe.placement.machine_kinds import MachineKind, kinds_of
from felloe.placement.memory import Share, price
from felloe.placement.refusals import refusals_of
from felloe.placement.rooms import Rooms
from felloe.placement.wishes import Variant, Wish, wishes_of

SECONDS = 5.0
_FEW_KINDS = 12
_SEARCH_SHARE = 0.85
_GROWING_SHARE = 0.93
"""Of the time, when the search ends, and when contexts stop growing; the rest is for the reasons of refusals."""


def make_plan(
    fleet: Fleet,
    desired: Sequence[DesiredModel],
    models: Mapping[ModelName, ModelFacts],
    *,
    current: Sequence[Placement] = (),
    barred: Collection[tuple[NodeId, ModelName]] = (),
    corrections: Mapping[ModelName, Corrections] | None = None,
    seconds: float = SECONDS,
    now: Callable[[], float],
) -> Plan:
    """The best plan found within `seconds` by the monotonic clock `now`; blocks, so call it in a thread.

    `models` and `corrections` are by the variants' names, `current` is what runs now, `barred` are nodes where a
    variant must not be placed. At most one replica of a model comes on a machine. Where time does not cut the search
    off, equal questions have equal answers. Raises `invalid_value` for a fleet or wishes that mean nothing.
    """
    began = now()
    _check_fleet(fleet)
    known = corrections or {}
    wishes, unknown = wishes_of(desired, models)
    kinds = kinds_of(fleet, wishes, current, barred)
    pricing = Pricing(wishes, known, thorough=len(kinds) <= _FEW_KINDS)
    found = [pricing.choices(kind) for kind in kinds]
    value = bound = 0.0
    placements: tuple[Placement, ...] = ()
    if any(found):
        chosen, value, bound = _searched(wishes, kinds, found, began + _SEARCH_SHARE * seconds, now)
        placements = _placed(wishes, kinds, chosen)
        placements = _grown(fleet, wishes, placements, current, known, lambda: now() - began > _GROWING_SHARE * seconds)
    refusals = refusals_of(fleet, wishes, unknown, placements, barred, known, lambda: now() - began > seconds)
    return Plan(placements=placements, refusals=refusals, value=value, bound=bound, seconds=now() - began)


def _check_fleet(fleet: Fleet) -> None:
    ids: set[NodeId] = set()
    for machine in fleet.machines:
        if machine.id in ids:
            raise FelloeError("invalid_value", f"the machine {machine.name} ({machine.id}) is in the fleet twice")
        ids.add(machine.id)
        if why := check_machine(machine):
            raise FelloeError("invalid_value", f"the machine {machine.name} {why}")


def _searched(
    wishes: Sequence[Wish],
    kinds: Sequence[MachineKind],
    choices: Sequence[Sequence[Choice]],
    until: float,
    now: Callable[[], float],
) -> tuple[list[list[Choice]], float, float]:
    """The choices of each machine, kind by kind."""
    # The solver and its arrays cost 30 MB and half a second, and only the node that plans needs them.
    from felloe.placement.packing import problem_of
    from felloe.placement.search import search

    result = search(problem_of(wishes, kinds, choices), until=until, now=now)
    return [[option.choice for option in filling] for filling in result.fillings], result.value, result.bound


def _placed(
    wishes: Sequence[Wish], kinds: Sequence[MachineKind], chosen: Sequence[Sequence[Choice]]
) -> tuple[Placement, ...]:
    nodes = [node for kind in kinds for node in kind.machines]
    placements: list[Placement] = []
    for node, choices in zip(nodes, chosen, strict=True):
        for choice in choices:
            wish = wishes[choice.wish]
            variant = next(variant for variant in wish.variants if variant.name == choice.variant)
            placements.append(
                Placement(
                    model=wish.desired.model,
                    variant=choice.variant,
                    node=node,
                    parts=choice.parts,
                    context=choice.context,
                    slots=wish.desired.slots,
                    kv_type=wish.desired.kv_type,
                    content=variant.facts.content,
                )
            )
    return tuple(sorted(placements, key=lambda placement: (placement.model, placement.node)))


def _grown(
    fleet: Fleet,
    wishes: Sequence[Wish],
    placements: tuple[Placement, ...],
    current: Sequence[Placement],
    corrections: Mapping[ModelName, Corrections],
    late: Callable[[], bool],
) -> tuple[Placement, ...]:
    """New replicas get what is left of the context that is wanted; those that run are not disturbed for it."""
    by_model = {wish.desired.model: wish for wish in wishes}
    running = {_place(placement) for placement in current}
    machines = {machine.id: machine for machine in fleet.machines}
    rooms = Rooms(fleet, placements)
    grown = list(placements)
    order = sorted(
        range(len(grown)),
        key=lambda at: (-by_model[grown[at].model].desired.priority, -by_model[grown[at].model].desired.demand, at),
    )
    for at in order:
        if late():
            break
        placement = grown[at]
        variant = next(one for one in by_model[placement.model].variants if one.name == placement.variant)
        if placement.context >= variant.contexts[0] or _place(placement) in running:
            continue
        rooms.give_back(placement)
        known = corrections.get(placement.variant, NO_CORRECTIONS)
        grown[at] = _longest(placement, by_model[placement.model], variant, machines[placement.node], rooms, known)
        rooms.take(grown[at])
    return tuple(grown)


def _place(placement: Placement) -> tuple[ModelName, ModelName, NodeId, int, tuple[tuple[str, int], ...]]:
    parts = tuple((part.device, part.layers) for part in placement.parts)
    return placement.model, placement.variant, placement.node, placement.context, parts


def _longest(
    placement: Placement, wish: Wish, variant: Variant, machine: Machine, rooms: Rooms, corrections: Corrections
) -> Placement:
    """The same replica with the longest context that its devices still hold."""
    layers = {part.device: part.layers for part in placement.parts}
    split = [Share(device=device, layers=layers[device.id]) for device in machine.devices if device.id in layers]
    low, high = placement.context // LEAST_CONTEXT, variant.contexts[0] // LEAST_CONTEXT
    best = placement
    while low < high:
        middle = (low + high + 1) // 2
        context = middle * LEAST_CONTEXT
        needs = price(variant.facts.shape, wish.settings(context), split, corrections=corrections)
        parts = tuple(
            Part(device=share.device.id, layers=share.layers, need=need)
            for share, need in zip(split, needs, strict=True)
        )
        tried = replace(placement, context=context, parts=parts)
        if rooms.holds(tried):
            best, low = tried, middle
        else:
            high = middle - 1
    return best
