"""The client of transfer ports, against servers that do what no server should."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.roster import Endpoint
from felloe.mesh import transfer_https
from felloe.mesh.transfer_https import CONNECTIONS, HttpsReader, Span, Undialable
from member_house import House, HouseMember, open_house
from waiting import until

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path / "house")


@asynccontextmanager
async def serving(member: HouseMember, talk: Talk) -> AsyncGenerator[Endpoint]:
    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await talk(reader, writer)
        writer.transport.abort()

    listener = await asyncio.start_server(held, "127.0.0.1", 0, ssl=member.tls.serving)
    async with listener:
        yield Endpoint(hosts=("127.0.0.1",), port=listener.sockets[0].getsockname()[1])


@asynccontextmanager
async def answering(house: House, answer: bytes) -> AsyncGenerator[HttpsReader]:
    """A reader of a port that gives this answer to every request."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    server = house.member()
    async with serving(server, talk) as place:
        reader = HttpsReader(server.id, place, house.member().tls)
        yield reader
        reader.close()


async def nothing(_: int) -> None:
    pass


def answer(status: bytes, body: bytes, *fields: bytes) -> bytes:
    head = (b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def test_a_span_is_read_piece_by_piece(house: House) -> None:
    body = bytes(range(256)) * 1000
    pieces: list[int] = []

    async def came(size: int) -> None:
        pieces.append(size)

    async with answering(house, answer(b"206 Partial Content", body)) as reader:
        assert await reader.read("/blobs/x", Span(4096, len(body)), len(body), came) == body
        assert sum(pieces) == len(body)
        assert max(pieces) <= 1 << 16


@pytest.mark.parametrize(
    ("answered", "code"),
    [
        (answer(b"404 Not Found", b""), "not_found"),
        (answer(b"403 Forbidden", b"no"), "forbidden"),
        (answer(b"503 Busy", b""), "overloaded"),
        (answer(b"302 Found", b"", b"Location: https://elsewhere/"), "node_unreachable"),
        (answer(b"500 Oops", b""), "node_unreachable"),
        (answer(b"200 OK", b"12345678901"), "source_failed"),
        (answer(b"200 OK", b"1", b"Content-Encoding: gzip"), "source_failed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "source_failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "source_failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabcd", "source_failed"),
        (b"HTTP/1.1 200 OK\r\n\r\nabcd", "source_failed"),
        (b"SSH-2.0-nothing\r\n\r\n", "source_failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 600_000, "source_failed"),
    ],
)
async def test_strange_answers_are_refused_and_not_read(house: House, answered: bytes, code: str) -> None:
    async with answering(house, answered) as reader:
        with pytest.raises(FelloeError) as refused:
            await reader.read("/catalog", None, 10, nothing)
    assert refused.value.code == code


async def test_a_span_of_another_length_is_refused(house: House) -> None:
    async with answering(house, answer(b"206 Partial Content", b"abc")) as reader:
        with pytest.raises(FelloeError, match="3 bytes"):
            await reader.read("/blobs/x", Span(0, 4), 4, nothing)
    async with answering(house, answer(b"200 OK", b"abcd")) as reader:
        with pytest.raises(FelloeError, match="status 200"):
            await reader.read("/blobs/x", Span(0, 4), 4, nothing)


@pytest.mark.parametrize("before", [0, 1])
async def test_a_line_that_breaks_in_the_middle_is_told(house: House, before: int) -> None:
    """Also one that was kept from an answer before."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(before):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(b"200 OK", b"whole"))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await writer.drain()

    server = house.member()
    async with serving(server, talk) as place:
        client = HttpsReader(server.id, place, house.member().tls)
        for _ in range(before):
            assert await client.read("/catalog", None, 10, nothing) == b"whole"
        with pytest.raises(FelloeError, match="the line broke"):
            await client.read("/catalog", None, 10, nothing)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
async def test_a_server_that_falls_silent_is_not_waited_for(
    house: House, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_https, "_SILENT_SECONDS", 0.1)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()

    server = house.member()
    async with serving(server, talk) as place:
        with pytest.raises(FelloeError, match="fell silent"):
            await HttpsReader(server.id, place, house.member().tls).read("/catalog", None, 10, nothing)


async def test_connections_are_used_again_and_never_more_than_four(house: House) -> None:
    opened, asked = 0, 0
    gate = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened, asked
        opened += 1
        while await reader.readuntil(b"\r\n\r\n"):
            asked += 1
            await gate.wait()
            writer.write(answer(b"200 OK", b"x"))

    server = house.member()
    async with serving(server, talk) as place:
        reader = HttpsReader(server.id, place, house.member().tls)
        reads = [asyncio.create_task(reader.read("/catalog", None, 10, nothing)) for _ in range(20)]
        await until(lambda: asked == CONNECTIONS)
        gate.set()
        assert await asyncio.gather(*reads) == [b"x"] * 20
        assert (opened, asked) == (CONNECTIONS, 20)
        reader.close()


async def test_a_connection_that_was_closed_meanwhile_is_replaced(house: House) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"200 OK", b"x"))
        await writer.drain()

    server = house.member()
    async with serving(server, talk) as place:
        reader = HttpsReader(server.id, place, house.member().tls)
        assert [await reader.read("/catalog", None, 10, nothing) for _ in range(3)] == [b"x"] * 3


async def test_a_reader_that_is_cancelled_lets_go_of_its_connection(house: House) -> None:
    lost = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        with contextlib.suppress(OSError):
            await reader.read()
        lost.set()

    came = asyncio.Event()

    async def note(_: int) -> None:
        came.set()

    server = house.member()
    async with serving(server, talk) as place:
        reader = HttpsReader(server.id, place, house.member().tls)
        read = asyncio.create_task(reader.read("/catalog", None, 10, note))
        await came.wait()
        read.cancel()
        await asyncio.wait_for(lost.wait(), 10)
        assert read.cancelled() or (await asyncio.gather(read, return_exceptions=True))


async def test_hosts_that_lead_nowhere_delay_nobody_for_long(house: House) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"200 OK", b"x"))
        await writer.drain()

    server = house.member()
    async with serving(server, talk) as place:
        hosts = ("no-such-host.invalid", "127.0.0.2", "127.0.0.1")
        reader = HttpsReader(server.id, Endpoint(hosts=hosts, port=place.port), house.member().tls)
        assert await reader.read("/catalog", None, 10, nothing) == b"x"


async def test_a_node_without_an_open_port_is_undialable(house: House) -> None:
    async with serving(house.member(), lambda _, __: asyncio.sleep(0)) as place:
        port = place.port
    for hosts in ((), ("127.0.0.1",)):
        reader = HttpsReader(house.member().id, Endpoint(hosts=hosts, port=port), house.member().tls)
        with pytest.raises(Undialable):
            await reader.read("/catalog", None, 10, nothing)
