"""The trial of a node's ports, over real sockets on loopback."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs import probe as module
from felloe.hubs.probe import TAG_BYTES, TrialAnswer, TrialListener, TrialRequest, ports_of, probe, tag, try_node

NODE = NodeId("a" * 26)
SECRET = bytes(range(32))


def free_ports() -> list[int]:
    """Four free ports, the last with a free one after it."""
    while True:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
            with contextlib.suppress(OSError), socket.socket() as next_one:
                next_one.bind(("127.0.0.1", ports[3] + 1))
                if ports[3] + 1 not in ports:
                    return ports


def endpoints(*hosts: str) -> Endpoints:
    peer, mesh, route, state = free_ports()
    return Endpoints(hosts=hosts or ("127.0.0.1",), peer=peer, mesh=mesh, route=route, state=state)


@contextlib.asynccontextmanager
async def listening(where: Endpoints, secret: bytes = SECRET) -> AsyncIterator[TrialListener]:
    listener = TrialListener("127.0.0.1", where)
    assert await listener.on_request(TrialRequest(secret=secret)) == TrialAnswer()
    try:
        yield listener
    finally:
        listener.close()


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def test_a_node_whose_ports_all_answer_is_reached() -> None:
    where = endpoints()
    async with listening(where):
        assert (await probe(where, SECRET)).host == "127.0.0.1"


async def test_the_first_host_that_answers_is_found_and_the_others_are_told() -> None:
    where = endpoints("127.0.0.2", "127.0.0.1")
    async with listening(where):
        reached = await probe(where, SECRET)
    assert reached.host == "127.0.0.1"
    assert {address.partition(":")[0] for address in reached.failures} == {"127.0.0.2"}
    assert len(reached.failures) == 5


async def test_one_port_that_does_not_answer_is_enough_to_fail() -> None:
    where = endpoints()
    async with listening(where) as listener:
        listener._servers.pop(2).close()  # pyright: ignore[reportPrivateUsage]
        reached = await probe(where, SECRET)
    assert reached.host is None
    assert list(reached.failures) == [f"127.0.0.1:{where.route}"]


async def test_another_secret_or_another_program_does_not_count() -> None:
    where = endpoints()
    async with listening(where, bytes(32)):
        reached = await probe(where, SECRET)
    assert set(reached.failures.values()) == {"another program answers"}
    assert len({tag(SECRET, port) for port in ports_of(where)}) == 5


@pytest.mark.parametrize("answer", [b"", b"short", b"x" * 32, b"x" * 100_000])
async def test_a_program_that_answers_something_else_does_not_count(answer: bytes) -> None:
    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    where = endpoints()
    servers = [await asyncio.start_server(respond, "127.0.0.1", port) for port in ports_of(where)]
    reached = await probe(where, SECRET)
    for server in servers:
        server.close()
    assert reached.host is None
    assert len(reached.failures) == 5


async def test_a_port_that_keeps_silent_is_given_up_in_time() -> None:
    silent = asyncio.Event()

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    where = endpoints()
    servers = [await asyncio.start_server(respond, "127.0.0.1", port) for port in ports_of(where)]
    async with asyncio.timeout(3):
        reached = await probe(where, SECRET, seconds=0.2)
    silent.set()
    for server in servers:
        server.close()
    assert set(reached.failures.values()) == {"no answer"}


async def test_a_port_in_use_is_reported_by_the_candidate() -> None:
    where = endpoints()
    with socket.socket() as other:
        other.bind(("127.0.0.1", where.mesh))
        other.listen()
        listener = TrialListener("127.0.0.1", where)
        answer = await listener.on_request(TrialRequest(secret=SECRET))
        listener.close()
    assert list(answer.failures) == [where.mesh]
    assert "in use" in answer.failures[where.mesh]


async def test_the_ports_close_by_themselves() -> None:
    where = endpoints()
    listener = TrialListener("127.0.0.1", where, seconds=0.1)
    await listener.on_request(TrialRequest(secret=SECRET))
    async with asyncio.timeout(5):
        while await is_open(where.peer):
            await asyncio.sleep(0.02)
    assert await listener.on_request(TrialRequest(secret=SECRET)) == TrialAnswer()
    listener.close()


async def test_only_the_hub_that_began_a_trial_ends_it_and_one_runs_at_a_time() -> None:
    where = endpoints()
    async with listening(where) as listener:
        with pytest.raises(FelloeError, match="overloaded"):
            await listener.on_request(TrialRequest(secret=bytes(32)))
        await listener.on_request(TrialRequest(secret=bytes(32), over=True))
        assert await is_open(where.peer)
        await listener.on_request(TrialRequest(secret=SECRET, over=True))
        assert not await is_open(where.peer)


@pytest.mark.parametrize("secret", [b"", b"x", bytes(33)])
async def test_a_secret_of_another_length_is_refused(secret: bytes) -> None:
    with pytest.raises(FelloeError, match="invalid_value"):
        await TrialListener("127.0.0.1", endpoints()).on_request(TrialRequest(secret=secret))


async def test_connections_past_the_bound_get_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 3)
    where = endpoints()
    answers: list[bytes] = []
    async with listening(where):
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", where.peer)
            answers.append(await reader.read())
            writer.close()
            await writer.wait_closed()
    assert [len(answer) for answer in answers] == [TAG_BYTES] * 3 + [0, 0]


async def test_odd_hosts_and_ports_fail_and_break_nothing() -> None:
    hosts = ("", "no such host.invalid", "a" * 10_000, "127.0.0.1\0", *["127.0.0.9"] * 100)
    where = Endpoints(hosts=hosts, peer=0, mesh=-1, route=70_000, state=65_535)
    async with asyncio.timeout(30):
        reached = await probe(where, SECRET, seconds=0.5)
    assert reached.host is None
    assert len(reached.failures) <= 8 * 5
    listener = TrialListener("127.0.0.1", where)
    answer = await listener.on_request(TrialRequest(secret=SECRET))
    listener.close()
    assert {0, -1, 70_000, 65_536} <= set(answer.failures)


async def test_a_whole_trial_opens_tries_and_closes() -> None:
    where = endpoints()
    listener = TrialListener("127.0.0.1", where)
    secrets: set[bytes] = set()

    async def ask(_: NodeId, request: TrialRequest) -> TrialAnswer:
        secrets.add(request.secret)
        return await listener.on_request(request)

    assert (await try_node(NODE, where, ask)).host == "127.0.0.1"
    assert not await is_open(where.peer)
    assert (await try_node(NODE, where, ask)).host == "127.0.0.1"
    assert len(secrets) == 2


async def test_a_whole_trial_tells_what_the_candidate_could_not_open() -> None:
    async def ask(_: NodeId, request: TrialRequest) -> TrialAnswer:
        return TrialAnswer() if request.over else TrialAnswer(failures={8473: "Address already in use"})

    reached = await try_node(NODE, endpoints(), ask)
    assert (reached.host, reached.failures) == (None, {"port 8473 there": "Address already in use"})
