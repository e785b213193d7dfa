"""Whose turn it is to fetch one more copy: each node decides by itself, and together they fetch what is missing."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felloe.domain.approval import Approvals
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.plan import Placement
from felloe.domain.roster import HELD_DIGITS, Load
from felloe.node.spare_rules import (
    CALM_SECONDS,
    Gap,
    Keeper,
    Spare,
    due,
    gap,
    in_line,
    keepers,
    must_keep,
    spares,
    turn,
)
from serving_house import ServingHouse, content_of, node_id, wish

LOOK_SECONDS = 5.0
SPARE = Spare(content=ContentId("ab" * 32), name=ModelName("a"), size=10)


def keeper(number: int, *, holds: bool = False, memory: int | None = 100) -> Keeper:
    held = frozenset([SPARE.content[:HELD_DIGITS]] if holds else [])
    return Keeper(node=node_id(number), holds=held, memory=memory)


def fleet(count: int, *holders: int) -> list[Keeper]:
    return [keeper(number, holds=number in holders) for number in range(count)]


def turns(nodes: list[Keeper], copies: int, spare: Spare = SPARE) -> list[int]:
    found = (turn(spare, nodes, one.node, copies) for one in nodes)
    return sorted(wait for wait in found if wait is not None)


def test_as_many_act_at_once_as_copies_are_missing_and_the_others_stand_in_line() -> None:
    assert turns(fleet(6, 0), 2) == [0, 1, 2, 3, 4]
    assert turns(fleet(6, 0), 4) == [0, 0, 0, 1, 2]
    assert turns(fleet(6, 0, 1), 2) == []
    assert turns(fleet(6), 2) == [], "nobody has it"
    assert turns(fleet(1, 0), 2) == [], "nobody is there to keep it"


def test_nodes_that_fetch_it_to_serve_it_count_while_they_live() -> None:
    assert turns(fleet(4, 0), 2, replace(SPARE, planned=frozenset([node_id(2)]))) == []
    assert turns(fleet(4, 0), 2, replace(SPARE, planned=frozenset([node_id(9)]))) == [0, 1, 2]
    assert turns(fleet(4, 0), 2, replace(SPARE, planned=frozenset([node_id(0)]))) == [0, 1, 2]


def test_copies_go_first_where_there_is_memory_for_the_model_and_never_where_nothing_is_served() -> None:
    nodes = [keeper(0, holds=True), keeper(1, memory=5), keeper(2, memory=None), keeper(3, memory=10)]
    assert [turn(SPARE, nodes, one.node, 2) for one in nodes] == [None, 1, None, 0]


def test_only_living_nodes_that_stay_count() -> None:
    house = ServingHouse(100, 100, 100)
    house.node(1).alive = False
    house.node(2).load = Load(draining=True)
    assert [one.node for one in keepers(house.roster())] == [node_id(0)]
    house.node(0).alive = False
    assert [one.node for one in keepers(house.roster())] == [node_id(0)], "this node knows that it lives"


def approvals(*models: str) -> Approvals:
    house = ServingHouse(100)
    for model in models:
        house.approve(model, 60)
    return house.approvals()


def placed(model: str, variant: str, number: int) -> Placement:
    return Placement(
        model=ModelName(model),
        variant=ModelName(variant),
        node=node_id(number),
        parts=(),
        context=1,
        slots=1,
        content=content_of(variant),
    )


def test_copies_are_kept_of_what_the_plan_uses_and_else_of_the_best_approved_variant() -> None:
    wanted = [wish("chat", variants=("large", "small")), wish("rare"), wish("unknown")]
    found = spares(
        wanted, [placed("chat", "small", 1), placed("chat", "small", 2)], approvals("large", "small", "rare")
    )
    assert {one.name: one.planned for one in found.values()} == {
        "small": {node_id(1), node_id(2)},
        "rare": frozenset(),
    }
    found = spares(wanted, [], approvals("small", "rare"))
    assert {one.name for one in found.values()} == {"small", "rare"}
    found = spares(wanted, [placed("retired", "large", 1), placed("chat", "withdrawn", 1)], approvals("large"))
    assert found == {}, "the plan uses what is not approved any more, and the leader will plan anew"


def test_one_file_that_stands_for_two_models_is_one_thing_to_keep() -> None:
    wanted = [wish("a", variants=("x",)), wish("b", variants=("x",))]
    found = spares(wanted, [placed("a", "x", 1), placed("b", "x", 2)], approvals("x"))
    assert [one.planned for one in found.values()] == [{node_id(1), node_id(2)}]


def test_clean_up_may_take_only_what_enough_others_keep() -> None:
    nodes = fleet(4, 0, 1, 2)
    kept = [one.node for one in nodes[:3] if must_keep(SPARE, nodes, one.node, 2)]
    assert set(kept) == set(in_line(SPARE, nodes[:3])[:2])
    assert must_keep(SPARE, nodes, node_id(3), 2), "others have not heard yet that it is here"
    assert not must_keep(SPARE, nodes, node_id(0), 1)


def test_the_time_of_a_gap_begins_anew_when_it_was_closed_between_two_looks() -> None:
    first = gap(None, SPARE, fleet(4, 0), 2, 5.0)
    assert gap(first, SPARE, fleet(4, 0), 2, 30.0) == first
    assert gap(first, SPARE, fleet(4), 2, 30.0) == first
    closed = gap(first, SPARE, fleet(4, 1), 2, 30.0)
    assert closed.since == 30.0
    assert gap(closed, SPARE, fleet(4, 0), 2, 40.0) == closed, "a node that comes and goes does that once"
    assert gap(first, SPARE, fleet(4, 0, 1), 3, 30.0).since == 5.0, "one copy came, another one is still missing"


def test_the_longest_due_is_fetched_first() -> None:
    one, other = ContentId("1" * 64), ContentId("2" * 64)
    gaps = {one: Gap(since=5.0, holders=frozenset()), other: Gap(since=9.0, holders=frozenset())}
    assert due({one: 1, other: 0}, gaps, 5.0 + CALM_SECONDS) == []
    assert due({one: 1, other: 0}, gaps, 1000.0) == [other, one]


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 5))
def test_a_node_that_comes_moves_nobody_but_itself_in_the_line(count: int, newcomer: int) -> None:
    nodes = fleet(count)
    others = [one for one in nodes if one.node != node_id(min(newcomer, count - 1))]
    line = in_line(SPARE, nodes)
    assert [node for node in line if node != node_id(min(newcomer, count - 1))] == in_line(SPARE, others)


@dataclass
class Crowd:
    """Nodes that look every five seconds, each at what it sees of the others; a fetch takes a while, and is seen."""

    count: int
    holders: set[int]
    copies: int
    blind: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    unable: set[int] = field(default_factory=set[int])
    fetched: int = 0
    now: float = 0.0

    def live(self, seconds: float) -> None:
        gaps: dict[NodeId, dict[ContentId, Gap]] = {}
        while seconds > 0:
            for number in range(self.count):
                this = node_id(number)
                seen = [
                    keeper(other, holds=other in self.holders)
                    for other in range(self.count)
                    if other not in self.blind.get(number, ())
                ]
                wait = turn(SPARE, seen, this, self.copies)
                before = gaps.get(this, {}).get(SPARE.content)
                gaps[this] = {} if wait is None else {SPARE.content: gap(before, SPARE, seen, self.copies, self.now)}
                waits = {} if wait is None else {SPARE.content: wait}
                if due(waits, gaps[this], self.now) and number not in self.unable:
                    # A fetch that has begun is seen by the next who looks.
                    self.holders.add(number)
                    self.fetched += 1
            self.now += LOOK_SECONDS
            seconds -= LOOK_SECONDS


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(2, 4), st.data())
def test_who_sees_the_same_fetches_exactly_what_is_missing(count: int, copies: int, data: st.DataObject) -> None:
    holders = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=copies))
    crowd = Crowd(count, set(holders), copies)
    crowd.live(CALM_SECONDS - LOOK_SECONDS)
    assert crowd.fetched == 0, "there is calm first"
    crowd.live(3 * CALM_SECONDS)
    assert crowd.fetched == max(0, min(copies, count) - len(holders))


@settings(max_examples=30)
@given(st.integers(3, 10), st.data())
def test_the_gap_closes_without_a_storm_though_some_see_too_few_and_some_have_no_room(
    count: int, data: st.DataObject
) -> None:
    numbers = st.integers(1, count - 1)
    blind = {one: data.draw(st.sets(numbers)) - {one} for one in data.draw(st.sets(numbers, max_size=3))}
    unable = data.draw(st.sets(numbers, max_size=count - 2))
    crowd = Crowd(count, {0}, 2, blind, unable)
    crowd.live(CALM_SECONDS * (count + 2))
    assert 1 <= crowd.fetched <= 1 + len(blind)
    fetched = crowd.fetched
    crowd.live(CALM_SECONDS * (count + 2))
    assert crowd.fetched == fetched, "it comes to rest"
