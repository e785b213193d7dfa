"""What the leader makes of a network whose nodes come, go, flap, fill and fail."""

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Device
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.models import Model
from felloe.domain.plan import Need, Part
from felloe.domain.roster import Load, Replica
from felloe.domain.serving import DemandAnswer, DemandQuestion
from felloe.node.planning import DemandDesk
from felloe.placement.rules import REST_SECONDS
from serving_house import FakeServingNode, ServingHouse, machine, node_id, wish


async def test_what_is_wanted_is_placed_at_once_and_served() -> None:
    house = ServingHouse(100, 100)
    await house.want("a", 60)
    await house.want("b", 60)
    await house.live(6)
    assert (house.serving("a"), house.serving("b")) == ([0], [1])
    assert len(house.written) == 1
    await house.live(600)
    assert len(house.written) == 1, "nothing changed, so nothing is written"
    assert house.solved < 6


async def test_a_dead_nodes_models_are_planned_elsewhere_after_ten_seconds_and_not_before() -> None:
    house = ServingHouse(10, 100, 100)
    await house.want("a", 60)
    await house.live(6)
    assert house.serving("a") == [1]
    house.node(1).alive = False
    await house.live(9)
    assert house.where("a") == [1]
    await house.live(7)
    assert house.serving("a") == [2]


async def test_a_short_silence_moves_nothing() -> None:
    house = ServingHouse(10, 100, 100)
    await house.want("a", 60)
    await house.live(6)
    house.node(1).alive = False
    await house.live(8)
    house.node(1).alive = True
    await house.live(60)
    assert len(house.written) == 1


async def test_a_node_that_flaps_loses_its_models_and_gets_new_ones_ever_later() -> None:
    house = ServingHouse(10, 100, 40)
    await house.want("a", 60)
    await house.want("b", 30)
    await house.live(6)
    assert house.where("a") == [1]
    for _ in range(600):
        house.node(1).alive = not house.node(1).alive
        await house.live(1)
    assert len(house.written) <= 4, "it is given up once, and not tried again while it flaps"
    house.node(1).alive = True
    await house.live(2000)
    assert house.where("a") == [1]


async def test_what_runs_stays_where_it_is_when_a_node_is_lost() -> None:
    house = ServingHouse(10, 100, 100, 100)
    for model in ("a", "b", "c"):
        await house.want(model, 45)
    await house.live(6)
    before = {model: house.where(model) for model in ("a", "b", "c")}
    lost = before["a"][0]
    house.node(lost).alive = False
    await house.live(20)
    for model, where in before.items():
        assert house.where(model) == where or where == [lost]
        assert house.serving(model)


async def test_lower_priorities_make_room_and_the_reason_is_told() -> None:
    house = ServingHouse(10, 100)
    await house.want("small", 60)
    await house.live(6)
    await house.want("large", 80, priority=1)
    await house.live(15)
    assert (house.where("large"), house.where("small")) == ([1], [])
    [refusal] = house.plan.refusals
    assert refusal.model == "small"


async def test_a_model_on_demand_is_loaded_when_it_is_asked_for_and_unloaded_when_idle() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, replicas_min=0, idle_seconds=120)
    await house.live(30)
    assert house.where("a") == []
    assert house.ask("a").state == "wanted"
    await house.live(2)
    assert house.ask("a").state == "loading"
    await house.live(5)
    assert house.ask("a").state == "ready"
    house.busy(0, "a")
    await house.live(300)
    assert house.where("a") == [0], "it is in use"
    house.quiet()
    await house.live(110)
    assert house.where("a") == [0]
    await house.live(20)
    assert house.where("a") == []


async def test_an_idle_model_on_demand_gives_way_to_one_that_is_asked_for() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, replicas_min=0)
    await house.want("b", 60, replicas_min=0)
    await house.live(1)
    house.ask("a")
    await house.live(5)
    assert house.where("a") == [0]
    house.busy(0, "a")
    house.ask("b")
    await house.live(20)
    assert house.where("a") == [0], "it is in use"
    assert house.ask("b").state == "wanted", "there is hope"
    house.quiet()
    await house.live(8)
    assert house.where("a") == [0], "it was in use just now"
    await house.live(10)
    assert (house.where("b"), house.where("a")) == ([0], [])
    await house.live(300)
    assert house.where("b") == [0], "who gave way does not come back by itself"


async def test_a_model_on_demand_that_fits_nowhere_is_refused_with_the_reason() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, replicas_min=0)
    await house.want("huge", 600, replicas_min=0)
    await house.live(2)
    house.ask("a")
    await house.live(30)
    house.ask("huge")
    await house.live(10)
    answer = house.ask("huge")
    assert (answer.state, answer.detail) == ("refused", "there is not enough memory")
    assert house.where("a") == [0]


async def test_who_asks_before_the_leader_has_looked_is_told_to_wait() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, replicas_min=0)
    assert house.ask("a").state == "wanted"
    await house.live(6)
    assert house.ask("a").state == "ready"


async def test_of_too_many_replicas_those_go_that_are_not_ready_yet() -> None:
    house = ServingHouse(10, 10, 100)
    await house.want("a", 60, replicas_max=1)
    await house.live(6)
    assert house.where("a") == [2]
    house.shrink(1, 100)
    await house.want("a", 60, replicas_min=2, replicas_max=2)
    await house.step()
    assert house.where("a") == [1, 2]
    await house.want("a", 60)
    await house.live(6)
    assert house.where("a") == [2]


async def test_a_model_that_nobody_wants_cannot_be_asked_for() -> None:
    house = ServingHouse(100)
    await house.live(1)
    with pytest.raises(FelloeError) as refused:
        house.ask("a")
    assert refused.value.code == "model_not_found"
    house.term = None
    with pytest.raises(FelloeError) as refused:
        house.ask("a")
    assert refused.value.code == "not_leader"


async def test_a_long_queue_brings_replicas_one_by_one_and_slack_takes_them_away() -> None:
    house = ServingHouse(100, 100, 100)
    await house.want("a", 60, replicas_min=1, replicas_max=3, slots=2, idle_seconds=60)
    await house.live(10)
    [first] = house.where("a")
    house.busy(first, "a", active=2, waiting=6)
    await house.live(20)
    assert len(house.where("a")) == 2
    await house.live(60)
    assert len(house.where("a")) == 3
    house.quiet()
    await house.live(200)
    assert house.where("a") == [first]


async def test_what_fails_on_a_node_is_tried_elsewhere_and_here_ever_later() -> None:
    house = ServingHouse(100, 100)
    house.node(0).breaks[ModelName("a")] = "out_of_memory"
    await house.want("a", 60)
    await house.live(12)
    assert house.serving("a") == [1]
    house.node(1).breaks[ModelName("a")] = "engine_failed"
    house.node(1).ready.clear()
    await house.live(3600)
    tries = sum(one.times for node in house.nodes for one in node.failures)
    assert tries <= 2 * 8, "each try doubles the time to the next"
    assert len(house.written) < 40


async def test_memory_that_others_take_drives_models_out_the_least_important_first() -> None:
    house = ServingHouse(10, 100)
    await house.want("a", 40)
    await house.want("b", 40, priority=1)
    await house.live(6)
    house.shrink(1, 60)
    await house.live(6)
    assert (house.where("b"), house.where("a")) == ([1], [])
    house.shrink(1, 100)
    await house.live(15)
    assert house.where("a") == [1]


async def test_a_node_that_drains_is_left_at_once() -> None:
    house = ServingHouse(10, 100, 100)
    await house.want("a", 60)
    await house.live(6)
    [at] = house.where("a")
    house.node(at).load = Load(draining=True)
    await house.live(2)
    assert house.where("a") == [3 - at]


async def test_a_node_that_stops_before_anybody_looks_is_left_at_once_too() -> None:
    house = ServingHouse(10, 100, 100)
    await house.want("a", 60)
    await house.live(6)
    [at] = house.where("a")
    house.node(at).load = Load(draining=True)
    house.node(at).alive = False
    await house.live(2)
    assert house.where("a") == [3 - at]


async def test_a_new_leader_goes_on_with_the_plan_that_is_there() -> None:
    house = ServingHouse(100, 100)
    await house.want("a", 60)
    await house.want("b", 60, replicas_min=0)
    await house.live(2)
    house.ask("b")
    await house.live(10)
    before = house.plan.placements
    house.new_leader()
    await house.live(600)
    assert house.plan.placements == before
    assert len(house.written) == 2


async def test_a_new_leader_waits_for_nodes_that_it_has_not_heard_yet() -> None:
    house = ServingHouse(10, 100, 100)
    await house.want("a", 60)
    await house.live(6)
    number, [at] = house.plan.number, house.where("a")
    missing = house.nodes.pop(at)
    house.new_leader()
    await house.live(5)
    house.nodes.insert(at, missing)
    await house.live(30)
    assert house.plan.number == number


async def test_what_the_owner_loaded_by_hand_is_taken_memory() -> None:
    house = ServingHouse(100)
    part = Part(device="gpu0", layers=2, need=Need(weights=70))
    model = wish_model("mine")
    house.node(0).by_hand = (Replica(model=model, engine="llama", state="ready", slots=1, context=1, parts=(part,)),)
    await house.want("a", 60)
    await house.live(15)
    assert house.where("a") == []
    house.node(0).by_hand = ()
    await house.live(15)
    assert house.where("a") == [0]


async def test_a_better_place_is_taken_without_a_moment_in_which_nobody_answers() -> None:
    house = ServingHouse(50, 0)
    house.approve("chat-small", 40)
    house.approve("chat-large", 80)
    await house.want("chat", 0, variants=("chat-large", "chat-small"))
    await house.live(6)
    assert [one.variant for one in house.plan.placements] == ["chat-small"]
    house.busy(0, "chat")
    house.shrink(1, 100)
    for _ in range(30):
        await house.live(1)
        assert house.serving("chat")
    assert [one.variant for one in house.plan.placements] == ["chat-large"]
    assert house.where("chat") == [1]
    house.node(1).machine = None
    await house.live(20)
    house.shrink(0, 100)
    await house.live(60)
    assert [one.variant for one in house.plan.placements] == ["chat-small"], "it rests after a move for the better"
    await house.live(REST_SECONDS)
    assert [one.variant for one in house.plan.placements] == ["chat-small"], "it would have to stop, and is in use"
    house.quiet()
    await house.live(90)
    assert [one.variant for one in house.plan.placements] == ["chat-large"]


async def test_an_engine_that_starts_again_is_the_business_of_its_node_alone() -> None:
    house = ServingHouse(100, 100)
    await house.want("a", 60)
    await house.live(6)
    [at] = house.where("a")
    for second in range(120):
        house.busy(at, "a", waiting=3)
        house.node(at).restarting = {ModelName("a")} if second % 7 < 4 else set()
        await house.live(1)
    assert (house.where("a"), len(house.written)) == ([at], 1)
    house.node(at).breaks[ModelName("a")] = "engine_failed"
    house.node(at).ready.clear()
    await house.live(12)
    assert house.where("a") == [1 - at], "its node has given it up"


async def test_a_crash_is_no_quiet_moment_to_exchange_a_model_that_is_in_use() -> None:
    house = ServingHouse(50)
    house.approve("chat-small", 40)
    house.approve("chat-large", 80)
    await house.want("chat", 0, variants=("chat-large", "chat-small"))
    await house.live(6)
    house.busy(0, "chat", waiting=2)
    house.shrink(0, 100)
    house.node(0).restarting = {ModelName("chat")}
    await house.live(200)
    assert [one.variant for one in house.plan.placements] == ["chat-small"]
    house.node(0).restarting.clear()
    house.quiet()
    await house.live(90)
    assert [one.variant for one in house.plan.placements] == ["chat-large"]


async def refused(house: ServingHouse, model: str) -> None:
    """Have it asked for until the leader has looked, found no room, and says so."""
    await house.want(model, 90, replicas_min=0)
    house.ask(model)
    await house.live(8)
    assert house.ask(model).state == "refused"


async def test_who_waits_is_not_refused_while_a_node_joins_that_nobody_has_reckoned_with() -> None:
    house = ServingHouse(50)
    await refused(house, "a")
    house.nodes.append(FakeServingNode(1, 100))
    assert house.ask("a").state == "wanted"
    await house.live(8)
    assert house.where("a") == [1]


async def test_who_waits_is_not_refused_while_a_node_that_came_back_is_about_to_be_relied_on() -> None:
    house = ServingHouse(50, 100)
    house.node(1).alive = False
    await house.live(20)
    await refused(house, "a")
    house.node(1).alive = True
    states: list[str] = []
    while not house.where("a"):
        await house.live(1)
        states.append(house.ask("a").state)
        assert len(states) < 20
    assert set(states) <= {"wanted", "loading"}


async def test_a_new_node_that_is_too_small_ends_the_hope_as_soon_as_it_was_reckoned_with() -> None:
    house = ServingHouse(50)
    await refused(house, "a")
    house.nodes.append(FakeServingNode(1, 60))
    await house.live(10)
    assert house.ask("a").state == "refused"


async def test_a_node_that_never_says_what_it_has_gives_hope_for_a_moment_only() -> None:
    house = ServingHouse(50)
    await refused(house, "a")
    house.nodes.append(FakeServingNode(1, 100))
    house.node(1).machine = None
    await house.live(2)
    assert house.ask("a").state == "wanted"
    await house.live(12)
    assert house.ask("a").state == "refused"


async def test_a_node_that_has_flapped_for_long_gives_no_hope_until_it_is_nearly_trusted() -> None:
    house = ServingHouse(50, 100)
    for _ in range(5):
        house.node(1).alive = False
        await house.live(15)
        house.node(1).alive = True
        await house.live(1)
    await refused(house, "a")


async def test_who_must_move_for_another_one_answers_from_the_new_place_first() -> None:
    house = ServingHouse(100, 50)
    await house.want("small", 40)
    await house.live(6)
    assert house.where("small") == [0]
    await house.want("large", 90)
    await house.step()
    assert (house.where("small"), house.where("large")) == ([0, 1], []), "the large one waits for the small one to move"
    for _ in range(12):
        await house.live(1)
        assert house.serving("small")
    assert (house.serving("small"), house.serving("large")) == ([1], [0])


async def test_a_higher_priority_waits_for_nobody() -> None:
    house = ServingHouse(100, 50)
    await house.want("small", 40)
    await house.live(6)
    await house.want("large", 90, priority=1)
    await house.step()
    assert (house.where("small"), house.where("large")) == ([1], [0])


async def test_files_that_are_nowhere_move_no_other_model() -> None:
    house = ServingHouse(100, 100)
    await house.want("a", 60)
    await house.live(6)
    for node in house.nodes:
        node.breaks[ModelName("b")] = "no_holder"
    await house.want("b", 60)
    await house.live(30)
    assert house.where("a") == [0]
    assert len(house.written) <= 4
    for node in house.nodes:
        node.breaks.clear()
    await house.live(300)
    assert house.serving("b") == [1]


async def test_what_is_wanted_otherwise_is_loaded_otherwise() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, context=4096)
    await house.live(6)
    await house.want("a", 60, context=2048)
    await house.live(6)
    assert [one.context for one in house.plan.placements] == [2048]
    await house.book.retire("a")
    await house.live(3)
    assert house.plan.placements == ()


async def test_a_node_that_lies_about_its_machine_harms_only_itself() -> None:
    house = ServingHouse(10, 100, 100)
    house.node(1).machine = machine(2, 100)
    house.node(2).machine = replace(machine(2, 100), devices=(Device(id="ram", kind="cpu", memory=-1),))
    await house.want("a", 60)
    await house.live(6)
    assert house.where("a") == [1]
    house.node(1).machine = replace(machine(1, 100), devices=(Device(id="ram", kind="cpu", memory=2**80),))
    house.node(2).machine = machine(2, 100)
    await house.live(6)
    assert house.where("a") == [2]


async def test_hubs_pass_a_question_on_to_the_one_that_leads() -> None:
    house = ServingHouse(100)
    await house.want("a", 60, replicas_min=0)
    await house.step()
    told: list[NodeId] = []

    async def tell(leader: NodeId, _: DemandQuestion) -> DemandAnswer:
        told.append(leader)
        return DemandAnswer("loading", 3.0)

    leaders: list[NodeId | None] = [None, node_id(0), node_id(2)]
    desk = DemandDesk(house.planning, node_id(0), leader=lambda: leaders[0], tell=tell)
    with pytest.raises(FelloeError) as refused:
        await desk.pass_on(DemandQuestion(ModelName("a")))
    assert (refused.value.code, refused.value.retry_after) == ("not_leader", 5.0)
    leaders.pop(0)
    assert (await desk.pass_on(DemandQuestion(ModelName("a")))).state == "wanted"
    leaders.pop(0)
    assert (await desk.pass_on(DemandQuestion(ModelName("a")))).wait_seconds == 3.0
    assert told == [node_id(2)]


async def test_a_model_that_is_not_approved_or_not_read_yet_is_refused_in_these_words() -> None:
    house = ServingHouse(100)
    await house.book.declare(wish("a"))
    await house.step()
    assert [one.reason for one in house.plan.refusals] == ["a is not approved; `felloe pull` or `felloe approve` it"]
    house.approve("a", 60)
    house.hidden = True
    await house.live(6)
    assert [one.reason for one in house.plan.refusals] == ["the header of a cannot be read: no machine has it"]
    house.hidden = False
    await house.live(6)
    assert (house.where("a"), house.plan.refusals) == ([0], ())


async def test_a_hub_that_does_not_lead_writes_nothing_and_one_that_lost_the_lead_cannot() -> None:
    house = ServingHouse(100)
    await house.want("a", 60)
    house.term = None
    await house.live(5)
    assert house.written == []
    house.term = 7
    with pytest.raises(FelloeError) as refused:
        await house.live(5)
    assert refused.value.code == "not_leader"


def wish_model(name: str) -> Model:
    return Model(name=ModelName(name), digest="", size=0, architecture="", quantisation="", context=0)
