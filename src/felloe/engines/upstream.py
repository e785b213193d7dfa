"""Any server that speaks the OpenAI API: llama-server, Ollama, vLLM, LM Studio, a hosted one.

Its address comes from the node's owner alone, redirects are not followed, and its own error texts are not repeated,
because they may quote the prompt. It tells no token ids, so answers resume by replay.
"""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, is_model_name
from felloe.domain.models import Model
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece, TokenResume, Usage
from felloe.engines.http_client import Exchange, HttpClient, HttpError
from felloe.engines.options import Upstream
from felloe.engines.rendering import embedding_answer
from felloe.engines.sse import EventTooLarge
from felloe.engines.upstream_address import address_of, key_of
from felloe.engines.upstream_stream import AnswerStream

_LIST_SECONDS = 5.0
_LIST_LIMIT = 4 * 1024 * 1024
_MODELS_LIMIT = 1000
_STREAM_LIMIT = 256 * 1024 * 1024
_PATHS = {"chat": "/chat/completions", "completion": "/completions", "embedding": "/embeddings"}
_PARAMS = {"chat": "messages", "completion": "prompt", "embedding": "input"}
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class _Meta(Struct):
    n_ctx: int = 0
    n_params: int = 0
    size: int = 0


class ListedModel(Struct):
    """One entry of /v1/models: OpenAI's fields, vLLM's `max_model_len`, llama-server's `meta`."""

    id: str
    created: int | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None


class _Listing(Struct):
    data: Annotated[list[ListedModel], Meta(max_length=_MODELS_LIMIT)]


class _Vector(Struct):
    embedding: Raw
    index: int = 0


class _EmbeddingUsage(Struct):
    prompt_tokens: int = 0


class _EmbeddingAnswer(Struct):
    data: list[_Vector]
    usage: _EmbeddingUsage = msgspec.field(default_factory=_EmbeddingUsage)


class _Error(Struct):
    type: Any = None
    code: Any = None
    param: Any = None


class _ErrorAnswer(Struct):
    error: _Error


class UpstreamServer:
    """One upstream. Raises `bad_config` when its address or key cannot be used."""

    def __init__(self, upstream: Upstream) -> None:
        self._silence_seconds = upstream.silence_seconds
        self._name = upstream.name
        address, prefix = address_of(upstream)
        key = key_of(upstream)
        self._client = HttpClient(address, prefix=prefix, headers={"authorization": f"Bearer {key}"} if key else None)

    async def models(self) -> list[ListedModel]:
        """What the server offers under names that can be used here; raises `upstream_failed`."""
        try:
            with await self._client.request(
                "GET", "/models", seconds=_LIST_SECONDS, body_limit=_LIST_LIMIT
            ) as exchange:
                answer = await exchange.read_all()
                if exchange.status != 200:
                    raise self._failed(f"it answered GET /models with status {exchange.status}")
            found = msgspec.json.decode(answer, type=_Listing).data
        except HttpError as error:
            raise self._failed(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed("its list of models cannot be read") from error
        return [model for model in found if is_model_name(model.id)]

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Answer one request; a replay is answered from its start."""
        if isinstance(request.resume, TokenResume) and request.resume.ids:
            raise FelloeError("resume_diverged", "an upstream server cannot go on from token ids")
        body: dict[str, Any] = {**request.body, "model": request.model}
        if request.kind != "embedding":
            body.update(stream=True, stream_options={"include_usage": True})
        try:
            with await self._client.request(
                "POST",
                _PATHS[request.kind],
                msgspec.json.encode(body),
                seconds=request.deadline,
                silence_seconds=self._silence_seconds,
                body_limit=_STREAM_LIMIT,
            ) as exchange:
                if exchange.status != 200:
                    raise self._refusal(exchange, await exchange.read_all(), request)
                if request.kind == "embedding":
                    return await self._vectors(exchange, request, deliver)
                return await self._stream(exchange, request, deliver)
        except HttpError as error:
            raise self._lost(error) from error
        except EventTooLarge as error:
            raise self._failed("it sent an event that is too large") from error

    async def close(self) -> None:
        await self._client.close()

    async def _stream(self, exchange: Exchange, request: InferenceRequest, deliver: Deliver) -> Done:
        stream = AnswerStream(request, exchange, deliver)
        try:
            await exchange.pump(stream.consume)
        except HttpError:
            if not stream.finish_reason and not stream.closed:
                raise
            # All was said; only the epilogue is missing.
        if not stream.finish_reason:
            if stream.closed:
                raise self._failed("it ended the answer without a finish reason")
            raise FelloeError("replica_lost", f"the upstream {self._name} closed the stream in mid-answer")
        return Done(stream.usage or Usage(prompt=0, completion=stream.number), stream.finish_reason)

    async def _vectors(self, exchange: Exchange, request: InferenceRequest, deliver: Deliver) -> Done:
        try:
            answer = msgspec.json.decode(await exchange.read_all(), type=_EmbeddingAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed("its embeddings cannot be read") from error
        usage = Usage(prompt=answer.usage.prompt_tokens)
        vectors = [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]
        behind = deliver(Piece(1, (), embedding_answer(request, vectors, usage)))
        if behind is not None:
            await behind
        return Done(usage, "stop")

    def _failed(self, reason: str) -> FelloeError:
        return FelloeError("upstream_failed", f"the upstream {self._name}: {reason}")

    def _lost(self, error: HttpError) -> FelloeError:
        if error.kind == "timeout":
            return FelloeError("deadline_exceeded", f"the upstream {self._name}: {error}")
        if error.kind in ("broken", "connect"):
            return FelloeError("replica_lost", f"the upstream {self._name}: {error}")
        return self._failed(str(error))

    def _refusal(self, exchange: Exchange, answer: bytes, request: InferenceRequest) -> FelloeError:
        """Our error for the server's. Of its words only identifiers are repeated."""
        status = exchange.status
        try:
            error = msgspec.json.decode(answer, type=_ErrorAnswer).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = _Error()
        words = {name: _identifier(getattr(error, name)) for name in ("type", "code", "param")}
        if "exceed_context_size_error" in words.values() or words["code"] == "context_length_exceeded":
            detail = f"the upstream {self._name} has no room for this prompt"
            return FelloeError("context_length_exceeded", detail, param=_PARAMS[request.kind])
        named = ", ".join(f"{name} {word}" for name, word in words.items() if word)
        reason = f"it answered status {status}" + (f" ({named})" if named else "")
        if status in (401, 403):
            return self._failed(f"{reason}: it refuses the API key")
        if status in (429, 503):
            retry_after = _seconds(exchange.header(b"retry-after"))
            return FelloeError("overloaded", f"the upstream {self._name}: {reason}", retry_after=retry_after)
        if 400 <= status < 500:
            return FelloeError("upstream_refused", f"the upstream {self._name}: {reason}", param=words["param"] or None)
        if 300 <= status < 400:
            return self._failed(f"{reason}: redirects are not followed")
        return self._failed(reason)


def as_model(listed: ListedModel, seen_at: int) -> Model:
    """What is known of an upstream's model. What it can do, only it knows, so nothing is refused beforehand.

    A server that does not say when the model was made has it made when it was first seen (Unix seconds): OpenAI clients
    sort by that, and 0 would be 1970.
    """
    meta = listed.meta or _Meta()
    return Model(
        name=ModelName(listed.id),
        digest="",
        size=meta.size,
        architecture="",
        quantisation="",
        context=listed.max_model_len or meta.n_ctx,
        parameters=meta.n_params,
        capabilities=("chat", "completion", "embedding", "tools", "json_schema"),
        created=listed.created or seen_at,
    )


def _identifier(value: Any) -> str:
    text = str(value) if isinstance(value, str | int) else ""
    return text if _IDENTIFIER.fullmatch(text) else ""


def _seconds(value: bytes) -> float | None:
    return min(float(value), 3600.0) if value.isdigit() else None
