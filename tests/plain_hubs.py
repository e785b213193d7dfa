"""Several message servers in one cluster, without TLS or logins, to be killed, frozen and brought back by tests."""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.nats_server import find_binary
from networks import free_ports

_PROBE = NodeId("p" * 26)


class PlainHub:
    """One nats-server. Its ports stay when it starts again."""

    def __init__(self, name: str, port: int, route_port: int, folder: Path) -> None:
        self.name = name
        self.port = port
        self.route_port = route_port
        self.url = f"nats://127.0.0.1:{port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / f"{name}.conf"
        self._process: asyncio.subprocess.Process | None = None

    def configure(self, others: list["PlainHub"]) -> None:
        config = {
            "server_name": self.name,
            "host": "127.0.0.1",
            "port": self.port,
            "ping_interval": "2s",
            "ping_max": 2,
            "write_deadline": "5s",
            "logfile": str(self._config.with_suffix(".log")),
            "cluster": {
                "name": "test",
                "host": "127.0.0.1",
                "port": self.route_port,
                "routes": [f"nats://127.0.0.1:{other.route_port}" for other in others],
                "no_advertise": True,
                "ping_interval": "2s",
            },
        }
        self._config.write_bytes(msgspec.json.encode(config))

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(find_binary()), "-c", str(self._config), stdout=asyncio.subprocess.DEVNULL
        )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        await self._process.wait()
        self._process = None


class PlainHubs:
    """A cluster: `async with PlainHubs(3, tmp_path) as hubs`."""

    def __init__(self, count: int, folder: Path) -> None:
        ports = free_ports(2 * count)
        self.folder = folder
        self.hubs = [PlainHub(f"hub-{at}", ports[2 * at], ports[2 * at + 1], folder) for at in range(count)]
        for hub in self.hubs:
            hub.configure([other for other in self.hubs if other is not hub])

    @property
    def urls(self) -> list[str]:
        return [hub.url for hub in self.hubs]

    def __getitem__(self, at: int) -> PlainHub:
        return self.hubs[at]

    async def __aenter__(self) -> Self:
        for hub in self.hubs:
            await hub.start()
        await self.are_joined()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hub in self.hubs:
            await hub.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def are_joined(self) -> None:
        """Every hub passes on what is said on every other."""
        lines = [Connection([hub.url], _PROBE) for hub in self.hubs]
        try:
            for line in lines:
                await line.start()
            for at, line in enumerate(lines):
                heard = asyncio.Event()
                subscription = await line.subscribe(f"probe.{at}", lambda _, heard=heard: heard.set())
                await line.flush()
                for other in lines:
                    heard.clear()
                    async with asyncio.timeout(20):
                        while not heard.is_set():
                            await other.publish(f"probe.{at}", b"")
                            with contextlib.suppress(TimeoutError):
                                await asyncio.wait_for(heard.wait(), 0.05)
                await subscription.close()
        finally:
            for line in lines:
                await line.close()
