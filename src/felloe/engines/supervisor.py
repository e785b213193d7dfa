"""Keeps one engine child alive: start, ready, probe, restart with growing delays, quarantine, stop.

States: starting → ready → (crash or hang) → starting → ready ... → failed; draining belongs to the service. One task
owns the process; everyone else asks `client()`, which waits while the engine starts again.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from felloe.domain.errors import FelloeError
from felloe.engines.engine_log import EngineLog
from felloe.engines.http_client import Address, HttpClient, HttpError, TcpAddress, UnixAddress
from felloe.engines.options import ChildOptions, ChildReply
from felloe.engines.rules import Quarantine, RestartPolicy, after_crash, is_hung, loggable, start_failure
from felloe.host.processes import end, spawn

_log = logging.getLogger(__name__)

_SOCKET_PATH_LIMIT = 100
_STOP_SECONDS = 2.0
_NOTICE_SECONDS = 2.0
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "VIRTUAL_ENV", "SYSTEMROOT", "XDG_RUNTIME_DIR")
_KEPT_PREFIXES = ("LC_", "LD_", "DYLD_", "PYTHON", "CUDA", "NVIDIA", "GGML_", "HIP", "ROC", "HSA_", "VK_", "OMP_")

State = Literal["starting", "ready", "failed", "stopped"]
Prepare = Callable[[HttpClient], Awaitable[None]]


class Supervisor:
    """One engine child. `prepare` runs with each new child's client before the engine counts as ready."""

    def __init__(
        self,
        name: str,
        options: ChildOptions,
        *,
        socket_path: Path,
        log_path: Path,
        clock: Callable[[], float],
        policy: RestartPolicy,
        prepare: Prepare,
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._options = options
        self._file_name = Path(options.model).name
        self._socket_path = socket_path
        self._log_path = log_path
        self._log: EngineLog | None = None
        self._clock = clock
        self._policy = policy
        self._prepare = prepare
        self._on_change = on_change
        self.state: State = "starting"
        self.failure: FelloeError | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._client: HttpClient | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=200)
        self._crashes: deque[float] = deque(maxlen=100)

    @property
    def process_id(self) -> int | None:
        """The running child's id, if there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the child and wait until it is ready; raises `bad_model_file` or `engine_start_failed`."""
        self._log = EngineLog(self._log_path)
        try:
            await self._launch()
        except BaseException as error:
            await self._end_process()
            self._close_log()
            if isinstance(error, FelloeError):
                self._become("failed", error)
            raise
        self._become("ready")
        self._keeper = asyncio.create_task(self._keep(), name=f"engine {self._name}")

    async def client(self, seconds: float) -> HttpClient:
        """The ready engine's client; waits up to `seconds` while it starts again, then raises `engine_failed`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.state == "starting":
                    self._changed.clear()
                    await self._changed.wait()
        if self.state == "ready" and self._client is not None:
            return self._client
        reason = self.failure.detail if self.failure is not None else "it is starting again"
        raise FelloeError("engine_failed", f"the engine of {self._name} is not ready: {reason}", retry_after=1.0)

    async def replaced(self, client: HttpClient) -> bool:
        """After `client` failed: wait a moment until the death of its child is noticed; False if it lives."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_SECONDS):
                while self._client is client:
                    self._changed.clear()
                    await self._changed.wait()
        return self._client is not client

    async def stop(self) -> None:
        """End the child, gently for two seconds and then hard."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
            await self._end_process()
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

    # one life of the child

    async def _launch(self) -> None:
        self._last_lines.clear()
        use_socket = sys.platform != "win32" and len(os.fsencode(self._socket_path)) <= _SOCKET_PATH_LIMIT
        key = "" if use_socket else secrets.token_urlsafe(32)
        socket_name = str(self._socket_path) if use_socket else ""
        self._socket_path.unlink(missing_ok=True)
        options = msgspec.structs.replace(self._options, socket=socket_name, api_key=key)
        pipe = asyncio.subprocess.PIPE
        process = await spawn(
            [sys.executable, "-m", "felloe.engines.llama_child"],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            environment=_environment(),
        )
        self._process = process
        ready = asyncio.Event()
        self._log_task = asyncio.create_task(self._copy_log(process, ready), name=f"log of {self._name}")
        try:
            async with asyncio.timeout(self._policy.start_limit):
                reply = await self._introduce(process, options)
                client = HttpClient(_address(reply.address), headers={"authorization": f"Bearer {key}"} if key else {})
                self._client = client
                await self._prepare(client)
        except TimeoutError as error:
            detail = f"{self._file_name}: the engine was not ready after {self._policy.start_limit:g} s"
            raise FelloeError("engine_start_failed", detail) from error
        except (HttpError, OSError) as error:
            raise FelloeError("engine_start_failed", f"{self._file_name}: {error}") from error
        ready.set()
        _log.info("engine of %s is ready, process %d", self._name, process.pid)

    async def _introduce(self, process: asyncio.subprocess.Process, options: ChildOptions) -> ChildReply:
        """Hand the options over and read the reply."""
        if process.stdin is None or process.stdout is None:
            raise FelloeError("internal", "the engine child has no pipes")
        with contextlib.suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(options) + b"\n")
            await process.stdin.drain()
        line = await process.stdout.readline()
        reply = msgspec.json.decode(line, type=ChildReply) if line else ChildReply()
        if reply.address:
            return reply
        exit_code = await process.wait()
        if self._log_task is not None:
            await self._log_task
        lines = [*self._last_lines]
        if reply.error and "Failed to init server" not in reply.error:
            lines.append(reply.error)
        raise start_failure(self._file_name, lines, exit_code)

    async def _copy_log(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        """Move the child's error stream to the log, line by line, less what may quote a request."""
        if process.stderr is None:
            return
        rest = ""
        while data := await process.stderr.read(16384):
            *lines, rest = (rest + data.decode(errors="replace")).split("\n")
            rest = rest[-4096:]
            for line in lines:
                kept = loggable(line, ready.is_set())
                if kept is not None and self._log is not None:
                    self._last_lines.append(kept)
                    self._log.write(kept)

    async def _end_process(self) -> int | None:
        client, self._client = self._client, None
        self._changed.set()
        if client is not None:
            await client.close()
        process = self._process
        if process is None:
            return None
        code = await end(process, _STOP_SECONDS)
        self._process = None
        if process.stdin is not None:
            process.stdin.close()
        task, self._log_task = self._log_task, None
        if task is not None:
            await asyncio.wait([task], timeout=_STOP_SECONDS)
            task.cancel()
        self._socket_path.unlink(missing_ok=True)
        return code

    # all lives of the child

    async def _keep(self) -> None:
        while True:
            reason = await self._watch()
            self._become("starting", FelloeError("engine_failed", reason))
            code = await self._end_process()
            while True:
                now = self._clock()
                self._crashes.append(now)
                _log.warning("engine of %s ended: %s, exit code %s", self._name, reason, code)
                decision = after_crash(self._crashes, now, self._policy, random.random())  # noqa: S311 - spreads load
                if isinstance(decision, Quarantine):
                    detail = f"the engine of {self._name} ended {decision.crashes} times, last: {reason}"
                    self._become("failed", FelloeError("engine_failed", detail))
                    return
                self.failure = FelloeError("engine_failed", reason)
                await asyncio.sleep(decision.delay)
                try:
                    await self._launch()
                    break
                except FelloeError as error:
                    reason = error.detail
                    code = await self._end_process()
            self._become("ready")

    async def _watch(self) -> str:
        """Wait for the child's end, or until it hangs; returns what happened."""
        process, client = self._process, self._client
        if process is None or client is None:
            return "it was not running"
        ended = asyncio.ensure_future(process.wait())
        try:
            last_answer = self._clock()
            while True:
                done, _ = await asyncio.wait([ended], timeout=self._policy.probe_every)
                if done:
                    return f"it ended by itself with code {process.returncode}"
                if await self._probe(client):
                    last_answer = self._clock()
                elif is_hung(last_answer, self._clock(), self._policy):
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    return f"it did not answer for {self._policy.hung_after:g} s"
        finally:
            ended.cancel()

    async def _probe(self, client: HttpClient) -> bool:
        """Whether the loop that decodes answers; /health would be answered by a thread that still lives."""
        try:
            with await client.request("GET", "/metrics", seconds=max(self._policy.probe_every, 0.1)) as exchange:
                await exchange.read_all()
                return exchange.status == 200
        except HttpError:
            return False


def _environment() -> dict[str, str]:
    """What an engine needs of this process's environment; keys and tokens in it are none of its business."""
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    # Else a failed assertion starts a debugger on the child, which takes seconds and prints what it finds in memory.
    return {**kept, "GGML_NO_BACKTRACE": "1"}


def _address(text: str) -> Address:
    if text.startswith("unix://"):
        return UnixAddress(text.removeprefix("unix://"))
    host, _, port = text.removeprefix("http://").rpartition(":")
    return TcpAddress(host, int(port))
