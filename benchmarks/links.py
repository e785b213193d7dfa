"""Machines with links of a known rate, on one machine: a network namespace each, joined by a bridge, shaped by `tbf`.

It needs root on Linux and iproute2. Both directions of a link have the same rate; the bridge itself has none. Names
carry this process's id; what a killed run left behind goes with `ip netns` and `ip link`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chaos.lab import DIE_WITH_PARENT, Lab, Place

_DEVICE = "link0"
_SUBNET = "10.85.0"
_NAMESPACES = Path("/run/netns")
# As much as a real interface queues at these rates: enough for full speed, and a long queue does not hide losses.
_BURST, _LATENCY = "256kb", "50ms"


class ShapedLab(Lab):
    """`rate` as tc writes it, for example `1gbit`. `close` ends every process inside and removes the namespaces."""

    abilities = frozenset({"links"})

    def __init__(self, folder: Path, rate: str) -> None:
        super().__init__(folder)
        if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("tc") is None:
            sys.exit("links of a known rate need root on Linux, and iproute2")
        self._rate = rate
        self._mark = f"fbench-{os.getpid()}-"
        self._bridge = f"{self._mark}bridge"
        self._pinned: dict[str, tuple[str, ...]] = {}
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge0", "up")

    def pin(self, name: str, cores: Sequence[int], niceness: int = 0) -> None:
        """Let the machine that `add` makes under this name have these cores alone, and there let others go first."""
        self._pinned[name] = ("nice", "-n", str(niceness), "taskset", "--cpu-list", ",".join(map(str, cores)))

    def add(self, name: str) -> Place:
        number = len(self.places) + 11
        namespace, port, address = self._mark + name, f"port{number}", f"{_SUBNET}.{number}"
        home = self.folder / name
        home.mkdir(parents=True, mode=0o700)
        _ip("netns", "add", namespace)
        there = ("peer", "name", _DEVICE, "netns", namespace)
        _ip("-n", self._bridge, "link", "add", port, "type", "veth", *there)
        _ip("-n", self._bridge, "link", "set", port, "master", "bridge0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", _DEVICE)
        _ip("-n", namespace, "link", "set", _DEVICE, "up")
        for where, device in ((self._bridge, port), (namespace, _DEVICE)):
            shape = ("root", "tbf", "rate", self._rate, "burst", _BURST, "latency", _LATENCY)
            _do("tc", "-n", where, "qdisc", "add", "dev", device, *shape)
        prefix = ("nsenter", f"--net={_NAMESPACES / namespace}", *self._pinned.get(name, ()), *DIE_WITH_PARENT)
        settings = {"api": {"port": 8470}, "log_level": "warning", "peer": {"advertise": [address]}}
        self.places[name] = Place(name, address, home, prefix, settings)
        return self.places[name]

    def sent_bytes(self, name: str) -> int:
        """What a machine has sent over its link since it was made, with all headers."""
        command = ["cat", f"/sys/class/net/{_DEVICE}/statistics/tx_bytes"]
        # A fresh mount of /sys shows the namespace that it is mounted in.
        inside = ["ip", "netns", "exec", self._mark + name, *command]
        return int(subprocess.run(inside, check=True, capture_output=True, text=True).stdout)

    def close(self) -> None:
        for path in _NAMESPACES.glob(f"{self._mark}*"):
            pids = subprocess.run(["ip", "netns", "pids", path.name], capture_output=True, text=True, check=False)
            for process in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), 9)
            _ip("netns", "del", path.name)


def bits_per_second(rate: str) -> float:
    """A rate as tc writes it: `1gbit`, `200mbit`."""
    for unit, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * factor
    raise SystemExit(f"{rate} is no rate: write 1gbit or 200mbit")


def _ip(*arguments: str) -> None:
    _do("ip", *arguments)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
