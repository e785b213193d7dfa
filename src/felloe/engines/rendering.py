"""Frames: the server-sent events that an OpenAI client reads, made from parts that are encoded once a request."""

from collections.abc import Sequence
from typing import Any

import msgspec

from felloe.domain.requests import InferenceRequest, Usage

_encode = msgspec.json.Encoder().encode


class ChatFrames:
    """Frames of one choice of a chat answer (`chat.completion.chunk`)."""

    def __init__(self, request: InferenceRequest) -> None:
        self._start = b"data: " + _head(request, "chat.completion.chunk") + b'"delta":'
        self._text_start = self._start + b'{"content":'
        self._text_end = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def role(self) -> bytes:
        return self._start + b'{"role":"assistant","content":""' + self._text_end

    def text(self, text: str) -> bytes:
        return self._text_start + _encode(text) + self._text_end

    def text_with_logprobs(self, text: str, logprobs: bytes) -> bytes:
        end = b'},"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'
        return self._text_start + _encode(text) + end

    def delta(self, delta: Any, logprobs: bytes = b"null", finish_reason: str | None = None) -> bytes:
        """A frame with any delta: reasoning, tool calls."""
        end = b',"logprobs":' + logprobs + b',"finish_reason":' + _encode(finish_reason) + b"}]}\n\n"
        return self._start + _encode(delta) + end

    def finish(self, reason: str) -> bytes:
        return self.delta({}, finish_reason=reason)


class CompletionFrames:
    """Frames of one choice of a text completion (`text_completion`)."""

    def __init__(self, request: InferenceRequest) -> None:
        self._start = b"data: " + _head(request, "text_completion") + b'"text":'
        self._end = b',"logprobs":null,"finish_reason":null}]}\n\n'

    def role(self) -> bytes:
        return b""

    def text(self, text: str) -> bytes:
        return self._start + _encode(text) + self._end

    def text_with_logprobs(self, text: str, logprobs: bytes) -> bytes:
        return self._start + _encode(text) + b',"logprobs":' + logprobs + b',"finish_reason":null}]}\n\n'

    def finish(self, reason: str) -> bytes:
        return self._start + b'"","logprobs":null,"finish_reason":' + _encode(reason) + b"}]}\n\n"


Frames = ChatFrames | CompletionFrames


def frames_for(request: InferenceRequest) -> Frames:
    return CompletionFrames(request) if request.kind == "completion" else ChatFrames(request)


def _head(request: InferenceRequest, kind: str) -> bytes:
    fields = {"id": request.id, "object": kind, "created": request.created, "model": request.model}
    return _encode(fields)[:-1] + b',"choices":[{"index":%d,' % request.index


def embedding_answer(request: InferenceRequest, vectors: Sequence[msgspec.Raw], usage: Usage) -> bytes:
    """The whole JSON body of an embeddings answer; `vectors` are JSON lists of numbers or base64 strings."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return _encode(
        {
            "object": "list",
            "data": data,
            "model": request.model,
            "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
        }
    )
