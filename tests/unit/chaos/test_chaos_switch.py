"""The laboratory's wire: packets go by their address, and a link is spoiled in its own direction only."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from chaos.switch import Switch, obey

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}


def packet(source: str, target: str, text: str) -> bytes:
    """As much of an IPv4 header as the switch reads, and a text."""
    ends = b"".join(bytes(map(int, ADDRESSES.get(end, end).split("."))) for end in (source, target))
    return bytes([0x45]) + bytes(11) + ends + text.encode()


class Wire:
    """A switch and one socket for each node in place of its TUN device."""

    def __init__(self) -> None:
        self.switch = Switch(seed=1)
        self.ends: dict[str, socket.socket] = {}
        self.devices: list[socket.socket] = []
        for name, address in ADDRESSES.items():
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            here.setblocking(False)
            there.setblocking(False)
            self.ends[name] = here
            self.devices.append(there)
            self.switch.attach(name, there.fileno())
            self.switch.place(name, address)

    def send(self, source: str, target: str, text: str) -> None:
        self.ends[source].send(packet(source, target, text))

    async def receive(self, name: str, seconds: float = 2.0) -> str:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.ends[name], 2000), seconds)
        return data[20:].decode()

    def close(self) -> None:
        for device in self.devices:
            asyncio.get_running_loop().remove_reader(device.fileno())
        for one in [*self.devices, *self.ends.values()]:
            one.close()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    built = Wire()
    try:
        yield built
    finally:
        built.close()


async def test_a_packet_goes_where_its_address_says(wire: Wire) -> None:
    wire.send("a", "b", "to b")
    wire.send("a", "c", "to c")
    assert await wire.receive("b") == "to b"
    assert await wire.receive("c") == "to c"


async def test_a_link_is_cut_in_one_direction_and_made_whole_again(wire: Wire) -> None:
    wire.switch.spoil("a", "b", loss=1.0, delay=0.0)
    wire.send("a", "b", "lost")
    wire.send("b", "a", "the other way")
    wire.send("a", "c", "another link")
    assert await wire.receive("a") == "the other way"
    assert await wire.receive("c") == "another link"
    wire.switch.spoil("a", "b", loss=0.0, delay=0.0)
    wire.send("a", "b", "whole")
    assert await wire.receive("b") == "whole"


async def test_some_packets_are_lost_and_some_are_not(wire: Wire) -> None:
    wire.switch.spoil("a", "b", loss=0.3, delay=0.0)
    for number in range(100):
        wire.send("a", "b", str(number))
        await asyncio.sleep(0)
    wire.switch.spoil("a", "b", loss=0.0, delay=0.0)
    wire.send("a", "b", "end")
    came = 0
    while await wire.receive("b") != "end":
        came += 1
    assert 50 <= came <= 90


async def test_a_delay_keeps_the_order_even_when_it_becomes_shorter(wire: Wire) -> None:
    wire.switch.spoil("a", "b", loss=0.0, delay=0.1)
    began = time.monotonic()
    wire.send("a", "b", "first")
    while not wire.switch.waiting("a", "b"):
        await asyncio.sleep(0)
    wire.switch.spoil("a", "b", loss=0.0, delay=0.0)
    wire.send("a", "b", "second")
    assert [await wire.receive("b"), await wire.receive("b")] == ["first", "second"]
    assert time.monotonic() - began >= 0.1


async def test_an_old_or_foreign_address_is_dead(wire: Wire) -> None:
    wire.switch.place("b", "10.0.0.9")
    wire.send("a", "b", "to the old address")
    wire.ends["b"].send(packet("b", "a", "from the old address"))
    wire.ends["c"].send(packet("10.0.0.1", "a", "forged"))
    wire.ends["a"].send(packet("a", "10.0.0.9", "to the new address"))
    assert await wire.receive("b") == "to the new address"
    wire.ends["b"].send(packet("10.0.0.9", "a", "from the new address"))
    assert await wire.receive("a") == "from the new address"
    assert wire.switch.counts["nowhere"] == 3


async def test_a_command_that_it_does_not_know_is_refused(wire: Wire) -> None:
    with pytest.raises(ValueError, match="no such command"):
        obey(wire.switch, {"explode": "a"})
