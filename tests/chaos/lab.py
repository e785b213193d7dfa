"""Where the nodes stand: a network namespace and a small disk for each of them, or, without root, plain loopback.

Names carry this process's id, so that `sweep` can remove what a killed run left behind and nothing else.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from felloe.node.config import PeerConfig
from networks import free_ports

NAMESPACES = Path("/run/netns")
PREFIX = "fchaos"
FOLDER_PREFIX = "felloe-chaos"
DEVICE = "wire0"
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
DISK_BYTES = 96 << 20
_SUBNET = "10.84.0"
_TESTS = Path(__file__).parents[1]


class Place(NamedTuple):
    """Where one node lives. `prefix` starts a command there."""

    name: str
    address: str
    home: Path
    prefix: tuple[str, ...]
    settings: dict[str, Any]


class Lab(ABC):
    """Makes places, spoils links, and removes everything on `close`."""

    abilities: frozenset[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, Place] = {}

    @abstractmethod
    def add(self, name: str) -> Place:
        """A new place with an empty home."""

    @abstractmethod
    def close(self) -> None:
        """Remove what was made; its processes have ended."""

    def spoil(self, links: Iterable[tuple[str, str]], *, loss: float = 0.0, delay: float = 0.0) -> None:
        """Let some directions lose a share of packets or take `delay` seconds longer; zeros make them whole."""
        raise NotImplementedError("this laboratory has no wires")

    def move(self, name: str) -> str:
        """Give a place another address and return it."""
        raise NotImplementedError("this laboratory has one address")


class LoopbackLab(Lab):
    """All nodes on 127.0.0.1: processes and signals alone."""

    abilities = frozenset[str]()

    def add(self, name: str) -> Place:
        home = self.folder / name
        home.mkdir(parents=True, mode=0o700)
        names = [option.name for option in msgspec.structs.fields(PeerConfig) if option.name.endswith("port")]
        api, *ports = free_ports(1 + len(names))
        peer = dict(zip(names, ports, strict=True)) | {"host": "127.0.0.1", "advertise": ["127.0.0.1"]}
        settings = {"api": {"port": api}, "peer": peer}
        self.places[name] = Place(name, "127.0.0.1", home, DIE_WITH_PARENT if shutil.which("setpriv") else (), settings)
        return self.places[name]

    def close(self) -> None:
        """Nothing is left but files in the folder."""


class NamespaceLab(Lab):
    """One namespace and one tmpfs for each node, one process that carries packets between them."""

    abilities = frozenset({"links", "disk", "address"})

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self._mark = f"{PREFIX}-{os.getpid()}-"
        self._last_address = 10
        self._switch = subprocess.Popen(
            [*DIE_WITH_PARENT, sys.executable, "-m", "chaos.switch", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(_TESTS)},
            start_new_session=True,
        )

    def add(self, name: str) -> Place:
        namespace, home, address = self._mark + name, self.folder / name, self._next_address()
        _do("ip", "netns", "add", namespace)
        self._tell({"attach": name, "namespace": str(NAMESPACES / namespace), "device": DEVICE})
        self._tell({"place": name, "address": address})
        _do("ip", "-n", namespace, "link", "set", "lo", "up")
        _do("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", DEVICE)
        _do("ip", "-n", namespace, "link", "set", DEVICE, "up")
        home.mkdir(parents=True, mode=0o700)
        _do("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", namespace, str(home))
        prefix = ("nsenter", f"--net={NAMESPACES / namespace}", *DIE_WITH_PARENT)
        self.places[name] = Place(name, address, home, prefix, {"api": {"port": 8470}})
        return self.places[name]

    def spoil(self, links: Iterable[tuple[str, str]], *, loss: float = 0.0, delay: float = 0.0) -> None:
        self._tell({"spoil": list(links), "loss": loss, "delay": delay})

    def move(self, name: str) -> str:
        place, namespace, address = self.places[name], self._mark + name, self._next_address()
        _do("ip", "-n", namespace, "address", "del", f"{place.address}/24", "dev", DEVICE)
        _do("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", DEVICE)
        self._tell({"place": name, "address": address})
        self.places[name] = place._replace(address=address)
        return address

    def close(self) -> None:
        if self._switch.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._switch.stdin.close()
        try:
            self._switch.wait(5)
        except subprocess.TimeoutExpired:
            self._switch.kill()
            self._switch.wait()
        if self._switch.stdout is not None:
            self._switch.stdout.close()
        _remove(self._mark)

    def _next_address(self) -> str:
        self._last_address += 1
        return f"{_SUBNET}.{self._last_address}"

    def _tell(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(json.dumps(command).encode() + b"\n")
        self._switch.stdin.flush()
        said = json.loads(self._switch.stdout.readline() or b'{"error": "the switch has ended"}')
        if "error" in said:
            raise RuntimeError(f"the switch could not obey {command}: {said['error']}")
        return said["done"]


def open_lab(folder: Path, seed: int) -> tuple[Lab, str]:
    """The best laboratory this user may have, and why it is not the full one ("" when it is)."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return LoopbackLab(folder), "it needs root on Linux"
    if not Path("/dev/net/tun").exists():
        return LoopbackLab(folder), "this kernel has no /dev/net/tun"
    sweep()
    lab = NamespaceLab(folder, seed)
    try:
        lab.add("trial")
    except (RuntimeError, subprocess.CalledProcessError) as error:
        lab.close()
        return LoopbackLab(folder), f"no namespace could be made: {error}"
    lab.places.clear()
    return lab, ""


def sweep() -> list[str]:
    """Remove namespaces, mounts, folders and processes of runs whose process is gone; returns their marks."""
    folders = [path for path in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}-*-*") if path.is_dir()]
    named = _ours() + [path.name.replace(FOLDER_PREFIX, PREFIX) for path in folders]
    marks = {found.group() for name in named if (found := re.match(rf"{PREFIX}-(\d+)-", name))}
    dead = sorted(mark for mark in marks if not _is_a_run(int(mark.split("-")[1])))
    for mark in dead:
        _remove(mark)
        for folder in folders:
            if folder.name.startswith(mark.replace(PREFIX, FOLDER_PREFIX)):
                shutil.rmtree(folder)
    return dead


def _ours() -> list[str]:
    named = [path.name for path in NAMESPACES.glob(f"{PREFIX}-*")]
    return named + [source for source, _ in _mounts() if source.startswith(f"{PREFIX}-")]


def _mounts() -> list[tuple[str, str]]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(words[0], words[1]) for words in lines]


def _is_a_run(process: int) -> bool:
    try:
        return b"python" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _remove(mark: str) -> None:
    for path in NAMESPACES.glob(f"{mark}*"):
        inside = subprocess.run(["ip", "netns", "pids", path.name], capture_output=True, text=True, check=False).stdout
        for process in inside.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        _do("ip", "netns", "del", path.name)
    for source, point in _mounts():
        if source.startswith(mark):
            _do("umount", "--lazy", point)


def _do(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(command)}: {error.stderr.strip()}") from error
