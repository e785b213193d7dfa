"""What a node does about a plan, decided without a node."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.plan import Need, Part, Placement
from felloe.domain.roster import LoadFailure, Replica
from felloe.host.budget import free_bytes
from felloe.node.converging_rules import (
    LONGEST_PAUSE_SECONDS,
    MOST_HERE,
    SLACK,
    held,
    in_words,
    is_same,
    next_try,
    pause,
    placements_here,
    rate_after,
    short_of,
    start_seconds,
    steps,
)
from routing_fakes import make_replica

HERE, ELSEWHERE = NodeId("a" * 26), NodeId("b" * 26)
GIB = 2**30
RAM_DEVICE = Device(id=RAM, kind="cpu", memory=32 * GIB)
GPU = Device(id="gpu0", kind="cuda", memory=12 * GIB)
MACHINE = Machine(id=HERE, name="here", devices=(RAM_DEVICE, GPU))


def placement(name: str = "chat", *, gpu: int = 8 * GIB, context: int = 4096, node: NodeId = HERE) -> Placement:
    parts = (
        Part(device=RAM, layers=0, need=Need(overhead=GIB)),
        Part(device="gpu0", layers=33, need=Need(weights=gpu)),
    )
    return Placement(
        model=ModelName(name),
        variant=ModelName(name),
        node=node,
        parts=parts,
        context=context,
        slots=4,
        content=ContentId("ab" * 32),
    )


def failure(of: Placement, *, at: float = 0.0, retry_in: float = 60.0) -> tuple[Placement, LoadFailure]:
    told = LoadFailure(
        model=of.model,
        variant=of.variant,
        content=of.content,
        code="out_of_memory",
        detail="",
        devices=(),
        at=at,
        retry_in=retry_in,
    )
    return of, told


def by_name(*placements: Placement) -> dict[ModelName, Placement]:
    return {each.model: each for each in placements}


def test_only_what_a_plan_has_here_counts_each_name_once_and_not_without_end() -> None:
    mine, theirs = placement(), placement("far", node=ELSEWHERE)
    assert placements_here([mine, theirs, placement(context=1)], HERE) == by_name(mine)
    assert len(placements_here([placement(f"m{number}") for number in range(500)], HERE)) == MOST_HERE


def test_a_corrected_need_is_the_same_placement_and_another_split_is_not() -> None:
    assert is_same(placement(gpu=8 * GIB), placement(gpu=9 * GIB))
    assert not is_same(placement(), placement(context=2048))
    in_ram = msgspec.structs.replace(placement(), parts=(Part(device=RAM, layers=33, need=Need()),))
    assert not is_same(placement(), in_ram)


def test_what_is_not_wanted_ends_and_what_is_missing_begins() -> None:
    done = steps(
        by_name(placement("new"), placement("kept")), by_name(placement("old"), placement("kept")), (), {}, 0.0
    )
    assert done.end == ("old",)
    assert done.begin == (placement("new"),)


def test_what_is_over_ends_although_it_is_wanted() -> None:
    assert steps(by_name(placement()), by_name(placement()), {ModelName("chat")}, {}, 0.0).end == ("chat",)


def test_what_failed_rests_unless_the_plan_has_it_otherwise() -> None:
    failed = {ModelName("chat"): failure(placement(), at=100.0)}
    assert not steps(by_name(placement()), {}, (), failed, 159.0).begin
    assert steps(by_name(placement()), {}, (), failed, 160.0).begin
    assert steps(by_name(placement(context=512)), {}, (), failed, 101.0).begin
    assert next_try([failed[ModelName("chat")][1]], 130.0) == 30.0
    assert next_try([failed[ModelName("chat")][1]], 200.0) is None


def test_pauses_double_and_end_somewhere() -> None:
    assert [pause(times) for times in (1, 2, 3)] == [60.0, 120.0, 240.0]
    assert pause(10**9) == LONGEST_PAUSE_SECONDS


def test_a_device_that_is_gone_is_short_of_everything() -> None:
    lost = Machine(id=HERE, name="here", devices=(RAM_DEVICE,))
    missing = short_of(placement().parts, lost, MACHINE, free_bytes(lost, {}))
    assert missing == {"gpu0": 8 * GIB}
    assert in_words(missing) == "gpu0 is short of 8,192 MiB"


def test_the_time_that_a_start_takes_is_learned() -> None:
    rate = rate_after(0.0, 8 * GIB, 4.0)
    assert start_seconds(4 * GIB, rate) == 2.0
    assert rate_after(rate, 0, 1.0) == rate
    assert start_seconds(GIB, 0.0) > 0


def shrunk(gpu: int) -> Machine:
    return Machine(id=HERE, name="here", devices=(RAM_DEVICE, msgspec.structs.replace(GPU, memory=gpu)))


def test_a_device_that_shrank_untold_takes_what_was_planned_and_one_that_shrank_more_does_not() -> None:
    full, little, much = placement(gpu=12 * GIB).parts, shrunk(int(11.5 * GIB)), shrunk(11 * GIB)
    assert not short_of(full, little, MACHINE, free_bytes(little, {}))
    assert short_of(full, much, MACHINE, free_bytes(much, {})) == {"gpu0": GIB}


@given(st.lists(st.integers(0, 14 * GIB), max_size=12), st.integers(0, 14 * GIB))
def test_whoever_looks_before_each_load_never_gives_a_device_more_than_was_told(wishes: list[int], gpu: int) -> None:
    now = shrunk(gpu)
    running: list[Replica] = []
    for number, size in enumerate(wishes):
        wanted = placement(f"m{number}", gpu=size)
        if not short_of(wanted.parts, now, MACHINE, free_bytes(now, held(running))):
            running.append(msgspec.structs.replace(make_replica(f"m{number}"), parts=wanted.parts))
        taken = held(running)
        assert taken.get("gpu0", 0) <= max(gpu, GPU.memory if gpu >= (1 - SLACK) * GPU.memory else 0)
        assert taken.get(RAM, 0) <= RAM_DEVICE.memory
