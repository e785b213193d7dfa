import os
from types import SimpleNamespace

import pytest

from felloe.domain.hardware import Gpu
from felloe.host.cgroups import Limits
from felloe.host.hardware import detect, limited_memory, parse_processor, read_nvml, usable_cores


def test_this_machine_is_described() -> None:
    hardware = detect()
    assert hardware.processor
    assert 1 <= hardware.cores <= (os.cpu_count() or 1)
    assert 0 < hardware.memory_available <= hardware.memory_total


def test_a_quota_is_rounded_down_to_whole_cores_but_never_to_none() -> None:
    assert usable_cores(8, Limits(cores=2.9)) == 2
    assert usable_cores(8, Limits(cores=0.5)) == 1
    assert usable_cores(2, Limits(cores=16.0)) == 2
    assert usable_cores(2, Limits()) == 2


def test_memory_is_what_the_control_group_leaves() -> None:
    assert limited_memory(100, 80, Limits()) == (100, 80)
    assert limited_memory(100, 80, Limits(memory_limit=50, memory_left=10)) == (50, 10)
    assert limited_memory(100, 80, Limits(memory_limit=50, memory_left=None)) == (50, 50)
    assert limited_memory(100, 80, Limits(memory_limit=500, memory_left=400)) == (100, 80)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R)  Xeon(R)\n\nmodel name\t: other\n", "Intel(R) Xeon(R)"),
        ("processor\t: 0\nBogoMIPS\t: 108\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", ""),
        ("", ""),
    ],
)
def test_the_processor_is_named_from_cpuinfo(text: str, name: str) -> None:
    assert parse_processor(text) == name


class NvmlError(Exception):
    pass


class FakeNvml:
    """As nvidia-ml-py; a card is (name, total, free) in bytes, an exception where the driver answers with an error."""

    NVMLError = NvmlError

    def __init__(self, *cards: tuple[object, int, int] | NvmlError, absent: bool = False) -> None:
        self.cards = cards
        self.absent = absent
        self.open = False

    def nvmlInit(self) -> None:
        if self.absent:
            raise NvmlError("NVML Shared Library Not Found")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        card = self.cards[index]
        if isinstance(card, NvmlError):
            raise card
        return card

    def nvmlDeviceGetName(self, card: tuple[object, int, int]) -> object:
        return card[0]

    def nvmlDeviceGetMemoryInfo(self, card: tuple[object, int, int]) -> object:
        if card[1] == 0:
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=card[1], free=card[2])


def test_every_nvidia_gpu_is_listed() -> None:
    nvml = FakeNvml(("A100", 80, 70), (b"RTX 4090", 24, 20))
    assert read_nvml(nvml, 1000, 900) == (
        Gpu(index=0, vendor="nvidia", name="A100", memory_total=80, memory_free=70),
        Gpu(index=1, vendor="nvidia", name="RTX 4090", memory_total=24, memory_free=20),
    )
    assert not nvml.open


def test_without_a_driver_there_are_no_gpus() -> None:
    assert read_nvml(FakeNvml(absent=True), 1000, 900) == ()


def test_a_gpu_that_fell_off_the_bus_does_not_hide_the_others() -> None:
    gpus = read_nvml(FakeNvml(NvmlError("GPU is lost"), ("A100", 80, 70)), 1000, 900)
    assert [gpu.index for gpu in gpus] == [1]


def test_a_gpu_without_memory_of_its_own_shows_the_machines() -> None:
    (gpu,) = read_nvml(FakeNvml(("GB10", 0, 0)), 1000, 900)
    assert (gpu.memory_total, gpu.memory_free) == (1000, 900)
