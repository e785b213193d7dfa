"""A hub's message server is told who was removed, whatever else happens to it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import sign_nonce
from felloe.mesh.rotation import found
from felloe.mesh.server_config import Routes
from felloe.mesh.session import Login
from felloe.node.home import Home
from felloe.node.message_server import MessageServer
from mesh_servers import message_settings
from networks import free_ports


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Place:
    """A hub's message server, and whom the hub holds to be removed."""

    folder: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    revoked: dict[bytes, float] = field(default_factory=dict[bytes, float])
    lines: list[Connection] = field(default_factory=list[Connection])

    def __post_init__(self) -> None:
        self.keys = found(time.time())
        authority = self.keys.authority
        credential = authority.issue(raw(self.key), "hub", time.time(), addresses=["127.0.0.1"])
        home = Home(self.folder / "home")
        home.prepare()
        route = Routes(name="messages", host="127.0.0.1", port=free_ports(1)[0], peers=(), keys=(raw(self.key),))
        self.server = MessageServer(
            home,
            "hub",
            "127.0.0.1",
            self.port,
            message_settings(authority, self.key, credential, self.folder).tls,
            authority=lambda: authority,
            routes=lambda: route,
            revoked=lambda: dict(self.revoked),
        )

    def line(self, key: Ed25519PrivateKey, role: Role, *, system: bool = False) -> Connection:
        credential = self.keys.authority.issue(raw(key), role, time.time())
        token = credential.system_token if system else credential.user_token
        line = Connection(
            [f"tls://127.0.0.1:{self.port}"],
            NodeId(id_from_public_key(raw(key))),
            login=lambda: Login(token, partial(sign_nonce, key)),
            tls=client_context(self.keys.trust.issuers(time.time())),
            server_name=hub_tls_name(self.keys.trust.network),
        )
        self.lines.append(line)
        return line

    def remove(self, key: Ed25519PrivateKey) -> None:
        self.revoked[raw(key)] = time.time() + 1
        self.server.members_changed()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.server.start()
    try:
        yield place
    finally:
        for line in place.lines:
            await line.close()
        await place.server.stop()


async def is_refused(place: Place, key: Ed25519PrivateKey) -> bool:
    refused = asyncio.Event()
    line = place.line(key, "spoke")
    line.on_refusal(refused.set)
    try:
        await line.start(wait_seconds=1.0)
    except FelloeError:
        return refused.is_set()
    await line.close()
    return False


async def until_refused(place: Place, key: Ed25519PrivateKey) -> None:
    async with asyncio.timeout(15):
        while not await is_refused(place, key):
            await asyncio.sleep(0.05)


async def test_a_removal_reaches_a_server_that_no_node_has_used_yet(place: Place) -> None:
    system, removed = place.line(place.key, "hub", system=True), Ed25519PrivateKey.generate()
    await system.start()
    lost = asyncio.Event()
    system.on_down(lost.set)
    place.server.watch(system)
    place.remove(removed)
    # The server begins anew, before which the removed node could get in.
    await asyncio.wait_for(lost.wait(), 10)
    assert await system.wait_up(10)
    assert await is_refused(place, removed)
    assert not await is_refused(place, Ed25519PrivateKey.generate())


async def test_a_reload_before_a_removal_was_told_does_not_stand_for_it(place: Place) -> None:
    removed = Ed25519PrivateKey.generate()
    victim = place.line(removed, "spoke")
    await victim.start()
    lost = asyncio.Event()
    victim.on_down(lost.set)
    system = place.line(place.key, "hub", system=True)
    place.server.watch(system)
    place.remove(removed)
    await asyncio.sleep(0)
    await place.server.reload()
    await system.start()
    await asyncio.wait_for(lost.wait(), 10)
    await until_refused(place, removed)
