"""The watch over one child, before a server that behaves as llama.cpp does when it works, freezes or stands still."""

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from felloe.engines.http_client import HttpClient, UnixAddress
from felloe.engines.rules import RestartPolicy
from felloe.engines.watch import Watch


class FakeChild:
    """Answers /metrics and /health as it is told, and is killed or weighed by its watch."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.killed = False
        self.weight: int | None = 1000
        self.requests = self.batches = 0
        self.moves = True
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.open_questions = self.most_open = 0

    async def ended(self) -> None:
        await self.end.wait()

    def kill(self) -> None:
        self.killed = True
        self.end.set()

    def memory(self) -> int | None:
        return self.weight

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1].decode()
                self.asked.append(path)
                self.open_questions += path == "/metrics"
                self.most_open = max(self.most_open, self.open_questions)
                if path in self.silent:
                    await reader.read()
                    self.open_questions -= path == "/metrics"
                    break
                self.open_questions -= path == "/metrics"
                self.batches += self.moves
                body = b"llamacpp:n_decode_total %d\nllamacpp:requests_processing %d\n" % (self.batches, self.requests)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Bench:
    def __init__(self, child: FakeChild, client: HttpClient) -> None:
        self.child = child
        self.client = client
        self.idle = asyncio.Event()
        self.idle.set()

    def watch(self, *, memory_bound: int = 0, **policy: float) -> Watch:
        quick = {"probe_every": 0.01, "probe_seconds": 0.02, "deaf_after": 0.2, "hung_after": 0.4, "memory_every": 0.02}
        rules = RestartPolicy(**{**quick, **policy})  # pyright: ignore
        return Watch(self.child, self.client, rules, time.monotonic, self.idle, memory_bound)  # type: ignore[arg-type]

    async def until_asked(self, times: int) -> None:
        seen = len(self.child.asked)
        async with asyncio.timeout(10):
            while len(self.child.asked) < seen + times:
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[Bench, None]:
    child = FakeChild()
    path = str(tmp_path / "child.sock")
    server = await asyncio.start_unix_server(child.serve, path)
    client = HttpClient(UnixAddress(path))
    yield Bench(child, client)
    await client.close()
    server.close()
    await server.wait_closed()


async def lives(bench: Bench, watch: Watch, looks: int) -> None:
    ending = asyncio.create_task(watch.ending())
    await bench.until_asked(looks)
    assert not ending.done()
    bench.child.end.set()
    assert (await ending).kind == "crash"
    assert not bench.child.killed


async def test_an_idle_child_that_answers_lives(bench: Bench) -> None:
    bench.child.moves = False
    await lives(bench, bench.watch(), looks=60)


async def test_a_child_whose_work_moves_lives(bench: Bench) -> None:
    bench.child.requests = 2
    await lives(bench, bench.watch(), looks=60)


async def test_a_child_that_answers_nothing_is_killed_as_hung(bench: Bench) -> None:
    bench.child.silent = {"/metrics", "/health"}
    ending = await bench.watch(hung_after=60.0).ending()
    assert ending.kind == "hang"
    assert "sign of life" in ending.reason
    assert bench.child.killed
    assert bench.child.most_open == 1


async def test_a_child_that_answers_health_alone_lives_until_its_work_is_overdue(bench: Bench) -> None:
    bench.child.silent = {"/metrics"}
    ending = await bench.watch().ending()
    assert ending.kind == "hang"
    assert "finished no part" in ending.reason


async def test_work_that_stands_still_is_a_hang_though_every_question_is_answered(bench: Bench) -> None:
    bench.child.requests, bench.child.moves = 1, False
    ending = await bench.watch().ending()
    assert ending.kind == "hang"
    assert "finished no part" in ending.reason


async def test_a_watcher_that_slept_itself_does_not_call_it_a_hang(bench: Bench) -> None:
    bench.child.silent = {"/metrics", "/health"}
    ending = asyncio.create_task(bench.watch(late_after=0.1, deaf_after=0.4, hung_after=60.0).ending())
    for _ in range(3):
        await bench.until_asked(1)
        time.sleep(0.5)  # the machine sleeps: no loop runs
    await asyncio.sleep(0)
    assert not ending.done()
    assert (await ending).kind == "hang"  # awake, it counts the silence


async def test_an_idle_child_that_grew_too_large_is_shed(bench: Bench) -> None:
    ending = asyncio.create_task(bench.watch(memory_bound=2000).ending())
    await bench.until_asked(10)
    assert not ending.done()
    bench.child.weight = 2001
    assert (await ending).kind == "leak"
    assert not bench.child.killed


async def test_a_busy_child_is_shed_when_it_grew_half_as_much_more(bench: Bench) -> None:
    bench.idle.clear()
    bench.child.weight = 2900
    ending = asyncio.create_task(bench.watch(memory_bound=2000).ending())
    await bench.until_asked(10)
    assert not ending.done()
    bench.child.weight = 3001
    assert (await ending).kind == "leak"


async def test_a_child_that_cannot_be_weighed_is_left_alone(bench: Bench) -> None:
    bench.child.weight = None
    await lives(bench, bench.watch(memory_bound=1), looks=20)
