"""Simulated spokes, many in one process: the mesh's real parts with real credentials, and no engine behind them.

`scale_crowd.py` starts it and talks to it: one JSON object a line, a question on standard input, its answer on standard
output. Times are readings of the machine's monotonic clock, in seconds. What spokes cost is not measured, and hundreds
on one machine leave no time for more, so those of one process share what is the same for each: a check of each incoming
record and digest, and a TLS context.
"""

import asyncio
import functools
import gc
import json
import random
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe import __version__
from felloe.domain.errors import FelloeError
from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId
from felloe.domain.models import Model
from felloe.domain.roster import Load, NodeRecord, Replica, Roster
from felloe.hubs.addresses import all_mesh_urls
from felloe.hubs.records import HUBS, HubSet
from felloe.hubs.topics import KEYS, REVOKED, TRUST
from felloe.mesh import roster_hearsay, roster_service, roster_wire
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import sign_nonce
from felloe.mesh.exchange import Exchange
from felloe.mesh.join_client import Welcomed, join
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.roster_service import RosterService
from felloe.mesh.session import Login
from felloe.mesh.state import StateFollower

MODEL = "simulated"
HOUSEKEEPING_SECONDS = 10.0
JOINS_AT_ONCE = 4
START_SECONDS = 0.03
SLOTS = 4


class Spoke:
    """One simulated node: it joined over HTTPS, and follows and says what a real one does."""

    def __init__(self, key: Ed25519PrivateKey, welcomed: Welcomed) -> None:
        membership, trust = welcomed.membership, welcomed.trust
        self.id: NodeId = membership.node
        self.ups: list[float] = []
        self.watch: Callable[[Roster], bool] | None = None
        self.seen_at: float | None = None
        self._key = key
        self._replicas = (_replica(SLOTS),)
        self.connection = Connection(
            membership.nats_urls,
            membership.node,
            login=lambda: Login(welcomed.credential.user_token, functools.partial(sign_nonce, key)),
            tls=_tls_context(trust.issuers(time.time())),
            server_name=hub_tls_name(membership.network),
        )
        self.connection.on_up(lambda: self.ups.append(time.monotonic()))
        self._started_at = time.time()
        self.roster = RosterService(self.connection, self._record(membership.name), sign=key.sign)
        self._latest = self.roster.snapshot()
        self.roster.on_change(self._look)
        self.exchange = Exchange(self.connection, membership.node)
        self.exchange.serve(_refuse)
        self.roster.on_loss(self.exchange.node_lost)
        self.roster.on_move(self.exchange.node_moved)
        self.state = StateFollower(self.connection)
        self._name = membership.name
        self._house: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Everything that a node starts which is about the network."""
        await self.connection.start(wait_seconds=None)
        await self.exchange.start()
        await self.roster.start()
        await self.state.follow(HUBS, self._take_hubs)
        for topic in (KEYS, TRUST, REVOKED):
            await self.state.follow(topic, lambda _: None)
        self._house = asyncio.create_task(self._keep_house())

    def say_load(self, active: int) -> None:
        """Be as busy as that from now on."""
        self.roster.set_load(lambda: Load(active={MODEL: active}))

    def say_slots(self, slots: int) -> None:
        """Change the record."""
        self._replicas = (_replica(slots),)
        self.roster.set_record(self._record(self._name))

    def watch_for(self, condition: Callable[[Roster], bool]) -> None:
        """Note when `condition` first holds."""
        self.watch, self.seen_at = condition, None
        self._look(self._latest)

    def _look(self, roster: Roster) -> None:
        self._latest = roster
        if self.watch is not None and self.watch(roster):
            self.seen_at, self.watch = time.monotonic(), None

    def _record(self, name: str) -> NodeRecord:
        hardware = Hardware(
            system="Linux",
            machine="x86_64",
            processor="simulated",
            cores=8,
            memory_total=32 << 30,
            memory_available=random.randrange(16 << 30),
        )
        return NodeRecord(
            id=self.id,
            name=name,
            roles=("spoke",),
            version=__version__,
            public_key=self._key.public_key().public_bytes_raw(),
            sealing_config=bytes(1300),
            hardware=hardware,
            replicas=self._replicas,
            started_at=self._started_at,
            issued_at=0,
        )

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            self.roster.set_record(self._record(self._name))

    def _take_hubs(self, value: bytes) -> None:
        self.connection.set_urls(all_mesh_urls(msgspec.json.decode(value, type=HubSet).hubs))


class Crowd:
    """Carries out what the parent asks, one question at a time."""

    def __init__(self) -> None:
        self.spokes: list[Spoke] = []

    async def join(self, token: str, names: list[str]) -> dict[str, Any]:
        """Join, then start one after the other; the answer comes when all have been connected."""
        began = time.monotonic()
        gate = asyncio.Semaphore(JOINS_AT_ONCE)
        self.spokes = await asyncio.gather(*(_join(token, name, gate) for name in names))
        joined = time.monotonic() - began
        for number, spoke in enumerate(self.spokes):
            await spoke.start()
            await asyncio.sleep(START_SECONDS)
            if number % 100 == 99:
                print(f"  {number + 1} of {len(names)} have started", file=sys.stderr, flush=True)
        for spoke in self.spokes:
            await spoke.connection.wait_up(60)
        return {"ids": [spoke.id for spoke in self.spokes], "seconds": joined}

    async def watch(self, what: str, node: str, value: int) -> dict[str, Any]:
        """Note from now on when each spoke sees it; `times` collects."""
        condition = _condition(what, NodeId(node), value)
        for number, spoke in enumerate(self.spokes):
            if spoke.id != node:
                spoke.watch_for(condition)
            if number % 50 == 49:
                await asyncio.sleep(0)
        return {}

    async def times(self, node: str, seconds: float) -> dict[str, Any]:
        """When each spoke saw what it watches for; those that have not in time count as missing."""
        waiting = [spoke for spoke in self.spokes if spoke.id != node]
        deadline = time.monotonic() + seconds
        while any(spoke.seen_at is None for spoke in waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        times = [spoke.seen_at for spoke in waiting if spoke.seen_at is not None]
        for spoke in waiting:
            spoke.watch = None
        return {"times": times, "missing": len(waiting) - len(times)}

    async def change(self, what: str, node: str, value: int) -> dict[str, Any]:
        """Change one spoke's load or record; says when."""
        spoke = next(spoke for spoke in self.spokes if spoke.id == node)
        began = time.monotonic()
        (spoke.say_load if what == "load" else spoke.say_slots)(value)
        return {"at": began}

    async def busy(self, count: int, seconds: float) -> dict[str, Any]:
        """The first `count` spokes change their load four times a second for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for spoke in self.spokes[:count]:
                spoke.say_load(random.randrange(1000, 1004))
            await asyncio.sleep(0.25)
        return {}

    async def lines(self, since: float) -> dict[str, Any]:
        """When each spoke's line stood again after `since`."""
        ups = [next((up for up in spoke.ups if up > since), None) for spoke in self.spokes]
        return {"times": [up for up in ups if up is not None], "missing": ups.count(None)}

    async def used(self) -> dict[str, Any]:
        """Processor time of this process so far, and how far its timers lag behind, in seconds."""
        began = time.monotonic()
        await asyncio.sleep(0.05)
        return {"seconds": time.process_time(), "lag": time.monotonic() - began - 0.05}


async def _join(token: str, name: str, gate: asyncio.Semaphore) -> Spoke:
    key = Ed25519PrivateKey.generate()
    async with gate:
        for attempt in range(20):
            try:
                return Spoke(key, await join(token, key, name=name, version=__version__, now=time.time))
            except FelloeError:
                if attempt == 19:
                    raise
                await asyncio.sleep(random.random())
    raise AssertionError("unreachable")


def _condition(what: str, node: NodeId, value: int) -> Callable[[Roster], bool]:
    if what == "alive":
        return lambda roster: sum(member.alive for member in roster.members.values()) >= value
    if what == "dead":
        return lambda roster: node in roster.members and not roster.members[node].alive
    if what == "load":
        return lambda roster: node in roster.members and roster.members[node].load.active.get(MODEL) == value
    return lambda roster: node in roster.members and roster.members[node].record.replicas[0].slots == value


@functools.lru_cache
def _tls_context(issuers: str) -> ssl.SSLContext:
    return client_context(issuers)


def _replica(slots: int) -> Replica:
    model = Model(name=MODEL, digest="", size=1, architecture="llama", quantisation="q8_0", context=2048)
    return Replica(model=model, engine="simulated", state="ready", slots=slots, context=512)


async def _refuse(request: bytes, outgoing: Outgoing) -> None:
    raise FelloeError("no_replica", "this node is simulated")


async def main() -> None:
    # A collection would walk through the millions of objects of the whole crowd, which no single node has.
    gc.disable()
    decode_record = functools.lru_cache(maxsize=20_000)(roster_wire.decode_record)
    roster_service.decode_record = roster_hearsay.decode_record = decode_record
    roster_service.decode_digest = functools.lru_cache(maxsize=64)(roster_wire.decode_digest)
    crowd = Crowd()
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        question = json.loads(line)
        answer = await getattr(crowd, question.pop("ask"))(**question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
