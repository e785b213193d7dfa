"""What nodes report, summed up for the leader. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from felloe.domain.fleet import RAM, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.roster import Member, Replica
from felloe.placement.lifecycle import Work


def work_of(
    models: Collection[ModelName], living: Mapping[NodeId, Member], placed: Mapping[ModelName, int]
) -> dict[ModelName, Work]:
    """What each of the models does in the whole network, in one pass over the living nodes.

    `placed` counts their replicas in the present plan.
    """
    active, waiting, slots, ready = (Counter[str]() for _ in range(4))
    served: dict[str, dict[NodeId, int]] = {model: {} for model in models}
    for node, member in living.items():
        active.update(member.load.active)
        waiting.update(member.load.waiting)
        for model, begun in member.load.served.items():
            if model in served:
                served[model][node] = begun
        for replica in member.record.replicas:
            if replica.state == "ready":
                slots[replica.model.name] += replica.slots
                ready[replica.model.name] += 1
    return {
        model: Work(
            active=active[model],
            waiting=waiting[model],
            slots=slots[model],
            ready=ready[model],
            placed=placed.get(model, 0),
            served=served[model],
        )
        for model in models
    }


def without(machine: Machine, replicas: Iterable[Replica]) -> Machine:
    """The machine with the memory that these replicas leave, such as those that its owner has loaded by hand."""
    taken: dict[str, int] = {}
    shared = {device.id for device in machine.devices if device.shared}
    for part in (part for replica in replicas for part in replica.parts):
        taken[part.device] = taken.get(part.device, 0) + part.need.total
        if part.device in shared and part.device != RAM:
            taken[RAM] = taken.get(RAM, 0) + part.need.total
    if not taken:
        return machine
    devices = (replace(one, memory=max(0, one.memory - taken.get(one.id, 0))) for one in machine.devices)
    return replace(machine, devices=tuple(devices))
