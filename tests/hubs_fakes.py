"""The hubs' replicated state in memory: one order of writes, and each hub's own copy of it, which may be late. And a
house of nodes on it, for what leaders do."""

import asyncio
from collections import deque

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Endpoints, Load, Member, NodeRecord, Role, Roster
from felloe.hubs.members import MemberBook
from felloe.hubs.probe import Reached
from felloe.hubs.records import (
    GENERATION,
    HUBS,
    LEASE,
    MEMBER,
    NEXT,
    Change,
    Generation,
    Hub,
    HubSet,
    Lease,
    Next,
    Revision,
    Watcher,
    decode,
    encode,
)
from felloe.hubs.upkeep import HubUpkeep
from felloe.mesh.membership import ListedMember

MAX_VALUE_BYTES = 512 * 1024
MAX_TRIES = 16


class FakeStore:
    """What most of the hubs have acknowledged, write by write."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes | None]] = []
        self.views: list[FakeState] = []
        self.writable = True

    def commit(self, after: int, key: str, value: bytes | None) -> bool:
        """Append a write unless another came first."""
        if after != len(self.log):
            return False
        self.log.append((key, value))
        for view in self.views:
            if view.follows:
                view.catch_up()
        return True


class FakeState:
    """One hub's `State`.

    `follows`: it sees every write at once; otherwise `catch_up` has it read on. `reachable` False: nothing can be
    written from here. `conflicts`: another hub is first as many times. `lose_answers`: as many writes are done and
    reported as failed. `held`: each write waits for `release` before it is done and again before it returns.
    """

    def __init__(self, store: FakeStore, *, follows: bool = True) -> None:
        self.store = store
        self.follows = follows
        self.reachable = True
        self.conflicts = 0
        self.lose_answers = 0
        self.writes_left: int | None = None
        self.held = False
        self.waiting: deque[asyncio.Future[None]] = deque()
        self._applied = 0
        self._values: dict[str, bytes] = {}
        self._watchers: list[tuple[str, Watcher]] = []
        store.views.append(self)
        self.catch_up()

    @property
    def revision(self) -> Revision:
        return Revision(1, self._applied)

    @property
    def behind(self) -> int:
        return len(self.store.log) - self._applied

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def items(self, prefix: str) -> dict[str, bytes]:
        return {key: value for key, value in self._values.items() if key.startswith(prefix)}

    def on_change(self, prefix: str, callback: Watcher) -> None:
        self._watchers.append((prefix, callback))

    def catch_up(self, most: int | None = None) -> None:
        """Read on, at most `most` writes."""
        end = len(self.store.log) if most is None else min(self._applied + most, len(self.store.log))
        while self._applied < end:
            key, value = self.store.log[self._applied]
            self._applied += 1
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value
            for prefix, callback in self._watchers:
                if key.startswith(prefix):
                    callback(key)

    def release(self) -> bool:
        """Let the write that has waited longest go on."""
        while self.waiting:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                return True
        return False

    async def change(self, key: str, function: Change, *, term: int | None = None) -> bytes | None:
        for _ in range(MAX_TRIES):
            self._check_reachable()
            if term is not None:
                lease = self.get(LEASE)
                if lease is None or decode(lease, Lease).term != term:
                    raise FelloeError("not_leader", "another hub leads")
            after, before = self._applied, self.get(key)
            value = function(before)
            if value == before:
                return before
            if value is not None and len(value) > MAX_VALUE_BYTES:
                raise FelloeError("body_too_large", f"the value of {key} is too large")
            await self._wait()
            if await self._write(after, key, value):
                return value
            self.catch_up()
        raise FelloeError("overloaded", "too many hubs write at once")

    async def _write(self, after: int, key: str, value: bytes | None) -> bool:
        self._check_reachable()
        if self.writes_left is not None:
            if not self.writes_left:
                self.reachable = False
                self._check_reachable()
            self.writes_left -= 1
        if self.conflicts:
            self.conflicts -= 1
            self.store.commit(len(self.store.log), "noise", b"%d" % len(self.store.log))
        done = self.store.commit(after, key, value)
        await self._wait()
        if done and self.lose_answers:
            self.lose_answers -= 1
            raise FelloeError("network_unreachable", "the answer was lost")
        if done:
            self.catch_up()
        return done

    def _check_reachable(self) -> None:
        if not self.reachable or not self.store.writable:
            raise FelloeError("network_unreachable", "the state takes no writes")

    async def _wait(self) -> None:
        await asyncio.sleep(0)
        if self.held:
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            await future


async def settle(rounds: int = 10) -> None:
    """Let everything run that can run."""
    for _ in range(rounds):
        await asyncio.sleep(0)


HARDWARE = Hardware(system="", machine="", processor="", cores=1, memory_total=1, memory_available=1)
VERSION = "0.2.0"


class FakeNode:
    """A node as the others see it; `serves`: once it is a hub its servers come up."""

    def __init__(self, number: int) -> None:
        self.public_key = bytes([number]) * 32
        self.id = NodeId(id_from_public_key(self.public_key))
        self.name = f"node-{number}"
        self.version = VERSION
        self.alive = True
        self.serves = True
        self.dialled = True
        self.endpoints: Endpoints | None = Endpoints(
            hosts=(f"10.0.0.{number}", f"host-{number}"), peer=8471, mesh=8472, route=8473, state=8474
        )

    def record(self) -> NodeRecord:
        return NodeRecord(
            id=self.id,
            name=self.name,
            roles=("spoke",),
            version=self.version,
            public_key=self.public_key,
            sealing_config=b"",
            hardware=HARDWARE,
            replicas=(),
            started_at=0.0,
            issued_at=0.0,
            endpoints=self.endpoints,
        )


class FakeLeadership:
    """Says that this hub leads while the state's lease says so."""

    def __init__(self, house: "HubHouse", node: NodeId) -> None:
        self.house = house
        self.node = node

    def term(self) -> int | None:
        lease = self.house.lease()
        return lease.term if lease.holder == self.node and lease.seconds else None

    async def resign(self) -> None:
        lease = self.house.lease()
        if lease.holder == self.node:
            self.house.write(LEASE, encode(replace(lease, seconds=0.0)))


class HubHouse:
    """Some nodes, the first of them the only hub, with one state that all see at once; `now` is everybody's clock."""

    def __init__(self, count: int) -> None:
        self.now = 10_000.0
        self.store = FakeStore()
        self.nodes = [FakeNode(number) for number in range(1, count + 1)]
        self.by_id = {node.id: node for node in self.nodes}
        self.states: dict[NodeId, FakeState] = {}
        self.upkeeps: dict[NodeId, HubUpkeep] = {}
        self.moves: list[tuple[NodeId, ...]] = []
        self.trials: list[NodeId] = []
        self.breaks_move_after: str | None = None
        first = self.nodes[0]
        for node in self.nodes:
            role: Role = "hub" if node is first else "spoke"
            row = ListedMember(id=node.id, name=node.name, role=role, public_key=node.public_key, joined_at=0.0)
            self.write(MEMBER + node.id, encode(row))
        assert first.endpoints is not None
        hub = Hub(id=first.id, name=first.name, public_key=first.public_key, endpoints=first.endpoints, since=0.0)
        self.write(HUBS, encode(HubSet(hubs=(hub,))))
        self.write(GENERATION, encode(Generation(number=1, hubs=(first.id,))))
        self.write(LEASE, encode(Lease(holder=first.id, term=1, beat=0, seconds=15.0)))

    def write(self, key: str, value: bytes | None) -> None:
        assert self.store.commit(len(self.store.log), key, value)

    def read(self, key: str) -> bytes:
        return next(value for name, value in reversed(self.store.log) if name == key) or b""

    def lease(self) -> Lease:
        return decode(self.read(LEASE), Lease)

    def hubs(self) -> list[str]:
        return [hub.name for hub in decode(self.read(HUBS), HubSet).hubs]

    def keepers(self) -> set[str]:
        return {self.by_id[node].name for node in self.generation().hubs}

    def generation(self) -> Generation:
        return decode(self.read(GENERATION), Generation)

    def has_majority(self) -> bool:
        keepers = self.generation().hubs
        return sum(self.by_id[node].alive for node in keepers) > len(keepers) // 2

    def upkeep(self, node: FakeNode) -> HubUpkeep:
        """That node's upkeep, made when it is first asked for."""
        if node.id not in self.upkeeps:
            state = self.states[node.id] = FakeState(self.store)
            self.upkeeps[node.id] = HubUpkeep(
                state,
                MemberBook(state),
                this=node.id,
                version=VERSION,
                roster=self.roster,
                mover=lambda hubs, term: self.move(state, hubs, term),
                ready=self.is_ready,
                trial=self.trial,
                clock=lambda: self.now,
                now=lambda: self.now,
            )
            self.upkeeps[node.id].situation()
        return self.upkeeps[node.id]

    def roster(self) -> Roster:
        members = {
            node.id: Member(record=node.record(), load=Load(), alive=node.alive, seen_at=0.0) for node in self.nodes
        }
        return Roster(this=self.nodes[0].id, members=members)

    def is_ready(self, node: NodeId) -> bool:
        entered = decode(self.read(HUBS), HubSet).find(node) is not None
        return entered and self.by_id[node].alive and self.by_id[node].serves

    async def trial(self, node: NodeId, _: Endpoints) -> Reached:
        self.trials.append(node)
        await asyncio.sleep(0)
        if not self.by_id[node].alive:
            raise FelloeError("deadline_exceeded", "the node does not answer")
        if not self.by_id[node].dialled:
            return Reached(host=None, failures={f"{self.by_id[node].name}:8473": "Connection refused"})
        return Reached(host=f"host-{self.by_id[node].name[5:]}", failures={})

    async def move(self, state: FakeState, hubs: tuple[NodeId, ...], term: int) -> None:
        """As the real one: each step is a write of the leader, and only living sets come up."""
        number = self.generation().number + 1
        plan = Next(number=number, hubs=hubs)
        await state.change(NEXT, lambda _: encode(plan), term=term)
        if self.breaks_move_after == "next":
            raise FelloeError("network_unreachable", "the leader broke off")
        if not all(self.is_ready(node) for node in hubs):
            raise FelloeError("network_unreachable", "not all of the chosen hubs are up")
        await state.change(NEXT, lambda _: encode(replace(plan, closed=True)), term=term)
        self.moves.append(hubs)
        if self.breaks_move_after == "closed":
            raise FelloeError("network_unreachable", "the leader broke off")
        self.finish_move()

    def finish_move(self) -> None:
        """What any hub does with a move past its point of no return."""
        plan = next((value for key, value in reversed(self.store.log) if key == NEXT), None)
        if plan is not None and (following := decode(plan, Next)).closed:
            self.write(GENERATION, encode(Generation(number=following.number, hubs=following.hubs)))
            self.write(NEXT, None)

    def elect(self, node: FakeNode) -> None:
        """Have a node lead."""
        self.upkeep(node)
        self.write(LEASE, encode(Lease(holder=node.id, term=self.lease().term + 1, beat=0, seconds=15.0)))

    def leader(self) -> FakeNode | None:
        lease = self.lease()
        node = self.by_id[lease.holder]
        return node if lease.seconds and node.alive and self.has_majority() else None

    def elect_the_fittest(self) -> FakeNode | None:
        """As the lease does: whoever may lead and writes the state."""
        if not self.has_majority():
            return None
        leader = self.leader()
        if leader is not None:
            return leader
        for node in self.nodes:
            if node.alive and node.id in self.generation().hubs and self.upkeep(node).fit_to_lead():
                self.elect(node)
                return node
        return None

    async def step(self) -> object:
        """Let the leader, if there is one, do one step."""
        leader = self.elect_the_fittest()
        if leader is None:
            return None
        for node in self.nodes:
            if node.alive and node.id in self.upkeeps:
                self.upkeeps[node.id].situation()
        return await self.upkeep(leader).step(FakeLeadership(self, leader.id))  # type: ignore[arg-type]

    async def live(self, seconds: float) -> None:
        """Let time pass and leaders act."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5.0
            for _ in range(20):
                try:
                    if await self.step() is None:
                        break
                except FelloeError:
                    break
