"""Watches one ready child: is it gone, does it hang, has it grown too large?

Theory of operation: every `probe_every` seconds one look. llama.cpp answers /metrics and /health from threads that do
not decode, within milliseconds also while one batch takes minutes: an answer says that the process lives, the count of
batches in /metrics says that its work moves. A stream's bytes are a sign of life, too. There is never more than one
question for /metrics open, so that a child that does not answer keeps its HTTP threads. What follows is for `rules`.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from felloe.engines.child import EngineChild
from felloe.engines.http_client import HttpClient, HttpError
from felloe.engines.rules import Pulse, RestartPolicy, Signs, Work, after_look, hang, must_shed, read_work, stands_still

EndingKind = Literal["crash", "hang", "leak"]


class Ending(Struct, frozen=True):
    """Why a child's life is over; after a hang it has been killed, after a leak it still runs."""

    kind: EndingKind
    reason: str = ""


class Watch:
    """One ready child. `idle` is set while it answers nothing; `memory_bound` is in bytes, 0 sets none."""

    def __init__(
        self,
        child: EngineChild,
        client: HttpClient,
        policy: RestartPolicy,
        clock: Callable[[], float],
        idle: asyncio.Event,
        memory_bound: int,
    ) -> None:
        self._child = child
        self._client = client
        self._policy = policy
        self._clock = clock
        self._idle = idle
        self._memory_bound = memory_bound
        self._weighed_at = clock()
        self._question: asyncio.Task[bytes | None] | None = None
        self._work: Work | None = None
        self._reads = client.reads

    async def ending(self) -> Ending:
        """Wait until the child's life is over."""
        ended = asyncio.ensure_future(self._child.ended())
        pulse = Pulse()
        looked_at = self._clock()
        try:
            while True:
                done, _ = await asyncio.wait([ended], timeout=self._policy.probe_every)
                if done:
                    return Ending("crash")
                signs = await self._look()
                self._reads = self._client.reads
                now = self._clock()
                pulse = after_look(pulse, now - looked_at, signs, self._policy)
                looked_at = now
                reason = hang(pulse, self._policy)
                if reason is not None:
                    self._child.kill()
                    return Ending("hang", reason)
                if self._is_too_large(now):
                    return Ending("leak", "it holds much more memory than at its start")
        finally:
            ended.cancel()
            if self._question is not None:
                self._question.cancel()

    async def _look(self) -> Signs:
        if self._question is None:
            self._question = asyncio.ensure_future(self._ask("/metrics", self._policy.hung_after))
        await asyncio.wait([self._question], timeout=self._policy.probe_seconds)
        metrics = None
        if self._question.done():
            metrics, self._question = self._question.result(), None
        if metrics is not None:
            work = read_work(metrics)
            before, self._work = self._work, work
            return Signs(alive=True, decoding=not stands_still(before, work))
        alive = await self._ask("/health", self._policy.probe_seconds) is not None
        return Signs(alive=alive or self._client.reads > self._reads, decoding=False)

    async def _ask(self, path: str, seconds: float) -> bytes | None:
        try:
            with await self._client.request("GET", path, seconds=seconds) as exchange:
                answer = await exchange.read_all()
                return answer if exchange.status == 200 else None
        except HttpError:
            return None

    def _is_too_large(self, now: float) -> bool:
        if not self._memory_bound or now - self._weighed_at < self._policy.memory_every:
            return False
        self._weighed_at = now
        held = self._child.memory()
        return held is not None and must_shed(held, self._memory_bound, self._idle.is_set())
