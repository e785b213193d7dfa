"""Keeps one engine alive: start, watch, restart with growing delays, shed what leaks, give up on what keeps dying.

States: starting → ready → (crash or hang) → starting → ready ... → failed; ready → draining → starting when the child
has grown too large. One task owns the child; everyone else asks `client()`, which waits while it starts again.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from felloe.domain.errors import FelloeError
from felloe.engines.child import EngineChild, Prepare
from felloe.engines.crashes import CrashRecord
from felloe.engines.engine_log import EngineLog
from felloe.engines.http_client import HttpClient
from felloe.engines.memory_log import MemoryLog
from felloe.engines.options import ChildOptions
from felloe.engines.rules import (
    Quarantine,
    RestartPolicy,
    after_crash,
    after_failed_start,
    death,
    may_blame_request,
    memory_bound,
    quarantine_reason,
)
from felloe.engines.watch import Ending, Watch

_log = logging.getLogger(__name__)

_NOTICE_SECONDS = 2.0

State = Literal["starting", "ready", "draining", "failed", "stopped"]


class Owner(Protocol):
    """What the replica that has the supervisor knows and does about its child's lives."""

    async def prepare(self, client: HttpClient) -> None:
        """Runs with each new child's client before the engine counts as ready."""
        ...

    def buried(self, *, blame_requests: bool) -> None:
        """A child is gone, and every request that it had has been told."""
        ...


class Supervisor:
    """One engine. `idle` is set while nothing is answered; `memory_limit` in bytes, 0 derives it from the start."""

    def __init__(
        self,
        name: str,
        options: ChildOptions,
        owner: Owner,
        *,
        socket_path: Path,
        log_path: Path,
        clock: Callable[[], float],
        stamp: Callable[[], str],
        policy: RestartPolicy,
        crashes: CrashRecord,
        idle: asyncio.Event,
        memory_limit: int,
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._options = options
        self._prepare: Prepare = owner.prepare
        self._buried = owner.buried
        self._socket_path = socket_path
        self._log_path = log_path
        self._log: EngineLog | None = None
        self._clock = clock
        self._stamp = stamp
        self._policy = policy
        self._crashes = crashes
        self._idle = idle
        self._memory_limit = memory_limit
        self._on_change = on_change
        self.state: State = "starting"
        self.failure: FelloeError | None = None
        self._child: EngineChild | None = None
        self._memory_log = MemoryLog(options.devices)
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._leaks = 0

    @property
    def process_id(self) -> int | None:
        """The running child's id, if there is one."""
        return self._child.process_id if self._child is not None else None

    def memory(self) -> int:
        """Bytes that the running child holds for itself, the model file not counted; 0 when there is none."""
        return (self._child.memory() or 0) if self._child is not None else 0

    @property
    def memory_log(self) -> MemoryLog:
        """What the newest child said of its memory while it started."""
        return self._memory_log

    @property
    def problem(self) -> str:
        """Why the engine is not ready although it should be; empty when there is nothing to say."""
        return self.failure.detail if self.failure is not None else ""

    async def start(self) -> None:
        """Start the child and wait until it is ready; raises `bad_model_file` or `engine_start_failed`."""
        self._log = EngineLog(self._log_path)
        try:
            await self._launch(self._log)
        except BaseException as error:
            await self._end_child()
            self._close_log()
            if isinstance(error, FelloeError):
                self._become("failed", error)
            raise
        self._become("ready")
        self._keeper = asyncio.create_task(self._keep(self._log), name=f"engine {self._name}")

    def stay_down(self, reason: str) -> None:
        """Instead of `start`: the model is in quarantine."""
        self._become("failed", FelloeError("engine_failed", reason))

    async def client(self, seconds: float) -> HttpClient:
        """The ready engine's client; waits up to `seconds` while it starts again, then raises `engine_failed`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.state == "starting":
                    self._changed.clear()
                    await self._changed.wait()
        client = self._child.client if self._child is not None else None
        if self.state in ("ready", "draining") and client is not None:
            return client
        reason = self.problem or "it is starting again"
        raise FelloeError("engine_failed", f"the engine of {self._name} is not ready: {reason}", retry_after=1.0)

    async def replaced(self, client: HttpClient) -> bool:
        """After `client` failed: wait a moment until the death of its child is noticed; False if it lives."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_SECONDS):
                while self._has(client):
                    self._changed.clear()
                    await self._changed.wait()
        return not self._has(client)

    def _has(self, client: HttpClient) -> bool:
        return self._child is not None and self._child.client is client

    async def stop(self) -> None:
        """End the child, gently for two seconds and then hard."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
            await self._end_child()
            self._close_log()
        self._become("stopped")

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def _become(self, state: State, failure: FelloeError | None = None) -> None:
        self.state = state
        self.failure = failure
        self._changed.set()
        self._on_change()

    async def _launch(self, log: EngineLog) -> None:
        self._child = EngineChild(self._options, self._socket_path, log)
        self._memory_log = self._child.memory_log
        await self._child.start(self._policy.start_limit, self._prepare)
        _log.info("engine of %s is ready, process %s", self._name, self._child.process_id)

    async def _end_child(self) -> int | None:
        child = self._child
        if child is None:
            return None
        self._changed.set()
        code = await child.end()
        # Not before: whoever is cancelled in the middle leaves the rest to `stop`.
        self._child = None
        return code

    # all lives of the child

    async def _keep(self, log: EngineLog) -> None:
        while (child := self._child) is not None and (client := child.client) is not None:
            at_start = child.memory()
            bound = memory_bound(at_start, self._memory_limit, self._leaks, self._policy) if at_start else 0
            watch = Watch(child, client, self._policy, self._clock, self._idle, bound)
            ending = await watch.ending()
            if ending.kind == "leak":
                ending = await self._drained(child, ending)
            delay = await self._after_end(child, ending)
            if delay is None or not await self._start_again(log, delay):
                return
            self._become("ready")

    async def _drained(self, child: EngineChild, ending: Ending) -> Ending:
        """Let a child that is too large finish what it is answering, within a limit."""
        _log.warning("engine of %s: %s; it is started again when it is idle", self._name, ending.reason)
        self._become("draining")
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(child.ended())]
        try:
            await asyncio.wait(waits, timeout=self._policy.drain_limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return Ending("crash") if child.exit_code is not None else ending

    async def _after_end(self, child: EngineChild, ending: Ending) -> float | None:
        """Put the old child away and count its end; returns the delay before the next, None when there is none."""
        self._become("starting", FelloeError("engine_failed", ending.reason or "it ended by itself"))
        code = await self._end_child()
        if ending.kind == "leak":
            self._leaks += 1
            self._buried(blame_requests=False)
            return 0.0
        reason = f"at {self._stamp()}: {ending.reason or death(code)}{child.last_words()}"
        now = self._clock()
        times = await self._crashes.add(now)
        decision = after_crash(times, now, self._policy, random.random())  # noqa: S311 - spreads load
        _log.warning("engine of %s ended %s", self._name, reason)
        self._buried(blame_requests=ending.kind == "hang" or may_blame_request(code))
        if isinstance(decision, Quarantine):
            detail = quarantine_reason(self._name, decision.times, self._policy.crash_window, reason)
            await self._crashes.keep_out(detail)
            self._become("failed", FelloeError("engine_failed", detail))
            return None
        self.failure = FelloeError("engine_failed", f"it is starting again; it ended {reason}")
        return decision.delay

    async def _start_again(self, log: EngineLog, delay: float) -> bool:
        """Start the next child after `delay`, and again while that fails; False when it is given up."""
        failures = 0
        while True:
            await asyncio.sleep(delay)
            try:
                await self._launch(log)
                return True
            except FelloeError as error:
                await self._end_child()
                failures += 1
                _log.warning("engine of %s did not start again: %s", self._name, error.detail)
                decision = after_failed_start(failures, error.code, self._policy, random.random())  # noqa: S311
                if isinstance(decision, Quarantine):
                    detail = f"the engine of {self._name} did not start {failures} times in a row: {error.detail}"
                    self._become("failed", FelloeError("engine_failed", detail))
                    return False
                self.failure = error
                delay = decision.delay
