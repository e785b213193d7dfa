"""Which layers go on which device, so that a model fits with the most room left on each."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.batches import CELLS
from felloe.domain.fleet import RAM, Device, DeviceKind
from felloe.domain.plan import Part
from felloe.placement.corrections import NO_CORRECTIONS, Corrections
from felloe.placement.memory import Pays, Share, fixed_need, price, unit_bytes
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape

Room = Sequence[tuple[Device, int]]
"""Devices of one machine and their free bytes, in the engine's order, `ram` among them."""

_EVENING_STEPS = 12
_EXACT_BYTES = 2**20


class Short(NamedTuple):
    """`more` bytes at the device `where` would have been enough; an empty `where` means spread over all of them."""

    where: str
    more: int


def split_over(
    shape: Shape,
    settings: Settings,
    room: Room,
    *,
    offload: bool = False,
    corrections: Corrections = NO_CORRECTIONS,
    costs: "Costs | None" = None,
) -> tuple[Part, ...] | None:
    """The split of the model over these devices that leaves its fullest GPU the most room; None where none fits.

    Without a GPU in the room all layers lie in `ram`. With one, `ram` takes layers only where `offload` allows it, and
    then as few as possible. Parts come `ram` first, then the GPUs in their order; a GPU without layers is left out.
    Exact for this order of devices: whatever split over all of these GPUs fits, one is found; where fewer would do, ask
    for fewer, which costs less. `costs` are those of the same model, settings and corrections, kept by who splits it
    over many rooms.
    """
    filling = _Filling(costs or Costs(shape, settings, corrections), room)
    kept = _kept_in_ram(filling, offload=offload)
    if kept is None:
        return None
    counts = _evened(filling, kept)
    split = [Share(device=device, layers=count) for (device, _), count in zip(filling.room, counts, strict=True)]
    needs = price(shape, settings, split, corrections=corrections)
    parts = [
        Part(device=share.device.id, layers=share.layers, need=need) for share, need in zip(split, needs, strict=True)
    ]
    return tuple(part for part in parts if part.layers or part.device == RAM)


def shortfall(
    shape: Shape,
    settings: Settings,
    room: Room,
    *,
    offload: bool = False,
    corrections: Corrections = NO_CORRECTIONS,
) -> Short:
    """Where the least more memory would have been enough, to the MiB; no bytes where the model fits as it is."""

    costs = Costs(shape, settings, corrections)

    def fits(*grown: str, by: int) -> bool:
        larger = [(device, free + (by if device.id in grown else 0)) for device, free in room]
        return _kept_in_ram(_Filling(costs, larger), offload=offload) is not None

    if fits(by=0):
        return Short("", 0)
    most = 2 * (shape.weights + sum(kv for _, kv in unit_bytes(shape, settings))) + 2**36
    ids = [device.id for device, _ in room]
    found = [Short(name, _least_fitting(lambda more, name=name: fits(name, by=more), most)) for name in ids]
    alone = [short for short in found if short.more <= most]
    if alone:
        return min(alone, key=lambda short: short.more)
    return Short("", len(ids) * _least_fitting(lambda more: fits(*ids, by=more), most))


def largest_context(
    shape: Shape,
    settings: Settings,
    room: Room,
    *,
    most: int,
    least: int = CELLS,
    offload: bool = False,
    corrections: Corrections = NO_CORRECTIONS,
) -> int:
    """The longest context of a slot that fits, from `least` to `most` tokens; 0 when not even `least` does.

    Either bound itself, or a multiple of 256 between them.
    """

    def fits(context: int) -> bool:
        filling = _Filling(Costs(shape, replace(settings, context=context), corrections), room)
        return _kept_in_ram(filling, offload=offload) is not None

    if fits(most):
        return most
    if least >= most or not fits(least):
        return 0
    low, high = least, most
    while True:
        middle = (low + high) // 2 // CELLS * CELLS
        if not low < middle < high:
            return low
        low, high = (middle, high) if fits(middle) else (low, middle)


class Costs:
    """What a model pays with some settings, worked out once for any number of rooms."""

    def __init__(self, shape: Shape, settings: Settings, corrections: Corrections) -> None:
        self.units = shape.units
        self.upto = [0, *accumulate(weights + kv for weights, kv in unit_bytes(shape, settings))]
        self._of = shape, settings, corrections
        self._known: dict[tuple[DeviceKind, bool, Pays], int] = {}

    def fixed(self, device: Device, pays: Pays) -> int:
        """Bytes that the device pays beside its layers."""
        key = (device.kind, device.id == RAM, pays)
        if key not in self._known:
            shape, settings, corrections = self._of
            self._known[key] = fixed_need(shape, settings, device, pays, corrections).total
        return self._known[key]


class _Filling:
    """Fills devices one after the other, each up to a share of its free bytes."""

    def __init__(self, costs: Costs, room: Room) -> None:
        self.room = sorted(room, key=lambda entry: entry[0].id != RAM)
        self.units = costs.units
        self.has_gpus = any(device.id != RAM for device, _ in room)
        self._upto = costs.upto
        gpus = sum(device.id != RAM for device, _ in room)

        def fixed(device: Device, layers: int, *, last: bool = False, borrows: bool = False) -> int:
            return costs.fixed(device, Pays(layers, last, gpus, borrows))

        self._idle = fixed(self.room[0][0], 0)
        self._busy = [fixed(device, 1) for device, _ in self.room]
        self._last = [fixed(device, 1, last=True) for device, _ in self.room]
        lent = [fixed(device, 1, borrows=True) for device, _ in self.room]
        self._lent = max(more - usual for more, usual in zip(lent, self._busy, strict=True))

    def fill(self, in_ram: int, ratio: float) -> list[int] | None:
        """Layers on each device when the first `in_ram` lie in memory; None when it does not hold them all."""
        held = self._idle if not in_ram else self._last[0] if in_ram == self.units else self._busy[0]
        of_ram = self.room[0][1] - held - self._upto[in_ram]
        if of_ram < 0:
            return None
        counts = [in_ram]
        first = in_ram
        for at, (device, free) in enumerate(self.room[1:], 1):
            limit = int(free * ratio)
            if device.shared:
                limit = min(limit, of_ram)
            # The first GPU with layers pays for what it computes of the layers in memory.
            lent = self._lent if in_ram and first == in_ram else 0
            count, taken = self._most(at, first, limit - lent)
            taken += lent if count else 0
            of_ram -= taken if device.shared else 0
            counts.append(count)
            first += count
        return counts if first == self.units else None

    def _most(self, at: int, first: int, limit: int) -> tuple[int, int]:
        """How many layers from `first` on this device holds within `limit` bytes, and their bytes with what it pays."""
        everything = self._upto[-1] - self._upto[first] + self._last[at]
        if first < self.units and everything <= limit:
            return self.units - first, everything
        # The output costs more than its own bytes, so it never comes along unseen.
        end = bisect_right(self._upto, self._upto[first] + limit - self._busy[at], hi=self.units) - 1
        if end <= first:
            return 0, 0
        return end - first, self._upto[end] - self._upto[first] + self._busy[at]


def _kept_in_ram(filling: _Filling, *, offload: bool) -> int | None:
    """How many layers have to lie in memory; None when the model does not fit at all."""
    if not filling.has_gpus:
        return filling.units if filling.fill(filling.units, 1.0) else None
    if filling.fill(0, 1.0):
        return 0
    if not offload:
        return None
    return next((count for count in range(1, filling.units + 1) if filling.fill(count, 1.0)), None)


def _evened(filling: _Filling, in_ram: int) -> list[int]:
    """The fill whose fullest GPU is the least full."""
    best = filling.fill(in_ram, 1.0)
    low, high = 0.0, 1.0
    for _ in range(_EVENING_STEPS):
        middle = (low + high) / 2
        counts = filling.fill(in_ram, middle)
        if counts is None:
            low = middle
        else:
            best, high = counts, middle
    return best or []


def _least_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The least number of bytes with which it fits, to the MiB; above `most` when none does."""
    if not fits(most):
        return most + 1
    low, high = 0, most
    while high - low > _EXACT_BYTES:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
