"""Each fault as a pair: what applies it returns what undoes it."""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import httpx

from chaos.nodes import ChaosNode, OperatorRefusal
from chaos.schedule import Fault
from chaos.scribe import Scribe
from chaos.stage import Stage

Undo = Callable[[], Awaitable[None]]
LOSS = 0.3
DELAY_SECONDS = 0.3
CLOCK_JUMPS = (-3600, -600, 600, 3600, 86_400)
CLOCK_AHEAD = 400
BURST_SECONDS = 0.3
CHANGE_SECONDS = 60.0
_CHUNK = bytes(1 << 20)

TAKES_DOWN = frozenset(
    {
        "node killed",
        "node frozen",
        "restart after a wrong clock",
        "all hubs killed",
        "leader killed",
        "leader frozen",
        "leader killed while it writes",
        "hub killed while promoted",
    }
)
"""The process that clients ask is not there: they cannot get a clear error from it."""

CUTS_OFF = TAKES_DOWN | {
    "link cut",
    "link cut outwards",
    "link cut inwards",
    "30 % packets lost",
    "300 ms delay",
    "message server killed",
    "spoke moved",
}
"""A node without a model that is hit, or whose only hubs are hit, has no sure way to a replica."""


class Scenery(NamedTuple):
    """What a fault may touch."""

    stage: Stage
    scribe: Scribe


async def apply(scenery: Scenery, fault: Fault, targets: tuple[str, ...]) -> Undo:
    """Apply a fault to its targets; call what is returned to undo it."""
    nodes = [scenery.stage.members[name] for name in targets]
    match fault.kind:
        case "node killed" | "leader killed" | "all hubs killed":
            return _kill(nodes)
        case "leader killed while it writes":
            return await _kill_while_writing(scenery.scribe, nodes)
        case "hub killed while promoted":
            return await _kill_while_promoted(scenery.stage, nodes[0], fault)
        case "node frozen" | "leader frozen":
            return _freeze(nodes)
        case "engine killed":
            return _signal_child(nodes, "engine", signal.SIGKILL)
        case "engine frozen":
            return _signal_child(nodes, "engine", signal.SIGSTOP)
        case "message server killed":
            return _signal_child(nodes, "nats-server", signal.SIGKILL)
        case "disk full" | "disk of a hub full":
            return await _fill_disk(nodes)
        case "clock jumps":
            return _jump(nodes, CLOCK_JUMPS[fault.pick % len(CLOCK_JUMPS)])
        case "restart after a wrong clock":
            return _restart_after_wrong_clock(nodes)
        case "spoke moved":
            return _move(scenery.stage, nodes)
        case _:
            return await _spoil(scenery.stage, fault.kind, targets)


async def _nothing() -> None:
    """There is nothing to undo."""


def _kill(nodes: list[ChaosNode]) -> Undo:
    for node in nodes:
        node.kill()

    async def undo() -> None:
        for node in nodes:
            node.start("up")

    return undo


async def _kill_while_writing(scribe: Scribe, nodes: list[ChaosNode]) -> Undo:
    scribe.hurry()
    try:
        await asyncio.sleep(BURST_SECONDS)
        return _kill(nodes)
    finally:
        scribe.calm()


async def _kill_while_promoted(stage: Stage, node: ChaosNode, fault: Fault) -> Undo:
    """Killed up to three seconds after the owner asked for its promotion; made a spoke again afterwards."""
    (owner, *_) = await stage.writable()
    name = {"name": node.name}
    promotion = asyncio.ensure_future(owner.tell_at_length("/hubs/promote", name, CHANGE_SECONDS))
    await asyncio.sleep(fault.pick % 3000 / 1000)
    restart = _kill([node])

    async def undo() -> None:
        await restart()
        # Either may be refused: what counts is that the network is whole afterwards.
        with contextlib.suppress(OperatorRefusal, httpx.HTTPError):
            await promotion
        with contextlib.suppress(OperatorRefusal, httpx.HTTPError):
            await owner.tell_at_length("/hubs/demote", name, CHANGE_SECONDS)

    return undo


def _freeze(nodes: list[ChaosNode]) -> Undo:
    for node in nodes:
        node.freeze()

    async def undo() -> None:
        for node in nodes:
            node.thaw()

    return undo


def _signal_child(nodes: list[ChaosNode], role: str, number: signal.Signals) -> Undo:
    """A child that was stopped goes on; one that was killed is its node's business."""
    children = [child for node in nodes if (child := node.child(role)) is not None]
    for child in children:
        child.send_signal(number)

    async def undo() -> None:
        for child in children:
            with contextlib.suppress(Exception):  # its node may have ended it meanwhile
                child.send_signal(signal.SIGCONT)

    return undo


async def _fill_disk(nodes: list[ChaosNode]) -> Undo:
    ballast = [node.home.folder / "ballast" for node in nodes]
    for path in ballast:
        await asyncio.to_thread(_fill, str(path))

    async def undo() -> None:
        for path in ballast:
            path.unlink()

    return undo


def _fill(path: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        chunk = _CHUNK
        while chunk:
            try:
                os.write(descriptor, chunk)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                chunk = chunk[: len(chunk) // 2]
    finally:
        os.close(descriptor)


def _jump(nodes: list[ChaosNode], seconds: int) -> Undo:
    for node in nodes:
        node.set_clock(seconds)

    async def undo() -> None:
        for node in nodes:
            node.set_clock(0)

    return undo


def _restart_after_wrong_clock(nodes: list[ChaosNode]) -> Undo:
    """What a node said with its clock ahead must not outweigh what it says after a restart with the right time."""
    for node in nodes:
        node.set_clock(CLOCK_AHEAD)

    async def undo() -> None:
        for node in nodes:
            node.kill()
            node.set_clock(0)
            node.start("up")

    return undo


def _move(stage: Stage, nodes: list[ChaosNode]) -> Undo:
    """For good: the old address does not come back."""
    for node in nodes:
        stage.lab.move(node.name)
        node.place = stage.lab.places[node.name]
    return _nothing


async def _spoil(stage: Stage, kind: str, targets: tuple[str, ...]) -> Undo:
    others = set(stage.members) - set(targets)
    if kind == "leader cut from the hubs":
        others &= set((await stage.council()).hubs)
    outwards = [(target, other) for target in targets for other in others]
    inwards = [(other, target) for target, other in outwards]
    links, loss, delay = {
        "link cut": (outwards + inwards, 1.0, 0.0),
        "leader cut from the hubs": (outwards + inwards, 1.0, 0.0),
        "link cut outwards": (outwards, 1.0, 0.0),
        "link cut inwards": (inwards, 1.0, 0.0),
        "30 % packets lost": (outwards + inwards, LOSS, 0.0),
        "300 ms delay": (outwards + inwards, 0.0, DELAY_SECONDS),
    }[kind]
    stage.lab.spoil(links, loss=loss, delay=delay)

    async def undo() -> None:
        stage.lab.spoil(links)

    return undo
