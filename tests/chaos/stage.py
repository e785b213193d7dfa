"""The network under test: its nodes in their places, who is hub now, and newcomers."""

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from chaos.clients import MODEL
from chaos.lab import Lab
from chaos.nodes import ChaosNode, OperatorRefusal
from chaos.schedule import Scene
from networks import TINY_MODEL

START_SECONDS = 60.0
INVITE_SECONDS = 15.0
"""Longer than a hub tries to have the other hubs acknowledge a write."""

ASKER = "asker"
"""The one node without a model: all that it asks goes over the mesh."""


class Council(NamedTuple):
    """Who is hub, which hubs keep the state, and who leads; "" when nobody says."""

    hubs: tuple[str, ...]
    keepers: tuple[str, ...]
    leader: str


NOBODY = Council((), (), "")
COMMANDS = frozenset({"promote", "demote", "revoke", "hubs", "drain"})


def program_abilities() -> frozenset[str]:
    """Which of the commands that faults need this program has; `hubs` also stands for several hubs."""
    said = subprocess.run(
        [sys.executable, "-m", "felloe", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return frozenset(command for command in COMMANDS if re.search(rf"^\W*{command}\s", said, re.MULTILINE))


async def until(what: str, condition: Callable[[], Awaitable[Any]], seconds: float = START_SECONDS) -> Any:
    """The first true value of `condition`. Raises RuntimeError saying `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
        await asyncio.sleep(0.1)


class Stage:
    """Owns the nodes. `members` are those that belong to the network now, newcomers included."""

    def __init__(self, lab: Lab, abilities: frozenset[str], count: int, request_seconds: float) -> None:
        self.lab = lab
        self.abilities = abilities
        self.members: dict[str, ChaosNode] = {}
        self.gone: list[ChaosNode] = []
        self.preload: Path | None = None
        self._count = count
        self._request_seconds = request_seconds
        self._guests = 0

    async def build(self) -> None:
        """Found the network with the first node, let the others join, and have three hubs where that can be."""
        names = [f"node-{number + 1}" for number in range(self._count)]
        hubs_to_be = names[:3] if "promote" in self.abilities else names[:1]
        first = self._node(names[0], serves=True, may_be_hub=True)
        first.start("up", "--model", str(TINY_MODEL))
        await self._up(first)
        for name in [*names[1:], ASKER]:
            await self.join(self._node(name, serves=name != ASKER, may_be_hub=name in hubs_to_be))
        await until("every node to serve", self._all_serve)
        for name in hubs_to_be[1:]:
            if name not in (await self.council()).hubs:
                await first.tell_at_length("/hubs/promote", {"name": name}, START_SECONDS)

        async def kept_by_all() -> bool:
            return set(hubs_to_be) <= set((await self.council()).keepers)

        await until("the hubs to keep the state", kept_by_all)

    def _node(self, name: str, *, serves: bool, may_be_hub: bool) -> ChaosNode:
        node = ChaosNode(
            self.lab.add(name), serves=serves, may_be_hub=may_be_hub, request_seconds=self._request_seconds
        )
        if self.preload is not None:
            node.use_clock(self.preload, self.lab.folder / f"{name}.clock")
        self.members[name] = node
        return node

    async def join(self, node: ChaosNode) -> None:
        """Join and be up."""
        models = ["--model", str(TINY_MODEL)] if node.serves else []
        node.start("join", "-", *models, stdin=await self._invitation())
        await self._up(node)

    async def _invitation(self) -> str:
        """A join token, as an owner gets one who asks again when a fault that runs now kept the hubs from writing."""

        async def invited() -> str:
            for hub in await self.writable():
                with contextlib.suppress(OperatorRefusal, httpx.TransportError):
                    asked = {"role": "spoke", "uses": 1, "ttl_seconds": 600}
                    return str((await hub.tell("/invitations/create", asked, INVITE_SECONDS))["token"])
            return ""

        return str(await until("an invitation", invited))

    async def newcomer(self) -> ChaosNode:
        """One more node, which has joined and serves."""
        self._guests += 1
        guest = self._node(f"guest-{self._guests}", serves=True, may_be_hub=False)
        await self.join(guest)
        return guest

    def dismiss(self, node: ChaosNode) -> None:
        """It belongs to the network no more."""
        self.members.pop(node.name, None)
        self.gone.append(node)

    async def _up(self, node: ChaosNode) -> None:
        async def connected() -> bool:
            if not node.lives:
                raise RuntimeError(f"{node.name} ended: {node.last_words()}")
            return bool((await node.ask("/status") or {}).get("connected"))

        await until(f"{node.name} to be up", connected)

    async def _all_serve(self) -> bool:
        for node in self.members.values():
            if await self.unlike(node):
                return False
        return True

    @property
    def serving(self) -> frozenset[str]:
        """The nodes with a model."""
        return frozenset(node.name for node in self.members.values() if node.serves)

    async def unlike(self, node: ChaosNode) -> str:
        """What this node sees other than it is, in words; "" when its view is whole."""
        members, models = await node.ask("/members"), await node.ask("/models")
        if members is None or models is None:
            return f"{node.name} does not answer its owner"
        alive = {member["record"]["name"] for member in members if member["alive"]}
        wrong = alive ^ set(self.members)
        if wrong:
            return f"{node.name} sees {', '.join(sorted(wrong))} wrongly {'dead' if wrong - alive else 'alive'}"
        replicas = {row["model"]["name"]: row["replicas"] for row in models}.get(MODEL, {})
        ready = {name for name, state in replicas.items() if state == "ready"}
        if ready != self.serving:
            return f"{node.name} sees replicas on {', '.join(sorted(ready)) or 'no node'}"
        return ""

    async def disagreement(self) -> str:
        """Who holds what another node said before its last start, in words; "" when all hold the newest records."""
        nodes = tuple(self.members.values())
        told = await asyncio.gather(*(node.ask("/members") for node in nodes))
        views = {node.name: members for node, members in zip(nodes, told, strict=True) if members}
        started = {
            name: member["record"]["started_at"]
            for name, members in views.items()
            for member in members
            if member["this"]
        }
        for name, members in views.items():
            for record in (member["record"] for member in members):
                if started.get(record["name"], record["started_at"]) != record["started_at"]:
                    return f"{name} holds an old record of {record['name']}"
        return ""

    async def council(self) -> Council:
        """The hubs as a living node knows them; a hub that knows the leader is believed first."""
        known = NOBODY
        for node in tuple(self.members.values()):
            view = await node.ask("/hubs") if node.lives and "hubs" in self.abilities else None
            if view is not None:
                rows = [row for row in view["hubs"] if row["name"] in self.members]
                leader = next((row["name"] for row in rows if row["leads"]), "")
                keepers = tuple(sorted(row["name"] for row in rows if row["keeps_state"]))
                known = Council(tuple(sorted(row["name"] for row in rows)), keepers, leader)
                if leader:
                    return known
        return known if known.hubs else await self._council_by_role()

    async def _council_by_role(self) -> Council:
        for node in tuple(self.members.values()):
            members = await node.ask("/members") if node.lives else None
            if members:
                hubs = sorted(one["record"]["name"] for one in members if "hub" in one["record"]["roles"])
                return Council(tuple(hubs), tuple(hubs), "")
        return NOBODY

    async def writable(self) -> list[ChaosNode]:
        """The living hubs where the network's state can be changed."""
        keepers = (await self.council()).keepers
        return [self.members[name] for name in keepers if name in self.members and self.members[name].lives]

    async def writer(self) -> ChaosNode:
        """One of them, as soon as there is any."""
        (first, *_) = await until("a hub where the state can be changed", self.writable)
        return first

    async def scene(self) -> Scene:
        """Who can be hit now."""
        living = [node for node in self.members.values() if node.lives]
        council = await self.council()
        return Scene(
            nodes=tuple(node.name for node in living),
            serving=frozenset(node.name for node in living if node.serves),
            hubs=tuple(name for name in council.hubs if name in self.members),
            leader=council.leader if len(council.hubs) > 1 else "",
            movers=frozenset(node.name for node in living if not node.may_be_hub),
            candidates=frozenset(node.name for node in living if node.serves),
            guests=(f"guest-{self._guests + 1}",),
        )

    def ended(self) -> Collection[ChaosNode]:
        """Members that were started and whose process has ended."""
        return [node for node in self.members.values() if node.process is not None and not node.lives]

    def close(self) -> None:
        """End every process, spokes first."""
        everyone = [*self.members.values(), *self.gone]
        for node in everyone:
            if node.lives and node.process is not None:
                node.thaw()
                node.process.terminate()
        for node in reversed(everyone):
            node.stop()
