"""How a wanted model is shown, by the plan and the roster."""

from msgspec.structs import replace

from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Placement, Plan, Refusal
from felloe.domain.roster import Roster
from felloe.node.serving_operations import pin_notes, serving_row
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


async def test_what_an_owner_loaded_is_shown_where_it_is() -> None:
    house = ServingHouse(100)
    await house.want("a", 60)
    await house.live(8)
    roster = house.roster()
    [member] = roster.members.values()
    by_hand = tuple(replace(one, planned=False, variant="", content="") for one in member.record.replicas)
    owned = replace(member, record=replace(member.record, replicas=by_hand))
    roster = Roster(this=roster.this, members={owned.record.id: owned})
    row = serving_row(DesiredModel(model=A), NO_PLAN, roster)
    assert [(one.node, one.ready, one.by_owner) for one in row.places] == [("node-a", True, True)]


def test_pins_that_name_nothing_are_told_when_they_are_said() -> None:
    records = [member.record for member in ServingHouse(100).roster().members.values()]
    name = records[0].name
    pins = (name, f"{name}/gpu0", f"{records[0].id}/ram", f"{name}/gpu7", "mars", "mars/gpu0")
    assert pin_notes(DesiredModel(model=A, pins=pins), records) == [
        f"{name} has no gpu7 that models may use; it has ram, gpu0",
        "no node of this network has the name mars",
        "no node of this network has the name mars",
    ]
