"""The plan of faults: the same for the same seed, every kind in turn, and everything ends."""

from itertools import islice

import pytest

from chaos import schedule
from chaos.schedule import KINDS, Fault, Scene

EVERYTHING = frozenset({"links", "disk", "clock", "address", "hubs", "promote", "demote", "revoke"})
SCENE = Scene(
    nodes=("asker", "node-1", "node-2", "node-3", "node-4"),
    serving=frozenset({"node-1", "node-2", "node-3", "node-4"}),
    hubs=("node-1", "node-2", "node-3"),
    leader="node-2",
    movers=frozenset({"asker", "node-4"}),
    candidates=frozenset({"node-3", "node-4"}),
    guests=("guest-1",),
)


def waves(seed: int, count: int = 200, kinds: frozenset[str] = frozenset(KINDS)) -> list[tuple[Fault, ...]]:
    return list(islice(schedule.waves(seed, kinds), count))


def test_a_seed_always_draws_the_same_faults_and_another_seed_others() -> None:
    assert waves(7) == waves(7)
    assert waves(7) != waves(8)


def test_the_order_in_which_kinds_are_named_does_not_matter() -> None:
    named = ["node killed", "link cut", "disk full"]
    assert list(islice(schedule.waves(1, named), 20)) == list(islice(schedule.waves(1, named[::-1]), 20))


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_ends_within_its_wave_and_lasts_as_long_as_its_kind_says(seed: int) -> None:
    for wave in waves(seed):
        for fault in wave:
            kind = KINDS[fault.kind]
            assert fault.begin >= 0
            assert kind.shortest <= fault.duration <= kind.longest
            assert fault.end <= schedule.LONGEST_WAVE_SECONDS


def test_each_kind_has_its_first_turn_alone_and_later_some_overlap() -> None:
    first, later = waves(3)[: len(KINDS)], waves(3)[len(KINDS) :]
    assert sorted(fault.kind for (fault,) in first) == sorted(KINDS)
    assert any(len(wave) == 2 for wave in later)
    for wave in later:
        assert len({fault.kind for fault in wave}) == len(wave) <= 2
        assert len(wave) == 1 or not any(KINDS[fault.kind].alone for fault in wave)
        assert len(wave) == 1 or wave[1].begin <= wave[0].end


def test_without_any_kind_there_is_no_wave() -> None:
    assert waves(1, kinds=frozenset()) == []


def test_what_an_ability_is_missing_for_is_left_out_and_named() -> None:
    assert set(schedule.possible(EVERYTHING)) == set(KINDS)
    bare = schedule.possible(())
    assert "node killed" in bare
    assert "link cut" not in bare
    assert schedule.left_out({"links"})["leader cut from the hubs"] == {"hubs"}
    assert set(schedule.possible({"links"})) | set(schedule.left_out({"links"})) == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        ("node killed", set(SCENE.nodes)),
        ("engine killed", SCENE.serving),
        ("spoke moved", {"asker", "node-4"}),
        ("message server killed", set(SCENE.hubs)),
        ("leader killed", {"node-2"}),
        ("hub killed while promoted", {"node-4"}),
        ("node revoked", {"guest-1"}),
    ],
)
def test_targets_come_from_the_right_nodes_and_each_of_them_can_be_hit(kind: str, pool: set[str]) -> None:
    hit = {schedule.targets(Fault(kind, 0, 1, pick), SCENE) for pick in range(20)}
    assert hit == {(name,) for name in pool}


def test_all_hubs_are_hit_together() -> None:
    assert schedule.targets(Fault("all hubs killed", 0, 1, 5), SCENE) == SCENE.hubs


def test_two_faults_of_a_wave_never_share_a_target() -> None:
    for pick in range(10):
        assert schedule.targets(Fault("node killed", 0, 1, pick), SCENE, {"node-1"}) != ("node-1",)
    assert schedule.targets(Fault("leader killed", 0, 1, 0), SCENE, {"node-2"}) == ()
    assert schedule.targets(Fault("leader killed", 0, 1, 0), SCENE._replace(leader="")) == ()
