"""The ways in which one machine can hold one replica: variant, context, devices and the layers on each."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from msgspec import Struct

from felloe.domain.fleet import RAM, Device, DeviceKind
from felloe.domain.ids import ModelName
from felloe.domain.plan import Part, Placement
from felloe.placement.corrections import NO_CORRECTIONS, Correction, Corrections
from felloe.placement.machine_kinds import MachineKind
from felloe.placement.memory import Share, price
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape
from felloe.placement.split import Costs, split_over
from felloe.placement.wishes import Variant, Wish, worth_of_context

_SPEED_WORTH = 0.02
_STAY_WORTH = 0.004
_PART_COST = 0.0005
_EVEN_SPEED = 10.0
"""Answers of this many tokens a second have half the worth that speed can have."""

_ASSUMED_BANDWIDTH: dict[DeviceKind, float] = {
    "cpu": 40e9,
    "cuda": 400e9,
    "rocm": 400e9,
    "metal": 200e9,
    "vulkan": 200e9,
}
_MOST_COMBINED = 4
_PACKING_STEPS = 5


class Choice(Struct, frozen=True, kw_only=True):
    """One replica of the wish at `wish` on one machine. `worth` is of one such replica, its demand included."""

    wish: int
    variant: ModelName
    context: int
    parts: tuple[Part, ...]
    worth: float
    stays: bool = False


class _Way(NamedTuple):
    """Parts of a replica, and its tokens a second."""

    parts: tuple[Part, ...]
    rate: float


class Pricing:
    """Makes choices; remembers prices, since most machines of a fleet are much like others.

    `thorough` tries more sets of GPUs and more splits, which matters where a fleet is small.
    """

    def __init__(
        self, wishes: Sequence[Wish], corrections: Mapping[ModelName, Corrections], *, thorough: bool = True
    ) -> None:
        self._wishes = wishes
        self._thorough = thorough
        self._corrections = corrections
        self._shapes: dict[ModelName, int] = {}
        self._numbered: dict[tuple[Shape, tuple[tuple[DeviceKind, Correction], ...]], int] = {}
        self._ways: dict[tuple[int, Settings, tuple[str, ...], bool, bool], list[_Way]] = {}
        self._splits: dict[tuple[object, ...], tuple[Part, ...] | None] = {}
        self._singles: dict[tuple[object, ...], tuple[Part, ...]] = {}
        self._costs: dict[tuple[int, Settings], Costs] = {}

    def choices(self, kind: MachineKind) -> list[Choice]:
        """Every way in which a machine of this kind can hold a replica of any wish, when it holds nothing else."""
        found: list[Choice] = []
        self._ways = {}
        for at, wish in enumerate(self._wishes):
            if not kind.allowed[at] or not wish.most:
                continue
            here = [placement for placement in kind.current if placement.model == wish.desired.model]
            for variant in wish.variants:
                if variant.name in kind.barred:
                    continue
                mine = self._staying(kind, at, variant, here)
                mine += self._of_variant(kind, at, variant)
                found.extend(_useful(mine))
        return found

    def _of_variant(self, kind: MachineKind, at: int, variant: Variant) -> list[Choice]:
        wish = self._wishes[at]
        gpus = [device for device in kind.devices if device.id != RAM and device.id in kind.allowed[at]]
        found: list[Choice] = []
        for context in variant.contexts:
            for way in self._ways_of(kind, wish, variant, wish.settings(context), gpus, RAM in kind.allowed[at]):
                worth = _worth(wish, variant, context, way)
                found.append(Choice(wish=at, variant=variant.name, context=context, parts=way.parts, worth=worth))
        return found

    def _ways_of(
        self,
        kind: MachineKind,
        wish: Wish,
        variant: Variant,
        settings: Settings,
        gpus: Sequence[Device],
        ram_allowed: bool,
    ) -> list[_Way]:
        """The splits with their speed; models of one shape share them."""
        names = tuple(gpu.id for gpu in gpus)
        key = (self._number(variant), settings, names, ram_allowed, _may_use_ram(wish, kind.devices))
        if key not in self._ways:
            splits = self._splits_of(kind, wish, variant, settings, gpus, ram_allowed)
            self._ways[key] = [_Way(parts, speed(parts, kind.devices)) for parts in splits]
        return self._ways[key]

    def _staying(self, kind: MachineKind, at: int, variant: Variant, here: Sequence[Placement]) -> list[Choice]:
        """The replica that runs there now, exactly as it is, where it may stay."""
        wish = self._wishes[at]
        found: list[Choice] = []
        for placement in here:
            same = (placement.slots, placement.kv_type) == (wish.desired.slots, wish.desired.kv_type)
            content = variant.facts.content
            if placement.variant != variant.name or not same or (content and placement.content not in ("", content)):
                continue
            if not variant.contexts[-1] <= placement.context <= variant.contexts[0]:
                continue
            parts = self._again(kind, wish, variant, placement, kind.allowed[at])
            if parts:
                worth = _worth(wish, variant, placement.context, _Way(parts, speed(parts, kind.devices)))
                worth += _STAY_WORTH * wish.desired.demand
                context = placement.context
                found.append(
                    Choice(wish=at, variant=variant.name, context=context, parts=parts, worth=worth, stays=True)
                )
        return found

    def _again(
        self, kind: MachineKind, wish: Wish, variant: Variant, placement: Placement, allowed: Sequence[str]
    ) -> tuple[Part, ...] | None:
        """The parts of a running replica at today's price; None where its devices do not hold it any more."""
        devices = {device.id: device for device in kind.devices}
        layers = {part.device: part.layers for part in placement.parts}
        gone = any(name not in devices for name in layers)
        strayed = any(layers[name] and name not in allowed for name in layers)
        if gone or strayed or sum(layers.values()) != variant.facts.shape.units or RAM not in layers:
            return None
        if layers[RAM] and len(devices) > 1 and not _may_use_ram(wish, kind.devices):
            return None
        settings = wish.settings(placement.context)
        split = [Share(device=device, layers=layers[device.id]) for device in kind.devices if device.id in layers]
        parts = self._priced(variant, settings, split)
        return parts if _fits(parts, kind.devices) else None

    def _splits_of(
        self,
        kind: MachineKind,
        wish: Wish,
        variant: Variant,
        settings: Settings,
        gpus: Sequence[Device],
        ram_allowed: bool,
    ) -> Iterator[tuple[Part, ...]]:
        """On as few GPUs as hold it, each set of them; in memory where that is allowed."""
        ram = kind.devices[0]
        units = variant.facts.shape.units
        on_gpus = False
        for count in range(1, len(gpus) + 1):
            for chosen in _sets(gpus, count, thorough=self._thorough):
                if count == 1:
                    parts = self._priced(
                        variant, settings, [Share(device=ram, layers=0), Share(device=chosen[0], layers=units)]
                    )
                    options = [parts] if _fits(parts, kind.devices) else []
                else:
                    options = self._over(variant, settings, ram, chosen)
                on_gpus = on_gpus or bool(options)
                yield from options
            if on_gpus:
                break
        if not ram_allowed or not (not _has_gpus(kind.devices) or _may_use_ram(wish, kind.devices)):
            return
        parts = self._priced(variant, settings, [Share(device=ram, layers=units)])
        if _fits(parts, kind.devices):
            yield parts
        if gpus and not on_gpus:
            both = self._split(variant, settings, [(ram, ram.memory), *((gpu, gpu.memory) for gpu in gpus)], True)
            if both and len(both) > 1:
                yield both

    def _over(
        self, variant: Variant, settings: Settings, ram: Device, chosen: Sequence[Device]
    ) -> list[tuple[Part, ...]]:
        """Evenly over these GPUs, and with as little as possible on the last one, which then has room for others."""
        room = [(ram, ram.memory), *((gpu, gpu.memory) for gpu in chosen)]
        known = self._corrections.get(variant.name, NO_CORRECTIONS)
        if self._costs_of(variant, settings, known).upto[-1] > sum(gpu.memory for gpu in chosen):
            return []
        even = self._split(variant, settings, room, False)
        if even is None or len(even) <= len(chosen):
            return []
        if not self._thorough:
            return [even]
        low, high = 0, chosen[-1].memory
        packed = even
        for _ in range(_PACKING_STEPS):
            middle = (low + high) // 2
            tried = self._split(variant, settings, [*room[:-1], (chosen[-1], middle)], False)
            if tried is None or len(tried) <= len(chosen):
                low = middle
            else:
                packed, high = tried, middle
        return [even] if packed == even else [even, packed]

    def _split(
        self, variant: Variant, settings: Settings, room: Sequence[tuple[Device, int]], offload: bool
    ) -> tuple[Part, ...] | None:
        places = tuple((device.id, device.kind, device.shared, free) for device, free in room[1:])
        key = (self._number(variant), settings, places, room[0][1], offload)
        if key not in self._splits:
            known = self._corrections.get(variant.name, NO_CORRECTIONS)
            shape = variant.facts.shape
            costs = self._costs_of(variant, settings, known)
            self._splits[key] = split_over(shape, settings, room, offload=offload, corrections=known, costs=costs)
        return self._splits[key]

    def _costs_of(self, variant: Variant, settings: Settings, corrections: Corrections) -> Costs:
        key = (self._number(variant), settings)
        if key not in self._costs:
            self._costs[key] = Costs(variant.facts.shape, settings, corrections)
        return self._costs[key]

    def _priced(self, variant: Variant, settings: Settings, split: Sequence[Share]) -> tuple[Part, ...]:
        key = (
            self._number(variant),
            settings,
            tuple((share.device.id, share.device.kind, share.layers) for share in split),
        )
        if key not in self._singles:
            known = self._corrections.get(variant.name, NO_CORRECTIONS)
            needs = price(variant.facts.shape, settings, split, corrections=known)
            self._singles[key] = tuple(
                Part(device=share.device.id, layers=share.layers, need=need)
                for share, need in zip(split, needs, strict=True)
            )
        return self._singles[key]

    def _number(self, variant: Variant) -> int:
        """The same for all models that cost the same."""
        if variant.name not in self._shapes:
            known = self._corrections.get(variant.name, NO_CORRECTIONS)
            costs = (variant.facts.shape, tuple(sorted(known.kinds.items())))
            self._shapes[variant.name] = self._numbered.setdefault(costs, len(self._numbered))
        return self._shapes[variant.name]


def _worth(wish: Wish, variant: Variant, context: int, way: _Way) -> float:
    """Quality first; speed weighs far less than the step to the next variant."""
    quality = variant.quality * worth_of_context(context, variant.contexts)
    bonus = _SPEED_WORTH * way.rate / (way.rate + _EVEN_SPEED) - _PART_COST * len(way.parts)
    return wish.desired.demand * (quality + bonus)


def speed(parts: Sequence[Part], devices: Sequence[Device]) -> float:
    """Tokens a second of one answer, roughly: each token reads all weights once, one device after the other."""
    by_name = {device.id: device for device in devices}
    seconds = 0.0
    for part in parts:
        if part.layers:
            device = by_name[part.device]
            seconds += part.need.weights / (device.bandwidth or _ASSUMED_BANDWIDTH[device.kind])
    return 1 / seconds if seconds else 0.0


def _has_gpus(devices: Sequence[Device]) -> bool:
    return any(device.id != RAM for device in devices)


def _may_use_ram(wish: Wish, devices: Sequence[Device]) -> bool:
    """Whether layers may lie in the memory of a machine that has GPUs: by choice, or because a pin names `ram`."""
    return wish.desired.offload or not _has_gpus(devices) or any(pin.endswith(f"/{RAM}") for pin in wish.desired.pins)


def _sets(gpus: Sequence[Device], count: int, *, thorough: bool) -> Iterator[tuple[Device, ...]]:
    """Sets of GPUs to try: all on a usual machine, neighbours only where there are many."""
    if count == 1 or (thorough and len(gpus) <= _MOST_COMBINED):
        yield from combinations(gpus, count)
    else:
        yield from (tuple(gpus[at : at + count]) for at in range(len(gpus) - count + 1))


def _fits(parts: Sequence[Part], devices: Sequence[Device]) -> bool:
    by_name = {device.id: device for device in devices}
    in_ram = sum(part.need.total for part in parts if part.device == RAM or by_name[part.device].shared)
    return in_ram <= devices[0].memory and all(part.need.total <= by_name[part.device].memory for part in parts)


def _useful(choices: Sequence[Choice]) -> list[Choice]:
    """Without those that another choice on the same devices beats: worth as much or more for no more memory."""
    kept: list[Choice] = []
    for choice in choices:
        needs = {part.device: part.need.total for part in choice.parts}
        beaten = any(
            other.worth >= choice.worth
            and len(other.parts) == len(choice.parts)
            and all(part.device in needs and part.need.total <= needs[part.device] for part in other.parts)
            for other in kept
        )
        if not beaten:
            kept.append(choice)
    return kept
