"""What an owner sees and does about the models that the network serves, carried out on a running node."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from felloe.console.messages import NameRequest, Nothing
from felloe.console.serving_messages import Declared, PlanView, ServingPlace, ServingRow, ServingState, ServingView
from felloe.domain.fleet import Fleet
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Placement, Plan, Refusal
from felloe.domain.roster import NodeRecord, Roster
from felloe.domain.serving import NetworkPlan, Serving, check_desired, decode_plan, decode_serving
from felloe.hubs.topics import PLAN, SERVING
from felloe.node.hub_operations import HubOperations
from felloe.node.planning import names_of

if TYPE_CHECKING:
    from felloe.node.node import Node


class ServingOperations:
    """Implements the console's `ServingOperations` for one node: changing on a hub, looking on every node."""

    def __init__(self, node: "Node", hubs: HubOperations) -> None:
        self._node = node
        self._hubs = hubs

    async def view(self) -> ServingView:
        """What is wanted and how it is served, as this node knows it. Raises `bad_state`."""
        made, roster = self._plan(), self._node.roster.snapshot()
        plan = Plan(placements=()) if made is None else made.plan
        rows = (serving_row(desired, plan, roster) for desired in self._serving().models)
        return ServingView(rows=tuple(rows), number=plan.number, made_at=0.0 if made is None else made.made_at)

    async def plan(self) -> PlanView:
        """The plan, and the machines as they are now; of silent ones those that it uses. Raises `bad_state`."""
        made, members = self._plan(), self._node.roster.snapshot().members.values()
        plan = Plan(placements=()) if made is None else made.plan
        planned = {placement.node for placement in plan.placements}
        shown = (member for member in members if member.alive or member.record.id in planned)
        machines = (member.record.machine for member in shown)
        return PlanView(
            plan=plan,
            fleet=Fleet(machines=tuple(machine for machine in machines if machine is not None)),
            desired=self._serving().models,
            term=0 if made is None else made.term,
            made_at=0.0 if made is None else made.made_at,
        )

    async def declare(self, desired: DesiredModel) -> Declared:
        """Have the network serve this. Raises `wrong_node`, `invalid_value`, `overloaded`."""
        hub = self._hubs.acting_hub("what the network serves is said")
        check_desired(desired)
        await hub.serving.declare(desired)
        return Declared(desired=desired, notes=self._notes(desired))

    async def retire(self, request: NameRequest) -> Nothing:
        """Have the network serve this no more. Raises `wrong_node`, `not_found`."""
        await self._hubs.acting_hub("what the network serves is said").serving.retire(request.name)
        return Nothing()

    def _notes(self, desired: DesiredModel) -> tuple[str, ...]:
        """What keeps it from being served as it is known here."""
        known, notes = self._node.approvals.known, list[str]()
        missing = [name for name in names_of(desired) if known is None or known.named(name) is None]
        if missing:
            notes.append(f"not approved, so it cannot be placed yet: {', '.join(missing)}; pull or approve it")
        members = self._node.roster.snapshot().members.values()
        return (*notes, *pin_notes(desired, [member.record for member in members]))

    def _serving(self) -> Serving:
        if self._node.hub is not None and self._node.hub.state.generations.keeps:
            return self._node.hub.serving.serving()
        value = self._node.state.value(SERVING)
        return Serving() if value is None else decode_serving(value)

    def _plan(self) -> NetworkPlan | None:
        """The newest one heard of: a hub that keeps no state may have an old copy."""
        own = None if self._node.hub is None else self._node.hub.serving.plan()
        value = self._node.state.value(PLAN)
        found = [own, None if value is None else decode_plan(value)]
        return max((one for one in found if one is not None), key=lambda one: one.plan.number, default=None)


def pin_notes(desired: DesiredModel, records: Sequence[NodeRecord]) -> list[str]:
    """What is wrong with pins, as far as nodes are known: names that nobody has, devices that are not there. Pure."""
    notes = list[str]()
    for pin in desired.pins:
        name, _, device = pin.partition("/")
        named = [record for record in records if name in (record.name, record.id)]
        machines = [record.machine for record in named if record.machine is not None]
        if not named:
            notes.append(f"no node of this network has the name {name}")
        elif device and machines and not any(machine.device(device) for machine in machines):
            usable = ", ".join(one.id for machine in machines for one in machine.devices)
            notes.append(f"{name} has no {device} that models may use; it has {usable}")
    return notes


def serving_row(desired: DesiredModel, plan: Plan, roster: Roster) -> ServingRow:
    """How one model is served, by the plan and the roster. Pure."""
    planned = [_place(one, roster) for one in plan.placements if one.model == desired.model]
    places = (*planned, *_by_owner(desired.model, roster))
    ready = sum(
        replica.model.name == desired.model and replica.state == "ready"
        for member in roster.members.values()
        if member.alive
        for replica in member.record.replicas
    )
    refusal = next((one for one in plan.refusals if one.model == desired.model), None)
    return ServingRow(
        desired=desired,
        state=_state(desired, ready, len(planned), refusal, plan),
        ready=ready,
        places=places,
        note="" if refusal is None else "; ".join(filter(None, (refusal.reason, refusal.nearest))),
    )


def _state(desired: DesiredModel, ready: int, placed: int, refusal: Refusal | None, plan: Plan) -> ServingState:
    if ready:
        return "ready"
    if placed:
        return "loading"
    if refusal is not None:
        return "refused"
    return "cold" if desired.replicas_min == 0 and plan.number else "waiting"


def _by_owner(model: ModelName, roster: Roster) -> Iterator[ServingPlace]:
    """Where owners have loaded it by themselves."""
    for member in roster.members.values():
        for one in member.record.replicas if member.alive else ():
            if one.model.name == model and not one.planned and one.state == "ready":
                yield ServingPlace(
                    node=member.record.name,
                    variant=model,
                    devices=(),
                    context=one.context,
                    ready=True,
                    by_owner=True,
                )


def _place(placement: Placement, roster: Roster) -> ServingPlace:
    member = roster.members.get(placement.node)
    replicas = () if member is None or not member.alive else member.record.replicas
    return ServingPlace(
        node=placement.node if member is None else member.record.name,
        variant=placement.variant,
        devices=tuple(part.device for part in placement.parts if part.layers),
        context=placement.context,
        ready=any(one.model.name == placement.model and one.planned and one.state == "ready" for one in replicas),
    )
