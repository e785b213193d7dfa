"""One `felloe` in its place: start, kill, freeze, and what its operator API says. Times in seconds."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import tomli_w

from chaos.lab import Place
from felloe.node.home import Home

OPERATOR_SECONDS = 5.0
STOP_SECONDS = 15.0
ENGINE = {"slots": 1, "threads": 1, "context": 1024, "queue": 64}
"""One answer at a time: then an engine's rounding does not depend on what else is in its batch."""


class OperatorRefusal(Exception):
    """The node answered its owner with an error of the catalogue."""


class ChaosNode:
    """A node with a home of its own; `place` may change its address while it runs."""

    def __init__(self, place: Place, *, serves: bool, may_be_hub: bool, request_seconds: float) -> None:
        self.name = place.name
        self.place = place
        self.serves = serves
        self.may_be_hub = may_be_hub
        self.home = Home(place.home)
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self._clock: Path | None = None
        self._request_seconds = request_seconds
        self.write_settings()

    @property
    def base_url(self) -> str:
        """Where clients in the same place find its API."""
        return f"http://127.0.0.1:{self.place.settings['api']['port']}/v1"

    def write_settings(self) -> None:
        """Write `config.toml`, with the address of now."""
        settings = self.place.settings | {"name": self.name, "engine": ENGINE}
        settings["api"] = settings["api"] | {"request_seconds": self._request_seconds}
        if self.may_be_hub:
            settings["peer"] = settings.get("peer", {}) | {"advertise": [self.place.address]}
        self.home.config.write_text(tomli_w.dumps(settings))

    def use_clock(self, library: Path, file: Path) -> None:
        """From its next start on, take the wall clock through libfaketime, by the offset that `file` holds."""
        self._clock = file
        self.set_clock(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_clock(self, seconds: int) -> None:
        """Let the wall clock run so far ahead; seen within a second."""
        assert self._clock is not None
        self._clock.write_text(f"{seconds:+d}")

    def start(self, *arguments: str, stdin: str = "") -> None:
        """Start `felloe ARGUMENTS` in its place. Call it from the main thread: the node dies with its parent thread."""
        with (self.home.folder / "terminal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.place.prefix, sys.executable, "-m", "felloe", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin.encode())
        self.process.stdin.close()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FELLOE_")}
        return kept | {"FELLOE_HOME": str(self.home.folder), "COLUMNS": "200"} | self.environment

    @property
    def lives(self) -> bool:
        """Whether its process runs, frozen or not."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for its end; the kernel ends its children."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP the whole node, as a machine stops that sleeps."""
        for process in self.processes():
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT what `freeze` stopped."""
        for process in self.processes():
            _send(process, signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        """The node's process and all below it."""
        if not self.lives or self.process is None:
            return []
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def child(self, role: str) -> psutil.Process | None:
        """One living child process by its role, see `role_of`."""
        return next((process for process in self.processes()[1:] if role_of(process) == role), None)

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it does not end."""
        if not self.lives or self.process is None:
            return
        self.thaw()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    async def ask(self, path: str) -> Any:
        """The operator API's answer, or None while the node does not answer."""
        try:
            async with self._operator() as client:
                answer = await client.get(path)
            return msgspec.json.decode(answer.content) if answer.status_code == 200 else None
        except (httpx.TransportError, msgspec.DecodeError, OSError):
            return None

    async def tell(self, path: str, body: dict[str, Any], seconds: float = OPERATOR_SECONDS) -> Any:
        """Have something done. Raises OperatorRefusal with the error's code, or httpx.TransportError."""
        async with self._operator(seconds) as client:
            answer = await client.post(path, content=msgspec.json.encode(body))
        said = msgspec.json.decode(answer.content)
        if answer.status_code >= 400:
            raise OperatorRefusal(f"{said.get('code')}: {said.get('detail')}")
        return said

    async def tell_at_length(self, path: str, body: dict[str, Any], seconds: float) -> None:
        """Have long work done that is answered step by step, to its end. Raises as `tell`."""
        async with self._operator(seconds) as client:
            answer = await client.post(path, content=msgspec.json.encode(body))
        last = msgspec.json.decode(answer.content.strip().rpartition(b"\n")[2] or b"{}")
        if "error" in last or answer.status_code >= 400:
            error = last.get("error") or last
            raise OperatorRefusal(f"{error.get('code')}: {error.get('detail')}")

    def _operator(self, seconds: float = OPERATOR_SECONDS) -> httpx.AsyncClient:
        # Reading the system's certificates for each of many short conversations would cost more than the load does.
        transport = httpx.AsyncHTTPTransport(uds=str(self.home.operator_socket), verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://felloe", timeout=seconds)

    def last_words(self) -> str:
        """The end of what it printed and logged."""
        words = ""
        for path in (self.home.folder / "terminal.log", self.home.logs / "node.log"):
            with contextlib.suppress(OSError):
                words += f"--- {path}\n{path.read_text(errors='replace')[-3000:]}"
        return words


def role_of(process: psutil.Process) -> str:
    """node, engine or nats-server; other processes are named by their program."""
    with contextlib.suppress(psutil.Error):
        line = process.cmdline()
        if "felloe" in line:
            return "node"
        if any("engines" in word for word in line):
            return "engine"
        return Path(line[0]).name if line else process.name()
    return "gone"


def memory_of(node: ChaosNode) -> Iterator[tuple[str, int, int]]:
    """Role, process id and resident bytes of each process of a node."""
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            yield role_of(process), process.pid, process.memory_info().rss


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
