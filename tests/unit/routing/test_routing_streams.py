"""The two ends of a request to another node, the replay of an answer, and the outbox between engine and stream."""

import asyncio
import hashlib
import logging
from functools import partial

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, Failure, InferenceRequest, Piece, ReplayResume, TokenResume, Usage
from felloe.routing.admission import Admission
from felloe.routing.answering import AnsweringService
from felloe.routing.outbox import Outbox
from felloe.routing.progress import Progress
from felloe.routing.remote import RemoteAnswers
from felloe.routing.replay import Replay
from felloe.routing.wire import PartReader, WirePart, encode_parts, encode_request
from routing_fakes import (
    HERE,
    MODEL,
    Death,
    Deaths,
    FakeEngines,
    FakeExchange,
    FakeKeys,
    FakeOpener,
    FakeStream,
    Outcome,
    Reader,
    Score,
    collect,
    fake_seal,
    gather,
    make_member,
    make_replica,
    make_request,
    node_id,
    settle,
)

DONE = Done(Usage(1, 2), "stop")
NODE = node_id(1)
RECORD = make_member(NODE, make_replica()).record


def service(engines: FakeEngines, *, queue_limit: int = 64) -> tuple[AnsweringService, Admission]:
    admission = Admission(engines, queue_limit=queue_limit)
    return AnsweringService(FakeKeys(RECORD.sealing_config), admission), admission


async def received(stream: FakeStream) -> list[list[WirePart]]:
    """All messages of a finished stream, opened."""
    opener, reader = FakeOpener(), PartReader()
    messages: list[list[WirePart]] = []
    await stream.pump(lambda message: messages.append(reader.feed(opener.open(message))))
    assert opener.finished
    return messages


async def handled(engines: FakeEngines, sealed: bytes) -> list[list[WirePart]]:
    stream = FakeStream(HERE)
    await service(engines)[0].handle(sealed, stream)
    return await received(stream)


def sealed_request(**changes: object) -> bytes:
    return fake_seal(RECORD.sealing_config, encode_request(replace(make_request(), **changes)))[0]


async def test_parts_that_are_ready_at_once_travel_as_one_message():
    messages = await handled(FakeEngines(Score(20)), sealed_request())
    assert len(messages) == 1
    assert messages[0][-1] == Score(20).done


async def test_a_part_does_not_wait_for_the_next_one():
    engines = FakeEngines(Score(2))
    pause = asyncio.Event()
    play = engines.answer

    async def slowly(request: InferenceRequest, deliver: Deliver) -> Done:
        pieces, done, _ = await gather(lambda take: play(request, take))
        for piece in pieces:
            deliver(piece)
            await pause.wait()
        assert done is not None
        return done

    engines.answer = slowly  # type: ignore[method-assign]
    stream = FakeStream(HERE)
    task = asyncio.create_task(service(engines)[0].handle(sealed_request(), stream))
    await settle()
    assert stream.sent == 1
    pause.set()
    await task


async def test_a_request_sealed_to_another_key_is_refused_with_its_code_only():
    stream = FakeStream(HERE)
    await service(FakeEngines())[0].handle(b"other|x", stream)
    with pytest.raises(FelloeError) as caught:
        await received(stream)
    assert caught.value.code == "unsealed"
    assert stream.sent == 0


async def test_every_failure_of_an_opened_request_travels_sealed():
    junk, _ = fake_seal(RECORD.sealing_config, b"junk")
    for engines, sealed, code in (
        (FakeEngines(), junk, "invalid_value"),
        (FakeEngines(), sealed_request(model="nothing"), "model_not_found"),
        (FakeEngines(deaths=Deaths(Death(0))), sealed_request(), "engine_failed"),
    ):
        messages = await handled(engines, sealed)
        assert isinstance(messages[-1][-1], Failure) and messages[-1][-1].code == code


async def test_pieces_before_a_failure_are_delivered():
    messages = await handled(FakeEngines(Score(5), deaths=Deaths(Death(3))), sealed_request())
    parts = [part for message in messages for part in message]
    assert [type(part) for part in parts] == [Piece, Piece, Piece, Failure]


async def test_a_full_queue_is_told_with_the_time_to_wait():
    engines = FakeEngines(Score(1), make_replica(slots=1))
    engines.gate.clear()
    answering, admission = service(engines, queue_limit=0)
    running = asyncio.create_task(collect(admission, make_request()))
    await settle()
    stream = FakeStream(HERE)
    await answering.handle(sealed_request(), stream)
    ((failure,),) = await received(stream)
    assert isinstance(failure, Failure) and failure.code == "overloaded" and failure.retry_after is not None
    engines.gate.set()
    await running


async def test_a_bug_is_told_and_logged_without_what_it_says(caplog: pytest.LogCaptureFixture):
    engines = FakeEngines()
    engines.error = RuntimeError("the prompt was: secret")
    with caplog.at_level(logging.DEBUG):
        ((failure,),) = await handled(engines, sealed_request())
    assert isinstance(failure, Failure) and failure.code == "internal"
    assert "secret" not in failure.detail and "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


async def test_a_deadline_ends_an_answer_under_way():
    engines = FakeEngines()
    engines.gate.clear()
    ((failure,),) = await handled(engines, sealed_request(deadline=0.01))
    assert isinstance(failure, Failure) and failure.code == "deadline_exceeded"
    assert engines.running == 0


async def test_when_the_asker_is_gone_the_engine_stops_and_the_slot_is_free():
    engines = FakeEngines()
    engines.gate.clear()
    answering, admission = service(engines)
    task = asyncio.create_task(answering.handle(sealed_request(), FakeStream(HERE)))
    await settle()
    assert engines.running == 1
    task.cancel()
    await asyncio.wait([task])
    assert engines.running == 0 and admission.load().active == {}


async def test_a_stream_that_cannot_be_sent_to_stops_the_engine():
    engines = FakeEngines(Score(500))

    class Broken(FakeStream):
        async def send(self, message: bytes) -> None:
            raise FelloeError("network_unreachable", "the line is down")

    answering, admission = service(engines)
    with pytest.raises(FelloeError):
        await answering.handle(sealed_request(), Broken(HERE))
    assert engines.running == 0 and admission.load().active == {}


async def test_a_slow_asker_holds_the_engine_back():
    engines = FakeEngines(Score(5000))
    stream = FakeStream(HERE, lose_after=0)  # a sender that waits for ever
    task = asyncio.create_task(service(engines)[0].handle(sealed_request(), stream))
    await settle(2000)
    assert engines.closed == 0, "the engine waits in the middle of its answer"
    task.cancel()
    await asyncio.wait([task])
    assert engines.closed == 1


async def remotely(engines: FakeEngines, losses: list[int | None] | None = None, **changes: object):  # type: ignore[no-untyped-def]
    exchange = FakeExchange({NODE: service(engines)[0].handle}, losses)
    remote = RemoteAnswers(exchange, fake_seal)
    outcome = await gather(partial(remote.answer, RECORD, replace(make_request(), **changes)))
    await exchange.close()
    return outcome, exchange


async def test_another_nodes_answer_arrives_whole():
    (pieces, done, error), exchange = await remotely(FakeEngines(Score(10), groups=(3,)))
    assert error is None and done == Score(10).done
    assert b"".join(piece.frames for piece in pieces) == Score(10).frames
    assert exchange.streams[0].closed


async def test_another_nodes_failure_is_raised_here():
    (_, _, error), _ = await remotely(FakeEngines(deaths=Deaths(Death(1))))
    assert error is not None and error.code == "engine_failed"


async def test_a_cut_stream_is_a_lost_replica():
    engines = FakeEngines(Score(600))
    (pieces, done, error), _ = await remotely(engines, [1])
    assert 0 < len(pieces) < 601 and done is None
    assert error is not None and error.code == "replica_lost"


async def scripted(*messages: bytes, request: object = None) -> Outcome:
    """What the asker makes of an answering node that sends exactly this."""

    async def handle(sealed: bytes, stream: FakeStream) -> None:
        for message in messages:
            stream.messages.put_nowait(message)
        stream.messages.put_nowait(None)

    exchange = FakeExchange({NODE: handle})
    remote = RemoteAnswers(exchange, fake_seal)
    outcome = await gather(partial(remote.answer, RECORD, request or make_request()))  # type: ignore[arg-type]
    await exchange.close()
    return outcome


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (b"1:" + encode_parts([Piece(1, (1,), b"x")])[0],),
        (b"end 1:" + encode_parts([Piece(1, (1,), b"x")])[0],),
        (b"end 1:" + encode_parts([Piece(2, (1,), b"x"), DONE])[0],),
        (b"end 1:" + encode_parts([Piece(1, (1,), b"x"), Piece(3, (3,), b"x"), DONE])[0],),
        (b"end 1:" + encode_parts([Piece(2, (1, 2), b"x"), Piece(1, (), b"x"), DONE])[0],),
        (b"1:junk",),
    ],
)
async def test_whatever_is_not_a_whole_answer_without_a_gap_is_a_lost_replica(messages: tuple[bytes, ...]):
    _, done, error = await scripted(*messages)
    assert done is None and error is not None and error.code == "replica_lost"


async def test_the_pieces_of_one_message_are_delivered_as_one():
    message = [Piece(1, (1,), b"a"), Piece(3, (2, 3), b"bc"), DONE]
    assert await scripted(b"end 1:" + encode_parts(message)[0]) == ([Piece(3, (1, 2, 3), b"abc")], DONE, None)


async def test_pieces_that_came_with_a_failure_are_delivered_before_it():
    message = [Piece(1, (1,), b"a"), Piece(2, (2,), b"b"), Failure("engine_failed", "it died")]
    pieces, done, error = await scripted(b"end 1:" + encode_parts(message)[0])
    assert pieces == [Piece(2, (1, 2), b"ab")] and done is None
    assert error is not None and error.code == "engine_failed"


async def test_a_slow_client_holds_another_nodes_answer_back():
    engines = FakeEngines(Score(5000))
    exchange = FakeExchange({NODE: service(engines)[0].handle})
    reader = Reader(partial(RemoteAnswers(exchange, fake_seal).answer, RECORD, make_request()))
    first = await reader.next()
    await settle(100)
    assert not reader.answer.done()
    rest, done = await reader.rest()
    assert done == Score(5000).done
    assert b"".join(piece.frames for piece in [first, *rest]) == Score(5000).frames
    await exchange.close()


async def test_messages_out_of_order_do_not_open():
    _, _, error = await scripted(b"2:" + encode_parts([Piece(1, (1,), b"x")])[0])
    assert error is not None and error.code == "unsealed"


async def test_a_resumed_answer_must_go_on_at_the_next_number():
    request = replace(make_request(), resume=TokenResume((1, 2)))
    _, _, error = await scripted(b"1:" + encode_parts([Piece(1, (1,), b"x")])[0], request=request)
    assert error is not None and error.code == "replica_lost"
    whole = [Piece(3, (3,), b"x"), Done(Usage(1, 3), "stop")]
    _, done, error = await scripted(b"end 1:" + encode_parts(whole)[0], request=request)
    assert error is None and done is not None


async def test_closing_the_answer_closes_the_stream_and_frees_the_other_nodes_slot():
    engines = FakeEngines(Score(600))
    answering, admission = service(engines)
    exchange = FakeExchange({NODE: answering.handle})
    reader = Reader(partial(RemoteAnswers(exchange, fake_seal).answer, RECORD, make_request()))
    await reader.next()
    await reader.close()
    assert exchange.streams[0].closed
    await settle()
    assert admission.busy(MODEL).active == 0
    await exchange.close()


def delivered(*pieces: Piece) -> Progress:
    progress = Progress()
    for piece in pieces:
        progress.take(piece)
    return progress


def test_nothing_delivered_starts_from_the_beginning():
    assert delivered().resume() is None


def test_tokens_with_ids_resume_by_them():
    assert delivered(Piece(0, (), b"r"), Piece(2, (5, 6), b"ab")).resume() == TokenResume((5, 6))


def test_a_role_frame_alone_resumes_by_replay_and_the_tokens_after_it_by_ids():
    progress = delivered(Piece(0, (), b"role"))
    assert progress.resume() == prefix(b"role")
    progress.take(Piece(1, (5,), b"a"))
    assert progress.resume() == TokenResume((5,))


def test_tokens_without_ids_resume_by_replay_from_then_on():
    progress = delivered(Piece(1, (5,), b"a"), Piece(3, (), b"bc"))
    assert progress.resume() == prefix(b"abc")
    progress.take(Piece(5, (7, 8, 9, 10), b"de"))
    assert progress.resume() == prefix(b"abcde"), "ids that came after a cut piece cannot be trusted to be complete"


def test_many_pieces_are_hashed_as_one():
    frames = [b"%d" % number for number in range(1000)]
    progress = delivered(*(Piece(number, (), frame) for number, frame in enumerate(frames)))
    assert progress.resume() == prefix(b"".join(frames))


def prefix(data: bytes) -> ReplayResume:
    return ReplayResume(len(data), hashlib.blake2b(data, digest_size=32).digest())


async def replay(resume: ReplayResume, *parts: Piece | Done) -> Outcome:
    """What comes of `parts`; without a `Done` the replica dies after them."""

    async def play(deliver: Deliver) -> Done:
        rest = Replay(resume, deliver)
        for part in parts:
            if isinstance(part, Done):
                rest.end()
                return part
            rest.take(part)
        raise FelloeError("engine_failed", "the replica died")

    return await gather(play)


async def test_replay_goes_on_within_a_piece():
    outcome = await replay(prefix(b"ab"), Piece(1, (), b"a"), Piece(3, (), b"bc"), Piece(4, (), b"d"), DONE)
    assert outcome == ([Piece(3, (), b"c"), Piece(4, (), b"d")], DONE, None)


async def test_replay_goes_on_between_pieces():
    outcome = await replay(prefix(b"ab"), Piece(1, (), b"a"), Piece(2, (), b"b"), Piece(3, (), b"c"), DONE)
    assert outcome == ([Piece(3, (), b"c")], DONE, None)


async def test_after_a_role_frame_the_ids_of_a_cut_piece_are_kept():
    outcome = await replay(prefix(b"role"), Piece(2, (7, 8), b"rolexy"), DONE)
    assert outcome == ([Piece(2, (7, 8), b"xy")], DONE, None)


async def test_a_different_prefix_yields_nothing_but_an_error():
    for parts in ((Piece(1, (), b"aX"), Piece(2, (), b"c"), DONE), (Piece(1, (), b"a"), DONE), (DONE,)):
        pieces, done, error = await replay(prefix(b"ab"), *parts)
        assert pieces == [] and done is None
        assert error is not None and error.code == "resume_diverged"


async def test_a_replica_that_dies_within_the_prefix_has_not_diverged():
    pieces, done, error = await replay(prefix(b"ab"), Piece(1, (), b"a"))
    assert pieces == [] and done is None
    assert error is not None and error.code == "engine_failed"


async def test_the_outbox_gives_everything_that_is_ready():
    outbox = Outbox()
    outbox.put(Piece(1, (), b"a"))
    outbox.put(Piece(2, (), b"b"))
    assert len(await outbox.take()) == 2
    taking = asyncio.create_task(outbox.take())
    await settle()
    outbox.end(DONE)
    assert await taking == [DONE] and outbox.complete


async def test_a_full_outbox_holds_its_engine_back_until_the_sender_took_it():
    outbox = Outbox()
    answers = [outbox.put(Piece(number, (), b"a")) for number in range(256)]
    assert answers[:255] == [None] * 255
    behind = answers[255]
    assert behind is not None

    async def wait() -> None:
        await behind

    waiting = asyncio.create_task(wait())
    await settle()
    assert not waiting.done()
    assert len(await outbox.take()) == 256
    await waiting
    assert outbox.put(Piece(257, (), b"a")) is None
