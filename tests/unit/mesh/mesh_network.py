"""A network of one hub with the real server, tokens, permissions and certificates, for the tests of the mesh."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_rosters import make_record

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import NodeRecord, Role
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import Credential, sign_nonce
from felloe.mesh.exchange import Exchange
from felloe.mesh.hub_events import HubEvents
from felloe.mesh.nats_server import NatsServer
from felloe.mesh.roster_service import RosterService
from felloe.mesh.rotation import found
from felloe.mesh.services import HubServices
from felloe.mesh.session import Login
from mesh_servers import message_server, message_settings


@dataclass
class Member:
    """A node key and its credential."""

    key: Ed25519PrivateKey
    credential: Credential

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def id(self) -> NodeId:
        return NodeId(id_from_public_key(self.public_key))

    def record(self, **changes: Any) -> NodeRecord:
        return make_record(self.public_key, **changes)


@dataclass
class Network:
    """One hub's server, and everything that was opened on it."""

    authority: NetworkAuthority
    server: NatsServer
    hub: Member
    closers: list[Callable[[], Any]] = field(default_factory=list)

    def member(self, role: Role = "spoke", seconds: int = 3600) -> Member:
        key = Ed25519PrivateKey.generate()
        raw = key.public_key().public_bytes_raw()
        return Member(key, self.authority.issue(raw, role, time.time(), seconds=seconds))

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.server.port}"

    async def connect(
        self, member: Member, *, system: bool = False, url: str | None = None, wait_seconds: float | None = 10.0
    ) -> Connection:
        def login() -> Login:
            credential = member.credential
            return Login(credential.system_token if system else credential.user_token, partial(sign_nonce, member.key))

        connection = Connection(
            [url or self.url],
            member.id,
            login=login,
            tls=client_context(self.authority.issuer),
            server_name=hub_tls_name(self.authority.network),
        )
        self.closers.append(connection.close)
        await connection.start(wait_seconds=wait_seconds)
        return connection

    async def exchange(self, member: Member, **options: Any) -> Exchange:
        connection = await self.connect(member)
        exchange = Exchange(connection, member.id, **options)
        await exchange.start()
        await connection.flush()
        self.closers.append(exchange.close)
        return exchange

    async def close(self) -> None:
        for closer in reversed(self.closers):
            await closer()


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    credential = authority.issue(key.public_key().public_bytes_raw(), "hub", time.time(), addresses=["127.0.0.1"])
    server = message_server(authority, message_settings(authority, key, credential, tmp_path))
    await server.start()
    opened = Network(authority, server, Member(key, credential))
    try:
        yield opened
    finally:
        async with asyncio.timeout(20):
            await opened.close()
        await server.stop()


async def join(network: Network, member: Member, **record: object) -> RosterService:
    line = await network.connect(member)
    roster = RosterService(line, member.record(**record), sign=member.key.sign)
    network.closers.append(roster.close)
    await roster.start()
    return roster


async def hub(network: Network) -> RosterService:
    line = await network.connect(network.hub)
    services = HubServices(line)
    roster = RosterService(line, network.hub.record(roles=("hub",)), sign=network.hub.key.sign)
    await roster.serve(services)
    await roster.start()
    system = await network.connect(network.hub, system=True)
    events = HubEvents(system, line, network.authority.application_account)
    await events.start()
    await system.flush()
    network.closers.extend([services.close, roster.close, events.close])
    return roster


@asynccontextmanager
async def child(network: Network, member: Member, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node in a process of its own, which can be killed and frozen."""
    arguments = {
        "url": network.url,
        "issuers": network.authority.issuer,
        "server_name": network.authority.network,
        "token": member.credential.user_token,
        "key": member.key.private_bytes_raw().hex(),
    }
    (tmp_path / "node.json").write_bytes(msgspec.json.encode(arguments))
    script = Path(__file__).parent / "mesh_node.py"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path / "node.json"), env=os.environ | {"PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()
