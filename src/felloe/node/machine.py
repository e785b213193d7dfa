"""What this machine has for models: looked at again and again, told to the network when it has changed."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import DeviceKind, Machine
from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId
from felloe.host.budget import MemoryLimits, Told, machine, settle
from felloe.host.hardware import Inspector

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0
_LONGEST_LOOK_SECONDS = 30.0


class MachineWatch:
    """Owns the newest look at the hardware and what the network was told of it.

    `held` is what the engines have reserved, in bytes by device, `children` their processes, `backends` what they can
    compute on. `changed` is called when `machine` is another one.
    """

    def __init__(
        self,
        node: NodeId,
        name: str,
        limits: MemoryLimits,
        *,
        held: Callable[[], Mapping[str, int]],
        children: Callable[[], Iterable[int]],
        backends: Callable[[], frozenset[DeviceKind]],
        changed: Callable[[], None],
        inspector: Inspector | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._node = node
        self._name = name
        self.limits = limits
        self._held = held
        self._children = children
        self._backends = backends
        self._changed = changed
        self._inspector = inspector or Inspector()
        self._clock = clock
        self._sleep = sleep
        self._look_under_way: asyncio.Future[Hardware] | None = None
        self._told: Told | None = None
        self._hardware: Hardware | None = None

    @property
    def hardware(self) -> Hardware:
        """The newest look; the first one is made here when nobody has looked yet, and blocks."""
        if self._hardware is None:
            self._take(self._inspector.look(self._children()))
        assert self._hardware is not None  # noqa: S101 - it was just taken
        return self._hardware

    @property
    def machine(self) -> Machine:
        """What the network is told: steady, so that a plan does not change with every small move of memory."""
        if self._told is None:
            self._take(self.hardware)
        assert self._told is not None  # noqa: S101 - it was just taken
        return self._told.machine

    def held(self) -> Mapping[str, int]:
        """What the engines have reserved, in bytes by device."""
        return self._held()

    async def look(self) -> Machine:
        """The machine as it is this moment, not smoothed: for a check right before memory is taken.

        Raises `deadline_exceeded` while a driver does not answer.
        """
        if self._look_under_way is None:
            self._look_under_way = in_thread(partial(self._inspector.look, tuple(self._children())))
        under_way = self._look_under_way
        await asyncio.wait((under_way,), timeout=_LONGEST_LOOK_SECONDS)
        if not under_way.done():
            detail = f"this machine's GPU driver has not answered for {_LONGEST_LOOK_SECONDS:.0f} s: look at its log"
            raise FelloeError("deadline_exceeded", detail)
        if self._look_under_way is under_way:
            self._look_under_way = None
        return self._take(under_way.result())

    async def run(self) -> None:
        """Look every 10 seconds, until cancelled."""
        for name in self.limits.unmatched(self.hardware):
            logger.warning("hardware.gpu_memory_limit names %s, which this machine does not have", name)
        while True:
            await self._sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except (FelloeError, OSError) as error:
                logger.warning("the machine could not be looked at: %s", error)

    def close(self) -> None:
        """Let go of the drivers."""
        self._inspector.close()

    def _take(self, hardware: Hardware) -> Machine:
        self._hardware = hardware
        now = machine(self._node, self._name, hardware, self.limits, self._held(), self._backends())
        before, self._told = self._told, settle(self._told, now, self._clock())
        if before is not None and before.machine != self._told.machine:
            self._changed()
        return now


def in_thread(look: Callable[[], Hardware]) -> asyncio.Future[Hardware]:
    """What `look` returns or raises, from a thread that a driver which never answers may keep: nobody waits for it when
    the program ends.
    """
    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def settle_with(act: Callable[[Any], None], value: object) -> None:
        if not found.done():
            act(value)

    def work() -> None:
        try:
            act, value = found.set_result, look()
        except Exception as error:
            act, value = found.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle_with, act, value)

    threading.Thread(target=work, name="hardware", daemon=True).start()
    return found
