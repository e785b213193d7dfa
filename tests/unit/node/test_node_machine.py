"""What a node tells of its machine, and when."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import DeviceKind
from felloe.domain.hardware import Gpu, Hardware
from felloe.domain.ids import NodeId
from felloe.host.budget import GROWTH_SECONDS, MemoryLimits
from felloe.node.hardware_operations import hardware_view
from felloe.node.machine import MachineWatch
from waiting import until

GIB = 1 << 30
CARD = Gpu(
    id="gpu0", index=0, vendor="nvidia", name="RTX", memory_total=12 * GIB, memory_free=12 * GIB, bandwidth=936e9
)


class FakeInspector:
    """A machine with one card, of which a foreign program holds a part."""

    def __init__(self) -> None:
        self.foreign = 0
        self.asked_for: list[tuple[int, ...]] = []
        self.closed = False
        self.fault: OSError | None = None
        self.waits_for: threading.Event | None = None

    def look(self, children: Iterable[int] = ()) -> Hardware:
        if self.fault is not None:
            raise self.fault
        self.asked_for.append(tuple(children))
        if self.waits_for is not None:
            self.waits_for.wait(20)
        return Hardware(
            system="Linux",
            machine="x86_64",
            processor="Xeon",
            cores=8,
            memory_total=32 * GIB,
            memory_available=30 * GIB,
            gpus=(replace(CARD, memory_free=CARD.memory_free - self.foreign),),
            memory_own=0,
        )

    def close(self) -> None:
        self.closed = True


class Watched:
    def __init__(self, limits: MemoryLimits | None = None) -> None:
        self.inspector = FakeInspector()
        self.changes = 0
        self.now = 0.0
        self.sleeps = asyncio.Queue[None]()
        backends: frozenset[DeviceKind] = frozenset(("cpu", "cuda"))
        inspector: Any = self.inspector
        self.watch = MachineWatch(
            NodeId("n"),
            "den",
            limits or MemoryLimits(),
            held=lambda: {"gpu0": GIB},
            children=lambda: [7],
            backends=lambda: backends,
            changed=self._changed,
            inspector=inspector,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def _sleep(self, _: float) -> None:
        await self.sleeps.get()

    def told(self) -> int:
        return self.watch.machine.devices[1].memory


async def test_the_first_look_is_there_when_it_is_asked_for() -> None:
    watched = Watched()
    assert watched.watch.hardware.gpus == (CARD,)
    assert watched.told() > 11 * GIB
    assert (watched.changes, watched.inspector.asked_for) == (0, [(7,)])


async def test_a_foreign_program_that_takes_memory_is_told_of_at_once_and_gone_once_it_stays_away() -> None:
    watched = Watched()
    before = watched.told()
    watched.inspector.foreign = 6 * GIB
    assert (await watched.watch.look()).devices[1].memory < 7 * GIB
    assert (watched.told() < 7 * GIB, watched.changes) == (True, 1)
    watched.inspector.foreign = GIB
    fresh = await watched.watch.look()
    assert (fresh.devices[1].memory, watched.told() < 7 * GIB) == (before, True)
    watched.now += GROWTH_SECONDS
    await watched.watch.look()
    assert (watched.told(), watched.changes) == (before, 2)


async def test_a_small_change_is_seen_but_not_told() -> None:
    watched = Watched()
    before = watched.told()
    watched.inspector.foreign = GIB + GIB // 4
    assert (await watched.watch.look()).devices[1].memory < before
    assert (watched.told(), watched.changes) == (before, 0)


async def test_it_goes_on_looking_after_a_look_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(MemoryLimits(gpu={"gpu7": 5}))
    _ = watched.watch.hardware
    running = asyncio.create_task(watched.watch.run())
    watched.inspector.fault = OSError("too many open files")
    watched.sleeps.put_nowait(None)
    await until(lambda: "could not be looked at" in caplog.text)
    watched.inspector.fault, watched.inspector.foreign = None, 6 * GIB
    watched.sleeps.put_nowait(None)
    await until(lambda: watched.changes == 1)
    assert "names gpu7" in caplog.text
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    watched.watch.close()
    assert watched.inspector.closed


async def test_a_driver_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.node.machine._LONGEST_LOOK_SECONDS", 0.05)
    watched, answers = Watched(), threading.Event()
    before = watched.told()
    watched.inspector.waits_for = answers
    for _ in range(2):
        with pytest.raises(FelloeError) as late:
            await watched.watch.look()
        assert late.value.code == "deadline_exceeded"
    assert (watched.told(), len(watched.inspector.asked_for)) == (before, 2)
    answers.set()
    watched.inspector.waits_for = None
    monkeypatch.setattr("felloe.node.machine._LONGEST_LOOK_SECONDS", 20)
    await watched.watch.look()
    assert len(watched.inspector.asked_for) == 2


def test_an_owner_sees_every_gpu_and_why_one_is_not_used() -> None:
    watched = Watched(MemoryLimits(gpu={"*": 8 * GIB, "gpu7": 1}, ram=4 * GIB))
    hardware = replace(watched.watch.hardware, gpus=(CARD, replace(CARD, id="gpu1", vendor="amd")))
    view = hardware_view(hardware, watched.watch.machine, watched.watch.limits, {"gpu0": 2 * GIB})
    ram, used, unused = view.devices
    assert (ram.models, ram.limit, ram.others) == (4 * GIB, 4 * GIB, 2 * GIB)
    assert (used.kind, used.models, used.limit, used.held) == ("cuda", 8 * GIB, 8 * GIB, 2 * GIB)
    assert (unused.id, unused.kind, unused.models) == ("gpu1", "", 0)
    assert len(view.notes) == 2
