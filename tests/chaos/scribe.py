"""Writes the network's state all the time, and notes what was acknowledged: API keys made and revoked."""

import asyncio
import random
import time

import httpx

from chaos.nodes import ChaosNode, OperatorRefusal
from chaos.records import Write
from chaos.stage import Stage

CALM_SECONDS = 1.5
HURRY_SECONDS = 0.02
MOST_KEYS = 60
_REVOKED_SHARE = 0.35


class Scribe:
    """Owns the list of writes; `stage` says where they can go."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.writes: list[Write] = []
        self._stage = stage
        self._draw = random.Random(f"scribe {seed}")
        self._pause = CALM_SECONDS
        self._standing: list[str] = []
        self._made = 0

    def hurry(self) -> None:
        """Write as fast as it goes."""
        self._pause = HURRY_SECONDS

    def calm(self) -> None:
        """Write at the usual pace."""
        self._pause = CALM_SECONDS

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._pause)
            if hubs := await self._stage.writable():
                await self._write(self._draw.choice(hubs))

    async def _write(self, hub: ChaosNode) -> None:
        full = len(self._standing) >= MOST_KEYS
        if self._standing and (full or self._draw.random() < _REVOKED_SHARE):
            subject = self._standing.pop(self._draw.randrange(len(self._standing)))
            await self._note("revoke key", subject, hub, "/keys/revoke", {"name": subject})
            return
        self._made += 1
        subject = f"chaos-{self._made}"
        if await self._note("key", subject, hub, "/keys/create", {"name": subject}):
            self._standing.append(subject)

    async def _note(self, action: str, subject: str, hub: ChaosNode, path: str, body: dict[str, str]) -> bool:
        """Write once; whether it was acknowledged. What was not may still have happened."""
        begin, end, detail = time.monotonic(), None, hub.name
        try:
            await hub.tell(path, body)
            end = time.monotonic()
        except (OperatorRefusal, httpx.HTTPError, OSError, ValueError) as error:
            detail = f"{hub.name}: {type(error).__name__} {error}"[:200]
        assert action in ("key", "revoke key")
        self.writes.append(Write(action=action, subject=subject, begin=begin, end=end, detail=detail))
        return end is not None
