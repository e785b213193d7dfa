"""What models may take up of a machine."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from felloe.domain.fleet import DeviceKind, Machine
from felloe.domain.fleet_rules import check_machine
from felloe.domain.hardware import Gpu, Hardware
from felloe.domain.ids import NodeId
from felloe.host.budget import (
    GROWTH_SECONDS,
    MemoryLimits,
    Told,
    driver_name,
    free_bytes,
    held_by_others,
    machine,
    settle,
)

MIB, GIB = 1 << 20, 1 << 30
CUDA: frozenset[DeviceKind] = frozenset(("cpu", "cuda"))


def card(number: int = 0, **changes: Any) -> Gpu:
    made = Gpu(
        id=f"gpu{number}", index=number, vendor="nvidia", name="RTX", memory_total=12 * GIB, memory_free=12 * GIB
    )
    return replace(made, **({"uuid": f"GPU-{number}"} | changes))


def box(*gpus: Gpu, total: int = 32 * GIB, available: int = 30 * GIB, own: int = 0) -> Hardware:
    return Hardware(
        system="Linux",
        machine="x86_64",
        processor="Xeon",
        cores=8,
        memory_total=total,
        memory_available=available,
        gpus=gpus,
        memory_own=own,
    )


def budget(hardware: Hardware, limits: MemoryLimits | None = None, **held: int) -> dict[str, int]:
    found = machine(NodeId("n"), "n", hardware, limits or MemoryLimits(), held, CUDA)
    assert check_machine(found) == ""
    return {device.id: device.memory for device in found.devices}


def test_a_little_stays_free_and_equal_cards_are_equal() -> None:
    found = budget(box(card(0, memory_free=12 * GIB - 30 * MIB), card(1, memory_free=12 * GIB - 12 * MIB)))
    assert found["gpu0"] == found["gpu1"]
    assert 11.5 * GIB < found["gpu0"] < 12 * GIB - 128 * MIB
    assert found["ram"] <= 30 * GIB - 32 * GIB // 20


def test_what_our_engines_hold_stays_in_the_budget() -> None:
    empty = budget(box(card()))
    told = box(card(memory_free=4 * GIB, memory_own=8 * GIB), available=25 * GIB, own=5 * GIB)
    guessed = box(card(memory_free=4 * GIB), available=25 * GIB, own=-1)
    assert budget(told) == budget(guessed, gpu0=8 * GIB, ram=5 * GIB) == empty


def test_what_others_hold_is_gone_from_it() -> None:
    hardware = box(card(memory_free=2 * GIB, memory_own=8 * GIB))
    assert held_by_others(hardware, {})["gpu0"] == 2 * GIB
    assert budget(hardware)["gpu0"] <= budget(box(card()))["gpu0"] - 2 * GIB


def test_a_declared_limit_is_exact_and_leaves_nothing_free_besides() -> None:
    limits = MemoryLimits(gpu={"*": 10 * GIB + 1, "gpu1": 0, "GPU-2": 100 * MIB}, ram=300 * MIB)
    found = budget(box(card(0), card(1), card(2)), limits)
    assert found == {"ram": 300 * MIB, "gpu0": 10 * GIB + 1, "gpu1": 0, "gpu2": 100 * MIB}


def test_a_declared_limit_makes_no_memory_that_is_not_there() -> None:
    limits = MemoryLimits(gpu={"*": 99 * GIB}, ram=999 * GIB)
    found = budget(box(card(memory_free=9 * GIB)), limits)
    assert (found["gpu0"], found["ram"]) == (9 * GIB, 30 * GIB)


def test_a_gpu_that_shares_the_memory_holds_no_more_than_the_machine_and_may_be_allowed_more_than_is_usual() -> None:
    hardware = box(card(shared=True, memory_total=20 * GIB), available=12 * GIB, own=-1)
    assert budget(hardware)["gpu0"] == budget(hardware)["ram"] < 12 * GIB
    assert budget(hardware, None, gpu0=15 * GIB)["gpu0"] == 20 * GIB
    assert budget(hardware, MemoryLimits(gpu={"gpu0": 24 * GIB}), gpu0=18 * GIB)["gpu0"] == 24 * GIB
    assert budget(hardware, MemoryLimits(ram=5 * GIB))["gpu0"] == 5 * GIB


def test_only_gpus_that_the_engine_can_use_are_devices() -> None:
    gpus = (card(0, vulkan_index=1), card(1, vendor="amd"), card(2, vendor="vulkan", vulkan_index=0))
    kinds: list[tuple[set[DeviceKind], dict[str, str]]] = [
        ({"cpu"}, {}),
        ({"cpu", "cuda", "vulkan"}, {"gpu0": "cuda", "gpu2": "vulkan"}),
        ({"cpu", "rocm"}, {"gpu1": "rocm"}),
        ({"cpu", "vulkan"}, {"gpu0": "vulkan", "gpu2": "vulkan"}),
    ]
    for backends, wanted in kinds:
        found = machine(NodeId("n"), "n", box(*gpus), MemoryLimits(), {}, frozenset(backends))
        assert {device.id: device.kind for device in found.devices[1:]} == wanted


def test_a_driver_is_told_a_uuid_where_there_is_one() -> None:
    assert driver_name(card(3, vulkan_index=1), "cuda") == "GPU-3"
    assert driver_name(card(3, vulkan_index=1), "vulkan") == "1"
    assert driver_name(card(3, uuid=""), "rocm") == "3"


def test_what_is_free_is_counted_together_where_memory_is_shared() -> None:
    shared = machine(NodeId("n"), "n", box(card(shared=True)), MemoryLimits(ram=10 * GIB), {}, CUDA)
    assert free_bytes(shared, {"gpu0": 4 * GIB, "ram": 3 * GIB}) == {"ram": 3 * GIB, "gpu0": 3 * GIB}
    assert free_bytes(shared, {"gpu0": 40 * GIB}) == {"ram": 0, "gpu0": 0}
    apart = machine(NodeId("n"), "n", box(card()), MemoryLimits(gpu={"*": GIB}, ram=GIB), {}, CUDA)
    assert free_bytes(apart, {"gpu0": GIB}) == {"ram": GIB, "gpu0": 0}


def test_a_limit_for_what_is_not_there_is_named() -> None:
    assert MemoryLimits(gpu={"gpu7": 1, "*": 2, "GPU-0": 3}).unmatched(box(card())) == ("gpu7",)


def sized(*sizes: int) -> Machine:
    gpus = (card(number) for number in range(len(sizes)))
    limits = MemoryLimits(gpu={f"gpu{number}": size for number, size in enumerate(sizes)}, ram=GIB)
    return machine(NodeId("n"), "n", box(*gpus), limits, {}, CUDA)


def memory(told: Told) -> list[int]:
    return [device.memory for device in told.machine.devices[1:]]


def test_small_changes_are_not_told_less_at_once_and_more_once_it_lasted() -> None:
    told = settle(None, sized(1000, 1000), 0.0)
    assert memory(settle(told, sized(960, 1040), 1.0)) == [1000, 1000]
    told = settle(told, sized(900, 1500), 2.0)
    assert memory(told) == [900, 1000]
    told = settle(told, sized(900, 1500), 2.0 + GROWTH_SECONDS - 0.1)
    assert memory(told) == [900, 1000]
    assert memory(settle(told, sized(900, 1500), 2.0 + GROWTH_SECONDS)) == [900, 1500]


def test_growth_that_did_not_last_begins_anew() -> None:
    told = settle(None, sized(1000), 0.0)
    for at, size in ((1.0, 2000), (20.0, 1000), (25.0, 2000), (40.0, 2000)):
        told = settle(told, sized(size), at)
    assert memory(told) == [1000]
    assert memory(settle(told, sized(2000), 55.0)) == [2000]


def test_a_card_that_comes_or_goes_is_told_at_once() -> None:
    told = settle(None, sized(1000, 1000), 0.0)
    assert memory(settle(told, sized(1001), 1.0)) == [1001]
    assert memory(settle(told, sized(1, 2, 3), 1.0)) == [1, 2, 3]


sizes = some.integers(0, 256 * GIB)


@given(
    total=some.integers(1, 256 * GIB),
    free=sizes,
    own=some.integers(-1, 64 * GIB),
    held=sizes,
    limit=some.none() | sizes,
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_budget_is_never_more_than_the_memory_nor_the_limit_nor_what_others_leave(
    shared: bool, total: int, free: int, own: int, held: int, limit: int | None
) -> None:
    gpu = card(memory_total=total, memory_free=min(total, free), memory_own=own, shared=shared)
    limits = MemoryLimits(gpu={} if limit is None else {"*": limit}, ram=limit)
    found = budget(box(gpu, total=total, available=min(total, free), own=own), limits, gpu0=held, ram=held)
    others = held_by_others(box(gpu, total=total, available=min(total, free), own=own), {"gpu0": held, "ram": held})
    assert 0 <= found["ram"] <= max(0, total - others["ram"])
    assert 0 <= found["gpu0"] <= max(0, total - others.get("gpu0", 0))
    assert limit is None or max(found.values()) <= limit


@given(some.lists(some.integers(0, 10_000), min_size=1, max_size=30))
def test_what_was_told_is_never_much_more_than_what_is_there(looks: list[int]) -> None:
    told: Told | None = None
    for at, size in enumerate(looks):
        told = settle(told, sized(size), float(at))
        assert memory(told)[0] <= size / 0.95
