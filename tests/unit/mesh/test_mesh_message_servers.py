"""Message servers of several hubs: they meet over mutual TLS that knows the hubs' very keys."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import sign_nonce
from felloe.mesh.nats_server import NatsServer
from felloe.mesh.permissions import infer
from felloe.mesh.rotation import Keys, found
from felloe.mesh.server_config import Routes
from felloe.mesh.session import Login, Message
from mesh_servers import message_server, message_settings
from networks import free_ports


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Hub:
    """A message server, and which hubs it is told of."""

    keys: Keys
    folder: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    others: list["Hub"] = field(default_factory=list["Hub"])
    second: int = 0
    server: NatsServer = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        authority = self.keys.authority
        credential = authority.issue(raw(self.key), "hub", time.time(), addresses=["127.0.0.1"])
        settings = message_settings(authority, self.key, credential, self.folder, self.folder.name)
        self.server = message_server(authority, settings, routes=self.routes, now=lambda: time.time() + self.second)

    def routes(self) -> Routes | None:
        return Routes(
            name="felloe-messages",
            host="127.0.0.1",
            port=self.port,
            peers=tuple(f"127.0.0.1:{other.port}" for other in self.others),
            keys=tuple(raw(hub.key) for hub in (self, *self.others)),
        )


class House:
    def __init__(self, folder: Path) -> None:
        self.keys = found(time.time())
        self._folder = folder
        self._closers: list[Connection | NatsServer] = []

    async def hub(self, name: str) -> Hub:
        hub = Hub(self.keys, self._folder / name)
        await hub.server.start()
        self._closers.append(hub.server)
        return hub

    async def spoke(self, hub: Hub) -> Connection:
        key = Ed25519PrivateKey.generate()
        credential = self.keys.authority.issue(raw(key), "spoke", time.time())
        line = Connection(
            [f"tls://127.0.0.1:{hub.server.port}"],
            NodeId(id_from_public_key(raw(key))),
            login=lambda: Login(credential.user_token, partial(sign_nonce, key)),
            tls=client_context(self.keys.trust.issuers(time.time())),
            server_name=hub_tls_name(self.keys.trust.network),
        )
        self._closers.append(line)
        await line.start()
        return line

    async def close(self) -> None:
        for opened in reversed(self._closers):
            await (opened.stop() if isinstance(opened, NatsServer) else opened.close())


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    opened = House(tmp_path)
    yield opened
    await opened.close()


async def crosses(sender: Connection, receiver: Connection, seconds: float) -> bool:
    """Whether a message from one gets to the other within `seconds`."""
    heard = asyncio.Event()

    def on_message(_: Message) -> None:
        heard.set()

    subscription = await receiver.subscribe(infer(receiver.node), on_message)
    try:
        async with asyncio.timeout(seconds):
            while not heard.is_set():
                await sender.publish(infer(receiver.node), b"x")
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    finally:
        await subscription.close()
    return True


async def test_a_hub_that_is_added_meets_the_first_one_without_dropping_its_clients(house: House) -> None:
    first, second = await house.hub("first"), await house.hub("second")
    early = await house.spoke(first)
    lost = asyncio.Event()
    early.on_down(lost.set)
    late = await house.spoke(second)
    assert not await crosses(early, late, 0.3)
    first.others, second.others = [second], [first]
    await first.server.reload()
    await second.server.reload()
    assert await crosses(early, late, 20)
    assert await crosses(late, early, 5)
    assert not lost.is_set()


async def test_a_server_whose_key_is_not_pinned_gets_no_route_though_its_certificate_is_good(house: House) -> None:
    first, stranger = await house.hub("first"), await house.hub("stranger")
    stranger.others = [first]
    await stranger.server.reload()
    assert not await crosses(await house.spoke(first), await house.spoke(stranger), 3)


async def test_a_hub_that_was_removed_is_cut_off_by_a_restart_of_the_others(house: House) -> None:
    first, second = await house.hub("first"), await house.hub("second")
    first.others, second.others = [second], [first]
    await first.server.restart()
    await second.server.restart()
    one, two = await house.spoke(first), await house.spoke(second)
    assert await crosses(one, two, 20)
    first.others = []
    await first.server.restart()
    assert await one.wait_up(20)
    assert not await crosses(one, two, 3)


async def test_standing_subscriptions_hear_other_hubs_after_reloads_whose_account_tokens_are_newer(
    house: House,
) -> None:
    first, second = await house.hub("first"), await house.hub("second")
    first.others, second.others = [second], [first]
    await first.server.reload()
    await second.server.reload()
    one, two = await house.spoke(first), await house.spoke(second)
    heard = {one.node: asyncio.Event(), two.node: asyncio.Event()}
    for line in (one, two):
        await line.subscribe(infer(line.node), lambda message: heard[NodeId(message.subject.split(".")[1])].set())
    assert await crosses(one, two, 20)
    for hub in (first, second, first):
        hub.second += 1
        await hub.server.reload()
        for sender, receiver in ((one, two), (two, one)):
            heard[receiver.node].clear()
            async with asyncio.timeout(10):
                while not heard[receiver.node].is_set():
                    await sender.publish(infer(receiver.node), b"x")
                    await asyncio.sleep(0.02)
