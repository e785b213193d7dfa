"""A plan in plain words: what runs where and why, what does not, and how good the plan is."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from felloe.domain.fleet import RAM, Device, Fleet, Machine
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Part, Placement, Plan, Refusal
from felloe.placement.choices import speed
from felloe.placement.rooms import Rooms
from felloe.placement.words import amount, layers, not_placed, tokens

_PROVED = 0.0005


class Changes(Struct, frozen=True, kw_only=True):
    """What carrying out a plan means: replicas to load, to unload, and those that stay as they are."""

    added: tuple[Placement, ...]
    removed: tuple[Placement, ...]
    kept: tuple[Placement, ...]


def changes(before: Sequence[Placement], after: Sequence[Placement]) -> Changes:
    """From one plan to the next; a replica whose devices, layers or context change is removed and added."""
    old = {_identity(placement) for placement in before}
    new = {_identity(placement) for placement in after}
    return Changes(
        added=tuple(placement for placement in after if _identity(placement) not in old),
        removed=tuple(placement for placement in before if _identity(placement) not in new),
        kept=tuple(placement for placement in after if _identity(placement) in old),
    )


def explain(plan: Plan, fleet: Fleet, desired: Sequence[DesiredModel]) -> str:
    """Pages for a person: machine by machine, model by model, then what is refused, then how sure the plan is."""
    wanted = {one.model: one for one in desired}
    pages = [*(_machine_page(machine, plan, wanted) for machine in fleet.machines if _is_used(machine, plan))]
    idle = [machine.name for machine in fleet.machines if not _is_used(machine, plan)]
    if idle:
        more = f" and {len(idle) - 8} more" if len(idle) > 8 else ""
        pages.append(f"Nothing is placed on {', '.join(idle[:8])}{more}.")
    pages += [_refusal_page(refusal) for refusal in plan.refusals]
    pages.append(quality(plan, desired))
    return "\n\n".join(pages)


def quality(plan: Plan, desired: Sequence[DesiredModel]) -> str:
    """One sentence on how good the plan is."""
    if not desired:
        return "Nothing is wanted, so nothing is planned; `felloe serve MODEL` changes that."
    took = f"found in {plan.seconds:.1f} s"
    if not plan.placements and not plan.bound:
        return "No model can be placed on these machines."
    if plan.gap < _PROVED:
        return f"No other plan serves more of what is wanted; that is proved ({took})."
    return f"No plan can serve more than {100 * plan.gap:.1f} % more of what is wanted; that is proved ({took})."


def _machine_page(machine: Machine, plan: Plan, wanted: Mapping[ModelName, DesiredModel]) -> str:
    here = [placement for placement in plan.placements if placement.node == machine.id]
    rooms = Rooms(Fleet(machines=(machine,)), here)
    lines = [machine.name]
    for placement in here:
        lines += _placement_lines(placement, machine, wanted.get(placement.model))
    for device in machine.devices:
        lines.append(f"  {device_name(device)}: {_filled(device, rooms.free(machine.id, device.id))}")
    return "\n".join(lines)


def _filled(device: Device, free: int) -> str:
    """In the same whole MiB on both sides: rounded apart, a full device would look too full."""
    total = device.memory // 2**20
    used = total - max(0, free) // 2**20
    return f"{used:,} of {total:,} MiB planned, {total - used:,} MiB left"


def _placement_lines(placement: Placement, machine: Machine, desired: DesiredModel | None) -> list[str]:
    name = placement.model + ("" if placement.variant == placement.model else f" as {placement.variant}")
    requests = "1 request" if placement.slots == 1 else f"{placement.slots} requests"
    lines = [f"  {name}: {requests} at a time, {tokens(placement.context)} of context for each"]
    layered = [part for part in placement.parts if part.layers]
    if desired and desired.context > placement.context:
        lines.append(f"    {tokens(desired.context)} were wanted; this is what the memory and the model allow")
    for part, what in zip(placement.parts, layers(placement.parts), strict=True):
        lines.append(f"    {_part_line(part, what, machine)}")
    if len(layered) > 1:
        lines.append(f"    split over {len(layered)} devices, because no single one that it may use holds it")
    elif layered and layered[0].device == RAM and len(machine.devices) > 1:
        lines.append("    in the machine's memory, because the GPUs are needed for others (slower)")
    if layered and all(_reads_at(part, machine) for part in layered):
        rate = speed(placement.parts, machine.devices)
        lines.append(f"    about {rate:,.0f} tokens a second at most, by how fast the memory is read")
    return lines


def _reads_at(part: Part, machine: Machine) -> float:
    """Bytes a second; 0 where nobody said it, so that no speed is told from an assumption."""
    device = machine.device(part.device)
    return device.bandwidth if device else 0.0


def _part_line(part: Part, what: str, machine: Machine) -> str:
    device = machine.device(part.device)
    shown = device_name(device) if device else part.device
    need = part.need
    pieces = [
        f"{amount(size)} {what}"
        for what, size in (
            ("weights", need.weights),
            ("context", need.kv),
            ("computing", need.compute),
            ("engine", need.overhead),
        )
        if size
    ]
    return f"{shown}: {what + ', ' if what else ''}{amount(need.total)} = {' + '.join(pieces) or 'nothing'}"


def _refusal_page(refusal: Refusal) -> str:
    lines = [f"{refusal.model}: {not_placed(refusal)}", f"  why: {refusal.reason}"]
    if refusal.nearest:
        lines.append(f"  nearest: {refusal.nearest}")
    return "\n".join(lines)


def device_name(device: Device) -> str:
    """`gpu0 (NVIDIA RTX 3060)`, or `memory`."""
    if device.id == RAM:
        return "memory"
    return f"{device.id} ({device.name})" if device.name else device.id


def _is_used(machine: Machine, plan: Plan) -> bool:
    return any(placement.node == machine.id for placement in plan.placements)


def _identity(placement: Placement) -> tuple[object, ...]:
    parts = tuple((part.device, part.layers) for part in placement.parts)
    return (
        placement.model,
        placement.variant,
        placement.content,
        placement.node,
        parts,
        placement.context,
        placement.slots,
        placement.kv_type,
    )
