"""What the leader remembers and decides: from what nodes tell to the plan that is to be written.

`look` takes in the roster, `problem` says what to plan, `settle` takes what the solver found, `plan` is what all nodes
are to follow now. Nothing here waits, reads a clock or writes: `node/planning.py` does. A new leader starts from the
present plan alone.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from felloe.domain.fleet import Fleet, Machine
from felloe.domain.fleet_rules import check_machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Placement, Plan, Refusal
from felloe.domain.roster import Member, Replica, ReplicaState, Roster
from felloe.domain.serving import DemandAnswer
from felloe.placement.learning import Lessons
from felloe.placement.lifecycle import IDLE_WEIGHT, Use, Work, calls, gives_way, looked, wanted_now
from felloe.placement.presence import Presence, arrives, heard_late, seen
from felloe.placement.problem import Models, Problem, open_part
from felloe.placement.quarantine import Bar, Place, in_force, new_failures, noted
from felloe.placement.reports import without, work_of
from felloe.placement.rules import (
    REST_SECONDS,
    count,
    coverage,
    first_of,
    interrupted,
    is_better,
    left_over,
    misses,
    standing,
    worth,
)

SETTLING_SECONDS = 10.0
DEAF_SECONDS = 30.0
COMPARE_SECONDS = 5.0
IN_USE_SECONDS = 60.0
TELLING_SECONDS = 10.0
"""How long a node that has just come may take to say what its machine has."""

_LASTING: Collection[ReplicaState] = ("ready", "starting", "draining")


class Lead:
    """The leader's memory of one term. Times are of its own steady clock."""

    def __init__(self, present: Plan | None, now: float) -> None:
        self._goal = Plan(placements=()) if present is None else present
        self._leaving: tuple[Placement, ...] = ()
        self._told: frozenset[Placement] = frozenset(self._goal.placements)
        self._began = self._looked = now
        self._presences: dict[NodeId, Presence] = {}
        self._machines: dict[NodeId, Machine] = {}
        self._draining: frozenset[NodeId] = frozenset()
        self._uses: dict[ModelName, Use] = {}
        self._works: dict[ModelName, Work] = {}
        self._bars: dict[Place, Bar] = {}
        self._replicas: dict[NodeId, tuple[Replica, ...]] = {}
        self._seconds_left: dict[tuple[NodeId, ModelName], float] = {}
        self._desired: dict[ModelName, DesiredModel] = {}
        self._lessons = Lessons()
        self._hopeful: frozenset[ModelName] = frozenset()
        self._moved_at = float("-inf")
        self._repaired: Problem | None = None
        self._compared: Problem | None = None
        self._compared_at = float("-inf")
        self._again_at = float("inf")
        self._reckoned: frozenset[NodeId] = frozenset()

    def look(self, roster: Roster, desired: Iterable[DesiredModel], asked: Collection[ModelName], now: float) -> None:
        """Take in what nodes tell, what owners want, and the models that were asked for since the last look."""
        if now - self._looked > DEAF_SECONDS:
            self._presences = {node: heard_late(one, now) for node, one in self._presences.items()}
        self._looked = now
        self._desired = {one.model: one for one in desired}
        expected = {placement.node for placement in self._goal.placements}
        heard = expected | roster.members.keys()
        self._presences = {node: one for node, one in self._presences.items() if node in heard}
        self._machines = {node: one for node, one in self._machines.items() if node in heard}
        for node in heard:
            self._look_at(node, roster.members.get(node), now, this=node == roster.this)
        living = {node: one for node, one in roster.members.items() if one.alive or node == roster.this}
        failures = {node: one.record.failures for node, one in living.items()}
        self._lessons.from_failures(new_failures(self._bars, failures), self._machines)
        self._bars = noted(self._bars, failures, now)
        self._replicas = {node: member.record.replicas for node, member in living.items()}
        self._seconds_left = {
            (node, one.model): one.ready_in for node, member in living.items() for one in member.record.loading
        }
        self._works = work_of(self._desired, living, count(self._goal.placements))
        self._uses = {
            model: looked(one, self._uses.get(model), self._works[model], now, asked=model in asked)
            for model, one in self._desired.items()
        }

    def is_settled(self, now: float) -> bool:
        """Whether enough was heard to plan: of all nodes of the present plan, or for ten seconds."""
        expected = {placement.node for placement in self._goal.placements}
        return expected <= self._machines.keys() or now - self._began >= SETTLING_SECONDS

    def problem(self, models: Models, now: float) -> Problem:
        """What to plan now."""
        served = ((one, replica) for one in self._goal.placements for replica in self._serving(one))
        self._lessons.from_replicas(served, self._machines, models)
        usable = (
            machine
            for node, machine in sorted(self._machines.items())
            if self._presences[node].trusted and node not in self._draining
        )
        fleet = Fleet(machines=tuple(usable))
        barred = in_force(self._bars, [machine.id for machine in fleet.machines], now)
        wanted = {model: wanted_now(one, self._uses[model]) for model, one in self._desired.items()}
        if any(calls(self._uses[model], self._works[model], now) for model in wanted):
            for model, one in self._desired.items():
                if gives_way(one, self._uses[model], now):
                    wanted[model] = replace(wanted[model], demand=one.demand * IDLE_WEIGHT)
        return Problem(
            fleet=fleet,
            desired=tuple(wanted[model] for model in sorted(wanted)),
            models=models,
            current=standing(
                self._goal.placements, wanted, fleet, models, barred, self._lasting(self._goal.placements)
            ),
            barred=barred,
            corrections=self._lessons.corrections,
        )

    def repair(self, problem: Problem) -> Problem | None:
        """The part of the problem that is open while all that may stay does; None when nothing is missing or new."""
        if not misses(problem.current, problem.wanted) or problem == self._repaired:
            return None
        return open_part(problem)

    def is_due(self, problem: Problem, repaired: tuple[Placement, ...], now: float) -> bool:
        """Whether to look for the best plan, moves and all: what matters has changed, or a move that waits is due."""
        changed = replace(problem, current=repaired) != self._compared
        return (changed and now - self._compared_at >= COMPARE_SECONDS) or now >= self._again_at

    def settle(self, problem: Problem, repaired: tuple[Placement, ...], best: Plan | None, now: float) -> None:
        """Decide between the present plan with what was repaired, and the best plan that was found."""
        refusals, goal = self._goal.refusals, replace(self._goal, placements=repaired)
        if best is not None:
            self._compared_at, self._again_at = now, float("inf")
            self._reckoned = frozenset(machine.id for machine in problem.fleet.machines)
            self._hopeful = self._may_fit_soon(now)
            refusals = best.refusals
            goal = best if self._replaces(problem, repaired, best, now) else replace(best, placements=repaired)
            self._compared = replace(problem, current=goal.placements)
        self._repaired = replace(problem, current=goal.placements)
        counts, wanted = count(goal.placements), problem.wanted
        still_open = (one for one in refusals if _is_open(one, counts, wanted))
        stays = frozenset(goal.placements)
        leaving = (*self._leaving, *self._goal.placements)
        self._leaving = tuple(dict.fromkeys(one for one in leaving if one not in stays))
        self._goal = replace(goal, refusals=tuple(still_open))

    def differs(self, placements: tuple[Placement, ...]) -> bool:
        """Whether the goal is another one, because something of it cannot stay."""
        return placements != self._goal.placements

    def plan(self, problem: Problem) -> Plan:
        """What all nodes are to follow now: the goal, and what stays until the goal is ready."""
        goal, wanted = self._goal.placements, problem.wanted
        nodes = {machine.id for machine in problem.fleet.machines}
        leaving = [
            one
            for one in self._leaving
            if one.node in nodes and one.model in wanted and (one.node, one.variant) not in problem.barred
        ]
        ready = self._ready(goal)
        first = first_of(leaving, goal, self._told, ready, wanted)
        stays = left_over(leaving, first, ready, problem.fleet)
        beside = left_over(leaving, goal, ready, problem.fleet)
        if len(beside) >= len(stays):
            # Nothing has to wait for those that are moved.
            first, stays = goal, beside
        self._leaving = stays
        self._told = frozenset((*first, *stays))
        return replace(self._goal, placements=(*first, *stays))

    def answer(self, model: ModelName, roster: Roster) -> DemandAnswer:
        """How the network stands to a wanted model that somebody waits for; `roster` is newer than the last look.

        What does not fit is refused only when a plan has reckoned with all nodes that are here.
        """
        work = self._works.get(model)
        if work is None:
            return DemandAnswer("wanted")
        if work.ready:
            return DemandAnswer("ready")
        nodes = [placement.node for placement in self._goal.placements if placement.model == model]
        if nodes:
            left = [self._seconds_left.get((node, model), 0.0) for node in nodes]
            return DemandAnswer("loading", min((seconds for seconds in left if seconds), default=0.0))
        refused = next((one for one in self._goal.refusals if one.model == model), None)
        if refused is None or model in self._hopeful or self._is_joined(roster):
            return DemandAnswer("wanted")
        return DemandAnswer("refused", 0.0, refused.reason)

    def _replaces(self, problem: Problem, repaired: tuple[Placement, ...], best: Plan, now: float) -> bool:
        wanted = problem.wanted
        before, after = coverage(repaired, wanted), coverage(best.placements, wanted)
        if after != before:
            return after > before
        if not is_better(worth(best.placements, wanted, problem.models), worth(repaired, wanted, problem.models)):
            return False
        stays = frozenset(best.placements)
        if all(placement in stays for placement in problem.current):
            return True
        if now - self._moved_at < REST_SECONDS:
            self._again_at = self._moved_at + REST_SECONDS
        elif self._interrupts(problem, best):
            self._again_at = now + IN_USE_SECONDS
        else:
            self._moved_at = now
            return True
        return False

    def _may_fit_soon(self, now: float) -> frozenset[ModelName]:
        """The models that may yet get the place of one that is here on demand and was in use just now."""
        stays = [
            one
            for model, one in self._desired.items()
            if one.replicas_min == 0 and self._works[model].placed and not gives_way(one, self._uses[model], now)
        ]
        return frozenset(
            one.model
            for one in self._desired.values()
            if any(other.model != one.model and other.priority <= one.priority for other in stays)
        )

    def _is_joined(self, roster: Roster) -> bool:
        """Whether a node is here with which no plan has reckoned yet, but one will soon."""
        return any(
            self._is_new(node) for node, member in roster.members.items() if member.alive and not member.load.draining
        )

    def _is_new(self, node: NodeId) -> bool:
        presence = self._presences.get(node)
        if presence is None or not presence.alive or arrives(presence, self._looked):
            return True
        if node in self._machines:
            return presence.trusted and node not in self._reckoned
        return self._looked - presence.since < TELLING_SECONDS

    def _interrupts(self, problem: Problem, best: Plan) -> bool:
        """Whether a model that is in use would be served less for a while."""
        lasting = self._lasting(problem.current)
        stopped = interrupted(problem.current, best.placements, lasting, problem.fleet)
        return any(self._works[model].active or self._works[model].waiting for model in stopped)

    def _ready(self, placements: Iterable[Placement]) -> frozenset[Placement]:
        return frozenset(one for one in placements if self._serving(one))

    def _lasting(self, placements: Iterable[Placement]) -> frozenset[Placement]:
        """Those that are ready, or were and are being started again by their node after a crash or a leak."""
        return frozenset(
            one
            for one in placements
            if (one.node, one.model) not in self._seconds_left
            and any(_serves(replica, one, _LASTING) for replica in self._replicas.get(one.node, ()))
        )

    def _serving(self, placement: Placement) -> list[Replica]:
        return [
            replica for replica in self._replicas.get(placement.node, ()) if _serves(replica, placement, ("ready",))
        ]

    def _look_at(self, node: NodeId, member: Member | None, now: float, *, this: bool) -> None:
        alive = this or (member is not None and member.alive)
        # A node without work stops faster than this looks: its last words tell.
        orderly = node in self._draining or (member is not None and member.load.draining)
        self._presences[node] = seen(self._presences.get(node), alive, now, orderly=orderly)
        if member is None:
            return
        if alive:
            self._draining = self._draining | {node} if member.load.draining else self._draining - {node}
        machine = member.record.machine
        if machine is None or check_machine(machine):
            self._machines.pop(node, None)
        elif alive:
            by_hand = [replica for replica in member.record.replicas if not replica.planned]
            # A node speaks for itself alone, whatever it writes there.
            own = replace(machine, id=node, name=member.record.name)
            self._machines[node] = without(own, by_hand)


def _serves(replica: Replica, placement: Placement, states: Collection[ReplicaState]) -> bool:
    same = replica.model.name == placement.model and replica.variant == placement.variant
    return replica.planned and replica.state in states and same


def _is_open(refusal: Refusal, counts: Mapping[ModelName, int], wanted: Mapping[ModelName, DesiredModel]) -> bool:
    desired = wanted.get(refusal.model)
    return desired is not None and counts.get(refusal.model, 0) < desired.replicas_max
