"""Nodes on a message server without TLS or logins, for the tests of the roster among many."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_rosters import make_record

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import NodeRecord
from felloe.mesh.connection import Connection
from felloe.mesh.roster_service import RosterService
from felloe.mesh.services import HubServices
from felloe.mesh.telling_rules import CROWD
from plain_hubs import PlainHubs


class Box:
    """A node key, and what runs with it."""

    def __init__(self, hubs: PlainHubs, key: Ed25519PrivateKey | None = None) -> None:
        self.hubs = hubs
        self.key = key or Ed25519PrivateKey.generate()
        self.public_key = self.key.public_key().public_bytes_raw()
        self.id = NodeId(id_from_public_key(self.public_key))
        self._open: list[Any] = []

    def record(self, **changes: Any) -> NodeRecord:
        return make_record(self.public_key, **({"started_at": time.time()} | changes))

    async def line(self) -> Connection:
        line = Connection(self.hubs.urls, self.id)
        self._open.append(line)
        await line.start()
        return line

    async def run(
        self,
        *,
        is_hub: bool = False,
        crowd: int = CROWD,
        listen: Callable[[RosterService], None] = lambda _: None,
        wall: Callable[[], float] = time.time,
    ) -> RosterService:
        """Start this node's roster; `listen` is called with it before it hears anything."""
        line = await self.line()
        record = self.record(roles=("hub" if is_hub else "spoke",), started_at=wall())
        roster = RosterService(line, record, sign=self.key.sign, wall=wall, crowd=crowd)
        listen(roster)
        self._open.append(roster)
        if is_hub:
            services = HubServices(line)
            self._open.append(services)
            await roster.serve(services)
        await roster.start()
        return roster

    async def close(self) -> None:
        for opened in reversed(self._open):
            await opened.close()
        self._open.clear()


@asynccontextmanager
async def open_boxes(count: int, folder: Path) -> AsyncIterator[list[Box]]:
    """So many nodes, of which none runs yet, and the hub that they will dial."""
    async with PlainHubs(1, folder) as hubs:
        boxes = [Box(hubs) for _ in range(count)]
        yield boxes
        for box in boxes:
            await box.close()
