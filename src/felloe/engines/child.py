"""One life of an engine process: spawned, introduced, ready, ended. The supervisor gives it the next life."""

import asyncio
import contextlib
import os
import secrets
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import psutil

from felloe.domain.errors import FelloeError
from felloe.engines.engine_log import EngineLog
from felloe.engines.http_client import Address, HttpClient, HttpError, TcpAddress, UnixAddress
from felloe.engines.memory_log import MemoryLog
from felloe.engines.options import ChildOptions, ChildReply
from felloe.engines.rules import is_chatter, last_words, loggable, start_failure
from felloe.host.processes import end, spawn

_SOCKET_PATH_LIMIT = 100
_STOP_SECONDS = 2.0
_LOG_SECONDS = 1.0
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "VIRTUAL_ENV", "SYSTEMROOT", "XDG_RUNTIME_DIR")
_KEPT_PREFIXES = ("LC_", "LD_", "DYLD_", "PYTHON", "CUDA", "NVIDIA", "GGML_", "HIP", "ROC", "HSA_", "VK_", "OMP_")

Prepare = Callable[[HttpClient], Awaitable[None]]


class EngineChild:
    """Owns one process, its socket and the copying of its log. `end` after `start`, whether that failed or not."""

    def __init__(self, options: ChildOptions, socket_path: Path, log: EngineLog) -> None:
        self._options = options
        self._file_name = Path(options.model).name
        self._socket_path = socket_path
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._client: HttpClient | None = None
        self._log_task: asyncio.Task[None] | None = None
        self.memory_log = MemoryLog(options.devices)
        self._told_memory = asyncio.Event()
        self._is_ready = False
        self._last_lines: deque[str] = deque(maxlen=200)

    @property
    def client(self) -> HttpClient | None:
        """The way to the ready child; None before and after."""
        return self._client if self._is_ready else None

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the number of the signal that killed it."""
        return self._process.returncode if self._process is not None else None

    def last_words(self) -> str:
        """The end of what it logged since it was ready, as a part of a reason; never a prompt."""
        return last_words(self._last_lines)

    async def start(self, limit: float, prepare: Prepare) -> None:
        """Start it and run `prepare` with its client; raises `bad_model_file` or `engine_start_failed`."""
        try:
            async with asyncio.timeout(limit):
                await self._start(prepare)
        except TimeoutError as error:
            raise self._failed(f"the engine was not ready after {limit:g} s") from error
        except (HttpError, OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed(str(error)) from error

    def _failed(self, reason: str) -> FelloeError:
        return FelloeError("engine_start_failed", f"{self._file_name}: {reason}")

    async def _start(self, prepare: Prepare) -> None:
        use_socket = sys.platform != "win32" and len(os.fsencode(self._socket_path)) <= _SOCKET_PATH_LIMIT
        key = "" if use_socket else secrets.token_urlsafe(32)
        socket_name = str(self._socket_path) if use_socket else ""
        self._socket_path.unlink(missing_ok=True)
        options = msgspec.structs.replace(self._options, socket=socket_name, api_key=key)
        pipe = asyncio.subprocess.PIPE
        process = self._process = await spawn(
            [sys.executable, "-m", "felloe.engines.llama_child"],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            environment=_environment() | options.environment,
        )
        self._log_task = asyncio.create_task(self._copy_log(process), name=f"log of {self._file_name}")
        reply = await self._introduce(process, options)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = HttpClient(_address(reply.address), headers=headers)
        await self._hear_of_memory(reply)
        await prepare(self._client)
        self._last_lines.clear()
        self._is_ready = True

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

    async def _hear_of_memory(self, reply: ChildReply) -> None:
        """Its log may come a moment after its reply."""
        if reply.tells_memory:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOG_SECONDS):
                    await self._told_memory.wait()

    async def _copy_log(self, process: asyncio.subprocess.Process) -> None:
        """Move the child's error stream to the log, line by line, less what may quote a request."""
        if process.stderr is None:
            return
        rest, after_chatter = "", False
        while data := await process.stderr.read(16384):
            *lines, rest = (rest + data.decode(errors="replace")).split("\n")
            rest = rest[-4096:]
            for line in lines:
                if not self._is_ready:
                    self.memory_log.read(line)
                    if self.memory_log.complete:
                        self._told_memory.set()
                    after_chatter = is_chatter(line, after_chatter)
                    if after_chatter:
                        continue
                kept = loggable(line, self._is_ready)
                if kept is not None:
                    self._last_lines.append(kept)
                    self._log.write(kept)

    async def ended(self) -> None:
        """Wait until the process is gone."""
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def memory(self) -> int | None:
        """Bytes that it holds for itself, without the model file that the system shares out; None when it is gone."""
        if self._process is None:
            return None
        try:
            process = psutil.Process(self._process.pid)
            if sys.platform != "linux":
                return process.memory_full_info().uss
            memory = process.memory_info()
            return memory.rss - memory.shared
        except psutil.Error:
            return None

    async def end(self) -> int | None:
        """Break off what it is answering, end it gently and then hard; returns its exit code."""
        client, self._client, self._is_ready = self._client, None, False
        if client is not None:
            await client.close()
        process = self._process
        if process is None:
            return None
        code = await end(process, _STOP_SECONDS)
        if process.stdin is not None:
            process.stdin.close()
        task, self._log_task = self._log_task, None
        if task is not None:
            await asyncio.wait([task], timeout=_STOP_SECONDS)
            task.cancel()
        self._socket_path.unlink(missing_ok=True)
        return code


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
