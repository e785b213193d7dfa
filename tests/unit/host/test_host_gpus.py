"""GPUs as their drivers tell of them, the truth and the nonsense."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from felloe.domain.hardware import UNKNOWN, Gpu
from felloe.host.gpus_amd import read_amdgpu
from felloe.host.gpus_apple import working_set
from felloe.host.gpus_nvidia import Nvml
from felloe.host.gpus_vulkan import merge, parse_vulkaninfo
from felloe.host.hardware import impossible, visible

GIB = 1 << 30
ENGINE, BROWSER = 100, 200


class NvmlError(Exception):
    pass


class Card(SimpleNamespace):
    """A GPU as NVML has it; what is an exception here is the driver's answer there."""

    def __init__(self, name: object, total: int = 80, free: int = 70, **more: Any) -> None:
        known = {"uuid": b"GPU-1", "clock": 9751, "width": 384, "compute": (), "graphics": (), "slices": ()}
        super().__init__(**({"name": name, "total": total, "free": free} | known | more))


def process(pid: int, size: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=size)


class FakeNvml:
    """As nvidia-ml-py."""

    NVMLError = NvmlError
    NVML_CLOCK_MEM = 2

    def __init__(self, *cards: Card | NvmlError, absent: bool = False) -> None:
        self.cards: list[Card | NvmlError] = list(cards)
        self.absent = absent
        self.opened = 0
        self.open = False

    def nvmlInit(self) -> None:
        if self.absent:
            raise NvmlError("NVML Shared Library Not Found")
        self.opened += 1
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return self._answer(self.cards[index])

    def nvmlDeviceGetName(self, card: Card) -> object:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> object:
        return self._answer(card.uuid)

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> object:
        if card.total == 0:
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=card.total, free=card.free)

    def nvmlDeviceGetMaxClockInfo(self, card: Card, kind: int) -> object:
        assert kind == self.NVML_CLOCK_MEM
        return self._answer(card.clock)

    def nvmlDeviceGetMemoryBusWidth(self, card: Card) -> object:
        return card.width

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> object:
        return self._answer(card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> object:
        return self._answer(card.graphics)

    def nvmlDeviceGetMigMode(self, card: Card) -> object:
        if not card.slices:
            raise NvmlError("Not Supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return len(card.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, place: int) -> object:
        return self._answer(card.slices[place])

    @staticmethod
    def _answer(value: object) -> object:
        if isinstance(value, NvmlError):
            raise value
        return value


def read(nvml: FakeNvml, *children: int) -> tuple[Gpu, ...]:
    return Nvml(nvml).gpus(frozenset(children), 1000, 900)


def test_the_real_library_has_what_is_asked_of_it() -> None:
    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_every_nvidia_gpu_is_listed_with_what_reads_its_memory_how_fast() -> None:
    gpus = read(FakeNvml(Card("RTX 3090"), Card(b"A100", 90, 20, uuid="GPU-2")))
    assert [(gpu.id, gpu.name, gpu.uuid, gpu.memory_total, gpu.memory_free) for gpu in gpus] == [
        ("gpu0", "RTX 3090", "GPU-1", 80, 70),
        ("gpu1", "A100", "GPU-2", 90, 20),
    ]
    assert gpus[0].bandwidth == pytest.approx(936e9, rel=0.001)


def test_what_our_engines_hold_is_told_apart_and_counted_once() -> None:
    card = Card("x", compute=(process(ENGINE, 30), process(BROWSER, 7)), graphics=(process(ENGINE, 30),))
    assert read(FakeNvml(card), ENGINE)[0].memory_own == 30
    assert read(FakeNvml(card))[0].memory_own == UNKNOWN


@pytest.mark.parametrize("listed", [NvmlError("No Permission"), (), (process(BROWSER, 7),), (process(ENGINE, None),)])
def test_where_no_driver_tells_what_engines_hold_it_is_unknown(listed: object) -> None:
    assert read(FakeNvml(Card("x", compute=listed)), ENGINE)[0].memory_own == UNKNOWN


def test_without_a_driver_there_are_no_gpus() -> None:
    assert read(FakeNvml(absent=True)) == ()


def test_a_lost_gpu_hides_no_other_and_takes_nobodys_name_away() -> None:
    gpus = read(FakeNvml(NvmlError("GPU is lost"), Card("A100")))
    assert [(gpu.index, gpu.id) for gpu in gpus] == [(1, "gpu1")]


def test_a_gpu_without_memory_of_its_own_shows_the_machines() -> None:
    (gpu,) = read(FakeNvml(Card("GB10", 0, 0, clock=NvmlError("?"), uuid=NvmlError("?"))))
    assert (gpu.memory_total, gpu.memory_free, gpu.shared, gpu.bandwidth, gpu.uuid) == (1000, 900, True, 0.0, "")


def test_a_gpu_that_is_cut_into_slices_is_its_slices() -> None:
    half = (Card("A100 slice", 40, 40, uuid="MIG-1"), Card("A100 slice", 40, 40, uuid="MIG-2"), NvmlError("Not Found"))
    gpus = read(FakeNvml(Card("A100", slices=half), Card("T4", uuid="GPU-9")))
    assert [(gpu.id, gpu.uuid) for gpu in gpus] == [("gpu0", "MIG-1"), ("gpu2", "MIG-2"), ("gpu1", "GPU-9")]


def test_the_driver_stays_open_between_looks_and_is_opened_anew_after_a_fault() -> None:
    fake = FakeNvml(Card("x"))
    nvml = Nvml(fake)
    nvml.gpus(frozenset(), 1, 1)
    nvml.gpus(frozenset(), 1, 1)
    assert (fake.opened, fake.open) == (1, True)
    fake.nvmlDeviceGetCount = lambda: FakeNvml._answer(NvmlError("Driver/library version mismatch"))  # type: ignore[assignment,return-value]
    assert nvml.gpus(frozenset(), 1, 1) == ()
    del fake.nvmlDeviceGetCount
    assert nvml.gpus(frozenset(), 1, 1)
    nvml.close()
    assert (fake.opened, fake.open) == (2, False)


def amd_machine(folder: Path) -> tuple[Path, Path]:
    """Two AMD cards (the compute driver lists the second one first) and an Intel GPU, as files."""
    cards = {128: ("0x1002", 16 * GIB, 2 * GIB), 129: ("0x1002", 8 * GIB, GIB), 130: ("0x8086", 0, 0)}
    for minor, (vendor, total, used) in cards.items():
        device = folder / f"sys/class/drm/renderD{minor}/device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "device").write_text("0x744c\n")
        (device / "mem_info_vram_total").write_text(f"{total}\n")
        (device / "mem_info_vram_used").write_text(f"{used}\n")
        (folder / "dev/dri").mkdir(parents=True, exist_ok=True)
        (folder / f"dev/dri/renderD{minor}").touch()
    nodes = {0: (0, 0, 8, 0), 1: (129, 5511, 0, 0xABC), 2: (128, 5522, 0, 0)}
    for number, (minor, gpu_id, cores, unique) in nodes.items():
        node = folder / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "gpu_id").write_text(f"{gpu_id}\n")
        (node / "properties").write_text(f"cpu_cores_count {cores}\nunique_id {unique}\ndrm_render_minor {minor}\n")
    held = folder / f"sys/class/kfd/kfd/proc/{ENGINE}"
    held.mkdir(parents=True)
    (held / "vram_5522").write_text(f"{GIB}\n")
    return folder / "sys", folder / "dev"


def test_amds_gpus_are_read_from_files_in_the_order_in_which_rocm_counts(tmp_path: Path) -> None:
    first, second = read_amdgpu(*amd_machine(tmp_path), frozenset({ENGINE}), 3)
    assert (first.id, first.index, first.uuid, first.memory_total, first.memory_free) == (
        "gpu3",
        0,
        "GPU-0000000000000abc",
        8 * GIB,
        7 * GIB,
    )
    assert (second.id, second.uuid, second.memory_own, first.memory_own) == ("gpu4", "", GIB, UNKNOWN)
    assert second.name == "AMD GPU 0x744c"


def test_a_processor_with_graphics_shares_the_machines_memory(tmp_path: Path) -> None:
    system, devices = amd_machine(tmp_path)
    (system / "class/kfd/kfd/topology/nodes/1/properties").write_text("cpu_cores_count 8\ndrm_render_minor 129\n")
    (system / "class/drm/renderD129/device/mem_info_gtt_total").write_text(str(16 * GIB))
    gpu = read_amdgpu(system, devices, frozenset(), 0)[0]
    assert (gpu.shared, gpu.memory_total, gpu.memory_free) == (True, 24 * GIB, 23 * GIB)


def test_a_gpu_that_the_container_does_not_give_is_not_there(tmp_path: Path) -> None:
    system, devices = amd_machine(tmp_path)
    (devices / "dri/renderD128").unlink()
    assert [gpu.memory_total for gpu in read_amdgpu(system, devices, frozenset(), 0)] == [8 * GIB]
    assert read_amdgpu(tmp_path / "none", tmp_path / "none", frozenset(), 0) == ()


def test_nonsense_in_the_files_is_no_memory(tmp_path: Path) -> None:
    system, devices = amd_machine(tmp_path)
    (system / "class/drm/renderD128/device/mem_info_vram_total").write_text("-5")
    (system / "class/drm/renderD129/device/mem_info_vram_total").write_text("9" * 20)
    (system / "class/kfd/kfd/topology/nodes/1/properties").write_bytes(b"\xff drm_render_minor\n\n5 \n")
    assert all(map(impossible, read_amdgpu(system, devices, frozenset(), 0)))


VULKANINFO = """
VULKANINFO
Device Properties and Extensions:
=================================
GPU0:
VkPhysicalDeviceProperties:
\tapiVersion        = 1.3.255 (4206847)
\tvendorID          = 0x8086
\tdeviceType        = PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
\tdeviceName        = Intel(R) Graphics (ADL)
VkPhysicalDeviceMemoryProperties:
memoryHeaps: count = 2
\tmemoryHeaps[0]:
\t\tsize   = 8000000000 (0x1) (7.45 GiB)
\t\tbudget = 7000000000 (0x1) (6.52 GiB)
\t\tusage  = 0 (0x00000000) (0.00 B)
\t\tflags: count = 1
\t\t\tMEMORY_HEAP_DEVICE_LOCAL_BIT
\tmemoryHeaps[1]:
\t\tsize   = 99000000000 (0x1) (92 GiB)
\t\tflags:
\t\t\tNone
memoryTypes: count = 1
\tmemoryTypes[0]:
\t\tpropertyFlags = 0x0001: count = 1
\t\t\tMEMORY_PROPERTY_DEVICE_LOCAL_BIT
GPU1:
\tvendorID          = 0x10de
\tdeviceType        = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName        = NVIDIA T4
\tmemoryHeaps[0]:
\t\tsize   = 16000000000 (0x1) (14.9 GiB)
\t\t\tMEMORY_HEAP_DEVICE_LOCAL_BIT
GPU2:
\tvendorID          = 0x10005
\tdeviceType        = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName        = llvmpipe
\tmemoryHeaps[0]:
\t\tsize   = 25000000000 (0x1) (23 GiB)
\t\t\tMEMORY_HEAP_DEVICE_LOCAL_BIT
"""


def test_vulkan_adds_what_no_other_driver_knows_and_its_own_numbers() -> None:
    nvidia = Gpu(id="gpu0", index=0, vendor="nvidia", name="T4", memory_total=15, memory_free=15)
    first, second = merge((nvidia,), parse_vulkaninfo(VULKANINFO), 1)
    assert (first.name, first.vulkan_index) == ("T4", 1)
    assert (second.id, second.vendor, second.shared, second.vulkan_index) == ("gpu1", "vulkan", True, 0)
    assert (second.memory_total, second.memory_free, second.memory_own) == (8_000_000_000, 7_000_000_000, 0)


@pytest.mark.parametrize(
    "text", ["", "GPU0:", "GPU0:\ndeviceName = x\n", VULKANINFO.replace("= 0x", "= zz"), "GPU0:\n" * 5000, "\x00" * 99]
)
def test_what_vulkaninfo_does_not_say_is_no_gpu(text: str) -> None:
    assert parse_vulkaninfo(text) == ()


def test_a_mac_lends_its_gpu_a_part_of_its_memory_or_what_its_owner_says() -> None:
    assert working_set(24 * GIB, 0) == 16 * GIB
    assert working_set(64 * GIB, 0) == 48 * GIB
    assert working_set(64 * GIB, 60 * GIB) == 60 * GIB
    assert working_set(64 * GIB, 99 * GIB) == 64 * GIB


@pytest.mark.parametrize(
    ("total", "free", "own"), [(0, 0, -1), (-5, 0, -1), (10**20, 5, -1), (10, 11, -1), (10, -1, -1), (10, 5, 11)]
)
def test_impossible_figures_are_refused_by_name(total: int, free: int, own: int) -> None:
    gpu = Gpu(id="gpu3", index=3, vendor="x", name="T4", memory_total=total, memory_free=free, memory_own=own)
    assert "gpu3 (T4) is left out" in impossible(gpu)


@pytest.mark.parametrize(
    ("variable", "kept"),
    [
        (None, "01"),
        ("1", "1"),
        ("0,1", "01"),
        ("", ""),
        ("-1", ""),
        ("GPU-b", "1"),
        ("GPU-", ""),
        ("1,7,0", "1"),
        ("1,1,0", "1"),
        (" 1 , 0", "01"),
    ],
)
def test_an_owner_can_hide_gpus_from_the_program(variable: str | None, kept: str) -> None:
    gpus = tuple(
        Gpu(index=index, vendor="nvidia", name="x", memory_total=1, memory_free=1, uuid=uuid)
        for index, uuid in enumerate(("GPU-a", "GPU-b"))
    )
    other = Gpu(index=0, vendor="amd", name="x", memory_total=1, memory_free=1)
    assert visible((*gpus, other), "nvidia", variable) == (*(gpu for gpu in gpus if str(gpu.index) in kept), other)
