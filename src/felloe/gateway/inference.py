"""From an HTTP request for inference to its answer: streamed as it comes, or put together first.

A failure before the first byte becomes an HTTP status; after it, an error event that ends the stream without `[DONE]`.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Answers
from felloe.domain.requests import Kind, Piece, Usage
from felloe.gateway.aggregate import Aggregate, usage_event, with_null_usage
from felloe.gateway.config import GatewayConfig
from felloe.gateway.decode import decode_body
from felloe.gateway.embedding import render_embeddings
from felloe.gateway.errors import RawHeaders, error_event
from felloe.gateway.exchange import ClientGone, Exchange
from felloe.gateway.merge import answer_call
from felloe.gateway.metrics import Metrics
from felloe.gateway.requests import ChatBody, CompletionBody, EmbeddingBody
from felloe.gateway.rules import (
    Call,
    Terms,
    chat_call,
    check_media,
    chosen_reach,
    completion_call,
    embedding_call,
    preferred_wait,
)

_log = logging.getLogger(__name__)
_JSON: RawHeaders = [(b"content-type", b"application/json")]
_LAST_EVENT = b"data: [DONE]\n\n"


class _Running(Struct, eq=False):
    """An answer under way; `cause` says why its task was cancelled, if it was cancelled from here."""

    task: "asyncio.Task[None]"
    cause: Exception | None = None

    def end(self, cause: Exception) -> None:
        if self.cause is None:
            self.cause = cause
            self.task.cancel()


class Inference:
    """Carries out calls and is the one owner of the set of running ones."""

    def __init__(self, config: GatewayConfig, answers: Answers, metrics: Metrics) -> None:
        self._config = config
        self._limits = config.limits
        self._answers = answers
        self._metrics = metrics
        self._running: set[_Running] = set()
        self._draining = False
        self._body_bytes = 0

    async def serve(self, kind: Kind, exchange: Exchange) -> None:
        """Answer one request. Raises `FelloeError` while the answer has not begun, `ClientGone` at any time."""
        started = time.monotonic()
        code = "internal"
        self._metrics.active += 1
        try:
            await self._serve(kind, exchange, started)
            code = "ok"
        except ClientGone:
            code = "client_gone"
            raise
        except FelloeError as error:
            code = error.code
            await self._fail(exchange, error)
        except Exception as error:
            log_bug(error)
            await self._fail(exchange, FelloeError("internal", "this request met a bug"))
        finally:
            self._metrics.active -= 1
            self._metrics.request_ended(kind, code, time.monotonic() - started)

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls, wait for running ones, then fail those that are left with `draining`."""
        self._draining = True
        tasks = [running.task for running in self._running]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for running in tuple(self._running):
            running.end(FelloeError("draining", "this node is stopping"))

    async def _fail(self, exchange: Exchange, error: FelloeError) -> None:
        if not exchange.started:
            raise error
        self._metrics.stream_failed(error.code)
        await exchange.end_stream(error_event(error))

    async def _serve(self, kind: Kind, exchange: Exchange, started: float) -> None:
        own_bytes = 0

        def reserve(size: int) -> None:
            nonlocal own_bytes
            if self._body_bytes + size > self._limits.all_bodies_bytes:
                raise FelloeError("overloaded", "too many large requests are being answered", retry_after=1.0)
            own_bytes += size
            self._body_bytes += size

        try:
            call = await self._read_call(kind, exchange, reserve)
            await self._carry_out(call, exchange, started)
        finally:
            self._body_bytes -= own_bytes

    async def _carry_out(self, call: Call, exchange: Exchange, started: float) -> None:
        if self._draining:
            raise FelloeError("draining", "this node is stopping")
        # A task of its own, because each event resumes every coroutine between its task and the engine, and the HTTP
        # server's task is a dozen coroutines deep.
        running = _Running(asyncio.create_task(self._answer(call, exchange, started)))
        self._running.add(running)
        try:
            with exchange.watched(lambda: running.end(ClientGone())):
                await running.task
        except asyncio.CancelledError:
            if running.cause is None:
                raise
            raise running.cause from None
        finally:
            self._running.discard(running)

    async def _read_call(self, kind: Kind, exchange: Exchange, reserve: Callable[[int], None]) -> Call:
        check_media(exchange.header_values(b"content-type"), exchange.header_values(b"content-encoding"))
        terms = Terms(
            token=secrets.token_hex(16),
            created=int(time.time()),
            deadline=self._limits.deadline_seconds,
            reach=chosen_reach(exchange.header_values(b"x-felloe-reach"), self._config.reach),
            wait=preferred_wait(exchange.header_values(b"prefer"), self._limits.deadline_seconds),
        )
        body = await exchange.read_body(self._limits.body_bytes, reserve)
        match kind:
            case "chat":
                return chat_call(decode_body(body, ChatBody), terms)
            case "completion":
                return completion_call(decode_body(body, CompletionBody), terms)
            case "embedding":
                return embedding_call(decode_body(body, EmbeddingBody), terms)

    async def _answer(self, call: Call, exchange: Exchange, started: float) -> None:
        def on_first() -> None:
            self._metrics.first_token(call.kind, time.monotonic() - started)

        if call.stream:
            self._metrics.active_streams += 1
            try:
                usage = await self._stream(call, exchange, on_first)
            finally:
                self._metrics.active_streams -= 1
        else:
            usage, body = await self._collect(call, on_first)
            await exchange.reply(200, body, _JSON)
        self._metrics.used(call.kind, usage)

    async def _stream(self, call: Call, exchange: Exchange, on_first: Callable[[], None]) -> Usage:
        writer = _StreamWriter(exchange, on_first, null_usage=call.include_usage)
        done = await answer_call(self._answers, call, self._limits.choices_at_once, writer.deliver)
        last = usage_event(call, done.usage) + _LAST_EVENT if call.include_usage else _LAST_EVENT
        await writer.end(last)
        return done.usage

    async def _collect(self, call: Call, on_first: Callable[[], None]) -> tuple[Usage, bytes]:
        aggregate = Aggregate(call, self._limits.answer_bytes)
        raw: list[bytes] = []
        left = self._limits.answer_bytes
        waiting = True

        def deliver(piece: Piece) -> None:
            nonlocal waiting, left
            if waiting:
                waiting = False
                on_first()
            if call.kind != "embedding":
                aggregate.add(piece.frames)
                return
            raw.append(piece.frames)
            left -= len(piece.frames)
            if left < 0:
                raise FelloeError("upstream_failed", "the answer is larger than this node accepts")

        done = await answer_call(self._answers, call, self._limits.choices_at_once, deliver)
        if call.kind == "embedding":
            return done.usage, render_embeddings(call, b"".join(raw), done.usage)
        return done.usage, aggregate.render(done.usage)


class _StreamWriter:
    """Writes pieces to the client as they come.

    The stream begins with the first one and not before, so that a failure up to there has its own HTTP status.
    """

    def __init__(self, exchange: Exchange, on_first: Callable[[], None], *, null_usage: bool) -> None:
        self._exchange = exchange
        self._on_first = on_first
        self._null_usage = null_usage
        self._begun = False
        # Several choices may find the client slow at once; they go on in the order in which they came.
        self._slow = asyncio.Lock()

    def deliver(self, piece: Piece) -> Awaitable[None] | None:
        """Write at once when the client takes it, else tell the answer to wait."""
        frames = with_null_usage(piece.frames) if self._null_usage else piece.frames
        if self._begun and not self._slow.locked() and self._exchange.write_now(frames):
            return None
        return self._write(frames)

    async def end(self, events: bytes) -> None:
        """Write the last events; they are the first ones where an answer had no piece."""
        await self._begin()
        await self._exchange.end_stream(events)

    async def _write(self, frames: bytes) -> None:
        async with self._slow:
            await self._begin()
            await self._exchange.write(frames)

    async def _begin(self) -> None:
        if not self._begun:
            self._on_first()
            await self._exchange.start_stream()
            self._begun = True


def log_bug(error: BaseException) -> None:
    """Log where an unexpected error happened; its text is left out, because it may hold what a user wrote."""
    _log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
