"""A node among several hubs: which one it dials, when it moves, and what becomes of its streams meanwhile."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from mesh_streams import count_for_ever, failure, hang

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.exchange import Exchange, Handler
from felloe.mesh.incoming import Incoming
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.permissions import flow, inbox
from felloe.mesh.session import Message
from felloe.mesh.stream_rules import WINDOW_BYTES, WINDOW_MESSAGES
from felloe.mesh.stream_wire import Kind, encode_flow, parse_header, parse_refusal, reply_subject
from networks import free_ports
from plain_hubs import PlainHubs
from waiting import until

ASKER, ANSWERER, OTHER = [NodeId(letter * 26) for letter in "abc"]


@pytest.fixture
async def hubs(tmp_path: Path) -> AsyncIterator[PlainHubs]:
    async with PlainHubs(2, tmp_path) as cluster:
        yield cluster


@dataclass
class Stream:
    """A request that the answerer has begun to answer."""

    line: Connection
    asking: Exchange
    answering: Exchange
    incoming: Incoming

    async def begin_reading(self) -> asyncio.Task[FelloeError]:
        """Reads what comes, to the failure that it returns."""
        reading = asyncio.create_task(failure(self.incoming))
        await asyncio.sleep(0)
        return reading


class House:
    """Opens lines and exchanges, and closes them in the end."""

    def __init__(self, hubs: PlainHubs) -> None:
        self.hubs = hubs
        self._closing = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "House":
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._closing.aclose()

    async def line(self, node: NodeId, near: int = 0, urls: list[str] | None = None) -> Connection:
        connection = Connection(urls or self.hubs.urls, node, nearest=self.hubs[near].url, random=Random(1))
        self._closing.push_async_callback(connection.close)
        await connection.start()
        return connection

    async def exchange(self, line: Connection) -> Exchange:
        exchange = Exchange(line, line.node)
        self._closing.push_async_callback(exchange.close)
        await exchange.start()
        await line.flush()
        return exchange

    async def stream(
        self,
        handler: Handler,
        *,
        asker_near: int = 0,
        asker_urls: list[str] | None = None,
        answerer_near: int = 0,
        silence_seconds: float = 60.0,
        can_leave: Callable[[], bool] | None = None,
    ) -> Stream:
        answering = await self.exchange(await self.line(ANSWERER, near=answerer_near))
        answering.serve(handler)
        line = await self.line(ASKER, near=asker_near, urls=asker_urls)
        asking = await self.exchange(line)
        incoming = await asking.open(ANSWERER, b"request", silence_seconds=silence_seconds, can_leave=can_leave)
        await until(lambda: answering.answered == 1)
        return Stream(line, asking, answering, incoming)


@pytest.fixture
async def house(hubs: PlainHubs) -> AsyncIterator[House]:
    async with House(hubs) as opened:
        yield opened


# Which hub is dialled


async def test_the_nearest_hub_is_dialled_and_after_its_death_another(house: House) -> None:
    line = await house.line(ASKER, near=1)
    assert line.url == house.hubs[1].url
    downs: list[float] = []
    ups: list[float] = []
    line.on_down(lambda: downs.append(time.monotonic()))
    line.on_up(lambda: ups.append(time.monotonic()))
    house.hubs[1].signal(signal.SIGKILL)
    await until(lambda: ups)
    assert line.url == house.hubs[0].url
    assert ups[0] - downs[0] < 0.5


async def test_a_session_goes_on_while_its_hub_is_among_the_new_ones(house: House) -> None:
    line = await house.line(ASKER)
    downs: list[str] = []
    line.on_down(lambda: downs.append("down"))
    line.set_urls([house.hubs[1].url, house.hubs[0].url])
    line.set_urls([house.hubs[0].url])
    line.set_urls([])
    await asyncio.sleep(1.2)
    assert downs == []
    assert line.url == house.hubs[0].url


async def test_a_session_whose_hub_is_no_hub_any_more_moves_in_a_quiet_moment(house: House) -> None:
    line = await house.line(ASKER)
    in_use = True
    line.keep_while(lambda: in_use)
    line.set_urls([house.hubs[1].url])
    await asyncio.sleep(1.2)
    assert line.url == house.hubs[0].url
    in_use = False
    await until(lambda: line.url == house.hubs[1].url)


async def test_hubs_that_are_named_while_none_answers_are_dialled_at_once(house: House) -> None:
    (dead,) = free_ports(1)
    line = Connection([f"nats://127.0.0.1:{dead}"], ASKER)
    await line.start(wait_seconds=None)
    await asyncio.sleep(0.5)
    line.set_urls([house.hubs[0].url])
    assert await line.wait_up(5)
    await line.close()


async def test_a_hub_that_swallows_what_it_is_sent_delays_nobody_for_long(house: House) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    hole = await asyncio.start_server(swallow, "127.0.0.1", 0)
    silent = f"nats://127.0.0.1:{hole.sockets[0].getsockname()[1]}"
    line = Connection([silent, house.hubs[0].url], ASKER, nearest=silent)
    began = time.monotonic()
    await line.start()
    assert line.url == house.hubs[0].url
    assert 0.9 < time.monotonic() - began < 2.5
    await line.close()
    hole.close()


async def test_a_subscription_that_comes_while_a_hub_is_dialled_is_not_forgotten(house: House) -> None:
    line = Connection(house.hubs.urls, ASKER)
    await line.start(wait_seconds=None)
    await asyncio.sleep(0)
    heard: list[bytes] = []
    for number in range(20):
        await line.subscribe(f"topic.{number}", lambda message: heard.append(message.data))
        await asyncio.sleep(0)
    await line.wait_up(10)
    other = await house.line(OTHER)
    for number in range(20):
        await other.publish(f"topic.{number}", b"%d" % number)
    await until(lambda: len(heard) == 20)
    await line.close()


async def test_a_busy_process_does_not_take_its_own_stall_for_the_hubs(house: House) -> None:
    line = await house.line(ASKER)
    downs: list[str] = []
    line.on_down(lambda: downs.append("down"))
    for _ in range(3):
        time.sleep(1.9)
        await asyncio.sleep(0.3)
    assert downs == []


# What becomes of streams


async def test_when_the_answerers_hub_dies_its_askers_elsewhere_know_it_at_once(house: House) -> None:
    stream = await house.stream(count_for_ever, asker_near=1, answerer_near=0)
    reading = await stream.begin_reading()
    house.hubs[0].signal(signal.SIGKILL)
    lost = await asyncio.wait_for(reading, 1.0)
    assert lost.code == "line_lost"


async def test_when_the_askers_hub_dies_what_was_lost_by_it_is_known_as_soon_as_another_answers(house: House) -> None:
    stream = await house.stream(count_for_ever, asker_near=0, answerer_near=1)
    reading = await stream.begin_reading()
    house.hubs[0].signal(signal.SIGKILL)
    lost = await asyncio.wait_for(reading, 1.0)
    assert lost.code == "line_lost"
    await until(lambda: stream.answering.answered == 0, 1.0)


async def test_a_living_node_with_a_new_line_fails_what_it_was_sending(house: House) -> None:
    stream = await house.stream(hang)
    stream.asking.node_moved(ANSWERER)
    lost = await failure(stream.incoming)
    assert lost.code == "line_lost"


async def test_a_stream_that_its_answerer_does_not_know_fails_at_once(house: House) -> None:
    """As after a break of the answerer's line that the asker did not notice."""
    stream = await house.stream(hang)
    stream.answering._answering.cancel_all()
    lost = await asyncio.wait_for(failure(stream.incoming), 2.0)
    assert lost.code == "line_lost"


async def test_what_was_given_up_while_no_hub_was_there_is_cancelled_when_one_is(house: House) -> None:
    stream = await house.stream(hang, asker_near=0, answerer_near=1)
    closing: list[asyncio.Future[None]] = []
    stream.line.on_down(lambda: closing.append(asyncio.ensure_future(stream.incoming.close())))
    house.hubs[0].signal(signal.SIGKILL)
    await until(lambda: closing)
    await until(lambda: stream.answering.answered == 0, 3.0)


@pytest.mark.parametrize("can_leave", [True, False])
async def test_an_answer_leaves_for_this_node_only_if_somebody_here_can_go_on(house: House, can_leave: bool) -> None:
    stream = await house.stream(hang, asker_urls=[house.hubs[0].url], answerer_near=1, can_leave=lambda: can_leave)
    reading = await stream.begin_reading()
    house.hubs[0].signal(signal.SIGKILL)
    began = time.monotonic()
    lost = await asyncio.wait_for(reading, 10)
    assert lost.code == "line_lost"
    assert (time.monotonic() - began < 1.0) == can_leave


async def test_silence_while_the_own_hub_is_frozen_is_not_the_answerers(house: House) -> None:
    stream = await house.stream(count_for_ever, asker_near=0, answerer_near=1, silence_seconds=1.0)
    reading = await stream.begin_reading()
    house.hubs[0].signal(signal.SIGSTOP)
    lost = await asyncio.wait_for(reading, 10)
    assert lost.code == "line_lost", "not replica_lost: the node is well"


async def test_a_credit_is_answered_with_the_next_number_or_that_there_is_no_such_stream(house: House) -> None:
    answering = await house.exchange(await house.line(ANSWERER))
    answering.serve(hang)
    line = await house.line(ASKER)
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await line.subscribe(f"{inbox(ASKER)}.*", heard.put_nowait)
    stream = "0" * 32
    credit = encode_flow(Kind.CREDIT, stream, WINDOW_MESSAGES, WINDOW_BYTES)
    for reply in ("", "roster.gone.x", reply_subject(ASKER, "1" * 32), reply_subject(ASKER, stream)):
        await line.publish(flow(ANSWERER), credit, reply)
    message = await asyncio.wait_for(heard.get(), 5)
    assert message.subject == reply_subject(ASKER, stream), "only the stream itself is told"
    assert parse_header(message.data)[0] == Kind.REFUSE
    assert parse_refusal(message.data[10:]).code == "line_lost"


# Who is expelled


async def test_the_expelled_are_neither_asked_nor_answered(house: House) -> None:
    first, second = await house.exchange(await house.line(ASKER)), await house.exchange(await house.line(ANSWERER))
    for exchange in (first, second):
        exchange.serve(hang)
    to_it, from_it = await first.open(ANSWERER, b"request"), await second.open(ASKER, b"request")
    await until(lambda: first.answered == second.answered == 1)
    first.ban(frozenset({ANSWERER}))
    lost = await failure(to_it)
    assert lost.code == "replica_lost"
    assert first.answered == 0
    with pytest.raises(FelloeError, match="expelled"):
        await first.open(ANSWERER, b"request")
    served: list[bytes] = []

    async def serve(request: bytes, outgoing: Outgoing) -> None:
        served.append(request)
        await outgoing.finish()

    first.serve(serve)
    late = await second.open(ASKER, b"late", silence_seconds=1.0)
    await from_it.close()
    third = await house.exchange(await house.line(OTHER))
    await (await third.open(ASKER, b"good")).pump(lambda _: None)
    assert served == [b"good"]
    await late.close()
    first.ban(frozenset())
    await (await second.open(ASKER, b"again")).pump(lambda _: None)
    assert served == [b"good", b"again"]
