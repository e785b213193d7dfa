"""One line to the hubs: it comes up, it falls, it comes up again, and nobody is left waiting."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest
from mesh_network import Network
from nats.aio.client import Client

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.dial_rules import dial_order, pong_patience, redial_delay
from felloe.mesh.permissions import inbox
from felloe.mesh.session import Message
from waiting import until

SOMEBODY = NodeId("a" * 26)


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_no_hub_is_a_clear_error_within_the_time_given() -> None:
    connection = Connection([f"nats://127.0.0.1:{free_port()}"], SOMEBODY)
    with pytest.raises(FelloeError) as refused:
        async with asyncio.timeout(5):
            await connection.start(wait_seconds=0.3)
    assert refused.value.code == "network_unreachable"


async def test_whoever_will_not_wait_gets_the_hub_later(network: Network) -> None:
    member = network.member()
    connection = await network.connect(member, wait_seconds=None)
    assert not connection.is_up
    with pytest.raises(FelloeError, match="network_unreachable"):
        await connection.publish(inbox(member.id) + ".x", b"")
    assert await connection.wait_up(10)


async def test_of_several_hubs_any_one_will_do(network: Network) -> None:
    dead = [f"tls://127.0.0.1:{free_port()}" for _ in range(3)]
    member = network.member()
    template = await network.connect(member)
    connection = Connection(
        [*dead, network.url],
        member.id,
        login=template._login,
        tls=template._tls,
        server_name=template._server_name,
        random=Random(1),
    )
    await connection.start()
    assert connection.is_up
    await connection.close()


async def test_a_message_comes_back_over_tls_with_our_own_login(network: Network) -> None:
    member = network.member()
    connection = await network.connect(member)
    heard: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await connection.subscribe(inbox(member.id) + ".x", heard.put_nowait)
    service = await network.connect(network.member("hub"))

    async def answer(reply: str) -> None:
        await service.publish(reply, b"pong")

    tasks: list[asyncio.Task[None]] = []
    await service.subscribe("hub.echo", lambda m: tasks.append(asyncio.create_task(answer(m.reply))))
    await service.flush()
    assert await connection.request("hub.echo", b"ping", timeout=5) == b"pong"
    await connection.publish("hub.echo", b"again", reply=inbox(member.id) + ".x")
    assert (await asyncio.wait_for(heard.get(), 5)).data == b"pong"
    await subscription.close()


async def test_a_foreign_hub_is_not_talked_to(network: Network) -> None:
    """Whoever has no certificate of the network's root gets a TLS alert and not one byte of ours."""
    received = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","nonce":"AAAAAAAAAAAAAAAA","auth_required":true}\r\n')
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                received.extend(data)

    async with listening(impostor) as address:
        with pytest.raises(FelloeError, match="network_unreachable"):
            await network.connect(network.member(), url=f"tls://{address}", wait_seconds=1.0)
    assert received[:1] == b"\x16"
    assert b"CONNECT" not in received
    assert b"jwt" not in received


async def test_a_stranger_to_the_network_is_refused_and_keeps_trying(network: Network) -> None:
    stranger = network.member()
    stranger.credential = network.member().credential
    with pytest.raises(FelloeError) as refused:
        await network.connect(stranger, wait_seconds=1.0)
    assert refused.value.code == "network_unreachable"
    assert "uthorization" in refused.value.detail


async def test_nobody_listening_is_known_at_once(network: Network) -> None:
    connection = await network.connect(network.member())
    began = time.monotonic()
    with pytest.raises(FelloeError, match="nobody answers"):
        await connection.request("hub.nothing", b"", timeout=30)
    assert time.monotonic() - began < 5


async def test_a_killed_hub_fails_what_is_in_flight_and_is_found_again(network: Network) -> None:
    member = network.member()
    connection = await network.connect(member)
    events: list[str] = []
    connection.on_up(lambda: events.append("up"))
    connection.on_down(lambda: events.append("down"))
    silent = await network.connect(network.member("hub"))
    asked = asyncio.Event()
    await silent.subscribe("hub.silent", lambda message: asked.set())
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await connection.subscribe("state.topic", heard.put_nowait)
    await silent.flush()
    await connection.flush()
    question = asyncio.create_task(connection.request("hub.silent", b"", timeout=60))
    await asyncio.wait_for(asked.wait(), 5)

    running = asyncio.create_task(network.server.run())
    assert network.server.process_id is not None
    os.kill(network.server.process_id, signal.SIGKILL)
    with pytest.raises(FelloeError) as lost:
        await asyncio.wait_for(question, 2)
    assert lost.value.code == "network_unreachable"
    await until(lambda: events == ["down", "up"], 30)
    assert await silent.wait_up(30)
    await silent.publish("state.topic", b"after")
    assert (await asyncio.wait_for(heard.get(), 5)).data == b"after"
    await network.close()
    await network.server.stop()
    await running


async def test_a_frozen_hub_is_left_within_three_seconds(network: Network) -> None:
    connection = await network.connect(network.member())
    down = asyncio.Event()
    connection.on_down(down.set)
    process = network.server.process_id
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.wait_for(down.wait(), 3.0)
        began = time.monotonic()
        await connection.close()
        assert time.monotonic() - began < 4
    finally:
        os.kill(process, signal.SIGCONT)


async def test_an_expired_credential_is_replaced_at_the_next_dial(network: Network) -> None:
    member = network.member(seconds=2)
    connection = await network.connect(member)
    downs: list[float] = []
    connection.on_down(lambda: downs.append(time.monotonic()))
    member.credential = network.member().credential  # what another key may use is refused
    await until(lambda: downs)
    fresh = network.authority.issue(member.public_key, "spoke", time.time(), seconds=3600)
    member.credential = fresh
    assert await connection.wait_up(10)


async def test_a_line_that_takes_no_message_is_given_up_at_once(network: Network) -> None:
    connection = await network.connect(network.member())
    session = connection._session
    assert session is not None
    # So it stands after the server is gone and before nats-py has said goodbye.
    session._client._status = Client.CLOSED
    with pytest.raises(FelloeError):
        await connection.publish("x", b"")
    assert session.ended.done()
    session._client._status = Client.CONNECTED
    await until(lambda: connection.is_up and connection._session is not session)


async def test_redialling_takes_the_newest_credential(network: Network) -> None:
    member = network.member()
    connection = await network.connect(member)
    ups: list[str] = []
    connection.on_up(lambda: ups.append(member.credential.user_token))
    member.credential = network.authority.issue(member.public_key, "spoke", time.time() + 1, seconds=3600)
    connection.redial()
    await until(lambda: len(ups) == 1)
    assert ups == [member.credential.user_token]


async def test_a_failing_callback_harms_nobody(network: Network) -> None:
    connection = await network.connect(network.member(), wait_seconds=None)
    called: list[str] = []

    def fail() -> None:
        raise RuntimeError("callback")

    connection.on_up(fail)
    connection.on_up(lambda: called.append("second"))
    await until(lambda: called == ["second"])
    assert connection.is_up


async def test_logs_hold_no_message_and_no_token(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    member = network.member()
    connection = await network.connect(member)
    await connection.publish("forbidden.subject", b"the secret prompt")
    await connection.flush()
    with pytest.raises(FelloeError):
        await connection.request("hub.nothing", b"the secret prompt", timeout=1)
    assert "forbidden.subject" in caplog.text
    assert "secret" not in caplog.text
    assert member.credential.user_token not in caplog.text


def test_redialling_backs_off_to_a_bound_and_never_in_step() -> None:
    longest = [redial_delay(fruitless, 0.999) for fruitless in range(40)]
    assert longest == sorted(longest)
    assert longest[1] < 0.2
    assert longest[-1] <= 5.0
    assert redial_delay(10, 0.0) == 0.0, "the whole delay is random"
    assert redial_delay(10, 0.0) < redial_delay(10, 0.9)
    assert redial_delay(10**9, 0.5) <= 5.0


def test_the_nearest_hub_is_dialled_first_and_the_lost_one_last() -> None:
    hubs = [f"nats://hub-{number}" for number in range(5)]
    orders = [dial_order(hubs, Random(seed).random, nearest=hubs[2], lost=hubs[0]) for seed in range(50)]
    assert {order[0] for order in orders} == {hubs[2]}
    assert {order[-1] for order in orders} == {hubs[0]}
    assert {order[1] for order in orders} == {hubs[1], hubs[3], hubs[4]}
    assert all(sorted(order) == hubs for order in orders)
    assert dial_order(hubs[:1], Random(1).random, nearest=hubs[0], lost=hubs[0]) == hubs[:1]


def test_a_line_that_often_stalls_is_given_more_time_than_a_quick_one() -> None:
    assert (
        pong_patience(0.0) == pong_patience(0.1) < pong_patience(0.6) < pong_patience(1.0) <= pong_patience(60.0) <= 5.0
    )
