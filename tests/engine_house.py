"""Real engines for the conformance suite: the llama.cpp adapter, and the upstream adapter before a second engine."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from felloe.domain.ids import ModelDigest, ModelName, RequestId
from felloe.domain.models import Model
from felloe.domain.requests import Done, InferenceRequest, Piece, Usage
from felloe.engines.options import ChildOptions, ChildReply, EngineOptions, Upstream
from felloe.engines.rules import RestartPolicy
from felloe.engines.service import Engines

REPOSITORY = Path(__file__).parents[1]
MODEL_FILE = REPOSITORY / "models" / "tiny-python" / "tiny-python-q8_0.gguf"
TINY = ModelName("tiny-python")
KEY = "test-key-of-the-upstream"


def tiny_model() -> Model:
    return Model(
        name=TINY,
        digest=ModelDigest("sha256:" + "0" * 64),
        size=MODEL_FILE.stat().st_size,
        architecture="llama",
        quantisation="q8_0",
        context=4096,
        capabilities=("chat", "completion", "tools", "json_schema"),
    )


@dataclass
class Answer:
    """A whole answer, put together again from its pieces."""

    pieces: list[Piece] = field(default_factory=list)
    done: Done | None = None

    @property
    def frames(self) -> bytes:
        return b"".join(piece.frames for piece in self.pieces)

    @property
    def events(self) -> list[dict[str, Any]]:
        blocks = self.frames.split(b"\n\n")
        assert blocks.pop() == b"", "the last event is not closed"
        return [json.loads(block.removeprefix(b"data: ")) for block in blocks]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event["choices"]]

    @property
    def text(self) -> str:
        parts = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in self.choices]
        return "".join(parts)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(each for piece in self.pieces for each in piece.ids)

    @property
    def usage(self) -> Usage:
        assert self.done is not None
        return self.done.usage

    @property
    def finish_reason(self) -> str:
        assert self.done is not None
        return self.done.finish_reason


@dataclass
class Subject:
    """One adapter under test. `tells_ids`: whether its pieces carry token ids."""

    engines: Engines
    tells_ids: bool

    def request(self, kind: str = "chat", **changes: Any) -> InferenceRequest:
        own = {name: changes.pop(name) for name in ("id", "index", "resume", "deadline") if name in changes}
        body = {"temperature": 0, **changes} if kind != "embedding" else changes
        if kind == "chat":
            body.setdefault("messages", [{"role": "user", "content": "Write a function that adds two numbers."}])
        fields = {"id": RequestId("chatcmpl-" + "1" * 32), "created": 1_700_000_000, "deadline": 60.0, **own}
        return InferenceRequest(kind=kind, model=TINY, body=body, **fields)  # pyright: ignore

    async def ask(self, kind: str = "chat", **changes: Any) -> Answer:
        return await collect(self.engines, self.request(kind, **changes))


async def collect(engines: Engines, request: InferenceRequest) -> Answer:
    answer = Answer()
    answer.done = await engines.answer(request, answer.pieces.append)
    return answer


class Answering:
    """An answer under way, in a task of its own."""

    def __init__(self, engines: Engines, request: InferenceRequest) -> None:
        self.pieces: list[Piece] = []
        self._came = asyncio.Event()
        self.task = asyncio.create_task(engines.answer(request, self._deliver))

    def _deliver(self, piece: Piece) -> None:
        assert isinstance(piece, Piece)
        self.pieces.append(piece)
        self._came.set()

    async def until_pieces(self, count: int) -> None:
        """Wait until so many pieces came; an answer that ends before raises what it ended with."""
        while len(self.pieces) < count:
            self._came.clear()
            coming = asyncio.create_task(self._came.wait())
            await asyncio.wait([coming, self.task], return_when=asyncio.FIRST_COMPLETED)
            coming.cancel()
            if self.task.done():
                await self.task
                assert len(self.pieces) >= count, "the answer ended"

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        assert self.task.cancelled()


def patient_policy() -> RestartPolicy:
    return RestartPolicy(first_delay=0.01, longest_delay=0.02, probe_every=1.0, hung_after=60.0)


@pytest.fixture
async def llama(tmp_path: Path) -> AsyncGenerator[Subject, None]:
    engines = Engines(
        state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=time.monotonic, policy=patient_policy()
    )
    await engines.load(tiny_model(), MODEL_FILE, EngineOptions(context=1024, slots=2, threads=1, embedding=True))
    yield Subject(engines, tells_ids=True)
    await engines.close()


@dataclass
class RunningChild:
    address: str
    process: subprocess.Popen[bytes]


def start_child(**changes: Any) -> RunningChild:
    options: dict[str, Any] = {
        "model": str(MODEL_FILE),
        "context": 2048,
        "slots": 2,
        "threads": 1,
        "gpu_layers": 0,
        "kv_type": "f16",
        "embedding": True,
        "alias": TINY,
        "api_key": KEY,
        **changes,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "felloe.engines.llama_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(ChildOptions(**options)) + b"\n")
    process.stdin.flush()
    reply = msgspec.json.decode(process.stdout.readline(), type=ChildReply)
    assert reply.address, reply.error
    return RunningChild(reply.address, process)


def end_child(child: RunningChild) -> None:
    for stream in (child.process.stdin, child.process.stdout):
        if stream is not None:
            stream.close()
    child.process.wait(10)


@pytest.fixture(scope="session")
def upstream_child() -> Iterator[RunningChild]:
    child = start_child()
    yield child
    end_child(child)


@pytest.fixture
async def upstream(
    tmp_path: Path, upstream_child: RunningChild, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Subject, None]:
    monkeypatch.setenv("TEST_UPSTREAM_KEY", KEY)
    engines = Engines(state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=time.monotonic)
    await engines.attach(
        Upstream(name="second", base_url=upstream_child.address + "/v1", key_variable="TEST_UPSTREAM_KEY")
    )
    yield Subject(engines, tells_ids=False)
    await engines.close()


@pytest.fixture(params=["llama", "upstream"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)
