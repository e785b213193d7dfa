"""From an HTTP request for inference to its answer: streamed as it comes, or put together first.

A failure before the first byte becomes an HTTP status; after it, an error event that ends the stream without `[DONE]`.
"""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Answers
from felloe.domain.requests import Done, Kind, Part, Piece, Usage
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
        call = await self._read_call(kind, exchange)
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

    async def _read_call(self, kind: Kind, exchange: Exchange) -> Call:
        check_media(exchange.header_values(b"content-type"), exchange.header_values(b"content-encoding"))
        terms = Terms(
            token=secrets.token_hex(16),
            created=int(time.time()),
            deadline=self._limits.deadline_seconds,
            reach=chosen_reach(exchange.header_values(b"x-felloe-reach"), self._config.reach),
        )
        body = await exchange.read_body(self._limits.body_bytes)
        match kind:
            case "chat":
                return chat_call(decode_body(body, ChatBody), terms)
            case "completion":
                return completion_call(decode_body(body, CompletionBody), terms)
            case "embedding":
                return embedding_call(decode_body(body, EmbeddingBody), terms)

    async def _answer(self, call: Call, exchange: Exchange, started: float) -> None:
        async with aclosing(answer_call(self._answers, call, self._limits.choices_at_once)) as parts:
            # Nothing is sent before the first part, so that a failure up to there has its own HTTP status.
            first = await anext(parts, None)
            self._metrics.first_token(call.kind, time.monotonic() - started)
            if first is None:
                raise _incomplete()
            if not call.stream:
                usage, body = await self._collect(call, first, parts)
                self._metrics.used(call.kind, usage)
                await exchange.reply(200, body, _JSON)
                return
            self._metrics.active_streams += 1
            try:
                usage = await self._stream(call, first, parts, exchange)
            finally:
                self._metrics.active_streams -= 1
            self._metrics.used(call.kind, usage)

    async def _stream(self, call: Call, first: Part, parts: AsyncGenerator[Part, None], exchange: Exchange) -> Usage:
        await exchange.start_stream()
        done = first if isinstance(first, Done) else None
        if isinstance(first, Piece):
            await exchange.write(with_null_usage(first.frames) if call.include_usage else first.frames)
            async for part in parts:
                if isinstance(part, Done):
                    done = part
                    break
                frames = with_null_usage(part.frames) if call.include_usage else part.frames
                if not exchange.write_now(frames):
                    await exchange.write(frames)
        if done is None:
            raise _incomplete()
        last = usage_event(call, done.usage) + _LAST_EVENT if call.include_usage else _LAST_EVENT
        await exchange.end_stream(last)
        return done.usage

    async def _collect(self, call: Call, first: Part, parts: AsyncGenerator[Part, None]) -> tuple[Usage, bytes]:
        aggregate = Aggregate(call, self._limits.answer_bytes)
        raw: list[bytes] = []
        left = self._limits.answer_bytes
        part = first
        while not isinstance(part, Done):
            if call.kind == "embedding":
                raw.append(part.frames)
                left -= len(part.frames)
                if left < 0:
                    raise FelloeError("upstream_failed", "the answer is larger than this node accepts")
            else:
                aggregate.add(part.frames)
            part = await anext(parts, None)
            if part is None:
                raise _incomplete()
        if call.kind == "embedding":
            return part.usage, render_embeddings(call, b"".join(raw), part.usage)
        return part.usage, aggregate.render(part.usage)


def log_bug(error: BaseException) -> None:
    """Log where an unexpected error happened; its text is left out, because it may hold what a user wrote."""
    _log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))


def _incomplete() -> FelloeError:
    return FelloeError("engine_failed", "the answer ended before it was complete")
