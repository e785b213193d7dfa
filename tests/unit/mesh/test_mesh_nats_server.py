"""A real nats-server with the tokens, permissions and certificates that this program makes."""

import asyncio
import contextlib
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nats
import nats.errors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh import permissions
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.credentials import Credential, sign_nonce
from felloe.mesh.nats_jwt import public_name
from felloe.mesh.nats_server import NatsServer, find_binary
from felloe.mesh.rotation import found
from felloe.mesh.server_config import MessageSettings, render_message_config
from mesh_servers import message_server, message_settings
from waiting import until


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class Node:
    key: Ed25519PrivateKey
    credential: Credential

    @property
    def id(self) -> NodeId:
        return NodeId(id_from_public_key(raw(self.key)))


@dataclass
class Hub:
    authority: NetworkAuthority
    server: NatsServer
    settings: MessageSettings
    node: Node
    revoked: dict[bytes, float]

    def tokens(self) -> dict[str, str]:
        return self.authority.account_tokens(time.time(), self.revoked)

    def new_node(self, role: Role = "spoke", seconds: int = 3600) -> Node:
        key = Ed25519PrivateKey.generate()
        return Node(key, self.authority.issue(raw(key), role, time.time(), seconds=seconds))

    def connect(
        self, node: Node, *, system: bool = False, errors: list[str] | None = None, **options: object
    ) -> Awaitable[Client]:
        async def heard(error: Exception) -> None:
            if errors is not None:
                errors.append(str(error))

        token = node.credential.system_token if system else node.credential.user_token
        settings: dict[str, object] = {
            "tls": client_context(self.authority.issuer),
            "tls_hostname": hub_tls_name(self.authority.network),
            "tls_handshake_first": True,
            "user_jwt_cb": lambda: token.encode(),
            "signature_cb": lambda nonce: b64encode(sign_nonce(node.key, nonce.encode())),
            "inbox_prefix": permissions.inbox(node.id),
            "allow_reconnect": False,
            "error_cb": heard,
        }
        return nats.connect(f"tls://127.0.0.1:{self.server.port}", **(settings | options))


def settings_for(authority: NetworkAuthority, node: Node, home: Path) -> MessageSettings:
    return message_settings(authority, node.key, node.credential, home, node.id)


@asynccontextmanager
async def running_hub(home: Path) -> AsyncIterator[Hub]:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    node = Node(key, authority.issue(raw(key), "hub", time.time(), addresses=["127.0.0.1", "localhost"]))
    settings = settings_for(authority, node, home)
    revoked: dict[bytes, float] = {}
    server = message_server(authority, settings, revoked=revoked)
    await server.start()
    try:
        yield Hub(authority, server, settings, node, revoked)
    finally:
        await server.stop()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with running_hub(tmp_path) as running:
        yield running


async def test_a_spoke_asks_another_and_hears_a_stream_on_its_own_inbox(hub: Hub) -> None:
    asker, answerer = hub.new_node(), hub.new_node()
    asking, answering = await hub.connect(asker), await hub.connect(answerer)

    async def answer(message: object) -> None:
        for number in range(3000):
            await answering.publish(message.reply, b"%d" % number)

    await answering.subscribe(permissions.infer(answerer.id), cb=answer)
    await answering.flush()
    stream = await asking.subscribe(permissions.inbox(asker.id) + ".s1")
    await asking.publish(permissions.infer(answerer.id), b"sealed", reply=permissions.inbox(asker.id) + ".s1")
    heard = [int((await stream.next_msg(5)).data) for _ in range(3000)]
    assert heard == list(range(3000))
    await asking.close()
    await answering.close()


async def denied(hub: Hub, node: Node, *, publish: str = "", subscribe: str = "", system: bool = False) -> bool:
    """Whether the server refuses it. A second forbidden message marks when the first has been judged."""
    errors: list[str] = []
    judged = asyncio.Event()

    async def heard(error: Exception) -> None:
        errors.append(str(error).lower())
        if "barrier" in errors[-1]:
            judged.set()

    client = await hub.connect(node, error_cb=heard, system=system)
    if publish:
        await client.publish(publish, b"x")
    else:
        await client.subscribe(subscribe)
    await client.publish("barrier", b"")
    await client.flush()
    await asyncio.wait_for(judged.wait(), 5)
    await client.close()
    assert all("permissions violation" in error for error in errors)
    return len(errors) == 2


OTHER = NodeId("b" * 26)


@pytest.mark.parametrize(
    "subject",
    [
        permissions.roster_record(OTHER),
        permissions.roster_load(OTHER),
        permissions.roster_gone(OTHER),
        permissions.digest(OTHER),
        permissions.state("plan"),
        permissions.inbox(OTHER) + ".1",
        f"node.{OTHER}.other",
        "$JS.API.STREAM.LIST",
        "$JS.API.INFO",
        "$KV.bucket.key",
        permissions.account_update("A"),
        "$SYS.REQ.SERVER.PING",
        "anything",
    ],
)
async def test_a_spoke_may_not_publish_as_others_do(hub: Hub, subject: str) -> None:
    assert await denied(hub, hub.new_node(), publish=subject)


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "node.>",
        "node.*.infer",
        permissions.infer(OTHER),
        permissions.flow(OTHER),
        permissions.inbox(OTHER) + ".>",
        "_INBOX.>",
        "*.>",
        permissions.HUB_SERVICES,
        permissions.hub_service("join"),
        "$SYS.>",
        "$JS.>",
        "$KV.>",
    ],
)
async def test_a_spoke_may_not_listen_to_what_is_for_others(hub: Hub, subject: str) -> None:
    assert await denied(hub, hub.new_node(), subscribe=subject)


async def test_a_spoke_may_do_all_of_its_own_work(hub: Hub) -> None:
    spoke = hub.new_node()
    for subject in (
        permissions.infer(OTHER),
        permissions.flow(OTHER),
        permissions.roster_record(spoke.id),
        permissions.roster_load(spoke.id),
        permissions.hub_service("roster"),
    ):
        assert not await denied(hub, spoke, publish=subject), subject
    for subject in (
        permissions.infer(spoke.id),
        permissions.flow(spoke.id),
        permissions.inbox(spoke.id) + ".>",
        permissions.ROSTER,
        permissions.RECORDS,
        permissions.LOADS,
        permissions.GONE,
        permissions.DIGESTS,
        permissions.state("plan"),
    ):
        assert not await denied(hub, spoke, subscribe=subject), subject


async def test_a_hub_may_do_its_duties(hub: Hub) -> None:
    for subject in (permissions.roster_gone(OTHER), permissions.digest(hub.node.id), permissions.state("plan")):
        assert not await denied(hub, hub.node, publish=subject)
    assert not await denied(hub, hub.node, subscribe=permissions.hub_service("roster"))
    for subject in (
        permissions.roster_record(OTHER),
        permissions.digest(OTHER),
        permissions.inbox(OTHER) + ".1",
        permissions.account_update("A"),
    ):
        assert await denied(hub, hub.node, publish=subject)


async def test_the_system_connection_hears_who_comes_and_goes_and_nothing_else(hub: Hub) -> None:
    system = await hub.connect(hub.node, system=True)
    gone = await system.subscribe(permissions.account_disconnected(hub.authority.application_account))
    await system.flush()
    spoke = hub.new_node()
    client = await hub.connect(spoke)
    await client.close()
    event = (await gone.next_msg(5)).data
    assert f'"user":"{public_name("user", raw(spoke.key))}"'.encode() in event
    await system.close()
    assert await denied(hub, hub.node, subscribe="$SYS.>", system=True)
    assert await denied(hub, hub.node, publish="$SYS.REQ.SERVER.X.RELOAD", system=True)


async def test_an_answerer_may_reply_only_to_what_it_was_asked(hub: Hub) -> None:
    asker, answerer = hub.new_node(), hub.new_node()
    errors: list[str] = []
    answering = await hub.connect(answerer, errors=errors)
    asking = await hub.connect(asker)
    requests = await answering.subscribe(permissions.infer(answerer.id))
    await answering.flush()
    stream = permissions.inbox(asker.id) + ".s1"
    await asking.publish(permissions.infer(answerer.id), b"", reply=stream)
    assert (await requests.next_msg(5)).reply == stream
    await answering.publish(stream, b"allowed")
    await answering.flush()
    assert errors == []
    await answering.publish(permissions.inbox(asker.id) + ".s2", b"injected")
    await answering.flush()
    await until(lambda: errors, 5)  # the client tells errors in a task of its own, which may run after the flush
    assert all(".s2" in error for error in errors)
    await asking.close()
    await answering.close()


async def refused(hub: Hub, node: Node, **options: object) -> bool:
    try:
        client = await hub.connect(node, **options)
    except (nats.errors.Error, OSError):
        return True
    await client.close()
    return False


async def test_only_the_holder_of_a_key_and_a_token_of_this_network_gets_in(hub: Hub) -> None:
    spoke = hub.new_node()
    assert not await refused(hub, spoke)
    assert await refused(hub, Node(Ed25519PrivateKey.generate(), spoke.credential)), "another key"
    other_network = found(time.time()).authority
    stranger = Node(spoke.key, other_network.issue(raw(spoke.key), "spoke", time.time()))
    assert await refused(hub, stranger), "another network"
    assert await refused(hub, spoke, user_jwt_cb=None, signature_cb=None), "no token"
    assert await refused(hub, spoke, user_jwt_cb=None, signature_cb=None, user="a", password="b"), "a password"


async def test_a_token_that_has_run_out_is_dropped_at_once_and_refused_later(hub: Hub) -> None:
    spoke = hub.new_node(seconds=2)
    closed = asyncio.Event()

    async def note() -> None:
        closed.set()

    await hub.connect(spoke, closed_cb=note)
    await asyncio.wait_for(closed.wait(), 10)
    async with asyncio.timeout(5):  # the token's time is in whole seconds
        while not await refused(hub, spoke):
            await asyncio.sleep(0.05)


async def test_revocation_drops_a_live_connection_and_survives_a_restart(hub: Hub) -> None:
    spoke, innocent = hub.new_node(), hub.new_node()
    closed = asyncio.Event()

    async def note() -> None:
        closed.set()

    await hub.connect(spoke, closed_cb=note)
    bystander = await hub.connect(innocent)
    system = await hub.connect(hub.node, system=True)
    hub.revoked[raw(spoke.key)] = time.time()
    tokens = hub.tokens()
    account = hub.authority.application_account
    answer = await system.request(permissions.account_update(account), tokens[account].encode())
    assert b"error" not in answer.data
    await asyncio.wait_for(closed.wait(), 5)
    assert await refused(hub, spoke)
    await bystander.flush()
    await bystander.close()
    await system.close()
    await hub.server.stop()
    await hub.server.start()
    try:
        assert await refused(hub, spoke)
        assert not await refused(hub, innocent)
    finally:
        await hub.server.stop()


async def test_too_large_a_message_or_too_many_subscriptions_end_the_connection(hub: Hub) -> None:
    """The server's log says why; nats-py may lose the last words of a connection that is cut."""
    for misbehave in (send_too_much, subscribe_too_often):
        closed = asyncio.Event()

        async def note(closed: asyncio.Event = closed) -> None:
            closed.set()

        client = await hub.connect(hub.new_node(), closed_cb=note)
        assert client.max_payload == permissions.MAXIMUM_PAYLOAD
        with contextlib.suppress(nats.errors.Error, OSError):
            await misbehave(client)
        await asyncio.wait_for(closed.wait(), 5)
    log = hub.settings.log.read_text().lower()
    assert "maximum payload exceeded" in log
    assert "maximum subscriptions exceeded" in log


async def send_too_much(client: Client) -> None:
    client._max_payload = 1 << 30
    await client.publish(permissions.infer(OTHER), b"x" * (permissions.MAXIMUM_PAYLOAD + 1))


async def subscribe_too_often(client: Client) -> None:
    for _ in range(257):
        await client.subscribe(permissions.ROSTER)
    await client.flush()


async def test_the_server_speaks_tls_with_the_hubs_name_only(hub: Hub) -> None:
    spoke = hub.new_node()
    other = found(time.time()).authority
    assert await refused(hub, spoke, tls=client_context(other.issuer)), "another root"
    assert await refused(hub, spoke, tls_hostname=hub_tls_name(other.network)), "another network's hub"
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.server.port)
    writer.write(b"CONNECT {}\r\nPING\r\n")
    assert b"INFO" not in await asyncio.wait_for(reader.read(4096), 5), "nothing is said in the clear"
    writer.close()


async def test_it_takes_up_a_new_certificate_without_dropping_connections(hub: Hub) -> None:
    client = await hub.connect(hub.new_node())
    renewed = hub.authority.issue(raw(hub.node.key), "hub", time.time())
    hub.settings.tls.certificate.write_text(renewed.certificate)
    await hub.server.reload()
    async with asyncio.timeout(5):
        while await served_certificate(hub) not in renewed.certificate.replace("\n", ""):
            await asyncio.sleep(0.01)
    await client.flush()
    await client.close()


async def served_certificate(hub: Hub) -> str:
    """In base64, as PEM has it."""
    context = client_context(hub.authority.issuer)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", hub.server.port, ssl=context, server_hostname=hub_tls_name(hub.authority.network)
    )
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return b64encode(certificate).decode()


async def test_it_comes_back_on_the_same_port_when_it_is_killed(hub: Hub) -> None:
    keeping = asyncio.create_task(hub.server.run())
    port, victim = hub.server.port, hub.server._process
    assert victim is not None
    victim.kill()
    await victim.wait()
    async with asyncio.timeout(10):
        while await refused(hub, hub.node):
            await asyncio.sleep(0.01)
    assert hub.server.port == port
    assert hub.server.process_id != victim.pid
    await hub.server.stop()
    await asyncio.wait_for(keeping, 5)


async def test_stopping_wins_over_a_restart_that_is_under_way(hub: Hub) -> None:
    keeping = asyncio.create_task(hub.server.run())
    victim = hub.server._process
    assert victim is not None
    victim.kill()
    await victim.wait()
    await hub.server.stop()
    await asyncio.wait_for(keeping, 5)
    assert hub.server.process_id is None


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    node = Node(key, authority.issue(raw(key), "hub", time.time()))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = message_server(authority, settings_for(authority, node, tmp_path), port=port)
        with pytest.raises(FelloeError, match=str(port)) as caught:
            await server.start()
    assert caught.value.code == "port_taken"


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    node = Node(key, authority.issue(raw(key), "hub", time.time()))
    settings = settings_for(authority, node, tmp_path)
    settings.tls.certificate.write_text("no certificate")
    with pytest.raises(FelloeError) as caught:
        await message_server(authority, settings).start()
    assert caught.value.code == "broker_failed"
    assert "certificate" in caught.value.detail.lower()


def test_the_configuration_quotes_hostile_paths(tmp_path: Path) -> None:
    authority = found(time.time()).authority
    key = Ed25519PrivateKey.generate()
    node = Node(key, authority.issue(raw(key), "hub", time.time()))
    settings = settings_for(authority, node, tmp_path)
    text = render_message_config(msgspec.structs.replace(settings, log=Path('/a"b $PATH \\ é')), 0, {}, None)
    assert '"/a\\"b $PATH \\\\ é"' in text
    with pytest.raises(FelloeError):
        render_message_config(msgspec.structs.replace(settings, log=Path("/a\x01b")), 0, {}, None)


def test_the_program_comes_with_this_environment() -> None:
    assert find_binary().is_file()
