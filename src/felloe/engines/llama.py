"""The llama.cpp engine: plain answers token by token with their ids, the rest by way of `llama_structured`.

A plain chat is rendered by the engine's template and sent as a completion, because only completions tell token ids;
with them an answer goes on elsewhere exactly where it broke (`TokenResume`).
"""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece, TokenResume, Usage
from felloe.engines import llama_api
from felloe.engines.http_client import Exchange, HttpClient, HttpError
from felloe.engines.llama_api import Properties
from felloe.engines.llama_embedding import embed
from felloe.engines.llama_request import Body, ChatBody, native_body, read_chat, read_completion
from felloe.engines.llama_structured import needs_structure, structured_answer
from felloe.engines.logprobs import chat_logprobs, completion_logprobs
from felloe.engines.rendering import frames_for
from felloe.engines.sse import EventSplitter, EventTooLarge
from felloe.engines.token_ledger import Chunk, Release, TokenLedger, fill_unknown

# From 64 tokens in a batch on, llama.cpp's attention takes another kernel on the processor (with an f16 cache), whose
# rounding may tip a close choice.
_CATCH_UP_TOKENS = 63
_STREAM_LIMIT = 1024 * 1024 * 1024
_TOKENIZE_SECONDS = 5.0


class _Timings(msgspec.Struct):
    cache_n: int = 0


class _LastChunk(msgspec.Struct):
    """What only the chunk tells that ends an answer."""

    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    timings: _Timings = msgspec.field(default_factory=_Timings)


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_last_chunk = msgspec.json.Decoder(_LastChunk).decode


class RunningEngine(NamedTuple):
    """A ready engine child. With `catching_up`, one resumed greedy answer at a time prepares its cache there."""

    client: HttpClient
    properties: Properties
    catching_up: asyncio.Lock


async def llama_answer(engine: RunningEngine, request: InferenceRequest, deliver: Deliver, seconds: float) -> Done:
    """Answer one request on a ready engine within `seconds`; raises `FelloeError`."""
    client, properties = engine.client, engine.properties
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        if request.kind == "embedding":
            return await embed(client, request, deliver, seconds)
        body = read_chat(request.body) if request.kind == "chat" else read_completion(request.body)
        _check_limit(body, properties)
        if isinstance(body, ChatBody) and needs_structure(body, properties):
            return await structured_answer(client, properties, request, body, deliver, seconds)
        return await _PlainAnswer(engine, request, body, deliver, deadline).answer()
    except HttpError as error:
        raise llama_api.lost_or_late(error) from error
    except EventTooLarge as error:
        raise FelloeError("engine_failed", "the engine sent an event that is too large") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FelloeError("engine_failed", "the engine sent an event that cannot be read") from error


def _check_limit(body: Body, properties: Properties) -> None:
    context = properties.default_generation_settings.n_ctx
    if body.limit is not None and body.limit > context:
        param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        detail = f"{body.limit} tokens are asked for; the model holds {context} here, prompt included"
        raise FelloeError("context_length_exceeded", detail, param=param)


class _PlainAnswer:
    """One choice by way of /completion."""

    def __init__(
        self, engine: RunningEngine, request: InferenceRequest, body: Body, deliver: Deliver, deadline: float
    ) -> None:
        self._client = engine.client
        self._catching_up = engine.catching_up
        self._context = engine.properties.default_generation_settings.n_ctx
        self._request = request
        self._body = body
        self._deliver = deliver
        self._deadline = deadline
        self._param = "messages" if isinstance(body, ChatBody) else "prompt"
        self._done_ids = request.resume.ids if isinstance(request.resume, TokenResume) else ()
        self._frames = frames_for(request)
        self._exchange: Exchange | None = None
        self._splitter = EventSplitter()
        self._ledger = TokenLedger(len(self._done_ids))
        self._ids_known = True
        self._role_due = isinstance(body, ChatBody) and not self._done_ids
        self._text_length = 0
        self._wants_logprobs = bool(body.logprobs) if isinstance(body, ChatBody) else body.logprobs is not None
        self._done: Done | None = None

    def _seconds_left(self) -> float:
        return max(0.001, self._deadline - asyncio.get_running_loop().time())

    async def answer(self) -> Done:
        prompt = await self._prompt()
        if self._done_ids:
            prompt = await self._continued(prompt)
            limit = self._body.limit
            if len(prompt) >= self._context or (limit is not None and len(self._done_ids) >= limit):
                # The broken answer had come to its end; only that could not be said any more.
                piece, done = self._ending("length", len(prompt), 0, 0)
                behind = self._deliver(piece)
                if behind is not None:
                    await behind
                return done
        body = msgspec.json.encode(native_body(self._body, self._request, prompt))
        # The engine drops a second request on a connection that carried a stream, so it is not used again.
        with await self._client.request(
            "POST",
            "/completion",
            body,
            seconds=self._seconds_left(),
            body_limit=_STREAM_LIMIT,
            reuse=False,
        ) as exchange:
            await llama_api.raise_for_status(exchange, self._param)
            self._exchange = exchange
            await exchange.pump(self._consume)
        if self._done is None:
            raise HttpError("broken", "the stream ended without an end")
        return self._done

    async def _prompt(self) -> str | list[int]:
        body = self._body
        if not isinstance(body, ChatBody):
            return body.prompt
        fields = {"messages": body.messages}
        for name in ("tools", "chat_template_kwargs", "reasoning_effort"):
            if (value := getattr(body, name)) is not None:
                fields[name] = value
        try:
            return await llama_api.apply_template(self._client, fields, self._seconds_left())
        except FelloeError as error:
            raise FelloeError(error.code, error.detail, param="messages") from error

    async def _continued(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            prompt = await llama_api.tokenize(self._client, prompt, as_prompt=True, seconds=self._seconds_left())
        if len(prompt) >= self._context:
            detail = f"the prompt has {len(prompt)} tokens; the model holds {self._context} here"
            raise FelloeError("context_length_exceeded", detail, param=self._param)
        if self._wants_logprobs and not isinstance(self._body, ChatBody):
            self._text_length = len(await llama_api.detokenize(self._client, self._done_ids, self._seconds_left()))
        if self._body.temperature == 0:
            await self._catch_up(prompt)
        return [*prompt, *self._done_ids]

    async def _catch_up(self, prompt: list[int]) -> None:
        """Bring the engine's cache to where the broken answer was, in the steps in which it came to be.

        One large batch would do for sampled answers. A greedy answer must come out as if it had never been broken, so
        the prompt is taken as one batch, as it was, and the answer's ids after it in small ones. One answer at a time,
        because the engine would make one large batch of several small ones.
        """
        count = min(len(self._done_ids), self._context - len(prompt) - 1)
        for end in (*range(0, count, _CATCH_UP_TOKENS), count):
            body = {"prompt": [*prompt, *self._done_ids[:end]], "n_predict": 0, "cache_prompt": True}
            async with self._catching_up:
                await llama_api.call(self._client, "/completion", body, self._seconds_left())

    def _consume(self, data: bytes) -> Awaitable[None] | None:
        """Deliver what one read of the engine's socket brought."""
        releases: list[Release] = []
        last: _LastChunk | None = None
        unknown = False
        for event in self._splitter.feed(data):
            chunk = _decode_chunk(event)
            if chunk.tokens_predicted == 0 and not chunk.stop:
                raise FelloeError("engine_failed", "the engine broke the answer off with an error")
            release = self._ledger.add(chunk)
            if release is not None:
                releases.append(release)
                unknown = unknown or None in release.ids
            if chunk.stop:
                last = _decode_last_chunk(event)
                break
        if unknown and self._ids_known:
            return self._deliver_with_unknown(releases, last)
        return self._deliver_all(releases, last)

    async def _deliver_with_unknown(self, releases: list[Release], last: _LastChunk | None) -> None:
        known = [release._replace(ids=await self._look_up(release)) for release in releases]
        behind = self._deliver_all(known, last)
        if behind is not None:
            await behind

    async def _look_up(self, release: Release) -> tuple[int | None, ...]:
        """All ids of a release. When they cannot be found, no ids are told from then on."""
        if None not in release.ids or not self._ids_known:
            return release.ids
        found = None
        if "\ufffd" not in release.text:  # it stands for bytes that are no text, so their tokens are not in it
            seconds = min(_TOKENIZE_SECONDS, self._seconds_left())
            candidate = await llama_api.tokenize(self._client, release.text, as_prompt=False, seconds=seconds)
            found = fill_unknown(release.ids, candidate)
        self._ids_known = found is not None
        return found or release.ids

    def _deliver_all(self, releases: list[Release], last: _LastChunk | None) -> Awaitable[None] | None:
        frames = b"".join([self._render(release) for release in releases])
        ids = _told(releases) if self._ids_known else ()
        if last is None:
            return self._deliver(Piece(self._ledger.number, ids, frames)) if frames else None
        reason = "length" if last.stop_type == "limit" else "stop"
        piece, self._done = self._ending(reason, last.tokens_evaluated, last.tokens_predicted, last.timings.cache_n)
        if self._exchange is not None:
            self._exchange.stop()
        known = (*ids, *piece.ids) if self._ids_known else ()
        return self._deliver(Piece(piece.number, known, frames + piece.frames))

    def _render(self, release: Release) -> bytes:
        role = self._frames.role() if self._role_due else b""
        self._role_due = False
        if not self._wants_logprobs:
            return role + self._frames.text(release.text)
        if isinstance(self._body, ChatBody):
            logprobs = chat_logprobs(release.probabilities, self._body.top_logprobs or 0)
        else:
            logprobs = completion_logprobs(release.probabilities, self._body.logprobs or 0, self._text_length)
        self._text_length += len(release.text)
        return role + self._frames.text_with_logprobs(release.text, logprobs)

    def _ending(self, reason: str, evaluated: int, predicted: int, cached: int) -> tuple[Piece, Done]:
        """The last piece, with what was still held back and the finish frame, and the accounts."""
        done = len(self._done_ids)
        rest = self._ledger.finish()
        frames = self._render(rest) if rest is not None else b""
        if self._role_due:
            frames = self._frames.role()
        prompt = evaluated - done
        usage = Usage(prompt=prompt, completion=done + predicted, cached=min(cached, prompt))
        self._ids_known = self._ids_known and (rest is None or None not in rest.ids)
        ids = tuple(each for each in rest.ids if each is not None) if rest is not None and self._ids_known else ()
        return Piece(done + predicted, ids, frames + self._frames.finish(reason)), Done(usage, reason)


def _told(releases: Sequence[Release]) -> tuple[int, ...]:
    return tuple([each for release in releases for each in release.ids if each is not None])
