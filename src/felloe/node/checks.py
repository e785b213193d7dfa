"""What `felloe doctor` looks at: each check tells what it found and, when something is wrong, what to do."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from felloe.domain.errors import FelloeError
from felloe.mesh.nats_server import find_binary
from felloe.node.config import NodeConfig, load_config
from felloe.node.findings import Finding, can_listen
from felloe.node.home import Home
from felloe.node.hub_checks import clock_finding, hub_ports_finding, root_finding

_LOW_DISK_BYTES = 2_000_000_000
_EARLIEST_SENSIBLE_TIME = 1_790_000_000  # a clock before this program's first release is wrong


def run_checks(home: Home, *, running: bool) -> Iterator[Finding]:
    """Every check in turn; `running` says that a node holds this home, so its ports are taken by itself."""
    yield _checked("python", _python)
    yield _checked("home", lambda: _home(home))
    try:
        config = load_config(home.folder)
    except FelloeError as error:
        yield Finding("configuration", "failed", error.detail, error.spec.next_step)
        return
    yield Finding("configuration", "ok", str(home.config) if home.config.exists() else "defaults")
    yield _checked("keys", lambda: _keys(home))
    yield _checked("root key", lambda: root_finding(home))
    yield _checked("clock", _clock)
    yield _checked("hub's clock", lambda: clock_finding(home, config))
    yield _checked("disk", lambda: _disk(home))
    yield _checked("ports", lambda: _ports(config, running))
    yield _checked("hub ports", lambda: hub_ports_finding(home, config, running=running))
    yield _checked("nats-server", lambda: Finding("nats-server", "ok", str(find_binary())))
    yield _checked("engine", _engine)


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except FelloeError as error:
        return Finding(name, "failed", error.detail, error.spec.next_step)
    except OSError as error:
        return Finding(name, "failed", str(error), "Mend what the system reports.")


def _python() -> Finding:
    return Finding("python", "ok", f"Python {platform.python_version()}")


def _home(home: Home) -> Finding:
    if not home.folder.exists():
        return Finding("home", "ok", f"{home.folder} is new; `felloe up` or `felloe join` makes it")
    if home.folder.stat().st_mode & 0o077:
        return Finding("home", "warning", f"others may enter {home.folder}", f"chmod 700 {home.folder}")
    return Finding("home", "ok", str(home.folder))


def _keys(home: Home) -> Finding:
    files = [path for path in home.keys.rglob("*") if path.is_file()] if home.keys.exists() else []
    if not files:
        return Finding("keys", "ok", "this node belongs to no network yet")
    for path in files:
        if path.stat().st_mode & 0o077:
            return Finding("keys", "failed", f"others can read {path}", f"Find out who did, then: chmod 600 {path}")
    return Finding("keys", "ok", f"{len(files)} files, private")


def _clock() -> Finding:
    now = time.time()
    if now < _EARLIEST_SENSIBLE_TIME:
        return Finding("clock", "failed", f"the clock shows {time.ctime(now)}", "Set the clock; turn on NTP.")
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _disk(home: Home) -> Finding:
    folder = next(path for path in (home.folder, *home.folder.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free < _LOW_DISK_BYTES:
        return Finding("disk", "warning", detail, "Free some space: a model needs its size once.")
    return Finding("disk", "ok", detail)


def _ports(config: NodeConfig, running: bool) -> Finding:
    ports = {
        "api.port": (config.api.host, config.api.port),
        "peer.port": (config.peer.host, config.peer.port),
        "peer.mesh_port": (config.peer.host, config.peer.mesh_port),
    }
    listed = ", ".join(f"{name} {port}" for name, (_, port) in ports.items())
    if running:
        return Finding("ports", "ok", f"{listed} (this node is running)")
    taken = [f"{name} {host}:{port}" for name, (host, port) in ports.items() if port and not can_listen(host, port)]
    if taken:
        step = "Stop the other program, or choose other ports in config.toml."
        return Finding("ports", "failed", f"taken: {', '.join(taken)}", step)
    return Finding("ports", "ok", f"free: {listed}")


def _engine() -> Finding:
    try:
        return Finding("engine", "ok", f"llama.cpp in xllamacpp {installed('xllamacpp')}")
    except PackageNotFoundError:
        return Finding("engine", "failed", "xllamacpp is not installed", "Install Felloe's requirements again.")
