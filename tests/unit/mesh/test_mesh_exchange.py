"""Request streams over the real server, with the permissions that nodes really have."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from mesh_network import Network
from mesh_streams import everything, hang

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh import answering as answering_module
from felloe.mesh.exchange import Exchange
from felloe.mesh.incoming import Incoming
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.permissions import infer
from felloe.mesh.stream_rules import PART_BYTES, WINDOW_MESSAGES
from felloe.mesh.stream_wire import Kind, Opening, encode, encode_open, parse_header, parse_refusal, reply_subject
from waiting import until


async def broken(incoming: Incoming) -> tuple[list[bytes], FelloeError]:
    """What came before the failure, and the failure."""
    heard: list[bytes] = []
    with pytest.raises(FelloeError) as failed:
        await incoming.pump(heard.append)
    return heard, failed.value


async def pair(
    network: Network, handler: Callable[[bytes, Outgoing], Awaitable[None]]
) -> tuple[Exchange, NodeId, Exchange]:
    asker, answerer = network.member(), network.member()
    asking, answering = await network.exchange(asker), await network.exchange(answerer)
    answering.serve(handler)
    return asking, answerer.id, answering


async def test_an_answer_arrives_whole_and_in_order(network: Network) -> None:
    async def count(request: bytes, outgoing: Outgoing) -> None:
        for number in range(2000):
            await outgoing.send(b"%d" % number)
        await outgoing.finish(b"last of " + request)

    asking, node, _ = await pair(network, count)
    heard = await everything(await asking.open(node, b"request"))
    assert heard == [b"%d" % number for number in range(2000)] + [b"last of request"]
    assert asking.asked == 0


async def test_large_requests_and_large_messages_travel_in_parts(network: Network) -> None:
    async def echo(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.send(request)
        await outgoing.send(b"")
        await outgoing.finish(request[:5])

    asking, node, _ = await pair(network, echo)
    request = bytes(range(256)) * (5 * 1024 * 4)
    heard = await everything(await asking.open(node, request))
    assert heard == [request, b"", request[:5]]


async def test_a_request_beyond_the_limit_is_refused_here(network: Network) -> None:
    asking, node, _ = await pair(network, hang)
    with pytest.raises(FelloeError) as refused:
        await asking.open(node, bytes(8 * 1024 * 1024 + 1))
    assert refused.value.code == "body_too_large"


async def test_that_nobody_serves_for_a_node_is_known_at_once(network: Network) -> None:
    asking = await network.exchange(network.member())
    incoming = await asking.open(network.member().id, b"request", silence_seconds=60)
    _, lost = await broken(incoming)
    assert lost.code == "line_lost"


@pytest.mark.parametrize("code", ["unsealed", "overloaded", "draining", "replayed"])
async def test_a_refusal_carries_its_code(network: Network, code: str) -> None:
    async def refuse(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.refuse(code, retry_after=3.0)

    asking, node, _ = await pair(network, refuse)
    heard, refused = await broken(await asking.open(node, b"request"))
    assert heard == []
    assert (refused.code, refused.retry_after) == (code, 3.0)


async def test_a_failing_handler_ends_its_stream_as_internal(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.send(b"first")
        raise RuntimeError(request.decode())

    asking, node, answering = await pair(network, fail)
    incoming = await asking.open(node, b"the secret prompt")
    heard, failed = await broken(incoming)
    assert heard == [b"first"]
    assert failed.code == "internal"
    assert answering.answered == 0
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_handler_that_forgets_to_finish_does_not_leave_the_asker_hanging(network: Network) -> None:
    async def forget(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.send(b"first")

    asking, node, _ = await pair(network, forget)
    incoming = await asking.open(node, b"request")
    heard, failed = await broken(incoming)
    assert heard == [b"first"]
    assert failed.code == "internal"


async def test_closing_cancels_the_handler(network: Network) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work(request: bytes, outgoing: Outgoing) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    asking, node, answering = await pair(network, work)
    incoming = await asking.open(node, b"request")
    await asyncio.wait_for(began.wait(), 5)
    await incoming.close()
    await asyncio.wait_for(cancelled.wait(), 0.1)
    assert answering.answered == 0


async def test_closing_a_half_sent_request_leaves_nothing_behind(network: Network) -> None:
    asking, node, answering = await pair(network, hang)
    incoming = await asking.open(node, bytes(1024 * 1024))
    await incoming.close()
    await until(lambda: answering.answered == 0)
    heard, lost = await broken(incoming)
    assert heard == []
    assert lost.code == "replica_lost"


async def test_a_slow_reader_stops_its_own_stream_only(network: Network) -> None:
    sent = {b"slow": 0, b"fast": 0}

    async def count(request: bytes, outgoing: Outgoing) -> None:
        for _ in range(3 * WINDOW_MESSAGES):
            await outgoing.send(b"x" * 100)
            sent[request] += 1
        await outgoing.finish()

    asking, node, _ = await pair(network, count)
    slow = await asking.open(node, b"slow", silence_seconds=60)
    fast = await asking.open(node, b"fast")
    assert len(await everything(fast)) == 3 * WINDOW_MESSAGES
    assert sent[b"slow"] == WINDOW_MESSAGES
    assert len(await everything(slow)) == 3 * WINDOW_MESSAGES


async def test_large_messages_are_held_back_by_their_bytes(network: Network) -> None:
    sent = 0

    async def flood(request: bytes, outgoing: Outgoing) -> None:
        nonlocal sent
        for _ in range(40):
            await outgoing.send(bytes(PART_BYTES))
            sent += 1
        await outgoing.finish()

    asking, node, _ = await pair(network, flood)
    incoming = await asking.open(node, b"request")
    await until(lambda: sent == 4)
    await until(lambda: incoming.ledger.held_messages == 4)
    assert sent == 4
    assert len(await everything(incoming)) == 40


async def test_a_long_silence_of_the_handler_is_bridged(network: Network) -> None:
    go_on = asyncio.Event()

    async def prefill(request: bytes, outgoing: Outgoing) -> None:
        await go_on.wait()
        await outgoing.finish(b"at last")

    asking, node, _ = await pair(network, prefill)
    incoming = await asking.open(node, b"request", silence_seconds=1.6)
    reading = asyncio.create_task(everything(incoming))
    heard = incoming.heard
    await until(lambda: incoming.heard > heard + 2.0)
    go_on.set()
    assert await reading == [b"at last"]


async def test_an_answerer_that_falls_silent_is_lost(network: Network) -> None:
    answerer = network.member()
    line = await network.connect(answerer)
    frozen: list[str] = []
    await line.subscribe(infer(answerer.id), lambda message: frozen.append(message.reply))
    await line.flush()
    asking = await network.exchange(network.member())
    incoming = await asking.open(answerer.id, b"request", silence_seconds=0.4)
    with pytest.raises(FelloeError, match="fell silent"):
        async with asyncio.timeout(3):
            await everything(incoming)
    assert frozen


async def answer_by_hand(network: Network, *messages: bytes) -> Incoming:
    """An answer whose messages are exactly these bytes."""
    answerer = network.member()
    line = await network.connect(answerer)
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await line.subscribe(infer(answerer.id), lambda message: asked.set_result(message.reply))
    await line.flush()
    asking = await network.exchange(network.member())
    incoming = await asking.open(answerer.id, b"request")
    reply = await asked
    for message in messages:
        await line.publish(reply, message)
    return incoming


async def test_a_gap_is_never_bridged(network: Network) -> None:
    incoming = await answer_by_hand(network, encode(Kind.DATA, 0, b"a"), encode(Kind.DATA, 2, b"c"))
    heard, failed = await broken(incoming)
    assert heard == [b"a"]
    assert "lost on the way" in failed.detail


async def test_a_lost_tail_is_noticed_by_the_end_and_by_the_keepalive(network: Network) -> None:
    for last in (Kind.END, Kind.KEEPALIVE):
        incoming = await answer_by_hand(network, encode(Kind.DATA, 0, b"a"), encode(last, 2))
        heard, failed = await broken(incoming)
        assert heard == [b"a"]
        assert "lost on the way" in failed.detail


async def test_what_comes_twice_is_heard_once(network: Network) -> None:
    first, second = encode(Kind.DATA, 0, b"a"), encode(Kind.DATA, 1, b"b")
    incoming = await answer_by_hand(network, first, first, second, first, encode(Kind.END, 2))
    assert await everything(incoming) == [b"a", b"b"]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01\x05",
        b"\x02" + encode(Kind.DATA, 0, b"a")[1:],
        encode(Kind.CREDIT, 0),
        b"\x01\xff" + bytes(8),
        encode(Kind.REFUSE, 0, b"\xff"),
        encode(Kind.REFUSE, 0, b"\x92\xa7strange\xc0"),
        encode(Kind.DATA, 0, bytes(PART_BYTES + 1)),
    ],
)
async def test_an_answerer_that_speaks_nonsense_is_lost(network: Network, message: bytes) -> None:
    heard, failed = await broken(await answer_by_hand(network, message))
    assert heard == []
    assert failed.code == "replica_lost"


async def test_an_answerer_that_ignores_credits_is_cut_off(network: Network) -> None:
    flood = [encode(Kind.DATA, number) for number in range(WINDOW_MESSAGES + 1)]
    incoming = await answer_by_hand(network, *flood)
    # Nobody reads, so nothing is granted anew; the message beyond the window ends the stream.
    await until(lambda: incoming.ledger.held_messages > WINDOW_MESSAGES)
    heard, failed = await broken(incoming)
    assert len(heard) == WINDOW_MESSAGES
    assert "more than it may" in failed.detail


async def test_the_death_of_a_node_fails_its_streams_and_frees_its_handlers(network: Network) -> None:
    asker, answerer, other = network.member(), network.member(), network.member()
    asking, answering, third = [await network.exchange(member) for member in (asker, answerer, other)]
    answering.serve(hang)
    third.serve(hang)
    dead, alive = await asking.open(answerer.id, b"request"), await asking.open(other.id, b"request")
    await until(lambda: answering.answered == third.answered == 1)
    asking.node_lost(answerer.id)
    _, lost = await broken(dead)
    assert "died" in lost.detail
    assert asking.asked == 1
    third.node_lost(asker.id)
    assert third.answered == 0
    await alive.close()


async def test_beyond_its_half_of_the_bound_an_asker_is_refused_as_overloaded_and_others_are_not(
    network: Network,
) -> None:
    answerer = network.member()
    answering = await network.exchange(answerer, max_answers=4)
    answering.serve(hang)
    first, second, third = [await network.exchange(network.member()) for _ in range(3)]
    held = [await first.open(answerer.id, b"request") for _ in range(2)]
    await until(lambda: answering.answered == 2)
    for request in (b"small", bytes(600_000)):
        _, refused = await broken(await first.open(answerer.id, request))
        assert refused.code == "overloaded"
        assert refused.retry_after is not None
    held += [await second.open(answerer.id, b"request") for _ in range(2)]
    await until(lambda: answering.answered == 4)
    _, refused = await broken(await third.open(answerer.id, b"request"))
    assert refused.code == "overloaded"
    for incoming in held:
        await incoming.close()


async def test_the_bytes_of_all_requests_together_are_bounded(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering_module, "MAX_REQUESTS_BYTES", 1_000_000)
    asking, node, answering = await pair(network, hang)
    held = await asking.open(node, bytes(900_000))
    await until(lambda: answering.answered == 1)
    _, refused = await broken(await asking.open(node, bytes(200_000)))
    assert refused.code == "overloaded"
    await held.close()
    await until(lambda: answering.answered == 0)
    again = await asking.open(node, bytes(200_000))
    await until(lambda: answering.answered == 1)
    await again.close()


async def test_a_node_that_serves_nothing_says_that_it_drains(network: Network) -> None:
    answerer = network.member()
    await network.exchange(answerer)
    asking = await network.exchange(network.member())
    _, refused = await broken(await asking.open(answerer.id, b"request"))
    assert refused.code == "draining"


async def test_a_stopping_answerer_tells_its_askers(network: Network) -> None:
    asking, node, answering = await pair(network, hang)
    incoming = await asking.open(node, b"request")
    await until(lambda: answering.answered == 1)
    await answering.close()
    _, refused = await broken(incoming)
    assert refused.code == "draining"


async def test_no_reply_subject_leads_an_answerer_astray(network: Network) -> None:
    served: list[bytes] = []

    async def serve(request: bytes, outgoing: Outgoing) -> None:
        served.append(request)
        await outgoing.finish()

    asker = network.member()
    asking, node, _ = await pair(network, serve)
    hostile = await network.connect(asker)
    stream = "0" * 32
    inbox = f"_INBOX_{asker.id}"
    for reply in (f"roster.{node}.record", f"{inbox}.x", f"{inbox}.{stream}.x", f"roster.gone.{stream}", ""):
        await hostile.publish(infer(node), encode_open(Opening(1, 1, 1), b"x"), reply)
    assert await everything(await asking.open(node, b"good")) == []
    assert served == [b"good"]


@pytest.mark.parametrize(
    "messages",
    [
        [encode_open(Opening(1, 1, 9 * 1024 * 1024), b"x")],
        [encode_open(Opening(0, 1, 1), b"x")],
        [encode_open(Opening(1, 0, 1), b"x")],
        [encode_open(Opening(1, 1, 1), b"xyz")],
        [encode(Kind.OPEN, 0, b"short")],
        [encode_open(Opening(1, 1, 4), b"xy"), encode(Kind.MORE, 2, b"zz")],
        [encode_open(Opening(1, 1, 4), b"xy"), encode(Kind.MORE, 1, b"zzz")],
        [encode_open(Opening(1, 1, 4), b"xy"), encode(Kind.MORE, 1, b"")],
        [b"\x09" + bytes(30)],
    ],
)
async def test_malformed_requests_are_refused_and_never_served(network: Network, messages: list[bytes]) -> None:
    served: list[bytes] = []

    async def serve(request: bytes, outgoing: Outgoing) -> None:
        served.append(request)

    answerer, asker = network.member(), network.member()
    (await network.exchange(answerer)).serve(serve)
    line = await network.connect(asker)
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    reply = reply_subject(asker.id, "a" * 32)
    await line.subscribe(reply, lambda message: answers.put_nowait(message.data))
    for message in messages:
        await line.publish(infer(answerer.id), message, reply)
    answer = await asyncio.wait_for(answers.get(), 5)
    assert parse_header(answer)[0] == Kind.REFUSE
    assert parse_refusal(answer[10:]).code == "replica_lost"
    assert served == []


async def test_incomplete_requests_are_bounded_in_number(network: Network) -> None:
    asking, node, answering = await pair(network, hang)
    asker = network.member()
    line = await network.connect(asker)
    refused: asyncio.Queue[str] = asyncio.Queue()
    await line.subscribe(f"_INBOX_{asker.id}.*", lambda message: refused.put_nowait(message.subject))
    for number in range(17):
        await line.publish(infer(node), encode_open(Opening(1, 1, 2), b"x"), reply_subject(asker.id, f"{number:032x}"))
    assert (await asyncio.wait_for(refused.get(), 5)).endswith(f".{8:032x}"), "one asker may have half of the sixteen"
    assert answering.answered == 0
    assert asking.asked == 0


async def test_a_reader_that_is_cancelled_loses_nothing(network: Network) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def step(request: bytes, outgoing: Outgoing) -> None:
        for number, gate in enumerate(gates):
            await gate.wait()
            await outgoing.send(b"%d" % number * 600_000)
        await outgoing.finish()

    asking, node, _ = await pair(network, step)
    incoming = await asking.open(node, b"request")
    heard: list[bytes] = []
    for gate in gates:
        reading = asyncio.create_task(incoming.pump(heard.append))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.sleep(0)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    await incoming.pump(heard.append)
    assert heard == [b"%d" % number * 600_000 for number in range(3)]


async def count_to_600(request: bytes, outgoing: Outgoing) -> None:
    for number in range(600):
        await outgoing.send(b"%d" % number)
    await outgoing.finish()


async def test_a_reader_that_is_behind_gets_nothing_until_it_is_ready(network: Network) -> None:
    asking, node, _ = await pair(network, count_to_600)
    incoming = await asking.open(node, b"request")
    heard: list[bytes] = []
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def consume(message: bytes) -> asyncio.Future[None] | None:
        heard.append(message)
        return ready if len(heard) == 10 else None

    reading = asyncio.create_task(incoming.pump(consume))
    await until(lambda: incoming.ledger.held_messages == WINDOW_MESSAGES - 10)
    assert len(heard) == 10, "neither consumed nor credited beyond what was consumed"
    ready.set_result(None)
    await reading
    assert heard == [b"%d" % number for number in range(600)]


async def test_the_last_message_of_a_reader_that_is_behind_is_waited_for(network: Network) -> None:
    async def once(request: bytes, outgoing: Outgoing) -> None:
        await outgoing.finish(b"all")

    asking, node, _ = await pair(network, once)
    for is_complete in (False, True):
        incoming = await asking.open(node, b"request")
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def consume(
            message: bytes,
            incoming: Incoming = incoming,
            ready: asyncio.Future[None] = ready,
            is_complete: bool = is_complete,
        ) -> asyncio.Future[None]:
            if is_complete:
                incoming.complete()
            return ready

        reading = asyncio.create_task(incoming.pump(consume))
        await until(lambda: asking.asked == 0)
        await asyncio.sleep(0)
        assert not reading.done()
        ready.set_result(None)
        await reading


@pytest.mark.parametrize("later", [False, True])
async def test_what_a_reader_raises_ends_its_pump_and_nothing_else(network: Network, later: bool) -> None:
    asking, node, answering = await pair(network, count_to_600)
    incoming, other = await asking.open(node, b"request"), await asking.open(node, b"request")
    heard: list[bytes] = []

    async def fail() -> None:
        raise KeyError("the reader's own")

    def consume(message: bytes) -> Awaitable[None] | None:
        heard.append(message)
        if len(heard) < 3:
            return None
        if later:
            return fail()
        raise KeyError("the reader's own")

    with pytest.raises(KeyError, match="own"):
        await incoming.pump(consume)
    await incoming.close()
    assert heard == [b"0", b"1", b"2"]
    assert len(await everything(other)) == 600
    await until(lambda: answering.answered == 0)


async def test_a_reader_that_has_everything_ends_the_stream_without_a_word(network: Network) -> None:
    asking, node, answering = await pair(network, count_to_600)
    incoming = await asking.open(node, b"request")
    heard: list[bytes] = []

    def consume(message: bytes) -> None:
        heard.append(message)
        if len(heard) == 600:
            incoming.complete()

    await incoming.pump(consume)
    await incoming.close()
    assert len(heard) == 600
    assert asking.asked == 0
    await until(lambda: answering.answered == 0)
