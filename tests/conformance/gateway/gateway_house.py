"""An engine that plays a script, the frames that engines render, and a running gateway before it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Part, Piece, Usage
from felloe.gateway import ApiKeys, Gateway, ListedModel, Metrics, NodeStatus

WORDS = ("Hello", ", ", "wörld", "!")
MODELS = (
    ListedModel(name="tiny-python", context=1024, capabilities=("chat", "completion"), created=1_700_000_000),
    ListedModel(name="org/embedder:v1", context=512, capabilities=("embedding",)),
    ListedModel(name="large-and-asleep", state="cold"),
)


def frame(request: InferenceRequest, choice: dict[str, Any]) -> bytes:
    """One server-sent event as an engine renders it."""
    content = {
        "id": request.id,
        "object": "chat.completion.chunk" if request.kind == "chat" else "text_completion",
        "created": request.created,
        "model": request.model,
        "choices": [{"index": request.index, "logprobs": None, "finish_reason": None} | choice],
    }
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def text_frame(request: InferenceRequest, text: str) -> bytes:
    """An event that carries some text."""
    return frame(request, {"delta": {"content": text}} if request.kind == "chat" else {"text": text})


def role_frame(request: InferenceRequest) -> bytes:
    """The first event of a chat answer; a text completion has none."""
    return frame(request, {"delta": {"role": "assistant", "content": ""}}) if request.kind == "chat" else b""


def last_frame(request: InferenceRequest, reason: str = "stop") -> bytes:
    """The event that carries the finish reason."""
    empty: dict[str, Any] = {"delta": {}} if request.kind == "chat" else {"text": ""}
    return frame(request, empty | {"finish_reason": reason})


Script = Callable[[InferenceRequest], AsyncGenerator[Part, None]]


async def say_words(request: InferenceRequest) -> AsyncGenerator[Part, None]:
    """Answers every kind of request: the words one by one, or one small vector for each input."""
    if request.kind == "embedding":
        data = [
            {"object": "embedding", "index": i, "embedding": [0.5, float(i)]} for i in range(len(request.body["input"]))
        ]
        yield Piece(1, (), msgspec.json.encode({"object": "list", "data": data}))
        yield Done(Usage(prompt=3 * len(data)), "")
        return
    yield Piece(1, (1,), role_frame(request) + text_frame(request, WORDS[0]))
    for number, word in enumerate(WORDS[1:], start=2):
        yield Piece(number, (number,), text_frame(request, word))
    yield Piece(len(WORDS), (), last_frame(request))
    yield Done(Usage(prompt=7, completion=len(WORDS), cached=2), "stop")


class ScriptedAnswers:
    """An engine that plays a script and remembers what it was asked; `closed` is set when an answer ends early."""

    def __init__(self, script: Script = say_words) -> None:
        self.script = script
        self.requests: list[InferenceRequest] = []
        self.open = 0
        self.began = asyncio.Event()
        self.closed = asyncio.Event()

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        self.requests.append(request)
        self.open += 1
        self.began.set()
        parts = self.script(request)
        try:
            async for part in parts:
                if isinstance(part, Done):
                    return part
                waiting = deliver(part)
                if waiting is not None:
                    await waiting
            raise FelloeError("engine_failed", "the script ended without saying that it is complete")
        finally:
            await parts.aclose()
            self.open -= 1
            if self.open == 0:
                self.closed.set()


def failing(error: FelloeError, after: int = 0) -> Script:
    """A script that fails after some words."""

    async def script(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        for number in range(after):
            yield Piece(number + 1, (), text_frame(request, WORDS[number]))
        raise error

    return script


class House:
    """A running gateway with what it was given."""

    def __init__(self, gateway: Gateway, answers: ScriptedAnswers, keys: ApiKeys, metrics: Metrics) -> None:
        self.gateway = gateway
        self.answers = answers
        self.keys = keys
        self.metrics = metrics
        self.status = NodeStatus(ready=True)

    @property
    def root(self) -> str:
        return self.gateway.base_url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rsplit(":", 1)[1])
