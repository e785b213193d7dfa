"""The HTTP client against a server that does what a test tells it."""

import asyncio
import inspect
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from felloe.engines.http_client import Exchange, HttpClient, HttpError, TcpAddress, UnixAddress
from felloe.engines.http_connection import Connection, Limits

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Runs one handler per connection on a free port; counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0
        self._handler: Handler | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, handler: Handler) -> HttpClient:
        self._handler = handler
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return HttpClient(TcpAddress("127.0.0.1", self.port), connect_seconds=1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._handler is not None
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()


@pytest.fixture
async def server() -> AsyncGenerator[Server, None]:
    made = Server()
    yield made
    await made.stop()


class Pumped:
    """Pumps an exchange in a task of its own and hands out what came, read by read."""

    def __init__(self, exchange: Exchange) -> None:
        self._came: asyncio.Queue[bytes] = asyncio.Queue()
        self.task = asyncio.create_task(exchange.pump(self._came.put_nowait))

    async def read(self) -> bytes:
        """The next read; empty at the end. Raises what ended the pump."""
        getting = asyncio.create_task(self._came.get())
        await asyncio.wait([getting, self.task], return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        getting.cancel()
        await self.task
        return b""


async def _head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def sending(answer: bytes) -> Handler:
    """A handler that answers every request of a connection alike, then waits for the next."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await _head(reader)
            writer.write(answer)
            await writer.drain()

    return handle


async def test_an_answer_is_read_and_its_connection_used_again(server: Server) -> None:
    client = await server.start(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"))
    for _ in range(3):
        with await client.request("GET", "/x") as exchange:
            assert (exchange.status, exchange.header(b"x-a")) == (200, b"b")
            assert await exchange.read_all() == b"hello"
    assert server.connections == 1
    await client.close()


async def test_chunks_come_as_they_are_sent(server: Server) -> None:
    gate = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await gate.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        pumped = Pumped(exchange)
        assert await pumped.read() == b"one"
        gate.set()
        assert await pumped.read() == b"two"
        assert await pumped.read() == b""
    await client.close()


async def test_an_answer_without_a_length_ends_with_its_connection(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        assert await exchange.read_all() == b"all of it"
    await client.close()


async def test_an_informational_answer_is_passed_over(server: Server) -> None:
    client = await server.start(
        sending(b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    )
    with await client.request("GET", "/") as exchange:
        assert await exchange.read_all() == b"ok"
        assert exchange.header(b"x") == b""
    await client.close()


async def test_a_stale_pooled_connection_is_replaced_once(server: Server) -> None:
    """The server closes on the second request without a word, as some do after a stream."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        await _head(reader)

    client = await server.start(handle)
    for _ in range(3):
        with await client.request("POST", "/", b"{}") as exchange:
            assert await exchange.read_all() == b"ok"
    assert server.connections == 3
    await client.close()


async def test_a_fresh_connection_that_breaks_is_not_tried_again(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)

    client = await server.start(handle)
    with pytest.raises(HttpError) as caught:
        await client.request("GET", "/")
    assert caught.value.kind == "broken"
    assert server.connections == 1
    await client.close()


async def test_closing_early_aborts_the_connection(server: Server) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        try:
            await reader.read(1)
        finally:
            gone.set()

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        pumped = Pumped(exchange)
        assert await pumped.read() == b"one"
    await asyncio.wait_for(gone.wait(), 1)
    with pytest.raises(HttpError):
        await pumped.task
    await client.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"this is no HTTP\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "malformed"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc", "malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n", "too_large"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "too_large"),
    ],
)
async def test_a_hostile_answer_is_refused(server: Server, answer: bytes, kind: str) -> None:
    client = await server.start(sending(answer))
    with pytest.raises(HttpError) as caught, await client.request("GET", "/", body_limit=1000) as exchange:
        await exchange.read_all()
    assert caught.value.kind == kind
    await client.close()


async def test_a_truncated_answer_is_broken_not_complete(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        pumped = Pumped(exchange)
        assert await pumped.read() == b"one"
        with pytest.raises(HttpError) as caught:
            await pumped.read()
    assert caught.value.kind == "broken"
    await client.close()


async def _until_it_halts(sent: Callable[[], int]) -> None:
    """Wait until the server can send no more."""
    before = -1
    while before != sent():
        before = sent()
        for _ in range(50):
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("pumping", [False, True])
async def test_an_endless_answer_is_cut_at_its_limit_and_does_not_fill_memory(server: Server, pumping: bool) -> None:
    sent = 0
    taken = 0
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    def consume(data: bytes) -> Awaitable[None]:
        nonlocal taken
        taken += len(data)
        return wait()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    client = await server.start(handle)
    with await client.request("GET", "/", body_limit=64 * 1024 * 1024) as exchange:
        pump = asyncio.create_task(exchange.pump(consume)) if pumping else None
        # Nobody takes anything, or the consumer rests; the server must come to a halt by back-pressure.
        await _until_it_halts(lambda: sent)
        assert sent < 32 * 1024 * 1024
        assert not pumping or 0 < taken < 1024 * 1024
        gate.set()
        with pytest.raises(HttpError) as caught:
            await (pump or exchange.pump(consume))
    assert caught.value.kind == "too_large"
    assert taken <= 64 * 1024 * 1024
    await client.close()


@pytest.mark.parametrize("limit", ["headers", "whole", "silence"])
async def test_a_slow_answer_is_given_up(server: Server, limit: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        if limit != "headers":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()

    client = await server.start(handle)
    seconds = 5.0 if limit == "silence" else 0.05
    silence_seconds = 0.05 if limit == "silence" else 5.0
    with (
        pytest.raises(HttpError) as caught,
        await client.request("GET", "/", seconds=seconds, silence_seconds=silence_seconds) as exchange,
    ):
        await exchange.read_all()
    assert caught.value.kind == "timeout"
    await client.close()


async def test_a_consumer_that_rests_is_not_taken_for_a_silent_server(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()

    client = await server.start(handle)
    began = asyncio.get_running_loop().time()
    with await client.request("GET", "/", seconds=0.4, silence_seconds=0.05) as exchange:
        with pytest.raises(HttpError, match="too long"):
            await exchange.pump(lambda _: asyncio.sleep(0.5))
        assert asyncio.get_running_loop().time() - began > 0.4
    await client.close()


async def test_what_a_consumer_awaits_comes_before_the_next_bytes(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await reader.read()

    resting = False
    count = 0

    async def rest() -> None:
        nonlocal resting
        await asyncio.sleep(0.001)
        resting = False

    def consume(data: bytes) -> Awaitable[None]:
        nonlocal resting, count
        assert not resting
        resting = True
        count += len(data)
        return rest()

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        await exchange.pump(consume)
        assert not resting
    assert count == 20
    await client.close()


async def test_a_connection_whose_consumer_rested_at_the_end_is_used_again(server: Server) -> None:
    client = await server.start(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
    for _ in range(3):
        with await client.request("GET", "/") as exchange:
            await exchange.pump(lambda _: asyncio.sleep(0))
    assert server.connections == 1
    await client.close()


@pytest.mark.parametrize("late", [False, True])
async def test_what_a_consumer_raises_ends_the_reading_and_is_raised_by_the_pump(server: Server, late: bool) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    async def fail_late() -> None:
        raise ZeroDivisionError

    reads = 0

    def consume(data: bytes) -> Awaitable[None] | None:
        nonlocal reads
        reads += 1
        if reads < 3:
            return None
        if late:
            return fail_late()
        raise ZeroDivisionError

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange, pytest.raises(ZeroDivisionError):
        await exchange.pump(consume)
    assert reads == 3
    await asyncio.wait_for(gone.wait(), 1)
    await client.close()


async def test_cancelling_a_pump_whose_consumer_is_behind_closes_the_connection(server: Server) -> None:
    gone = asyncio.Event()
    gate = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await gate.wait()
        writer.write(b"1\r\nx\r\n")
        try:
            await reader.read(1)
        finally:
            gone.set()

    client = await server.start(handle)
    made: list[Coroutine[Any, Any, None]] = []

    def consume(_: bytes) -> Awaitable[None]:
        pump.cancel()  # before the task has seen what it must await
        made.append(asyncio.sleep(60))
        return made[0]

    with await client.request("GET", "/") as exchange:
        pump = asyncio.create_task(exchange.pump(consume))
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await pump
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED
    await asyncio.wait_for(gone.wait(), 1)
    await client.close()


class _Transport(asyncio.Transport):
    """A transport that goes on reading although it was told to pause, as TLS may for what it has in its buffer."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def test_bytes_that_come_in_spite_of_a_pause_wait_for_the_consumer() -> None:
    connection = Connection()
    connection.connection_made(_Transport())
    connection.send(b"", Limits(5, 5, 1000))
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    gate = asyncio.Event()
    taken: list[bytes] = []

    async def rest() -> None:
        await gate.wait()

    def consume(data: bytes) -> Awaitable[None] | None:
        taken.append(data)
        return rest()

    pump = asyncio.create_task(connection.pump(consume))
    await asyncio.sleep(0)
    for byte in (b"a", b"b", b"c", b"d"):
        connection.data_received(byte)
    assert taken == [b"a"]
    gate.set()
    await pump
    assert taken == [b"a", b"bcd"]
    connection.rest()


async def test_a_pump_that_is_stopped_takes_no_more(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await reader.read()

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        await exchange.pump(lambda _: exchange.stop())
    await client.close()


async def test_nobody_listening_is_told_apart(server: Server) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        client = HttpClient(TcpAddress("127.0.0.1", probe.getsockname()[1]))
        with pytest.raises(HttpError) as caught:
            await client.request("GET", "/")
    assert caught.value.kind == "connect"
    await server.start(sending(b""))


async def test_a_unix_socket_is_an_address_too(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()
        writer.close()

    path = tmp_path / "s.sock"
    server = await asyncio.start_unix_server(handle, path)
    client = HttpClient(UnixAddress(str(path)))
    with await client.request("GET", "/") as exchange:
        assert await exchange.read_all() == b"ok"
    await client.close()
    server.close()
    await server.wait_closed()


async def test_closing_the_client_fails_what_is_under_way(server: Server) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()

    client = await server.start(handle)
    with await client.request("GET", "/") as exchange:
        reading = asyncio.create_task(exchange.read_all())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(HttpError):
            await reading
    with pytest.raises(HttpError):
        await client.request("GET", "/")


def test_a_header_cannot_smuggle_a_line() -> None:
    with pytest.raises(ValueError, match="control character"):
        HttpClient(TcpAddress("127.0.0.1", 1), headers={"authorization": "Bearer a\r\nx: y"})
