"""Three real hubs on loopback, each with its two servers, and what these nine processes use."""

import re
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from networks import Network, NodeProcess

PARTS = ("node", "message server", "state server")
_ALIVE = re.compile(rb"^felloe_nodes_alive (\S+)", re.MULTILINE)
_LOOK_SECONDS = 0.02


class Use(NamedTuple):
    """Processor time in seconds so far, and memory in bytes."""

    seconds: float
    memory: int


class Hubs:
    """Owns the network; `close` ends it."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(folder, log_level="warning")
        self.nodes: list[NodeProcess] = []

    def start(self) -> None:
        """Found the network and make it one of three hubs."""
        self.network.start_hub()
        others = [self.network.add_spoke(name) for name in ("hub2", "hub3")]
        self.network.promote(*others)
        self.nodes = [self.network.hub, *others]

    def kill(self) -> None:
        """SIGKILL to all of them; their servers die with them."""
        for node in self.nodes:
            assert node.process is not None
            node.process.kill()
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        """Start all again, without waiting."""
        for node in self.nodes:
            node.start("up")

    def use(self) -> list[dict[str, Use]]:
        """What each hub uses, by part."""
        return [_use_of(node) for node in self.nodes]

    def close(self) -> None:
        """End every hub."""
        self.network.close()


class Gateways:
    """Watches how many living nodes each hub's gateway counts, until told to stop."""

    def __init__(self, nodes: Sequence[NodeProcess], wanted: int) -> None:
        self._wanted = wanted
        self._over = threading.Event()
        self._times: dict[str, float] = {}
        self._threads = [threading.Thread(target=self._watch, args=(node,), daemon=True) for node in nodes]
        for thread in self._threads:
            thread.start()

    def times(self, seconds: float) -> list[float]:
        """When each gateway counted no more than that many; those that never did are missing."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._over.set()
        return list(self._times.values())

    def _watch(self, node: NodeProcess) -> None:
        while not self._over.is_set():
            count = living(node)
            if count is not None and count <= self._wanted:
                self._times[node.name] = time.monotonic()
                return
            time.sleep(_LOOK_SECONDS)


def living(node: NodeProcess) -> int | None:
    """How many living nodes a hub's gateway counts; None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{node.api_port}/metrics", timeout=10) as response:
            found = _ALIVE.search(response.read())
    except OSError:
        return None
    return None if found is None else int(float(found[1]))


def _use_of(node: NodeProcess) -> dict[str, Use]:
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    used = {"node": _use(process)}
    for child in process.children():
        part = "state server" if "generation" in " ".join(child.cmdline()) else "message server"
        used[part] = _use(child)
    return used


def _use(process: psutil.Process) -> Use:
    return Use(sum(process.cpu_times()[:2]), process.memory_info().rss)
