"""The upstream adapter against servers that are odd, slow, broken or hostile."""

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, RequestId
from felloe.domain.requests import Done, InferenceRequest, Piece, TokenResume, Usage
from felloe.engines.discover import discover
from felloe.engines.http_client import Exchange
from felloe.engines.options import Upstream
from felloe.engines.sse import EventSplitter, EventTooLarge
from felloe.engines.upstream import UpstreamServer
from felloe.engines.upstream_stream import AnswerStream, StreamRewriter

Write = Callable[[bytes], Awaitable[None]]
Script = Callable[[Write, bytes, bytes], Awaitable[None]]

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def request(**changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {
        "id": RequestId("chatcmpl-ours"),
        "kind": "chat",
        "model": ModelName("m"),
        "body": {"messages": [{"role": "user", "content": "SECRET PROMPT"}]},
        "created": 7,
        "deadline": 5.0,
        **changes,
    }
    return InferenceRequest(**fields)


def event(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "theirs", "object": "chat.completion.chunk", "created": 1, "model": "t", "choices": choices, **more}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


GOOD = (
    event({"role": "assistant", "content": ""})
    + event({"content": "hel"})
    + event({"content": "lo"})
    + event({}, "stop")
    + event(None, usage={"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}})
    + b"data: [DONE]\n\n"
)


class Fake:
    """A server that answers each request by a script; keeps what it was sent."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.closed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._upstreams: list[UpstreamServer] = []

    async def start(self, script: Script | bytes, **settings: Any) -> UpstreamServer:
        async def fixed(write: Write, head: bytes, body: bytes) -> None:
            assert isinstance(script, bytes)
            await write(script)

        chosen = fixed if isinstance(script, bytes) else script

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.bodies.append(body)
                await chosen(write, head, body)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self.closed.set()
                writer.close()
                self._tasks.discard(task)

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        upstream = UpstreamServer(Upstream(name="fake", base_url=f"http://127.0.0.1:{port}/v1", **settings))
        self._upstreams.append(upstream)
        return upstream

    async def stop(self) -> None:
        for upstream in self._upstreams:
            await upstream.close()
        if self._server is not None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._server.wait_closed()


@pytest.fixture
async def fake() -> AsyncGenerator[Fake, None]:
    made = Fake()
    yield made
    await made.stop()


async def ask(upstream: UpstreamServer, **changes: Any) -> tuple[bytes, Done]:
    frames = b""

    def deliver(piece: Piece) -> None:
        nonlocal frames
        assert piece.ids == ()
        frames += piece.frames

    done = await upstream.answer(request(**changes), deliver)
    return frames, done


async def refused(upstream: UpstreamServer, **changes: Any) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await ask(upstream, **changes)
    assert "SECRET" not in str(caught.value)
    return caught.value


async def test_a_good_answer_is_ours_but_for_its_text(fake: Fake) -> None:
    upstream = await fake.start(STREAM + GOOD)
    frames, done = await ask(upstream)
    events = [json.loads(block[6:]) for block in frames.split(b"\n\n")[:-1]]
    assert {(each["id"], each["created"], each["model"]) for each in events} == {("chatcmpl-ours", 7, "m")}
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in events) == "hello"
    assert done == Done(Usage(prompt=3, completion=2, cached=1), "stop")
    sent = json.loads(fake.bodies[0])
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["model"] == "m"
    assert fake.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_the_key_of_a_variable_is_sent_and_never_told(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    upstream = await fake.start(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", key_variable="THE_KEY")
    error = await refused(upstream)
    assert error.code == "upstream_failed"
    assert b"authorization: Bearer sk-very-secret\r\n" in fake.heads[0]
    assert "sk-very-secret" not in caplog.text + str(error)


async def test_a_key_file_must_be_private(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-file\n")
    path.chmod(0o644)
    with pytest.raises(FelloeError) as caught:
        UpstreamServer(Upstream(name="u", base_url="http://127.0.0.1:1/v1", key_file=path))
    assert caught.value.code == "bad_config"
    path.chmod(0o600)
    upstream = await fake.start(STREAM + GOOD, key_file=path)
    await ask(upstream)
    assert b"authorization: Bearer sk-file\r\n" in fake.heads[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "ftp://host/v1"},
        {"base_url": "host/v1"},
        {"base_url": "http://user:word@host/v1"},
        {"base_url": "http://host/v1?key=1"},
        {"base_url": "http://host:99999/v1"},
        {"base_url": "http://host/v1\r\nx: y"},
        {"base_url": "http://host/v1", "key_variable": "NOT_SET_ANYWHERE"},
        {"base_url": "http://host/v1", "key_file": Path("/nonexistent/key")},
        {"base_url": "http://host/v1", "key_file": Path("/k"), "key_variable": "K"},
    ],
)
async def test_unusable_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(FelloeError) as caught:
        UpstreamServer(Upstream(name="u", **settings))
    assert caught.value.code == "bad_config"


def _status(status: int, body: bytes = b"", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n" % (status, headers, len(body)) + body


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            _status(400, b'{"error":{"message":"you said SECRET","type":"bad","param":"p"}}'),
            "upstream_refused",
        ),
        (_status(400, b'{"error":{"code":"context_length_exceeded"}}'), "context_length_exceeded"),
        (_status(400, b'{"error":{"type":"exceed_context_size_error"}}'), "context_length_exceeded"),
        (_status(400, b"not json SECRET"), "upstream_refused"),
        (_status(403), "upstream_failed"),
        (_status(429, b"", b"retry-after: 3\r\n"), "overloaded"),
        (_status(503), "overloaded"),
        (_status(500, b"SECRET"), "upstream_failed"),
        (_status(302, b"", b"location: http://169.254.169.254/\r\n"), "upstream_failed"),
        (b"no http at all\r\n\r\n", "upstream_failed"),
        (b"", "replica_lost"),
        (STREAM + b"data: {not json}\n\n", "upstream_failed"),
        (STREAM + b"data: [1, 2]\n\n", "upstream_failed"),
        (STREAM + b'data: {"choices":[5]}\n\n', "upstream_failed"),
        (STREAM + b"data: " + b"[" * 100_000 + b"\n\n", "upstream_failed"),
        (STREAM + b"data: \xff\xfe\n\n", "upstream_failed"),
        (STREAM + event({"content": "a"}) + b'data: {"error":{"message":"SECRET"}}\n\n', "upstream_failed"),
        (STREAM + event({"content": "a"}) + b"data: [DONE]\n\n", "upstream_failed"),
        (STREAM + event({"content": "a"}), "replica_lost"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nda", "replica_lost"),
        (STREAM + b"x" * 9_000_000, "upstream_failed"),
    ],
)
async def test_a_bad_answer_is_a_clear_failure(fake: Fake, answer: bytes, code: str) -> None:
    error = await refused(await fake.start(answer))
    assert error.code == code


async def test_the_wait_that_a_busy_upstream_asks_for_is_told(fake: Fake) -> None:
    error = await refused(await fake.start(_status(429, b"", b"retry-after: 3\r\n")))
    assert error.retry_after == 3


async def test_identifiers_of_a_refusal_are_told_its_words_are_not(fake: Fake) -> None:
    answer = _status(400, b'{"error":{"message":"you said SECRET","code":"bad_sampler","param":"top_p"}}')
    error = await refused(await fake.start(answer))
    assert "bad_sampler" in error.detail
    assert error.param == "top_p"


async def test_a_silent_stream_is_given_up(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM + event({"content": "a"}))
        await asyncio.Event().wait()

    error = await refused(await fake.start(script, silence_seconds=0.05))
    assert error.code == "deadline_exceeded"


async def test_an_endless_stream_ends_at_the_deadline(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM)
        while True:
            await write(event({"content": "a"}))

    error = await refused(await fake.start(script), deadline=0.1)
    assert error.code == "deadline_exceeded"


async def test_closing_the_answer_closes_the_connection(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM)
        while True:
            await write(event({"content": "a" * 1000}))
            await asyncio.sleep(0.001)

    upstream = await fake.start(script)
    came: asyncio.Queue[Piece] = asyncio.Queue()
    answering = asyncio.create_task(upstream.answer(request(), came.put_nowait))
    assert isinstance(await came.get(), Piece)
    answering.cancel()
    await asyncio.wait_for(fake.closed.wait(), 0.5)
    with pytest.raises(asyncio.CancelledError):
        await answering


async def test_an_error_of_the_reader_ends_the_answer_and_closes_the_connection(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM)
        while True:
            await write(event({"content": "a"}))
            await asyncio.sleep(0.001)

    def deliver(piece: Piece) -> None:
        raise ZeroDivisionError

    upstream = await fake.start(script)
    with pytest.raises(ZeroDivisionError):
        await upstream.answer(request(), deliver)
    await asyncio.wait_for(fake.closed.wait(), 0.5)


async def test_a_reader_that_is_behind_is_waited_for(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM)
        for _ in range(10):
            await write(event({"content": "a"}))
            await asyncio.sleep(0)
        await write(event({}, "stop") + b"data: [DONE]\n\n")

    behind = False
    frames = b""

    async def catch_up() -> None:
        nonlocal behind
        await asyncio.sleep(0.001)
        behind = False

    def deliver(piece: Piece) -> Awaitable[None]:
        nonlocal behind, frames
        assert not behind
        behind = True
        frames += piece.frames
        return catch_up()

    upstream = await fake.start(script)
    done = await upstream.answer(request(), deliver)
    assert not behind
    assert done.finish_reason == "stop"
    assert frames.count(b'"content":"a"') == 10


async def test_done_without_a_reason_is_a_failure_though_the_body_does_not_end(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM + event({"content": "a"}) + b"data: [DONE]\n\n")
        await asyncio.Event().wait()

    error = await refused(await fake.start(script))
    assert error.code == "upstream_failed"


async def test_after_done_the_end_of_the_body_is_waited_for_a_moment(fake: Fake) -> None:
    async def script(write: Write, head: bytes, body: bytes) -> None:
        await write(STREAM + GOOD)
        await asyncio.Event().wait()

    upstream = await fake.start(script)
    _, done = await asyncio.wait_for(ask(upstream), 1)
    assert done.finish_reason == "stop"


async def test_a_stream_that_ends_without_done_after_its_reason_is_complete(fake: Fake) -> None:
    upstream = await fake.start(STREAM + event({"role": "assistant", "content": "a"}) + event({}, "stop"))
    _, done = await ask(upstream)
    assert done.finish_reason == "stop"


async def test_token_ids_are_nothing_an_upstream_can_go_on_from(fake: Fake) -> None:
    error = await refused(await fake.start(STREAM + GOOD), resume=TokenResume((1,)))
    assert error.code == "resume_diverged"
    assert fake.heads == []


async def test_only_usable_model_names_are_listed(fake: Fake) -> None:
    listing = json.dumps({"data": [{"id": "good:7b"}, {"id": "../../etc"}, {"id": ""}, {"id": "x" * 500}]}).encode()
    upstream = await fake.start(_status(200, listing))
    assert [model.id for model in await upstream.models()] == ["good:7b"]


@pytest.mark.parametrize(
    "answer",
    [
        _status(200, b"{}"),
        _status(200, b'{"data":[{"id":5}]}'),
        _status(200, json.dumps({"data": [{"id": f"m{n}"} for n in range(1001)]}).encode()),
        _status(404),
        b"",
    ],
)
async def test_an_unreadable_list_is_a_failure(fake: Fake, answer: bytes) -> None:
    upstream = await fake.start(answer)
    with pytest.raises(FelloeError) as caught:
        await upstream.models()
    assert caught.value.code == "upstream_failed"


async def test_known_servers_are_found_and_silent_addresses_are_not(fake: Fake) -> None:
    await fake.start(_status(200, b'{"data":[{"id":"llama3"}]}'))
    assert fake._server is not None
    port = fake._server.sockets[0].getsockname()[1]
    found = await discover((("ollama", f"http://127.0.0.1:{port}/v1"), ("lm-studio", "http://127.0.0.1:1/v1")))
    assert [(each.upstream.name, each.models) for each in found] == [("ollama", ("llama3",))]


def _payload(frame: bytes) -> bytes:
    return frame.removeprefix(b"data: ").removesuffix(b"\n\n")


def test_an_event_that_only_changes_three_fields_is_not_read_again() -> None:
    rewriter = StreamRewriter(request())
    rewriter.frame(_payload(event({"role": "assistant", "content": ""})))
    odd = b'{"id":"theirs","created":1,"model":"t","choices":[{"index":0,"delta":{"content":"\\"id\\":\\"theirs\\""},'
    frame = rewriter.frame(odd + b'"finish_reason":null}], "kept" : 1.50 }')
    assert b'"kept" : 1.50' in frame
    assert frame.startswith(b'data: {"id":"chatcmpl-ours","created":7,"model":"m",')
    assert b'\\"id\\":\\"theirs\\"' in frame


def test_a_field_that_changes_in_mid_stream_is_learned_again() -> None:
    rewriter = StreamRewriter(request())
    for created in (1, 1, 2, 2, 3):
        payload = _payload(event({"content": "x"})).replace(b'"created":1', b'"created":%d' % created)
        assert json.loads(_payload(rewriter.frame(payload).split(b"\n\n")[-2] + b"\n\n"))["created"] == 7


# How servers write an event around `%b`: the choice's inner part and its finish reason.
LAYOUTS = {
    "vllm": b'{"id":"theirs","object":"x","created":1,"model":"t","choices":[{"index":0,%b,"logprobs":null}]}',
    "ollama": b'{"id":"theirs","object":"x","created":1,"model":"t","system":"f","choices":[{"index":0,%b}]}',
    "llama.cpp": b'{"choices":[{"index":0,%b}],"created":1,"id":"theirs","model":"t","object":"x"}',
    "mixed": b'{"id": "theirs", "choices":[{"index": 0, %b}], "model": "t", "x": [1], "created": 1}',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_events_pass_with_their_bytes_however_a_server_writes_them(layout: str) -> None:
    rewriter = StreamRewriter(request())
    running = b'"delta":{"role":"assistant","content":"\\u00e9 \xc3\xa9"},"finish_reason":null'
    ending = b'"delta":{},"finish_reason":"stop"'
    for number, inner in enumerate([running, running, running, ending], 1):
        theirs = LAYOUTS[layout] % inner
        ours = theirs.replace(b'"theirs"', b'"chatcmpl-ours"').replace(b'"t"', b'"m"')
        ours = ours.replace(b'"created":1', b'"created":7').replace(b'"created": 1', b'"created": 7')
        assert rewriter.frame(theirs) == b"data: " + ours + b"\n\n"
        assert rewriter.number == number
    assert rewriter.finish_reason == "stop"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_when_created_moves_on_the_bytes_stay(layout: str) -> None:
    """A replay compares bytes, and it is another second then."""
    inner = b'"delta":{"role":"assistant","content":"\\u003c"},"finish_reason":null'
    steady, moving = StreamRewriter(request()), StreamRewriter(request())
    for second in (1, 1, 2, 3, 3, 10):
        theirs = LAYOUTS[layout] % inner
        moved = theirs.replace(b'"created":1', b'"created":%d' % second)
        assert moving.frame(moved.replace(b'"created": 1', b'"created": %d' % second)) == steady.frame(theirs)


@pytest.mark.parametrize("smuggled", [b"\r\n", b"\r", b"\n", b"\revent: x\rdata: y"])
def test_no_second_line_passes_in_an_event(smuggled: bytes) -> None:
    rewriter = StreamRewriter(request())
    good = _payload(event({"role": "assistant", "content": "x"}))
    rewriter.frame(good)
    for bad in (good[:-1] + smuggled + b"}", good.replace(b'"x"', b'"x%b"' % smuggled)):
        try:
            frame = rewriter.frame(bad)
        except FelloeError as error:
            assert error.code == "upstream_failed"
        else:
            assert b"\r" not in frame
            assert frame.count(b"\n") == 2


def test_another_index_is_written_into_every_event() -> None:
    rewriter = StreamRewriter(request(index=2))
    frames = b"".join(rewriter.frame(_payload(event({"role": "assistant", "content": "x"}))) for _ in range(3))
    events = [json.loads(block[6:]) for block in frames.split(b"\n\n")[:-1]]
    assert [each["choices"][0]["index"] for each in events] == [2, 2, 2]


def test_a_missing_role_is_added_once() -> None:
    rewriter = StreamRewriter(request())
    frames = rewriter.frame(_payload(event({"content": "a"}))) + rewriter.frame(_payload(event({"content": "b"})))
    events = [json.loads(block[6:]) for block in frames.split(b"\n\n")[:-1]]
    assert [each["choices"][0]["delta"] for each in events] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_events_are_found_however_the_bytes_are_cut(size: int) -> None:
    stream = b": ping\n\ndata: one\n\nevent: x\r\ndata: two\r\ndata:three\r\n\r\ndata: \xf0\x9f\x98\x80\n\n"
    splitter = EventSplitter()
    found: list[bytes] = []
    for at in range(0, len(stream), size):
        found += splitter.feed(stream[at : at + size])
    assert found == [b"one", b"two\nthree", "😀".encode()]


def test_an_event_without_end_is_refused() -> None:
    splitter = EventSplitter(limit=1000)
    with pytest.raises(EventTooLarge):
        for _ in range(20):
            splitter.feed(b"x" * 100)


@given(cuts=st.lists(st.integers(0, 2000), max_size=12), layout=st.sampled_from(sorted(LAYOUTS)))
def test_the_answer_is_the_same_however_its_bytes_are_cut(cuts: list[int], layout: str) -> None:
    inners = [b'"delta":{"role":"assistant","content":"%d \\n"},"finish_reason":null' % each for each in range(5)]
    payloads = [LAYOUTS[layout] % each for each in (*inners, b'"delta":{},"finish_reason":"stop"')]
    stream = b"".join(b"data: " + each + b"\n\n" for each in (*payloads, b"[DONE]")) + b"data: {never read"
    whole = StreamRewriter(request())
    expected = b"".join(whole.frame(each) for each in payloads)
    delivered: list[Piece] = []
    answer = AnswerStream(request(), cast(Exchange, _Complete()), delivered.append)
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        assert answer.consume(stream[start:end]) is None
    assert b"".join(piece.frames for piece in delivered) == expected
    assert delivered[-1].number == answer.number == len(payloads)
    assert (answer.closed, answer.finish_reason) == (True, "stop")


def test_an_event_that_follows_half_an_event_does_not_pass() -> None:
    answer = AnswerStream(request(), cast(Exchange, _Complete()), lambda _: None)
    whole = event({"role": "assistant", "content": "x"})
    for data in (whole, whole, b"data: {never "):
        answer.consume(data)
    with pytest.raises(FelloeError):
        answer.consume(whole)


class _Complete:
    """Stands for an exchange whose body has ended."""

    complete = True
