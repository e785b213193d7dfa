"""Why something that is wanted is not in a plan: what is short, where, by how much, and the nearest that would fit."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from felloe.domain.fleet import RAM, Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Placement, Refusal
from felloe.domain.serving import LEAST_CONTEXT
from felloe.placement.corrections import NO_CORRECTIONS, Corrections
from felloe.placement.machine_kinds import allowed_devices
from felloe.placement.rooms import Rooms
from felloe.placement.split import largest_context, shortfall, split_over
from felloe.placement.wishes import Variant, Wish
from felloe.placement.words import amount, tokens

_LOOKED_AT = 4
"""Machines that are priced for one refusal: those with the most memory left, and with the most at all."""

_EXPLAINED = 64
_EXPLAINED_LATE = 8

Room = list[tuple[Device, int]]


class _Place(NamedTuple):
    """A machine that may hold a model: what its pins leave of it, free now and empty."""

    machine: Machine
    free: Room
    empty: Room
    offload: bool


def refusals_of(
    fleet: Fleet,
    wishes: Sequence[Wish],
    unknown: Sequence[DesiredModel],
    placements: Sequence[Placement],
    barred: Collection[tuple[NodeId, ModelName]],
    corrections: Mapping[ModelName, Corrections],
    late: Callable[[], bool] = lambda: False,
) -> tuple[Refusal, ...]:
    """One refusal for each model with fewer replicas than it should have, the most important first.

    Once it is `late`, all but the first ones are told without their bytes.
    """
    refused = [
        (
            wanted.priority,
            Refusal(
                model=wanted.model,
                missing=max(1, wanted.replicas_min),
                reason=f"nothing is known of {' or '.join(wanted.variants or (wanted.model,))}: "
                "no machine that answers has the file",
                nearest="publish or pull it on one of the machines",
            ),
        )
        for wanted in unknown
        if max(wanted.replicas_min, wanted.replicas_max)
    ]
    rooms = Rooms(fleet, placements)
    placed: dict[ModelName, list[NodeId]] = {}
    for placement in placements:
        placed.setdefault(placement.model, []).append(placement.node)
    for wish in wishes:
        nodes = placed.get(wish.desired.model, [])
        missing = (wish.least or min(1, wish.most)) - len(nodes)
        if missing > 0:
            explained = len(refused) < (_EXPLAINED_LATE if late() else _EXPLAINED)
            refusal = _explained(fleet, wish, nodes, missing, rooms, barred, corrections) if explained else None
            plain = Refusal(
                model=wish.desired.model, missing=missing, reason="the memory that is left does not hold it"
            )
            refused.append((wish.desired.priority, refusal or plain))
    return tuple(refusal for _, refusal in sorted(refused, key=lambda entry: (-entry[0], entry[1].model)))


def _explained(
    fleet: Fleet,
    wish: Wish,
    nodes: Sequence[NodeId],
    missing: int,
    rooms: Rooms,
    barred: Collection[tuple[NodeId, ModelName]],
    corrections: Mapping[ModelName, Corrections],
) -> Refusal:
    model = wish.desired.model
    if not fleet.machines:
        return Refusal(model=model, missing=missing, reason="no machine is there")
    open_to = [place for machine in fleet.machines if (place := _place(machine, wish, rooms))]
    if not open_to:
        pins = ", ".join(wish.desired.pins)
        return Refusal(
            model=model,
            missing=missing,
            reason=f"it is pinned to {pins}, and no machine or device that may hold it has that name",
            nearest=f"correct the pins; the machines are {_names(fleet)}",
        )
    bars = set(barred)
    places = [place for place in open_to if any((place.machine.id, v.name) not in bars for v in wish.variants)]
    if not places:
        return Refusal(
            model=model,
            missing=missing,
            reason=f"it failed on every machine that may hold it ({_listed(open_to)}), and is not tried there for now",
            nearest="look at why it failed with `felloe ps`; it is tried again after a pause",
        )
    fresh = [place for place in places if place.machine.id not in nodes]
    if not fresh:
        where = _listed(places)
        return Refusal(
            model=model,
            missing=missing,
            reason=f"{wish.least} replicas are wanted, but one machine holds one, and only {where} may hold it",
            nearest=f"want {len(nodes)}, which {'is' if len(nodes) == 1 else 'are'} planned, or add machines",
        )
    return _short(wish, fresh, missing, corrections)


def _short(wish: Wish, places: Sequence[_Place], missing: int, corrections: Mapping[ModelName, Corrections]) -> Refusal:
    """The least that any machine lacks for the smallest variant with the least context."""
    variant = wish.variants[-1]
    known = corrections.get(variant.name, NO_CORRECTIONS)
    context = variant.contexts[-1]
    settings = wish.settings(context)
    best: tuple[int, str, _Place] | None = None
    for place in _largest(places):
        short = shortfall(variant.facts.shape, settings, place.free, offload=place.offload, corrections=known)
        where = f"{place.machine.name}/{short.where}" if short.where else place.machine.name
        if best is None or short.more < best[0]:
            best = (short.more, where, place)
    if best is None or best[0] <= 0:
        return Refusal(
            model=wish.desired.model,
            missing=missing,
            reason="the search found no place for it in its time, although some machine could hold it",
        )
    more, where, place = best
    size = "" if variant.name == wish.desired.model else f" as {variant.name}"
    with_context = f"{wish.desired.model}{size} with {tokens(context)} of context for each of {settings.slots} slots"
    fits_empty = split_over(variant.facts.shape, settings, place.empty, offload=place.offload, corrections=known)
    why = (
        f"{place.machine.name} is taken by what goes before it"
        if fits_empty
        else f"even with nothing else planned there, {place.machine.name} would not hold it"
    )
    return Refusal(
        model=wish.desired.model,
        missing=missing,
        reason=f"{with_context} lacks {amount(more)} on {where}; {why}",
        where=where,
        short_bytes=more,
        nearest=_nearest(wish, variant, places, known),
    )


def _nearest(wish: Wish, variant: Variant, places: Sequence[_Place], corrections: Corrections) -> str:
    """What would fit in the memory that is left, or else on an empty machine."""
    shape, settings = variant.facts.shape, wish.settings(variant.contexts[-1])
    longest = (0, "")
    for place in _largest(places):
        most = variant.contexts[-1]
        found = largest_context(
            shape, settings, place.free, most=most, least=LEAST_CONTEXT, offload=place.offload, corrections=corrections
        )
        longest = max(longest, (found, place.machine.name))
    if longest[0]:
        return f"{variant.name} with {tokens(longest[0])} of context fits on {longest[1]} now"
    if not wish.desired.offload:
        for place in _largest(places):
            if place.free[0][0].id == RAM and split_over(
                shape, settings, place.free, offload=True, corrections=corrections
            ):
                return f"with offload it fits on {place.machine.name}, part of it in the machine's memory (slow)"
    for place in _largest(places):
        if split_over(shape, settings, place.empty, offload=place.offload, corrections=corrections):
            return f"it fits on {place.machine.name} when other models leave, or with a higher priority"
    return "no machine here has so much for models; add memory, or choose a smaller variant"


def _place(machine: Machine, wish: Wish, rooms: Rooms) -> _Place | None:
    """What the wish may use of this machine; the machine's memory is always part of it, for the engine itself."""
    allowed = allowed_devices(machine, wish.desired.pins)
    if not allowed:
        return None
    offload = wish.desired.offload or any(pin.endswith(f"/{RAM}") for pin in wish.desired.pins)
    chosen = [device for device in machine.devices if device.id == RAM or device.id in allowed]
    free = [(device, rooms.free(machine.id, device.id)) for device in chosen]
    return _Place(machine, free, [(device, device.memory) for device in chosen], offload and RAM in allowed)


def _largest(places: Sequence[_Place]) -> list[_Place]:
    def most(room: Room) -> int:
        return sum(size for device, size in room if device.id != RAM) or sum(size for _, size in room)

    by_free = sorted(places, key=lambda place: -most(place.free))[:_LOOKED_AT]
    by_size = sorted(places, key=lambda place: -most(place.empty))[:_LOOKED_AT]
    return by_free + [place for place in by_size if place not in by_free]


def _listed(places: Sequence[_Place]) -> str:
    names = [place.machine.name for place in places]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _names(fleet: Fleet) -> str:
    names = sorted(machine.name for machine in fleet.machines)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
