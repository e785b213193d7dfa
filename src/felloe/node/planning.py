"""The leader's loop: from what nodes tell to the plan that they follow.

It looks at the roster each second, has the solver work in a thread, and writes the plan with the leader's term. While
this hub does not lead it does nothing; when it begins to, it goes on from the plan that is there.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn, Protocol

from msgspec.structs import replace

from felloe.domain.approval import Approvals
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.plan import DesiredModel, Placement, Plan, Refusal
from felloe.domain.roster import Roster
from felloe.domain.serving import DemandAnswer, DemandQuestion, NetworkPlan, Serving
from felloe.hubs.serving_book import ServingBook
from felloe.placement.explain import changes
from felloe.placement.facts import ModelFacts
from felloe.placement.leading import Lead
from felloe.placement.problem import Problem
from felloe.placement.shape import Shape

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0

Solve = Callable[[Problem], Awaitable[Plan]]
"""Finds the best plan of a problem; may take some seconds."""


class Shapes(Protocol):
    """What is known of the models' headers."""

    def find(self, content: ContentId) -> Shape | None:
        """The shape of a content; None while it is not known here, and it is being fetched then. Never waits."""
        ...

    def problem(self, content: ContentId) -> str:
        """Why it cannot be had, in words; empty while it is on its way."""
        ...


class PlanningPorts(NamedTuple):
    """What the leader asks of other parts of its node: what is approved, and the shapes of models."""

    approvals: Callable[[], Approvals | None]
    shapes: Shapes


class Planning:
    """One hub's part in planning. `term` gives the term in which it leads; `clock` counts seconds steadily.

    `now` gives Unix seconds, for the date of a plan. Owns the leader's memory, which ends with the term.
    """

    def __init__(
        self,
        book: ServingBook,
        ports: PlanningPorts,
        *,
        roster: Callable[[], Roster],
        term: Callable[[], int | None],
        clock: Callable[[], float],
        now: Callable[[], float],
        solve: Solve,
    ) -> None:
        self._book = book
        self._ports = ports
        self._roster = roster
        self._term = term
        self._clock = clock
        self._now = now
        self._solve = solve
        self._lead: tuple[int, Lead] | None = None
        self._asked: set[ModelName] = set()
        self._facts: dict[ContentId, ModelFacts] = {}
        self._unknown: dict[ModelName, str] = {}
        self._problem = ""
        self._wake = asyncio.Event()
        book.on_wish(lambda _: self.wake())

    def wake(self) -> None:
        """Something has changed that a plan may depend on."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Plan for ever, while this hub leads."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            problem = ""
            try:
                await self.step()
            except FelloeError as error:
                problem = str(error)
                if problem != self._problem:
                    logger.warning("the models could not be planned: %s", problem)
            except Exception as error:
                problem = repr(error)
                if problem != self._problem:
                    logger.exception("the models could not be planned")
            self._problem = problem

    async def step(self) -> NetworkPlan | None:
        """While this hub leads: look, and write the plan if it is another one. Raises what the state raises."""
        lead = self._leading()
        if lead is None:
            self._asked.clear()
            # A hub that may lead next has the models' headers fetched already.
            self._models(self._book.serving())
            return None
        term, mind = lead
        serving, asked = self._book.serving(), frozenset(self._asked)
        self._asked.clear()
        mind.look(self._roster(), serving.models, asked, self._clock())
        if not mind.is_settled(self._clock()) or (self._book.plan() is None and not serving.models):
            return None
        problem = mind.problem(self._models(serving), self._clock())
        open_part = mind.repair(problem)
        repaired = problem.current
        if open_part is not None:
            repaired += (await self._solve(open_part)).placements
        best = await self._solve(problem) if mind.is_due(problem, repaired, self._clock()) else None
        if best is not None or open_part is not None or mind.differs(repaired):
            mind.settle(problem, repaired, best, self._clock())
        plan = mind.plan(problem)
        plan = replace(plan, refusals=tuple(self._explained(one, serving) for one in plan.refusals))
        return await self._write(plan, term)

    def demand(self, question: DemandQuestion) -> DemandAnswer:
        """Somebody waits for a model. Raises `not_leader`, `model_not_found`."""
        lead = self._leading()
        if lead is None:
            raise FelloeError("not_leader", "another hub plans the models")
        if self._book.serving().find(question.model) is None:
            raise FelloeError(
                "model_not_found", f"nobody wants {question.model[:128]} served; `felloe serve` makes it so"
            )
        answer = lead[1].answer(question.model, self._roster())
        if answer.state != "ready":
            self._asked.add(question.model)
            self.wake()
        return answer

    def _leading(self) -> tuple[int, Lead] | None:
        term = self._term()
        if term is None:
            self._lead = None
        elif self._lead is None or self._lead[0] != term:
            present = self._book.plan()
            self._lead = (term, Lead(None if present is None else present.plan, self._clock()))
        return self._lead

    def _models(self, serving: Serving) -> dict[ModelName, ModelFacts]:
        """What is known of the models that may be placed: approved, with a header that was read."""
        approvals = self._ports.approvals()
        approved = () if approvals is None else approvals.approved.values()
        contents = {one.listing.name: one.listing.content for one in approved}
        models: dict[ModelName, ModelFacts] = {}
        self._unknown = {}
        for name in (name for desired in serving.models for name in names_of(desired)):
            content = contents.get(name)
            if content is None:
                self._unknown[name] = f"{name} is not approved; `felloe pull` or `felloe approve` it"
            elif (facts := self._facts_of(content)) is not None:
                models[name] = facts
            else:
                why = self._ports.shapes.problem(content)
                self._unknown[name] = f"the header of {name} " + (
                    f"cannot be read: {why}" if why else "is being fetched"
                )
        used = frozenset(one.content for one in models.values())
        self._facts = {content: facts for content, facts in self._facts.items() if content in used}
        return models

    def _facts_of(self, content: ContentId) -> ModelFacts | None:
        """The facts of a content, made once, so that two problems compare fast."""
        known = self._facts.get(content)
        if known is None and (shape := self._ports.shapes.find(content)) is not None:
            known = self._facts[content] = ModelFacts(shape=shape, content=content)
        return known

    def _explained(self, refusal: Refusal, serving: Serving) -> Refusal:
        """A refusal of a model of which nothing is known yet, with the reason why not."""
        desired = serving.find(refusal.model)
        reasons = [] if desired is None else [self._unknown.get(name, "") for name in names_of(desired)]
        if not reasons or not all(reasons):
            return refusal
        return replace(refusal, reason="; ".join(reasons), nearest="")

    async def _write(self, plan: Plan, term: int) -> NetworkPlan | None:
        present = self._book.plan()
        if present is not None and _is_same(plan, present.plan):
            return None
        written = await self._book.write_plan(plan, term=term, now=self._now())
        names = {node: member.record.name for node, member in self._roster().members.items()}
        _log_changes(() if present is None else present.plan.placements, written.plan, names)
        return written


class DemandDesk:
    """A hub's side of the service `demand`: the leading hub answers, the others pass the question on to it.

    `leader` is the hub that leads as far as this one, `this`, knows; `tell` asks another hub.
    """

    def __init__(
        self,
        planning: Planning,
        this: NodeId,
        *,
        leader: Callable[[], NodeId | None],
        tell: Callable[[NodeId, DemandQuestion], Awaitable[DemandAnswer]],
    ) -> None:
        self._planning = planning
        self._this = this
        self._leader = leader
        self._tell = tell

    async def answer(self, question: DemandQuestion) -> DemandAnswer:
        """What this hub says as the leader. Raises as `Planning.demand`."""
        return self._planning.demand(question)

    async def pass_on(self, question: DemandQuestion) -> DemandAnswer:
        """What the leader says. Raises `not_leader` when there is none, and what the leader raises."""
        leader = self._leader()
        if leader is None:
            raise FelloeError("not_leader", "no hub leads now, so nothing new is loaded", retry_after=5.0)
        return await (self.answer(question) if leader == self._this else self._tell(leader, question))


def names_of(desired: DesiredModel) -> tuple[ModelName, ...]:
    """The models that may stand for what is wanted, best first."""
    return desired.variants or (desired.model,)


def _is_same(plan: Plan, present: Plan) -> bool:
    """Whether nodes would do the same by both, and people read the same refusals, be they some bytes off."""
    same_places = set(plan.placements) == set(present.placements)
    return same_places and set(map(_gist, plan.refusals)) == set(map(_gist, present.refusals))


def _gist(refusal: Refusal) -> tuple[str, int, str, str]:
    return refusal.model, refusal.missing, refusal.where, "" if refusal.short_bytes else refusal.reason


def _log_changes(before: tuple[Placement, ...], plan: Plan, names: dict[NodeId, str]) -> None:
    moved = changes(before, plan.placements)
    for word, placements in (("comes to", moved.added), ("leaves", moved.removed)):
        for one in sorted(placements, key=lambda one: (one.model, one.node)):
            where = names.get(one.node, one.node)
            logger.info("plan %d: %s (%s) %s %s", plan.number, one.model, one.variant, word, where)
    for refusal in plan.refusals:
        logger.info("plan %d: %s has no place for %d: %s", plan.number, refusal.model, refusal.missing, refusal.reason)
