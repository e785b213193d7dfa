"""A served model on this node: its engine, and how many answers it is giving."""

import asyncio
from typing import Protocol

import msgspec

from felloe.domain.ports import Answers
from felloe.domain.roster import Replica


class Engine(Answers, Protocol):
    """One served model, whatever serves it."""

    @property
    def replica(self) -> Replica: ...

    @property
    def problem(self) -> str:
        """Why it is not ready although it should be; empty when there is nothing to say."""
        ...

    async def stop(self) -> None: ...


class Served:
    """An engine and what this node is doing with it. `idle` is set while it answers nothing."""

    def __init__(self, engine: Engine, idle: asyncio.Event | None = None) -> None:
        self.engine = engine
        self.active = 0
        self.draining = False
        self.idle = idle or asyncio.Event()
        self.idle.set()

    def begin(self) -> None:
        self.active += 1
        self.idle.clear()

    def end(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.idle.set()

    @property
    def replica(self) -> Replica:
        replica = self.engine.replica
        return msgspec.structs.replace(replica, state="draining") if self.draining else replica
