"""What a model takes of each device's memory, in bytes, for any split of its layers.

As our own engine loads it: one process a replica, llama.cpp with its HTTP server, one cache for each slot, flash
attention where it can, small batches. Weights and cache are exact; compute buffers and overhead are estimates, held
against the engine's log by benchmarks/memory.py and corrected by what real loads take.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.batches import PROMPT_CACHE_BYTES
from felloe.domain.fleet import RAM, Device, DeviceKind
from felloe.domain.plan import Need
from felloe.placement.buffers import compute_bytes, output_bytes, staging_bytes
from felloe.placement.cache import cache_bytes, checkpoint_bytes
from felloe.placement.corrections import NO_CORRECTIONS, Corrections
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape

_MIB = 2**20
_CONTEXT_BYTES: dict[DeviceKind, int] = {
    "cpu": 0,
    "cuda": 450 * _MIB,
    "rocm": 450 * _MIB,
    "vulkan": 150 * _MIB,
    "metal": 50 * _MIB,
}
"""What a driver takes for a process on a GPU before any buffer: kernels, handles, scratch space. Assumed, on the safe
side of what is usual (300 to 500 MiB for CUDA with cuBLAS), until a first load's own figure corrects it."""

_PROCESS_BYTES = 90 * _MIB
_WORD_BYTES = 220
"""A word of the vocabulary in the engine's tables."""


class Share(Struct, frozen=True, kw_only=True):
    """How many layers lie on a device, the output counted as the last one."""

    device: Device
    layers: int


class Pays(NamedTuple):
    """What decides a device's fixed price: its layers, whether the output is one, and how the others share.

    `gpus` counts the GPUs with layers; `borrows`: it computes for layers that lie in the machine's memory.
    """

    layers: int
    last: bool
    gpus: int
    borrows: bool = False


def price(
    shape: Shape, settings: Settings, split: Sequence[Share], *, corrections: Corrections = NO_CORRECTIONS
) -> tuple[Need, ...]:
    """Bytes on each device of the split, in its order, which is the engine's: `ram` first, with the first layers.

    `ram` is always among them, with 0 layers where all lie on GPUs: embeddings, staging buffers, the prompt cache and
    the process itself stay there. The shares' layers add up to `shape.units`.
    """
    units = unit_bytes(shape, settings)
    gpus = [share for share in split if share.layers and share.device.id != RAM]
    in_ram = any(share.layers and share.device.id == RAM for share in split)
    needs: list[Need] = []
    first = 0
    for share in split:
        taken = units[first : first + share.layers]
        first += share.layers
        borrows = in_ram and bool(gpus) and share is gpus[0]
        pays = Pays(share.layers, bool(taken) and first == len(units), len(gpus), borrows)
        fixed = fixed_need(shape, settings, share.device, pays, corrections)
        weights = fixed.weights + sum(weights for weights, _ in taken)
        needs.append(replace(fixed, weights=weights, kv=sum(kv for _, kv in taken)))
    return tuple(needs)


def unit_bytes(shape: Shape, settings: Settings) -> list[tuple[int, int]]:
    """Weights and cache of each repeating layer, then of the output."""
    known: dict[tuple[int, int, bool, int], int] = {}
    units: list[tuple[int, int]] = []
    for layer in shape.layers:
        kind = (layer.key, layer.value, layer.windowed, layer.state)
        if kind not in known:
            known[kind] = cache_bytes(shape, settings, layer)
        units.append((layer.weights, known[kind]))
    return [*units, (shape.output_bytes, 0)]


def fixed_need(shape: Shape, settings: Settings, device: Device, pays: Pays, corrections: Corrections) -> Need:
    """What a device pays beside the layers on it."""
    correction = corrections.of(device.kind)
    if device.id != RAM:
        if not pays.layers:
            return Need()
        compute = compute_bytes(shape, settings, device.kind, last=pays.last, gpus=pays.gpus)
        if pays.borrows:
            # llama.cpp brings weights from the machine's memory over for large batches, a layer at a time.
            compute += max((layer.weights for layer in shape.layers), default=0)
        overhead = max(0, _CONTEXT_BYTES[device.kind] + correction.overhead)
        return Need(compute=round(compute * correction.compute), overhead=overhead)
    if pays.layers:
        busy = compute_bytes(shape, settings, device.kind, last=pays.last, gpus=pays.gpus)
    else:
        busy = staging_bytes(shape, settings)
    compute = round(busy * correction.compute) + output_bytes(shape, settings)
    # The engine's tables hold the vocabulary; a vision projector is loaded beside the model, whole.
    overhead = _PROCESS_BYTES + _WORD_BYTES * shape.vocabulary + PROMPT_CACHE_BYTES + checkpoint_bytes(shape, settings)
    weights = shape.input_bytes - (shape.tied_bytes if pays.last else 0) + shape.projector_bytes
    return Need(weights=weights, compute=compute, overhead=max(0, overhead + correction.overhead))
