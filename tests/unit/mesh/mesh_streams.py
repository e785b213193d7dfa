"""Handlers that answer without an end, and readers of streams, for the tests of exchanges."""

import asyncio

import pytest

from felloe.domain.errors import FelloeError
from felloe.mesh.incoming import Incoming
from felloe.mesh.outgoing import Outgoing


async def count_for_ever(request: bytes, outgoing: Outgoing) -> None:
    """Answer for ever, a number every 10 ms."""
    number = 0
    while True:
        await outgoing.send(b"%d" % number)
        number += 1
        await asyncio.sleep(0.01)


async def hang(request: bytes, outgoing: Outgoing) -> None:
    await asyncio.Event().wait()


async def everything(incoming: Incoming) -> list[bytes]:
    heard: list[bytes] = []
    await incoming.pump(heard.append)
    return heard


async def failure(incoming: Incoming) -> FelloeError:
    """Read what `count_for_ever` or `hang` answers to its failure; the numbers before it have no hole."""
    heard: list[bytes] = []
    with pytest.raises(FelloeError) as failed:
        await incoming.pump(heard.append)
    assert heard == [b"%d" % number for number in range(len(heard))], "numbers are missing"
    return failed.value
