"""This hub's part in keeping one generation of the state: a state server, and the line to it."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.nats_server import End, NatsServer, Place, Spawn
from felloe.mesh.server_config import STATE_USER, Routes, StateSettings, TlsFiles, render_state_config
from felloe.mesh.session import PasswordLogin


class StatePlace(Struct, frozen=True, kw_only=True):
    """Where this hub keeps the state, and how it starts servers for it."""

    node: NodeId
    directory: Path
    logs: Path
    tls: TlsFiles
    spawn: Spawn
    end: End

    def folder(self, generation: int) -> Path:
        """What belongs to one generation."""
        return self.directory / f"generation-{generation}"


class StateServer:
    """A nats-server with JetStream for one generation; `routes` is None when this hub keeps it alone."""

    def __init__(self, place: StatePlace, generation: int, routes: Callable[[], Routes | None]) -> None:
        folder = place.folder(generation)
        self._folder = folder
        self._node = place.node
        self._password = secrets.token_urlsafe(32)
        settings = StateSettings(
            name=f"{place.node}-{generation}",
            directory=folder,
            log=place.logs / f"state-server-{generation % 2}.log",
            tls=place.tls,
            password=self._password,
        )
        self._server = NatsServer(
            Place(host="127.0.0.1", port=0, directory=folder, log=settings.log),
            lambda port: render_state_config(settings, port, routes()),
            spawn=place.spawn,
            end=place.end,
        )
        self._line: Connection | None = None

    @property
    def line(self) -> Connection:
        """The connection to it."""
        if self._line is None:
            raise RuntimeError("the state server was not started")
        return self._line

    @property
    def process_id(self) -> int | None:
        """The child's process id while it runs."""
        return self._server.process_id

    async def start(self) -> None:
        """Start the server and connect to it. Raises `port_taken`, `broker_failed`, `network_unreachable`."""
        await self._server.start()
        self._line = Connection(
            [f"nats://127.0.0.1:{self._server.port}"],
            self._node,
            login=lambda: PasswordLogin(STATE_USER, self._password),
        )
        await self._line.start(wait_seconds=10.0)

    async def run(self) -> None:
        """Keep the server up until `stop`."""
        await self._server.run()

    async def reload(self) -> None:
        """Take up new certificates and routes."""
        await self._server.reload()

    async def stop(self) -> None:
        """End the line and the server; what it keeps stays on disk."""
        if self._line is not None:
            await self._line.close()
        await self._server.stop()

    def forget(self) -> None:
        """Delete what it kept, after `stop`."""
        shutil.rmtree(self._folder, ignore_errors=True)
