"""The three machines of examples/: what goes where, and what changes when something goes."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Placement, Plan
from felloe.placement.explain import changes, explain
from felloe.placement.facts import ModelFacts
from felloe.placement.fleet_file import read_fleet
from felloe.placement.models_file import read_models
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.plan import make_plan
from felloe.placement.shape import Shape

EXAMPLES = Path(__file__).parents[3] / "examples"
GIB = 2**30
SMALL = Lengths(layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128256, tied=True)


def no_file(path: Path) -> Shape:
    raise AssertionError(path)


FLEET = read_fleet(EXAMPLES / "fleet.toml")
DESIRED, FACTS = read_models(EXAMPLES / "models.toml", no_file)
HUB, SPOKE_A, SPOKE_B = (machine.id for machine in FLEET.machines)


def planned(fleet: Fleet = FLEET, desired: Sequence[DesiredModel] = DESIRED, **options: object) -> Plan:
    return make_plan(fleet, desired, FACTS, now=time.monotonic, **options)  # pyright: ignore[reportArgumentType]


def of(plan: Plan, model: str) -> Placement:
    return next(placement for placement in plan.placements if placement.model == model)


def names(plan: Plan, node: NodeId) -> set[str]:
    return {placement.model for placement in plan.placements if placement.node == node}


def without(machine: NodeId, device: str = "") -> Fleet:
    """The fleet without a machine, or without one of its cards."""
    machines = [
        replace(one, devices=tuple(each for each in one.devices if each.id != device)) if one.id == machine else one
        for one in FLEET.machines
        if device or one.id != machine
    ]
    return Fleet(machines=tuple(machines))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned()


def test_the_70b_lies_over_the_hubs_four_cards_with_the_longest_context_that_they_hold(plan: Plan) -> None:
    large = of(plan, "orchestrator-70b")
    assert [part.device for part in large.parts] == ["ram", "gpu0", "gpu1", "gpu2", "gpu3"]
    assert sum(part.layers for part in large.parts) == 81
    assert 4096 <= large.context < 16384


def test_the_utility_model_lies_in_the_hubs_memory_since_no_card_has_room(plan: Plan) -> None:
    small = of(plan, "utility-1.5b")
    assert small.node == HUB
    assert [part.device for part in small.parts] == ["ram"]


def test_spoke_a_has_the_most_8b_that_its_bytes_allow_and_that_is_proved(plan: Plan) -> None:
    assert names(plan, SPOKE_A) == {"chat-8b", "code-8b"}
    assert plan.gap < 1e-6
    [refusal] = plan.refusals
    assert (refusal.model, refusal.missing, refusal.where) == ("write-8b", 1, "spoke-a/gpu0")
    assert refusal.short_bytes > 4 * GIB


def test_spoke_b_has_the_small_ones(plan: Plan) -> None:
    assert names(plan, SPOKE_B) == {"edge-1.5b", "edge-1b"}


def test_the_same_question_has_the_same_answer(plan: Plan) -> None:
    again = planned(desired=tuple(reversed(DESIRED)))
    assert again.placements == plan.placements


def test_what_runs_stays_as_it_is(plan: Plan) -> None:
    again = planned(current=plan.placements)
    assert again.placements == plan.placements


def test_without_a_card_the_70b_goes_and_the_reason_is_told_in_bytes() -> None:
    plan = planned(without(HUB, "gpu3"))
    refusal = next(refusal for refusal in plan.refusals if refusal.model == "orchestrator-70b")
    assert refusal.short_bytes > 5 * GIB
    assert "hub" in refusal.where
    assert [part.device for part in of(plan, "utility-1.5b").parts][-1].startswith("gpu")


def test_with_offload_the_70b_stays_on_three_cards_and_the_memory() -> None:
    wanted = [replace(one, offload=True) for one in DESIRED]
    large = of(planned(without(HUB, "gpu3"), wanted), "orchestrator-70b")
    assert large.parts[0].device == "ram"
    assert large.parts[0].layers > 0


def test_without_a_spoke_only_its_models_go() -> None:
    plan = planned(without(SPOKE_A))
    assert {refusal.model for refusal in plan.refusals} == {"chat-8b", "code-8b", "write-8b"}
    assert all("spoke-a" in refusal.reason for refusal in plan.refusals)
    assert names(plan, HUB) == {"orchestrator-70b", "utility-1.5b"}


def smaller(mebibytes: int) -> Fleet:
    """The fleet with so much less on spoke A's card."""
    hub, spoke, other = FLEET.machines
    ram, card = spoke.devices
    spoke = replace(spoke, devices=(ram, replace(card, memory=card.memory - mebibytes * GIB // 1024)))
    return Fleet(machines=(hub, spoke, other))


def test_where_memory_shrinks_contexts_shrink_before_a_model_goes(plan: Plan) -> None:
    less = planned(smaller(512))
    assert names(less, SPOKE_A) == {"chat-8b", "code-8b"}
    assert of(less, "code-8b").context < of(plan, "code-8b").context
    assert names(planned(smaller(2048)), SPOKE_A) == {"chat-8b"}


def test_a_spoke_that_comes_back_moves_nothing_else(plan: Plan) -> None:
    before = planned(without(SPOKE_B), current=plan.placements)
    after = planned(current=before.placements)
    assert {placement.node for placement in changes(before.placements, after.placements).added} == {SPOKE_B}
    assert not changes(before.placements, after.placements).removed


def test_a_model_that_failed_on_a_machine_is_not_placed_there() -> None:
    variant = DESIRED[2].variants[0]
    plan = planned(barred=[(SPOKE_A, variant)])
    assert "chat-8b" not in names(plan, SPOKE_A)
    refusal = next(refusal for refusal in plan.refusals if refusal.model == "chat-8b")
    assert "failed" in refusal.reason


def test_the_explanation_says_where_how_much_and_why_not(plan: Plan) -> None:
    text = explain(plan, FLEET, DESIRED)
    assert "hub\n  orchestrator-70b" in text
    assert "split over 4 devices" in text
    assert "write-8b: not placed" in text
    assert "lacks" in text and "GiB" in text
    assert "No other plan serves more of what is wanted; that is proved" in text


def one_card(name: str, gibibytes: float, cards: int = 1) -> Machine:
    gpus = [Device(id=f"gpu{at}", kind="cuda", memory=int(gibibytes * GIB)) for at in range(cards)]
    ram = Device(id="ram", kind="cpu", memory=32 * GIB)
    return Machine(id=NodeId(name.ljust(26, "a")), name=name, devices=(ram, *gpus))


def wanted(model: str, **options: object) -> DesiredModel:
    return DesiredModel(model=ModelName(model), context=2048, **options)  # pyright: ignore[reportArgumentType]


FACTS_SMALL = {
    ModelName(name): ModelFacts(shape=shape_from_parameters(SMALL, quantisation=quantisation))
    for name, quantisation in (("a", "Q4_K_M"), ("b", "Q4_K_M"), ("a-large", "Q8_0"), ("a-small", "Q4_K_M"))
}


def small_plan(machines: Sequence[Machine], *desired: DesiredModel, **options: object) -> Plan:
    fleet = Fleet(machines=tuple(machines))
    return make_plan(fleet, desired, FACTS_SMALL, now=time.monotonic, **options)  # pyright: ignore[reportArgumentType]


def test_a_higher_priority_goes_before_any_demand() -> None:
    plan = small_plan([one_card("one", 2)], wanted("a", demand=1000.0), wanted("b", priority=1))
    assert [placement.model for placement in plan.placements] == ["b"]


def test_minima_go_before_what_is_beyond_them() -> None:
    machines = [one_card("one", 2), one_card("two", 2)]
    plan = small_plan(machines, wanted("a", priority=5, replicas_max=2), wanted("b"))
    assert sorted(placement.model for placement in plan.placements) == ["a", "b"]


def test_memory_that_is_left_is_used_up_to_the_most_replicas() -> None:
    machines = [one_card("one", 2), one_card("two", 2), one_card("three", 2)]
    plan = small_plan(machines, wanted("a", replicas_max=2))
    assert len({placement.node for placement in plan.placements}) == len(plan.placements) == 2


def test_a_machine_holds_one_replica_of_a_model_and_the_rest_is_refused() -> None:
    plan = small_plan([one_card("one", 8, cards=2)], wanted("a", replicas_min=2))
    [refusal] = plan.refusals
    assert (len(plan.placements), refusal.missing) == (1, 1)
    assert "one machine holds one" in refusal.reason


def test_the_best_variant_that_fits_is_chosen() -> None:
    desired = wanted("a", variants=("a-large", "a-small"))
    assert small_plan([one_card("one", 8)], desired).placements[0].variant == "a-large"
    assert small_plan([one_card("one", 1.8)], desired).placements[0].variant == "a-small"


def test_pins_that_no_machine_has_are_refused_with_the_names_there_are() -> None:
    plan = small_plan([one_card("one", 8)], wanted("a", pins=("nowhere", "one/gpu7")))
    assert "nowhere" in plan.refusals[0].reason
    assert "one" in plan.refusals[0].nearest


def test_a_model_of_which_nothing_is_known_is_refused() -> None:
    assert "nothing is known" in small_plan([one_card("one", 8)], wanted("unknown")).refusals[0].reason


def test_a_fleet_without_machines_refuses_everything() -> None:
    assert [refusal.reason for refusal in small_plan([], wanted("a")).refusals] == ["no machine is there"]


@pytest.mark.parametrize(
    "desired",
    [
        (wanted("a"), wanted("a")),
        (wanted("a", demand=float("nan")),),
        (wanted("a", replicas_min=-1),),
        (wanted("a", slots=0),),
        (wanted("a", context_least=4096),),
    ],
)
def test_wishes_that_mean_nothing_are_refused(desired: tuple[DesiredModel, ...]) -> None:
    with pytest.raises(FelloeError, match="invalid_value"):
        small_plan([one_card("one", 8)], *desired)


def test_a_machine_that_is_there_twice_or_impossible_is_refused() -> None:
    with pytest.raises(FelloeError, match="twice"):
        small_plan([one_card("one", 8), one_card("one", 8)], wanted("a"))
    with pytest.raises(FelloeError, match="one"):
        small_plan([one_card("one", -8)], wanted("a"))
