"""Plans are made by a process of its own, from and to bytes."""

import time

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel
from felloe.node.solver import solve
from felloe.placement.corrections import Correction, Corrections
from felloe.placement.facts import ModelFacts
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.plan import make_plan
from felloe.placement.problem import Problem

NODE, OTHER = NodeId("a" * 32), NodeId("b" * 32)
SMALL = shape_from_parameters(
    Lengths(layers=16, width=1024, heads=16, kv_heads=4, feed_forward=4096, vocabulary=32_000)
)


def machine(node: NodeId, name: str, memory: int = 8 * 2**30) -> Machine:
    return Machine(id=node, name=name, devices=(Device(id="ram", kind="cpu", memory=memory),))


def problem(*machines: Machine) -> Problem:
    return Problem(
        fleet=Fleet(machines=machines),
        desired=(DesiredModel(model=ModelName("small"), replicas_min=1, replicas_max=2),),
        models={ModelName("small"): ModelFacts(shape=SMALL)},
        current=(),
        barred=frozenset({(OTHER, ModelName("small"))}),
        corrections={ModelName("small"): Corrections(kinds={"cpu": Correction(overhead=2**20)})},
    )


async def test_the_process_finds_what_the_solver_finds() -> None:
    asked = problem(machine(NODE, "hub"), machine(OTHER, "spoke"))
    plan = await solve(asked)
    here = make_plan(
        asked.fleet,
        asked.desired,
        asked.models,
        barred=asked.barred,
        corrections=asked.corrections,
        now=time.monotonic,
    )
    assert plan.placements == here.placements
    assert [placement.node for placement in plan.placements] == [NODE], "the other node is barred"


async def test_a_problem_that_means_nothing_is_refused_with_the_reason() -> None:
    with pytest.raises(FelloeError, match="twice") as caught:
        await solve(problem(machine(NODE, "hub"), machine(NODE, "hub")))
    assert caught.value.code == "invalid_value"
