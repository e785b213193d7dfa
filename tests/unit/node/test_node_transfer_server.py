"""The transfer port, with clients that ask well and clients that do not."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from felloe.catalog.transfer.pacing import Pacer
from felloe.catalog.transfer.serving import Answer
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoint
from felloe.gateway.config import Limits
from felloe.mesh.transfer_https import HttpsReader, Span
from felloe.node import transfer_server
from felloe.node.transfer_server import TransferServer
from member_house import House, HouseMember, open_house
from waiting import until

CONTENT = bytes(range(256)) * 16384


class Port:
    """A member's transfer port, and what was asked of it."""

    def __init__(self, house: House) -> None:
        self.member = house.member()
        self.removed: set[NodeId] = set()
        self.asked: list[tuple[str, int, int | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.server = TransferServer(
            self.member.tls, self._read, Pacer(0), may_ask=lambda node: node not in self.removed
        )

    async def _read(self, path: str, start: int, length: int | None) -> Answer:
        self.asked.append((path, start, length))
        await self.gate.wait()
        if path != "/blobs/x":
            raise FelloeError("not_found", "there is no such path")
        if length is not None and start + length > len(CONTENT):
            raise FelloeError("invalid_value", "there is no such range")
        return Answer(CONTENT[start:] if length is None else CONTENT[start : start + length], len(CONTENT))

    def reader(self, asker: HouseMember) -> HttpsReader:
        return HttpsReader(self.member.id, Endpoint(hosts=("127.0.0.1",), port=self.server.port), asker.tls)

    async def connect(self, asker: HouseMember) -> "Line":
        name = asker.tls.server_name(self.member.id)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.server.port, ssl=asker.tls.asking(), server_hostname=name
        )
        return Line(reader, writer)


class Line:
    """A connection that says what the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, *lines: str) -> tuple[int, dict[str, str], bytes]:
        """The status, fields and body of the answer."""
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await self.hear()

    async def hear(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        return int(head[0].split()[1]), fields, await self.reader.readexactly(int(fields["content-length"]))

    def close(self) -> None:
        self.writer.close()
        self.writer.transport.abort()


async def nothing(_: int) -> None:
    pass


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path / "house")


@asynccontextmanager
async def open_port(house: House) -> AsyncGenerator[Port]:
    port = Port(house)
    await port.server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        port.gate.set()
        await port.server.stop()


@pytest.fixture
async def port(house: House) -> AsyncIterator[Port]:
    async with open_port(house) as opened:
        yield opened


@pytest.fixture
async def line(house: House, port: Port) -> AsyncIterator[Line]:
    opened = await port.connect(house.member())
    yield opened
    opened.close()


async def test_a_member_reads_spans_and_wholes(house: House, port: Port) -> None:
    reader = port.reader(house.member())
    assert await reader.read("/blobs/x", Span(1 << 20, 1 << 20), 1 << 20, nothing) == CONTENT[1 << 20 : 2 << 20]
    assert await reader.read("/blobs/x", None, len(CONTENT), nothing) == CONTENT
    reader.close()


async def test_a_range_is_answered_as_the_standard_says(line: Line) -> None:
    status, fields, body = await line.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=10-19")
    assert (status, fields["content-range"]) == (206, f"bytes 10-19/{len(CONTENT)}")
    assert body == CONTENT[10:20]


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-99999999999999",
        "bytes=9-3",
        "bytes=-5",
        "bytes=5-",
        "bytes=0-1,4-5",
        "bytes=a-b",
        "lines=0-1",
        "bytes=0-" + "9" * 40,
        "bytes=٠-١",
    ],
)
async def test_a_range_that_is_none_is_416(line: Line, asked: str) -> None:
    assert (await line.say("GET /blobs/x HTTP/1.1", "Host: x", f"Range: {asked}"))[0] == 416


async def test_two_ranges_are_416(line: Line) -> None:
    said = ("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1", "Range: bytes=4-5")
    assert (await line.say(*said))[0] == 416


@pytest.mark.parametrize("path", ["/", "/blobs/../../etc/passwd", "/blobs/%2e%2e", "//", "/blobs/x/have"])
async def test_what_is_not_there_is_404(line: Line, path: str) -> None:
    assert (await line.say(f"GET {path} HTTP/1.1", "Host: x"))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_only_get_is_answered(line: Line, method: str) -> None:
    status, fields, _ = await line.say(f"{method} /blobs/x HTTP/1.1", "Host: x", "Content-Length: 0")
    assert (status, fields["allow"]) == (405, "GET")


async def test_a_removed_node_is_403_also_on_an_open_connection(house: House, port: Port) -> None:
    asker = house.member()
    line = await port.connect(asker)
    assert (await line.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1"))[0] == 206
    port.removed.add(asker.id)
    assert (await line.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1"))[0] == 403
    assert len(port.asked) == 1
    line.close()


async def test_a_head_that_is_too_large_is_refused(line: Line) -> None:
    status, _, _ = await line.say("GET /blobs/x HTTP/1.1", "Host: x", "X: " + "x" * 9000)
    assert status == 431


async def test_a_body_is_not_taken_in(house: House, port: Port) -> None:
    line = await port.connect(house.member())
    line.writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
    assert (await line.hear())[0] == 404
    with contextlib.suppress(OSError):
        for _ in range(64):
            line.writer.write(bytes(65536))
            await line.writer.drain()
    await until(line.reader.at_eof)
    line.close()


async def test_pipelined_requests_are_not_queued(house: House, port: Port) -> None:
    line = await port.connect(house.member())
    line.writer.write(b"GET /blobs/x HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n" * 100)
    assert (await line.hear())[0] == 206
    await line.reader.read()
    assert len(port.asked) <= 2
    line.close()


async def test_a_member_has_four_connections_and_the_next_is_refused(house: House, port: Port) -> None:
    asker, other = house.member(), house.member()
    lines = [await port.connect(asker) for _ in range(4)]
    for line in lines:
        assert (await line.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1"))[0] == 206
    fifth, others = await port.connect(asker), await port.connect(other)
    assert (await fifth.hear())[0] == 503
    assert (await others.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1"))[0] == 206
    for line in (*lines, fifth, others):
        line.close()


async def test_there_is_an_end_to_connections_in_all(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_server, "_LIMITS", Limits(connections=3, connections_per_certificate=4))
    async with open_port(house) as port:
        lines = [await port.connect(house.member()) for _ in range(3)]
        for line in lines:
            assert (await line.say("GET /blobs/x HTTP/1.1", "Host: x", "Range: bytes=0-1"))[0] == 206
        late = await port.connect(house.member())
        assert (await late.hear())[0] == 503
        for line in (*lines, late):
            line.close()


async def test_a_connection_that_says_nothing_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(header_seconds=0.1, idle_seconds=0.1)
    monkeypatch.setattr(transfer_server, "_LIMITS", limits)
    async with open_port(house) as port:
        line = await port.connect(house.member())
        assert await line.reader.read() == b""
        line.close()


async def test_a_reader_that_does_not_read_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_server, "_LIMITS", Limits(stalled_seconds=0.2))
    async with open_port(house) as port:
        line = await port.connect(house.member())
        line.writer.transport.pause_reading()  # pyright: ignore
        line.writer.write(b"GET /blobs/x HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = port.server._answers  # pyright: ignore[reportPrivateUsage]
        await until(lambda: port.asked)
        await until(lambda: answers._value == transfer_server._ANSWERS_AT_ONCE)  # pyright: ignore
        line.close()


async def test_answers_in_memory_are_counted(house: House, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """More readers than that wait for their turn, and all get what they asked for."""
    port.gate.clear()
    readers = [port.reader(house.member()) for _ in range(5)]
    reads = [
        asyncio.create_task(reader.read("/blobs/x", Span(0, 1000), 1000, nothing)) for reader in readers for _ in "1234"
    ]
    most = transfer_server._ANSWERS_AT_ONCE  # pyright: ignore[reportPrivateUsage]
    await until(lambda: len(port.asked) == most)
    port.gate.set()
    assert await asyncio.gather(*reads) == [CONTENT[:1000]] * 20
    for reader in readers:
        reader.close()


async def test_a_taken_port_gives_way_to_a_free_one(house: House, port: Port) -> None:
    second = Port(house)
    await second.server.start("127.0.0.1", port.server.port)
    assert second.server.port not in (0, port.server.port)
    assert await second.reader(house.member()).read("/blobs/x", Span(0, 2), 2, nothing) == CONTENT[:2]
    await second.server.stop()


async def test_two_that_took_the_same_port_at_the_same_time_do_not_meet(house: House) -> None:
    """A port may be bound twice before anybody listens there."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        taken = bound.getsockname()[1]
        first, second = Port(house), Port(house)
        await first.server.start("127.0.0.1", taken)
        await second.server.start("127.0.0.1", taken)
        assert second.server.port != taken
        await first.server.stop()
        await second.server.stop()


async def test_a_host_that_is_not_this_machines_is_bad_config(house: House) -> None:
    with pytest.raises(FelloeError) as refused:
        await Port(house).server.start("192.0.2.1", 0)
    assert refused.value.code == "bad_config"


async def test_uploads_keep_to_their_rate(house: House) -> None:
    passed: list[int] = []

    class Counted(Pacer):
        async def take(self, size: int) -> None:
            passed.append(size)

    member = house.member()

    async def read(path: str, start: int, length: int | None) -> Answer:
        return Answer(CONTENT, len(CONTENT))

    server = TransferServer(member.tls, read, Counted(0), may_ask=lambda _: True)
    await server.start("127.0.0.1", 0)
    reader = HttpsReader(member.id, Endpoint(hosts=("127.0.0.1",), port=server.port), house.member().tls)
    assert await reader.read("/blobs/x", None, len(CONTENT), nothing) == CONTENT
    assert (sum(passed), max(passed)) == (len(CONTENT), 1 << 16)
    reader.close()
    await server.stop()
