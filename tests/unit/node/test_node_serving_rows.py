"""How a wanted model is shown, by the plan and the roster."""

from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Placement, Plan, Refusal
from felloe.node.serving_operations import serving_row
from serving_house import ServingHouse

A = ModelName("a")
NO_PLAN = Plan(placements=())


async def test_a_wanted_model_goes_from_waiting_over_loading_to_ready() -> None:
    house = ServingHouse(100)
    desired = DesiredModel(model=A)
    assert serving_row(desired, house.plan, house.roster()).state == "waiting"
    await house.want("a", 60)
    await house.step()
    row = serving_row(desired, house.plan, house.roster())
    assert (row.state, row.ready, [one.ready for one in row.places]) == ("loading", 0, [False])
    await house.live(6)
    row = serving_row(desired, house.plan, house.roster())
    assert (row.state, row.ready) == ("ready", 1)
    assert [(one.node, one.devices, one.ready) for one in row.places] == [("node-a", ("gpu0",), True)]
    house.node(0).alive = False
    row = serving_row(desired, house.plan, house.roster())
    assert (row.state, row.ready, [one.ready for one in row.places]) == ("loading", 0, [False])


def test_what_nobody_needs_is_cold_and_what_does_not_fit_says_why() -> None:
    house = ServingHouse(100)
    on_demand = DesiredModel(model=A, replicas_min=0)
    assert serving_row(on_demand, NO_PLAN, house.roster()).state == "waiting"
    assert serving_row(on_demand, Plan(placements=(), number=1), house.roster()).state == "cold"
    refusal = Refusal(model=A, missing=1, reason="too large", nearest="offload it")
    row = serving_row(on_demand, Plan(placements=(), refusals=(refusal,), number=2), house.roster())
    assert (row.state, row.note) == ("refused", "too large; offload it")


def test_a_place_on_a_node_that_nobody_has_heard_of_is_shown_by_its_id() -> None:
    house = ServingHouse(100)
    stranger = Placement(model=A, variant=A, node="z" * 26, parts=(), context=1, slots=1)  # type: ignore[arg-type]
    row = serving_row(DesiredModel(model=A), Plan(placements=(stranger,), number=1), house.roster())
    assert [(one.node, one.ready) for one in row.places] == [("z" * 26, False)]
