"""Whatever is wanted of whatever fleet: no plan takes more memory than there is, leaves a pin or breaks a promise."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.fleet import RAM, Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel
from felloe.placement.facts import ModelFacts
from felloe.placement.machine_kinds import allowed_devices
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.plan import make_plan

MIB = 2**20
SHAPES = {
    "tiny": Lengths(layers=8, width=512, heads=8, kv_heads=2, feed_forward=2048, vocabulary=32000),
    "small": Lengths(layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=32000),
    "large": Lengths(layers=32, width=4096, heads=32, kv_heads=8, feed_forward=14336, vocabulary=32000),
}
FACTS = {
    ModelName(f"{name}-{quantisation}"): ModelFacts(shape=shape_from_parameters(lengths, quantisation=quantisation))
    for name, lengths in SHAPES.items()
    for quantisation in ("Q8_0", "Q4_K_M")
}


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    machines: list[Machine] = []
    for at in range(draw(st.integers(1, 4))):
        devices = [Device(id=RAM, kind="cpu", memory=draw(st.integers(0, 12_000)) * MIB)]
        shared = draw(st.booleans())
        for gpu in range(draw(st.integers(0, 3))):
            memory = draw(st.integers(0, 9_000)) * MIB
            devices.append(Device(id=f"gpu{gpu}", kind="cuda", memory=memory, shared=shared))
        machines.append(Machine(id=NodeId(f"{at:026}"), name=f"m{at}", devices=tuple(devices)))
    return Fleet(machines=tuple(machines))


@st.composite
def wishes(draw: st.DrawFn) -> list[DesiredModel]:
    found: list[DesiredModel] = []
    for name in draw(st.lists(st.sampled_from(sorted(SHAPES)), unique=True, min_size=1)):
        least = draw(st.integers(0, 2))
        found.append(
            DesiredModel(
                model=ModelName(name),
                variants=(ModelName(f"{name}-Q8_0"), ModelName(f"{name}-Q4_K_M")),
                replicas_min=least,
                replicas_max=least + draw(st.integers(0, 2)),
                priority=draw(st.integers(0, 1)),
                demand=draw(st.sampled_from([0.5, 1.0, 4.0])),
                context=draw(st.sampled_from([0, 2048, 8192])),
                context_least=draw(st.sampled_from([0, 1024])),
                pins=draw(st.sampled_from([(), ("m0",), ("m1/gpu0", "m0/ram")])),
                offload=draw(st.booleans()),
            )
        )
    return found


@settings(max_examples=40, deadline=None)
@given(fleet=fleets(), desired=wishes())
def test_a_plan_keeps_to_memory_pins_limits_and_itself(fleet: Fleet, desired: list[DesiredModel]) -> None:
    plan = make_plan(fleet, desired, FACTS, seconds=30, now=time.monotonic)
    by_model = {wanted.model: wanted for wanted in desired}
    for machine in fleet.machines:
        here = [placement for placement in plan.placements if placement.node == machine.id]
        assert len({placement.model for placement in here}) == len(here)
        used = {device.id: 0 for device in machine.devices}
        for placement in here:
            for part in placement.parts:
                used[part.device] += part.need.total
        shared = sum(used[device.id] for device in machine.devices if device.shared)
        assert used[RAM] + shared <= machine.devices[0].memory
        assert all(used[device.id] <= device.memory for device in machine.devices)
        for placement in here:
            wanted = by_model[placement.model]
            allowed = allowed_devices(machine, wanted.pins)
            assert all(part.device in allowed for part in placement.parts if part.layers)
            assert sum(part.layers for part in placement.parts) == FACTS[placement.variant].shape.units
            assert not wanted.context_least or placement.context >= wanted.context_least
    for wanted in desired:
        count = sum(placement.model == wanted.model for placement in plan.placements)
        missing = sum(refusal.missing for refusal in plan.refusals if refusal.model == wanted.model)
        assert count <= wanted.replicas_max
        assert count + missing >= wanted.replicas_min
    assert plan.value <= plan.bound + 1e-6
    again = make_plan(fleet, desired, FACTS, current=plan.placements, seconds=30, now=time.monotonic)
    assert [(p.model, p.node) for p in again.placements] == [(p.model, p.node) for p in plan.placements]
    assert make_plan(fleet, desired, FACTS, seconds=30, now=time.monotonic).placements == plan.placements
