"""What an engine takes up on each device, as llama.cpp logs it while it loads; and how it is told where to lie.

llama.cpp names what it allocates by buffer: `CUDA0` is the first CUDA device that the process sees, `CPU`, `CPU_Mapped`
(the file itself, shared with the system's cache), `CPU_REPACK` and `CUDA_Host` lie in the machine's memory. Pure.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from felloe.domain.batches import PROMPT_CACHE_BYTES
from felloe.domain.fleet import RAM, DeviceKind
from felloe.domain.plan import Need, Part
from felloe.engines.options import EngineDevice

_MIB = 2**20
_MOST_MIB = 2.0**33
_BUFFER = re.compile(r" (\S{1,64}) +(model|KV|RS|compute|output) buffer size = +(\d{1,12}\.\d\d) MiB$")
_REFUSED = (
    re.compile(r"allocating (\d{1,12}\.\d\d) MiB on device (\d{1,3}): \w*[Mm]alloc\w* failed"),
    re.compile(r"failed to allocate (?P<buffer>\S{1,64}) buffer of size (?P<bytes>\d{1,16})"),
    re.compile(r"insufficient memory \(attempted to allocate +(?P<mib>\d{1,12}\.\d\d) MB\)"),
)
_OFFLOADED = re.compile(r" offloaded (\d{1,6})/(\d{1,6}) layers to GPU")
_PREFIXES: dict[str, DeviceKind] = {
    "CUDA": "cuda",
    "ROCm": "rocm",
    "Vulkan": "vulkan",
    "MTL": "metal",
    "Metal": "metal",
}
_GPU = re.compile(rf"({'|'.join(_PREFIXES)})(\d{{0,3}})(?:_Mapped|_Private|_Split)?")
_HIDING: dict[str, tuple[str, str]] = {
    "cuda": ("CUDA_VISIBLE_DEVICES", "-1"),
    "rocm": ("ROCR_VISIBLE_DEVICES", ""),
    "vulkan": ("GGML_VK_VISIBLE_DEVICES", ""),
}


class Buffers(Struct, frozen=True):
    """Bytes of one device's buffers by use; `refused` is what it did not get."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    refused: int = 0

    @property
    def total(self) -> int:
        """All that it wanted."""
        return self.weights + self.kv + self.compute + self.output + self.refused


class MemoryLog:
    """Takes the lines of one starting engine; `complete` once it said that it serves."""

    def __init__(self, devices: Sequence[EngineDevice]) -> None:
        self._gpus = [device for device in devices if device.id != RAM]
        self._sizes: dict[tuple[str, str, str], int] = {}
        self._refused: dict[str, int] = {}
        self.on_gpus: int | None = None
        self.of_layers = 0
        self.complete = False

    def read(self, line: str) -> None:
        """One line, whatever it says."""
        if match := _BUFFER.search(line):
            buffer, use, mib = match.groups()
            use = "mapped" if use == "model" and buffer.endswith("_Mapped") else use
            # A graph is reserved several times, the last time as it stays; two caches of one model add up.
            which = buffer if use in ("compute", "output") else f"{buffer} {len(self._sizes)}"
            self._sizes[self._device(buffer), use, which] = _bytes(mib)
        elif match := _OFFLOADED.search(line):
            self.on_gpus, self.of_layers = int(match[1]), int(match[2])
        elif "llama_model_loader: loaded meta data" in line:
            self._sizes.clear()  # what came before was a trial of what fits
        elif line.endswith(" model loaded"):
            self.complete = True
        else:
            self._read_refusal(line)

    def _read_refusal(self, line: str) -> None:
        on_device, of_buffer, of_ram = (pattern.search(line) for pattern in _REFUSED)
        if on_device is not None:
            self._refuse(self._numbered(None, int(on_device[2])), _bytes(on_device[1]))
        elif of_buffer is not None:
            self._refuse(self._device(of_buffer["buffer"]), int(of_buffer["bytes"]))
        elif of_ram is not None:
            self._refuse(RAM, _bytes(of_ram["mib"]))

    def _refuse(self, device: str, size: int) -> None:
        # Several lines tell of one refusal, and the driver's is rounded.
        self._refused[device] = max(size, self._refused.get(device, 0))

    def buffers(self) -> dict[str, Buffers]:
        """What the engine said, by device; empty when it said nothing."""
        found: dict[str, Buffers] = {}
        devices = {device for device, _, _ in self._sizes} | set(self._refused)
        for device in sorted(devices, key=lambda device: (device != RAM, device)):
            sums: dict[str, int] = dict.fromkeys(("model", "mapped", "KV", "RS", "compute", "output"), 0)
            for (of, use, _), size in self._sizes.items():
                sums[use] += size if of == device else 0
            found[device] = Buffers(
                # What was copied from the mapped file into another order is not read there again.
                weights=max(sums["mapped"], sums["model"]),
                kv=sums["KV"] + sums["RS"],
                compute=sums["compute"],
                output=sums["output"],
                refused=self._refused.get(device, 0),
            )
        return found

    def _device(self, buffer: str) -> str:
        match = _GPU.fullmatch(buffer)
        return RAM if match is None else self._numbered(_PREFIXES[match[1]], int(match[2] or 0))

    def _numbered(self, kind: DeviceKind | None, number: int) -> str:
        """The device that llama.cpp calls by this number: what it sees of a kind is counted from 0."""
        seen = [device.id for device in self._gpus if kind in (None, device.kind)]
        return seen[number] if number < len(seen) else f"gpu{number}"


def kind_of_buffer(name: str) -> DeviceKind | None:
    """What computes on a device that llama.cpp calls so; None for what is no GPU of a known kind."""
    match = _GPU.fullmatch(name)
    return None if match is None else _PREFIXES[match[1]]


def environment_for(parts: Sequence[Part], devices: Sequence[EngineDevice]) -> dict[str, str]:
    """Variables that show an engine the devices of its parts, in their order, and hide all others.

    Empty without parts: the engine then chooses among all. Apple silicon has one GPU, which is not hidden.
    """
    if not parts:
        return {}
    shown = {kind: [device.visible for device in visible(parts, devices) if device.kind == kind] for kind in _HIDING}
    chosen = {variable: ",".join(shown[kind]) or nothing for kind, (variable, nothing) in _HIDING.items()}
    return {**chosen, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def visible(parts: Sequence[Part], devices: Sequence[EngineDevice]) -> tuple[EngineDevice, ...]:
    """The GPUs of these parts, in the order in which layers lie on them."""
    known = {device.id: device for device in devices}
    return tuple(known[part.device] for part in parts if part.device != RAM and part.device in known)


def layers_on_gpus(parts: Sequence[Part]) -> tuple[int, ...]:
    """How many layers lie on each GPU, in that order."""
    return tuple(part.layers for part in parts if part.device != RAM)


def real_parts(planned: Sequence[Part], log: MemoryLog, private: int) -> tuple[Part, ...]:
    """What a ready engine takes up, device by device: what it said, and of what it does not say what was planned.

    Nothing was planned for what an owner loads by hand: then the overhead in the machine's memory is `private`, what
    the process held for itself when it was ready, in bytes, and what it may keep of prompts.
    """
    buffers = log.buffers()
    if not buffers:
        return tuple(planned)
    before = {part.device: part for part in planned}
    order = [part.device for part in planned] + [device for device in buffers if device not in before]
    return tuple(
        _real_part(device, before.get(device), buffers.get(device, Buffers()), log, private) for device in order
    )


def _real_part(device: str, before: Part | None, found: Buffers, log: MemoryLog, private: int) -> Part:
    unplanned = private + PROMPT_CACHE_BYTES if device == RAM else 0
    overhead = unplanned if before is None else before.need.overhead
    need = Need(weights=found.weights, kv=found.kv, compute=found.compute + found.output, overhead=overhead)
    return Part(device=device, layers=_layers(device, log) if before is None else before.layers, need=need)


def _layers(device: str, log: MemoryLog) -> int:
    """How many layers llama.cpp put there by itself, 0 where it does not say: it tells only the sum of all GPUs."""
    if log.on_gpus is None:
        return 0
    return log.of_layers - log.on_gpus if device == RAM else log.on_gpus


def shortage(planned: Sequence[Part], buffers: Mapping[str, Buffers]) -> dict[str, int]:
    """How much more than planned an engine wanted on the devices that refused it memory; 0: no more than planned.

    Then somebody else holds it.
    """
    allowed = {part.device: part.need.total - part.need.overhead for part in planned}
    return {
        device: max(0, found.total - allowed.get(device, 0)) for device, found in buffers.items() if found.refused > 0
    }


def _bytes(mib: str) -> int:
    return int(min(float(mib), _MOST_MIB) * _MIB)
