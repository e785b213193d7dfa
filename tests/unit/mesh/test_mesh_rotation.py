"""New signing keys at a real message server: who may stay, who is dropped, and when."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh import permissions
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import Credential, sign_nonce
from felloe.mesh.nats_server import NatsServer
from felloe.mesh.rotation import Keys, found, rotate
from felloe.mesh.session import Login
from mesh_servers import message_server, message_settings


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


class House:
    """One hub's message server, which can be given other keys as a hub would do it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = found(time.time())
        self.hub_key = Ed25519PrivateKey.generate()
        self.server: NatsServer | None = None
        self.port = 0
        self.lines: list[Connection] = []

    async def serve(self, keys: Keys) -> None:
        """Start, or start again with these keys: a server takes up another operator in no other way."""
        if self.server is not None:
            await self.server.stop()
        self.keys = keys
        settings = message_settings(keys.authority, self.hub_key, self.issue(self.hub_key, "hub"), self.folder)
        self.server = message_server(keys.authority, settings, port=self.port)
        await self.server.start()
        self.port = self.server.port

    def issue(self, key: Ed25519PrivateKey, role: Role) -> Credential:
        return self.keys.authority.issue(raw(key), role, time.time())

    async def connect(
        self, key: Ed25519PrivateKey, credential: Credential, *, system: bool = False, seconds: float = 10.0
    ) -> Connection:
        token = credential.system_token if system else credential.user_token
        trust = self.keys.trust
        line = Connection(
            [f"tls://127.0.0.1:{self.port}"],
            NodeId(id_from_public_key(raw(key))),
            login=lambda: Login(token, partial(sign_nonce, key)),
            tls=lambda: client_context(trust.issuers(time.time())),
            server_name=hub_tls_name(trust.network),
        )
        self.lines.append(line)
        await line.start(wait_seconds=seconds)
        return line

    async def push(self, keys: Keys, now: float) -> str:
        """Give the running server the accounts as they are at `now`; what it answers."""
        system = await self.connect(self.hub_key, self.issue(self.hub_key, "hub"), system=True)
        token = keys.authority.account_tokens(now, {})[keys.authority.application_account]
        answer = await system.request(
            permissions.account_update(keys.authority.application_account), token.encode(), timeout=5
        )
        return answer.decode()

    async def close(self) -> None:
        for line in self.lines:
            await line.close()
        if self.server is not None:
            await self.server.stop()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    opened = House(tmp_path)
    await opened.serve(opened.keys)
    try:
        yield opened
    finally:
        async with asyncio.timeout(20):
            await opened.close()


async def test_users_of_the_old_keys_stay_for_the_overlap_and_are_dropped_at_its_end(house: House) -> None:
    spoke = Ed25519PrivateKey.generate()
    old = house.issue(spoke, "spoke")
    await house.serve(rotate(house.keys, time.time(), 3600))
    line = await house.connect(spoke, old)
    lost = asyncio.Event()
    line.on_down(lost.set)
    renewed = await house.connect(spoke, house.issue(spoke, "spoke"))
    end = house.keys.authority.next_end(time.time())
    assert end is not None
    assert '"code":200' in await house.push(house.keys, end)
    began = time.monotonic()
    await asyncio.wait_for(lost.wait(), 5)
    assert time.monotonic() - began < 1
    assert not await line.wait_up(0.5)
    await renewed.flush()


async def test_without_an_overlap_the_old_keys_are_worth_nothing_at_once(house: House) -> None:
    spoke = Ed25519PrivateKey.generate()
    old, old_hub = house.issue(spoke, "spoke"), house.issue(house.hub_key, "hub")
    await house.serve(rotate(house.keys, time.time(), 0))
    with pytest.raises(FelloeError, match="network_unreachable"):
        await house.connect(spoke, old, seconds=0.5)
    with pytest.raises(FelloeError, match="network_unreachable"):
        await house.connect(house.hub_key, old_hub, system=True, seconds=0.5)
    await house.connect(spoke, house.issue(spoke, "spoke"))


async def test_accounts_that_the_old_operator_signs_change_nothing(house: House) -> None:
    stolen, spoke = house.keys, Ed25519PrivateKey.generate()
    await house.serve(rotate(house.keys, time.time(), 0))
    line = await house.connect(spoke, house.issue(spoke, "spoke"))
    await house.push(stolen, time.time() + 60)
    await line.flush()
    await house.connect(spoke, house.issue(spoke, "spoke"))
    with pytest.raises(FelloeError, match="network_unreachable"):
        await house.connect(spoke, stolen.authority.issue(raw(spoke), "spoke", time.time()), seconds=0.5)
