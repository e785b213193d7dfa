"""Looks at the network from the outside: memory, processes that end by themselves, and whether all is whole again."""

import asyncio
import time

from chaos.invariants import writes_are_kept
from chaos.nodes import memory_of
from chaos.records import Collapse, Memory, Observation, Records
from chaos.stage import Stage

MEMORY_SECONDS = 2.0
POLL_SECONDS = 0.4


class Watch:
    """Notes into `records`. `expected_down` are nodes that a fault holds down now."""

    def __init__(self, stage: Stage, records: Records) -> None:
        self._stage = stage
        self._records = records
        self.expected_down: set[str] = set()

    async def run(self) -> None:
        """Until it is cancelled: sample memory, and start again what ended by itself."""
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            now = time.monotonic()
            for node in tuple(self._stage.members.values()):
                for role, process, size in memory_of(node):
                    self._records.memory.append(Memory(node=node.name, role=role, process=process, time=now, size=size))
            for node in self._stage.ended():
                if node.name not in self.expected_down:
                    self._records.collapses.append(Collapse(node=node.name, time=now, words=node.last_words()))
                    node.start("up")

    async def whole(self, since: float, seconds: float) -> tuple[float | None, list[str]]:
        """Wait until the network is whole: the seconds that took from `since`, or None; and what it waited for."""
        deadline = since + seconds
        waited: list[str] = []
        last = ""
        while True:
            missing = await self._missing(since)
            now = time.monotonic()
            if not missing:
                return now - since, waited
            if missing != last:
                waited.append(f"{now - since:.1f} s: {missing}")
                last = missing
            if now > deadline:
                return None, waited
            await asyncio.sleep(POLL_SECONDS)

    async def _missing(self, since: float) -> str:
        """What is not whole, in words."""
        members = tuple(self._stage.members.values())
        for node in members:
            if not node.lives:
                return f"{node.name} does not run"
        for unlike in await asyncio.gather(*map(self._stage.unlike, members)):
            if unlike:
                return unlike
        if disagreement := await self._stage.disagreement():
            return disagreement
        return self._unserved(since) or await self._unwritten()

    def _unserved(self, since: float) -> str:
        served = {one.node for one in self._records.requests if one.outcome == "answered" and one.begin >= since}
        missing = sorted(set(self._stage.members) - served)
        return f"{', '.join(missing)} answered nothing since" if missing else ""

    async def _unwritten(self) -> str:
        if broken := writes_are_kept(self._records.writes, await self.observe()):
            return f"{broken[0].node}: {broken[0].what}"
        return ""

    async def observe(self) -> list[Observation]:
        """What every member shows of the state now."""
        seen: list[Observation] = []
        for node in tuple(self._stage.members.values()):
            begin = time.monotonic()
            keys, members = await node.ask("/keys"), await node.ask("/members")
            if keys is not None and members is not None:
                alive = {member["record"]["name"] for member in members if member["alive"]}
                names = {key["name"] for key in keys}
                end = time.monotonic()
                seen.append(
                    Observation(node=node.name, begin=begin, end=end, keys=frozenset(names), alive=frozenset(alive))
                )
        return seen
