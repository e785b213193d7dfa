"""The leader's work: keeps the wanted number of hubs, and the state on the right ones of them.

Every hub watches the nodes, so that a new leader knows at once how long each has been there; only the leader acts, and
every write names its term.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints, Roster
from felloe.hubs.lease import Leadership
from felloe.hubs.members import MemberBook
from felloe.hubs.probe import Reached
from felloe.hubs.records import GENERATION, HUBS, NEXT, Generation, Hub, HubSet, Next, State, decode, encode
from felloe.hubs.rules import GONE_SECONDS, STABLE_SECONDS, NodeFacts, check_demotion, survives
from felloe.hubs.upkeep_rules import (
    Abandon,
    Appoint,
    Correct,
    Enter,
    Move,
    Remove,
    Resign,
    Retire,
    Situation,
    Step,
    Try,
    fit_to_lead,
    next_step,
)
from felloe.hubs.watch import NodeWatch, Trials

_LOG = logging.getLogger(__name__)
PERIOD_SECONDS = 2.0

Mover = Callable[[tuple[NodeId, ...], int], Awaitable[None]]
"""Moves the state to these hubs, as the leader of a term; done when it returns, raises `FelloeError` when not."""

Trial = Callable[[NodeId, Endpoints], Awaitable[Reached]]
"""Tries a node's ports; raises `FelloeError` when the node cannot be asked."""


class HubUpkeep:
    """One hub's watch over the hubs, and its acts while it leads.

    `clock` counts seconds steadily; `now` gives Unix seconds, for what the state dates; `ready` says whether a node's
    hub servers are up.
    """

    def __init__(
        self,
        state: State,
        members: MemberBook,
        *,
        this: NodeId,
        version: str,
        roster: Callable[[], Roster],
        mover: Mover,
        ready: Callable[[NodeId], bool],
        trial: Trial,
        clock: Callable[[], float],
        now: Callable[[], float],
        stable_seconds: float = STABLE_SECONDS,
        gone_seconds: float = GONE_SECONDS,
    ) -> None:
        self.state = state
        self.members = members
        self._this = this
        self._version = version
        self._roster = roster
        self._mover = mover
        self._ready = ready
        self.now = now
        self._stable_seconds = stable_seconds
        self._gone_seconds = gone_seconds
        self._watch = NodeWatch(clock)
        self.trials = Trials(trial, clock)
        self._wake = asyncio.Event()
        for key in (HUBS, GENERATION, NEXT, "member."):
            state.on_change(key, lambda _: self._wake.set())

    async def run(self, leadership: Leadership) -> NoReturn:
        """Watch for ever, and act while this hub leads."""
        done: Step | None = None
        while True:
            self._wake.clear()
            before, done = done, None
            try:
                done = await self.step(leadership)
            except FelloeError as error:
                _LOG.warning("the hubs could not be tended: %s", error)
            except Exception:
                _LOG.exception("the hubs could not be tended")
            if done is None or done == before:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_SECONDS):
                        await self._wake.wait()

    async def step(self, leadership: Leadership) -> Step | None:
        """Watch, and while this hub leads do one step; the step done. Raises what the state and the mover raise."""
        now = self.situation()
        term = leadership.term()
        if now is None or term is None:
            return None
        step = next_step(now)
        if step is None:
            return None
        _LOG.info("the leader's next step: %s", step)
        if isinstance(step, Resign):
            await leadership.resign()
        else:
            await self._carry_out(step, now, term)
        return step

    def fit_to_lead(self) -> bool:
        """Whether this hub may lead, for `Leadership`."""
        now = self.situation()
        return now is not None and fit_to_lead(now)

    def survives(self) -> str:
        """A sentence on what the network survives now; empty while this hub does not know."""
        now = self.situation()
        return "" if now is None else survives(now.hubs, now.generation, now.alive)

    def situation(self) -> Situation | None:
        """All that is known now; None without a state. Raises `bad_state`."""
        hubs, generation = self.state.get(HUBS), self.state.get(GENERATION)
        if hubs is None or generation is None:
            return None
        hub_set, following = decode(hubs, HubSet), self.state.get(NEXT)
        nodes = self._facts(hub_set)
        self._watch.note_ready({hub.id: nodes[hub.id].ready for hub in hub_set.hubs})
        return Situation(
            this=self._this,
            version=self._version,
            hubs=hub_set,
            generation=decode(generation, Generation),
            next=None if following is None else _under_way(decode(following, Next)),
            nodes=nodes,
            reached=self.trials.reached(nodes),
            barred=self.trials.barred(),
            arriving=self._watch.arriving(),
            stable_seconds=self._stable_seconds,
            gone_seconds=self._gone_seconds,
        )

    def _facts(self, hubs: HubSet) -> dict[NodeId, NodeFacts]:
        roster = self._roster()
        listed = {member.id: member for member in self.members.all()}
        names = {hub.id: hub for hub in hubs.hubs}
        alive = {node for node, member in roster.members.items() if member.alive} | {self._this}
        self._watch.note_alive(listed.keys() | names.keys(), alive)
        facts: dict[NodeId, NodeFacts] = {}
        for node in listed.keys() | names.keys():
            row, heard = listed.get(node), roster.members.get(node)
            record = None if heard is None else heard.record
            facts[node] = NodeFacts(
                id=node,
                name=row.name if row is not None else names[node].name,
                role=row.role if row is not None else "hub",
                public_key=row.public_key if row is not None else names[node].public_key,
                version=record.version if record is not None else "",
                endpoints=record.endpoints if record is not None else None,
                alive=node in alive,
                ready=node in alive and self._ready(node),
                draining=heard is not None and heard.load.draining,
                steady_seconds=self._watch.steady_seconds(node),
                silent_seconds=self._watch.silent_seconds(node),
                revoked=row is not None and row.revoked_at > 0,
                never_hub=row is not None and row.never_hub,
            )
        return facts

    async def _carry_out(self, step: Step, now: Situation, term: int) -> None:
        match step:
            case Move(hubs):
                await self._mover(hubs, term)
            case Abandon(following):
                old, off = encode(following), encode(Next(number=following.number, hubs=()))
                await self.state.change(NEXT, lambda before: off if before == old else before, term=term)
            case Try(node):
                await self.trials.hold(now.nodes[node])
            case Appoint(node):
                await self.members.set_role(node, "hub", self.now(), term=term)
            case Retire(node):
                await self._retire(node, now, term)
            case Enter(node, host):
                await self._change_hubs(lambda hubs: self._entered(hubs, now.nodes[node], host), term)
            case Remove(node):
                # First: what it renews after it has heard that it is no hub must be newer.
                if self.members.find(node) is not None:
                    await self.members.end_hub(node, self.now(), term=term)
                await self._change_hubs(lambda hubs: self._removed(hubs, node), term)
            case Correct(node):
                await self._change_hubs(lambda hubs: _corrected(hubs, now.nodes[node]), term)
            case Resign():
                pass

    async def _retire(self, node: NodeId, now: Situation, term: int) -> None:
        def check(_: object) -> None:
            fresh = self.situation()
            if fresh is not None and node in fresh.staying:
                check_demotion(fresh.nodes[node], fresh.staying, fresh.alive)

        never_hub = now.nodes[node].never_hub
        await self.members.set_role(node, "spoke", self.now(), never_hub=never_hub, check=check, term=term)

    async def _change_hubs(self, function: Callable[[HubSet], HubSet], term: int) -> None:
        def change(before: bytes | None) -> bytes | None:
            if before is None:
                raise FelloeError("bad_state", "the network's state names no hubs")
            hubs = decode(before, HubSet)
            after = function(hubs)
            return before if after == hubs else encode(after)

        await self.state.change(HUBS, change, term=term)

    def _entered(self, hubs: HubSet, node: NodeFacts, host: str) -> HubSet:
        member = self.members.find(node.id)
        wished = member is not None and member.role == "hub" and not member.revoked_at
        if not wished or node.endpoints is None or hubs.find(node.id) is not None:
            return hubs
        others = tuple(other for other in node.endpoints.hosts if other != host)
        hub = Hub(
            id=node.id,
            name=node.name,
            public_key=node.public_key,
            endpoints=replace(node.endpoints, hosts=(host, *others)),
            since=self.now(),
        )
        return replace(hubs, hubs=(*hubs.hubs, hub))

    def _removed(self, hubs: HubSet, node: NodeId) -> HubSet:
        """Without the node, unless it is wished for again since."""
        member = self.members.find(node)
        rest = tuple(hub for hub in hubs.hubs if hub.id != node)
        wished = member is not None and member.role == "hub" and not member.revoked_at
        return hubs if wished or not rest else replace(hubs, hubs=rest)


def _under_way(following: Next) -> Next | None:
    return following if following.hubs else None


def _corrected(hubs: HubSet, node: NodeFacts) -> HubSet:
    if (endpoints := node.endpoints) is None:
        return hubs
    changed = (replace(h, name=node.name, endpoints=endpoints) if h.id == node.id else h for h in hubs.hubs)
    return replace(hubs, hubs=tuple(changed))
