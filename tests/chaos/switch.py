"""The laboratory's wire: a process that carries IP packets between the namespaces' TUN devices and spoils them.

`python -m chaos.switch`, one JSON command a line on standard input, one JSON answer a line on standard output; it ends
with its input. A switch of our own instead of `tc netem`, which many kernels lack: it can also spoil one direction
between two nodes and leave their other links alone. A link's loss is a share of packets, its delay is in seconds.
"""

import asyncio
import ctypes
import fcntl
import json
import os
import random
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_LARGEST_PACKET = 65_535
_LONGEST_QUEUE = 5_000
_BURST = 64


def open_device(namespace: Path, device: str) -> int:
    """Make a TUN device inside a network namespace; its descriptor works from here."""
    library = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(namespace, os.O_RDONLY)
    try:
        if library.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TUN_WITHOUT_HEADER))
        return descriptor
    finally:
        library.setns(home, _CLONE_NEWNET)
        os.close(there)
        os.close(home)


@dataclass
class Link:
    """One direction between two nodes."""

    loss: float = 0.0
    delay: float = 0.0
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque[tuple[float, bytes]])


class Switch:
    """Carries packets by their destination address; a packet from an address that is not its sender's is dropped."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._devices: dict[str, int] = {}
        self._addresses: dict[bytes, str] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()

    def attach(self, node: str, descriptor: int) -> None:
        """Carry the packets of a device."""
        self._devices[node] = descriptor
        self._loop.add_reader(descriptor, self._read, node, descriptor)

    def place(self, node: str, address: str) -> None:
        """Give a node its only address."""
        self._addresses = {known: owner for known, owner in self._addresses.items() if owner != node}
        self._addresses[bytes(map(int, address.split(".")))] = node

    def spoil(self, source: str, target: str, loss: float, delay: float) -> None:
        """Set how one direction behaves from now on."""
        link = self._links.setdefault((source, target), Link())
        link.loss, link.delay = loss, delay

    def waiting(self, source: str, target: str) -> int:
        """How many packets are on their way over a slow link."""
        link = self._links.get((source, target))
        return len(link.waiting) if link is not None else 0

    def _read(self, node: str, descriptor: int) -> None:
        for _ in range(_BURST):
            try:
                packet = os.read(descriptor, _LARGEST_PACKET)
            except OSError:
                return  # nothing more, or the device is down
            self._carry(node, packet)

    def _carry(self, node: str, packet: bytes) -> None:
        target = self._addresses.get(packet[16:20])
        if packet[0] >> 4 != 4 or target is None or self._addresses.get(packet[12:16]) != node:
            self.counts["nowhere"] += 1
            return
        link = self._links.get((node, target))
        if link is None or (not link.loss and not link.delay and not link.waiting):
            self._write(target, packet)
        elif link.loss and self._random.random() < link.loss:
            self.counts["lost"] += 1
        elif len(link.waiting) >= _LONGEST_QUEUE:
            self.counts["overrun"] += 1
        else:
            self._delay(link, target, packet)

    def _delay(self, link: Link, target: str, packet: bytes) -> None:
        due = self._loop.time() + link.delay
        if link.waiting:
            due = max(due, link.waiting[-1][0])  # a shorter delay does not let later packets overtake
        link.waiting.append((due, packet))
        if len(link.waiting) == 1:
            self._loop.call_at(due, self._release, link, target)

    def _release(self, link: Link, target: str) -> None:
        now = self._loop.time()
        while link.waiting and link.waiting[0][0] <= now:
            self._write(target, link.waiting.popleft()[1])
        if link.waiting:
            self._loop.call_at(link.waiting[0][0], self._release, link, target)

    def _write(self, target: str, packet: bytes) -> None:
        try:
            os.write(self._devices[target], packet)
            self.counts["carried"] += 1
        except OSError:
            self.counts["overrun"] += 1


def obey(switch: Switch, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command of the laboratory."""
    match command:
        case {"attach": node, "namespace": namespace, "device": device}:
            switch.attach(node, open_device(Path(namespace), device))
        case {"place": node, "address": address}:
            switch.place(node, address)
        case {"spoil": links, "loss": loss, "delay": delay}:
            for source, target in links:
                switch.spoil(source, target, loss, delay)
        case {"count": _}:
            return dict(switch.counts)
        case _:
            raise ValueError(f"no such command: {command}")
    return {}


def answer(switch: Switch, line: bytes, say: Callable[[dict[str, Any]], None]) -> None:
    """Do what a line says; what went wrong is the answer."""
    try:
        say({"done": obey(switch, json.loads(line))})
    except (OSError, ValueError) as error:
        say({"error": f"{type(error).__name__}: {error}"})


async def serve(seed: int) -> None:
    """Until standard input ends."""
    switch = Switch(seed)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(partial(asyncio.StreamReaderProtocol, lines), sys.stdin)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    async for line in lines:
        answer(switch, line, say)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
