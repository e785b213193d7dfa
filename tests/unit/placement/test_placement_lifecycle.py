"""How many replicas are wanted, on whom the leader relies, where nothing is tried, and what loads teach."""

import pytest
from msgspec.structs import replace

from felloe.domain.ids import ModelName
from felloe.domain.plan import Need, Part, Placement
from felloe.domain.roster import LoadFailure
from felloe.placement.corrections import NO_CORRECTIONS
from felloe.placement.learning import MOST_OVERHEAD_BYTES, UNKNOWN_SHORT_BYTES, after_failure, compute_factors
from felloe.placement.lifecycle import Use, Work, calls, gives_way, looked, wanted_now
from felloe.placement.memory import Share, price
from felloe.placement.presence import (
    GONE_SECONDS,
    LONGEST_RETURN_SECONDS,
    RETURN_SECONDS,
    SOON_SECONDS,
    Presence,
    arrives,
    heard_late,
    return_seconds,
    seen,
)
from felloe.placement.quarantine import LONGEST_BAR_SECONDS, in_force, noted
from felloe.placement.settings import Settings
from felloe.placement.shape import LayerShape
from serving_house import facts, machine, node_id, wish

IDLE = Work()
NODE = node_id(1)


def test_a_model_starts_with_its_least_and_a_new_leader_keeps_what_is_placed() -> None:
    desired = wish("a", replicas_min=1, replicas_max=3)
    assert looked(desired, None, IDLE, 0.0).wanted == 1
    assert looked(desired, None, Work(placed=2), 0.0).wanted == 2
    assert looked(desired, None, Work(placed=9), 0.0).wanted == 3
    assert looked(replace(desired, replicas_min=0), None, IDLE, 0.0).wanted == 0


def test_a_short_request_between_two_looks_counts_as_use() -> None:
    desired = wish("a", replicas_min=0, idle_seconds=100.0)
    use = looked(desired, Use(wanted=1, served={NODE: 5}), Work(placed=1, served={NODE: 5}), 50.0)
    assert use.used_at < 50
    assert looked(desired, use, Work(placed=1, served={NODE: 6}), 60.0).used_at == 60


def test_a_node_that_starts_anew_counts_from_nothing_and_that_is_no_use() -> None:
    desired = wish("a", replicas_min=0, idle_seconds=100.0)
    use = looked(desired, Use(wanted=1, served={NODE: 5}), Work(placed=1, served={NODE: 1}), 50.0)
    assert use.used_at < 50


def test_a_burst_of_five_seconds_brings_one_replica_and_a_flicker_none() -> None:
    desired = wish("a", replicas_max=3)
    pressed = Work(active=4, waiting=4, slots=4, ready=1, placed=1)
    use = looked(desired, None, Work(placed=1), 0.0)
    for second in range(100):
        use = looked(desired, use, pressed if second % 4 else IDLE, float(second))
    assert use.wanted == 1
    for second in range(100, 112):
        use = looked(desired, use, pressed, float(second))
    assert use.wanted == 2


def test_replicas_that_are_still_loading_count_before_more_are_wanted() -> None:
    desired = wish("a", replicas_max=3)
    use = Use(wanted=2)
    for second in range(100):
        use = looked(desired, use, Work(active=4, waiting=9, slots=4, ready=1, placed=2), float(second))
    assert use.wanted == 2


def test_without_an_idle_time_nothing_is_unloaded() -> None:
    desired = wish("a", replicas_min=0, replicas_max=2)
    use = looked(desired, Use(wanted=2), Work(placed=2, slots=8, ready=2), 1e6)
    assert looked(desired, use, Work(placed=2, slots=8, ready=2), 2e6).wanted == 2


def test_what_was_asked_for_and_does_not_fit_is_forgotten_after_a_minute() -> None:
    desired = wish("a", replicas_min=0)
    use = looked(desired, looked(desired, None, IDLE, 0.0), IDLE, 1.0, asked=True)
    assert use.wanted == 1
    assert calls(use, IDLE, 2.0)
    assert looked(desired, use, IDLE, 50.0).wanted == 1
    assert looked(desired, use, IDLE, 62.0).wanted == 0


def test_only_models_on_demand_that_rest_give_way() -> None:
    on_demand = wish("a", replicas_min=0)
    assert gives_way(on_demand, Use(wanted=1, used_at=0.0), 10.0)
    assert not gives_way(on_demand, Use(wanted=1, used_at=1.0), 10.0)
    assert not gives_way(wish("a"), Use(wanted=1, used_at=0.0), 61.0)


def test_the_plan_is_asked_for_what_is_wanted_now() -> None:
    desired = wish("a", replicas_min=0, replicas_max=3)
    now = wanted_now(desired, Use(wanted=2))
    assert (now.replicas_min, now.replicas_max) == (1, 2)
    now = wanted_now(desired, Use(wanted=0))
    assert (now.replicas_min, now.replicas_max) == (0, 0)


def test_a_node_is_relied_on_until_it_was_silent_for_ten_seconds() -> None:
    presence = seen(seen(None, True, 0.0), False, 100.0)
    assert seen(presence, False, 100.0 + GONE_SECONDS - 0.1).trusted
    gone = seen(presence, False, 100.0 + GONE_SECONDS)
    assert not gone.trusted
    back = seen(gone, True, 200.0)
    assert not back.trusted
    assert seen(back, True, 200.0 + return_seconds(1)).trusted


def test_a_node_that_is_back_arrives_when_it_is_relied_on_within_half_a_minute() -> None:
    once, often = (Presence(alive=True, since=100.0, trusted=False, strikes=strikes) for strikes in (1, 5))
    assert arrives(once, 100.0)
    assert not arrives(replace(once, alive=False), 100.0)
    assert not arrives(replace(once, trusted=True), 100.0), "it is there already"
    assert not arrives(often, 100.0)
    assert arrives(often, 100.0 + return_seconds(5) - SOON_SECONDS)


def test_three_losses_in_a_minute_are_enough() -> None:
    presence = seen(None, True, 0.0)
    for second in range(1, 7):
        presence = seen(presence, second % 2 == 0, float(second))
    assert not presence.trusted
    assert presence.strikes == 3


def test_each_loss_doubles_the_wait_and_ten_quiet_minutes_forgive_one() -> None:
    assert [return_seconds(strikes) for strikes in (0, 1, 2, 3)] == [5.0, 5.0, 10.0, 20.0]
    assert return_seconds(99) == LONGEST_RETURN_SECONDS
    struck = Presence(alive=True, since=0.0, drops=(0.0,), strikes=4)
    assert seen(struck, False, 10.0).strikes == 5
    assert seen(struck, False, 1500.0).strikes == 3


def test_who_says_that_it_stops_is_not_punished_and_a_deaf_leader_punishes_nobody() -> None:
    stopped = seen(seen(None, True, 0.0), False, 1.0, orderly=True)
    assert (stopped.strikes, stopped.trusted) == (0, False), "no loss, and nobody waits for it"
    assert not seen(stopped, False, 1.5).trusted
    assert seen(seen(stopped, True, 2.0), True, 2.0 + RETURN_SECONDS).trusted
    silent = seen(seen(None, True, 0.0), False, 1.0)
    assert seen(heard_late(silent, 100.0), False, 105.0).trusted


def failure(times: int, at: float, **short: int) -> LoadFailure:
    return LoadFailure(
        model=ModelName("a"),
        variant=ModelName("a"),
        content="",
        code="out_of_memory",
        detail="",
        devices=("gpu0",),
        short=short,
        times=times,
        at=at,
    )


def test_a_failure_bars_its_model_from_its_node_once_and_longer_each_time() -> None:
    place = (NODE, ModelName("a"))
    bars = noted({}, {NODE: (failure(1, 5.0),)}, 100.0)
    assert in_force(bars, [NODE, node_id(2)], 159.0) == {place}
    assert in_force(bars, [NODE], 160.0) == frozenset()
    assert noted(bars, {NODE: (failure(1, 5.0),)}, 130.0) == bars
    bars = noted(bars, {NODE: (failure(1, 170.0),)}, 170.0)
    assert in_force(bars, [NODE], 289.0) == {place}
    bars = noted(bars, {NODE: (failure(10**9, 300.0),)}, 300.0)
    assert bars[place].until == 300.0 + LONGEST_BAR_SECONDS
    assert noted(bars, {}, 300.0 + 3 * LONGEST_BAR_SECONDS) == {}


def test_a_model_whose_files_are_nowhere_is_tried_nowhere_but_soon_again() -> None:
    gone = replace(failure(9, 5.0), code="no_holder")
    bars = noted({}, {NODE: (gone,)}, 100.0)
    assert in_force(bars, [NODE, node_id(2)], 399.0) == {(NODE, "a"), (node_id(2), "a")}
    assert in_force(bars, [NODE, node_id(2)], 400.0) == frozenset()


def test_a_load_that_failed_for_memory_is_reckoned_larger_but_not_without_end() -> None:
    there = machine(1, 100)
    lesson = after_failure(NO_CORRECTIONS, failure(1, 0.0, gpu0=100 * 2**20), there)
    assert lesson.of("cuda").overhead == 128 * 2**20
    assert after_failure(NO_CORRECTIONS, failure(1, 0.0, gpu0=0), there).of("cuda").overhead == UNKNOWN_SHORT_BYTES
    assert after_failure(NO_CORRECTIONS, failure(1, 0.0, gpu0=-5), there).of("cuda").overhead == UNKNOWN_SHORT_BYTES
    assert after_failure(lesson, failure(2, 0.0, gpu0=2**60), there).of("cuda").overhead == MOST_OVERHEAD_BYTES
    assert after_failure(lesson, failure(2, 0.0, gpu9=5), there) == lesson


@pytest.mark.parametrize(("factor", "learned"), [(0.1, 0.5), (0.9, 1.0), (1.0, 1.0), (1.3, 1.5), (99.0, 8.0)])
def test_what_engines_say_of_their_buffers_corrects_the_estimate_in_coarse_steps(factor: float, learned: float) -> None:
    layers = (LayerShape(weights=10_000, key=64, value=64),) * 4
    plain = facts("a", 1).shape
    shape = replace(plain, layers=layers, width=512, heads=8, key_length=64, feed_forward=1024, vocabulary=32_000)
    there = machine(1, 2**40, 2**40)
    split = [Share(device=there.devices[0], layers=0), Share(device=there.devices[1], layers=5)]
    needs = price(shape, Settings(context=2048), split)
    parts = tuple(
        Part(device=share.device.id, layers=share.layers, need=need) for share, need in zip(split, needs, strict=True)
    )
    placement = replace(first_placement(), parts=parts)
    real = tuple(
        replace(part, need=Need(compute=round(part.need.compute * factor) if part.device == "gpu0" else 0))
        for part in parts
    )
    assert compute_factors(placement, there, shape, real) == {"cuda": learned}
    assert compute_factors(placement, there, shape, real[1:]) == {}
    assert compute_factors(placement, replace(there, devices=there.devices[:1]), shape, real) == {}


def first_placement() -> Placement:
    return Placement(
        model=ModelName("a"), variant=ModelName("a"), node=NODE, parts=(), context=2048, slots=4, kv_type="f16"
    )
