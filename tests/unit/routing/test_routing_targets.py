"""Drawing replicas in proportion to what they can do."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.routing.targets import MOST_SPEED, Key, Target, Targets, slots_of, speed_of
from routing_fakes import make_replica, node_id


def target(number: int, *, speed: float = 0.0, slots: int = 4) -> Target:
    return Target(node_id(number), None, make_replica(speed=speed, slots=slots))


def filled(*members: Target) -> Targets:
    targets = Targets()
    for member in members:
        targets.put(Key(member.node, 0), member)
    return targets


def draws(targets: Targets, count: int = 4000) -> Counter[str]:
    random = Random(1).random
    return Counter(targets.draw(random).node for _ in range(count))


def test_equals_are_drawn_alike():
    drawn = draws(filled(*(target(number) for number in range(20))))
    assert len(drawn) == 20 and max(drawn.values()) < 2 * min(drawn.values())


def test_a_fast_card_is_drawn_more_often_than_a_slow_one():
    drawn = draws(filled(target(1, speed=80), *(target(number, speed=5) for number in range(2, 18))))
    assert 0.4 < drawn[node_id(1)] / 4000 < 0.6, "it can do as much as the sixteen others together"


def test_more_slots_count_as_more_speed():
    drawn = draws(filled(target(1, speed=10, slots=8), target(2, speed=10, slots=1)))
    assert 0.8 < drawn[node_id(1)] / 4000 < 0.95


def test_one_that_was_never_measured_counts_as_a_typical_one():
    members = [target(1), *(target(number, speed=64) for number in range(2, 5))]
    assert 0.15 < draws(filled(*members))[node_id(1)] / 4000 < 0.4


@pytest.mark.parametrize("speed", [float("nan"), -1.0, float("inf"), 1e300, 1e-300])
def test_a_speed_that_cannot_be_harms_nobody(speed: float):
    targets = filled(target(1, speed=speed), target(2, speed=50))
    assert set(draws(targets)) <= {node_id(1), node_id(2)}
    assert 0 <= targets.typical_speed <= MOST_SPEED
    assert 0 < speed_of(target(1, speed=speed).replica, 1.0) <= MOST_SPEED


def test_slots_that_cannot_be_harm_nobody():
    assert [slots_of(make_replica(slots=slots)) for slots in (-3, 0, 4, 10**9)] == [1, 1, 4, 4096]


steps = st.lists(
    st.tuples(st.integers(0, 7), st.booleans(), st.sampled_from([0.0, 1.0, 5.0, 7.0, 100.0]), st.integers(1, 8)),
    max_size=40,
)


@given(steps, st.floats(0, 1, exclude_max=True))
def test_whatever_comes_and_goes_a_draw_gives_one_that_is_there(
    changes: list[tuple[int, bool, float, int]], number: float
):
    targets, there = Targets(), dict[Key, Target]()
    for at, comes, speed, slots in changes:
        key = Key(node_id(at), 0)
        targets.take(key)
        there.pop(key, None)
        if comes:
            there[key] = target(at, speed=speed, slots=slots)
            targets.put(key, there[key])
    assert len(targets) == len(there)
    assert sorted(member.node for member in targets) == sorted(key.node for key in there)
    speeds = [member.replica.speed for member in there.values() if member.replica.speed]
    assert targets.typical_speed == pytest.approx(sum(speeds) / len(speeds) if speeds else 0.0)
    if there:
        assert targets.draw(lambda: number) in there.values()
