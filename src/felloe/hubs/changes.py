"""What an owner asks of the hubs: promote, demote, and how many. Any hub that writes the state may be asked.

Asking writes the wish into the state; the leader carries it out. What is wished for stays wished for when the asker
stops waiting.
"""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.records import HUBS, HubSet, decode, encode
from felloe.hubs.rules import WANTED_COUNTS, NodeFacts, check_demotion, check_promotion, check_reached, survives
from felloe.hubs.upkeep import HubUpkeep
from felloe.hubs.upkeep_rules import Situation, target

LOOK_SECONDS = 0.2
PROMOTION_SECONDS = 120.0

Progress = Callable[[str], None]
"""Takes the next sentence on how far a change has come."""


class HubChanges:
    """Promotions and demotions on this hub. `leader` names who leads now."""

    def __init__(
        self,
        upkeep: HubUpkeep,
        *,
        leader: Callable[[], NodeId | None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._upkeep = upkeep
        self._leader = leader
        self._clock = clock
        self._sleep = sleep

    async def promote(self, node: NodeId, progress: Progress, *, seconds: float = PROMOTION_SECONDS) -> None:
        """Make a node a hub; done when its servers are up and the state is where it belongs.

        Raises what `check_promotion` and `check_reached` raise, `deadline_exceeded` with what it still waits for, and
        what the state raises.
        """
        now = self._situation()
        facts = check_promotion(now.nodes.get(node), node, now.hubs, now.version)
        progress(f"trying the ports of {facts.name}")
        host = check_reached(facts, await self._upkeep.trials.hold(facts))
        progress(f"{facts.name} can be dialled at {host}")

        def check(_: object) -> None:
            fresh = self._situation()
            check_promotion(fresh.nodes.get(node), node, fresh.hubs, fresh.version)

        await self._upkeep.members.set_role(node, "hub", self._upkeep.now(), check=check)
        if await self._allow(len({*now.staying, node})):
            progress("the number of hubs is automatic from now on, because there are more than were wanted")
        await self._until(lambda: _missing_for_promotion(self._situation(), facts), progress, seconds)
        self._tell_outcome(progress)

    async def demote(self, node: NodeId, progress: Progress, *, seconds: float = PROMOTION_SECONDS) -> None:
        """Make a hub a spoke, which is not chosen again by itself; done when the state and the hubs do without it.

        Raises `not_found`, what `check_demotion` raises, `deadline_exceeded`, and what the state raises.
        """

        def check(_: object) -> None:
            fresh = self._situation()
            facts = fresh.nodes.get(node)
            entered = fresh.hubs.find(node) is not None
            # One that is wished for and not entered yet, or already on its way out, may go without more ado.
            if facts is not None and (facts.role == "hub") == entered:
                check_demotion(facts, fresh.staying, fresh.alive)
                _check_copy_remains(facts, fresh)

        now = self._upkeep.now()
        listed = await self._upkeep.members.set_role(node, "spoke", now, never_hub=True, check=check)
        progress(f"{listed.name} is to stop being a hub")
        await self._until(lambda: _missing_for_demotion(self._situation(), node), progress, seconds)
        self._tell_outcome(progress)

    async def set_wanted(self, count: int) -> None:
        """How many hubs there should be: 1, 3 or 5, or 0 for automatic. The leader sees to it as nodes allow.

        Raises `invalid_value`, and what the state raises.
        """
        if count not in WANTED_COUNTS:
            raise FelloeError("invalid_value", "a network has 1, 3 or 5 hubs, or 0 for automatic", param="hubs")
        await self._upkeep.state.change(HUBS, lambda before: _with_wanted(before, count))

    async def _allow(self, count: int) -> bool:
        """Make the number of hubs automatic if fewer are wanted than there are to be; whether it was changed."""
        changed = False

        def allow(before: bytes | None) -> bytes | None:
            nonlocal changed
            wanted = 0 if before is None else decode(before, HubSet).wanted
            changed = 0 < wanted < count
            return _with_wanted(before, 0) if changed else before

        await self._upkeep.state.change(HUBS, allow)
        return changed

    async def _until(self, missing: Callable[[], str], progress: Progress, seconds: float) -> None:
        deadline = self._clock() + seconds
        told = ""
        while waits_for := missing():
            if self._leader() is None:
                waits_for = "no hub leads now; one will in a moment"
            if self._clock() >= deadline:
                raise FelloeError(
                    "deadline_exceeded", f"not done after {seconds:.0f} s, it goes on by itself: {waits_for}"
                )
            if waits_for != told:
                progress(waits_for)
                told = waits_for
            await self._sleep(LOOK_SECONDS)

    def _tell_outcome(self, progress: Progress) -> None:
        now = self._situation()
        progress(f"the network {survives(now.hubs, now.generation, now.alive)}")

    def _situation(self) -> Situation:
        now = self._upkeep.situation()
        if now is None:
            # Not `network_unreachable`: inside a write that would be taken for a reason to try again.
            raise FelloeError("not_leader", "this hub has no copy of the network's state yet")
        return now


def _check_copy_remains(leaving: NodeFacts, now: Situation) -> None:
    """Only a hub that keeps the state can hand it on."""
    if leaving.id in now.generation.hubs and not (set(now.staying) - {leaving.id}) & set(now.generation.hubs):
        raise FelloeError(
            "quorum_at_risk", f"only {leaving.name} keeps the network's state; promote a third node, then demote it"
        )


def _missing_for_promotion(now: Situation, node: NodeFacts) -> str:
    """What a promotion still waits for; empty when it is done. Raises when it will never be."""
    present = now.nodes.get(node.id)
    if present is None or not now.wished(node.id):
        raise FelloeError("forbidden", f"{node.name} was demoted or removed meanwhile")
    if now.hubs.find(node.id) is None:
        return f"the leading hub tries the ports of {node.name}"
    if not present.alive:
        return f"{node.name} is not in touch with the network"
    if not present.ready:
        return f"{node.name} starts its servers"
    return _moving(now)


def _missing_for_demotion(now: Situation, node: NodeId) -> str:
    if now.wished(node):
        raise FelloeError("forbidden", f"{now.nodes[node].name} was promoted meanwhile")
    hub = now.hubs.find(node)
    if hub is None:
        return ""
    return _moving(now) or f"{hub.name} leaves the hubs"


def _moving(now: Situation) -> str:
    hubs = target(now)
    if set(hubs) == set(now.generation.hubs) and now.next is None:
        return ""
    names = ", ".join(sorted(now.nodes[node].name for node in hubs if node in now.nodes))
    return f"the network's state moves to {names}"


def _with_wanted(before: bytes | None, count: int) -> bytes:
    if before is None:
        raise FelloeError("bad_state", "the network's state names no hubs")
    return encode(replace(decode(before, HubSet), wanted=count))
