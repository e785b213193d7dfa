"""Which layers go where: never more than is free, whatever fits is found, and what is short is told exactly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.fleet import Device
from felloe.domain.plan import Part
from felloe.placement.memory import Share, price
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.settings import Settings
from felloe.placement.split import largest_context, shortfall, split_over
from placement_shapes import GIB, LLAMA_70B, eight, gpu, ram

SMALL = shape_from_parameters(
    Lengths(layers=7, width=512, heads=8, kv_heads=2, feed_forward=2048, vocabulary=32000), quantisation="Q8_0"
)


def layers(parts: tuple[Part, ...] | None) -> dict[str, int]:
    assert parts is not None
    return {part.device: part.layers for part in parts}


def test_without_a_gpu_all_lies_in_memory() -> None:
    assert layers(split_over(eight(), Settings(context=8192), [ram()])) == {"ram": 33}


def test_one_card_takes_all_layers_and_memory_its_share() -> None:
    parts = split_over(eight(), Settings(context=8192), [ram(), gpu(0, 12)])
    assert layers(parts) == {"ram": 0, "gpu0": 33}


def test_a_large_model_spreads_evenly_over_four_cards() -> None:
    cards = [gpu(number, 11.5) for number in range(4)]
    parts = split_over(shape_from_parameters(LLAMA_70B), Settings(context=8192, slots=1), [ram(), *cards])
    assert parts is not None
    fullest = max(part.need.total for part in parts[1:])
    assert fullest - min(part.need.total for part in parts[1:]) < 1.5 * GIB
    assert sum(part.layers for part in parts) == 81


def test_layers_stay_out_of_memory_unless_they_are_let_in() -> None:
    small = [ram(), gpu(0, 4)]
    assert split_over(eight(), Settings(context=4096), small) is None
    parts = split_over(eight(), Settings(context=4096), small, offload=True)
    assert parts is not None
    assert 0 < layers(parts)["ram"] < 33


def test_as_few_layers_as_possible_lie_in_memory() -> None:
    wanted = Settings(context=4096)
    room = [ram(), gpu(0, 5)]
    found = layers(split_over(eight(), wanted, room, offload=True))["ram"]
    fewer = [Share(device=room[0][0], layers=found - 1), Share(device=room[1][0], layers=34 - found)]
    assert price(eight(), wanted, fewer)[1].total > room[1][1]


def test_memory_that_is_too_small_refuses_even_a_model_on_the_card() -> None:
    assert split_over(eight(), Settings(context=4096), [ram(0.3), gpu(0, 24)]) is None


def test_shared_memory_is_not_counted_twice() -> None:
    wanted = Settings(context=4096)
    assert split_over(eight(), wanted, [ram(7), gpu(0, 7, "metal")]) is not None
    assert split_over(eight(), wanted, [ram(7), gpu(0, 7, "metal", shared=True)]) is None
    assert split_over(eight(), wanted, [ram(16), gpu(0, 10, "metal", shared=True)]) is not None


def test_a_card_that_gets_nothing_is_left_out() -> None:
    assert layers(split_over(eight(), Settings(context=2048), [ram(), gpu(0, 12), gpu(1, 0.2)])) == {
        "ram": 0,
        "gpu0": 33,
    }


def test_what_is_short_would_have_been_enough() -> None:
    wanted, room = Settings(context=32_768), [ram(), gpu(0, 12)]
    short = shortfall(eight(), wanted, room)
    assert short.where == "gpu0"
    assert split_over(eight(), wanted, [room[0], (room[1][0], room[1][1] + short.more)]) is not None
    assert split_over(eight(), wanted, [room[0], (room[1][0], room[1][1] + short.more - 2**21)]) is None
    assert shortfall(eight(), Settings(context=2048), room).more == 0


def test_where_both_are_short_both_are_named() -> None:
    short = shortfall(eight(), Settings(context=8192), [ram(0.1), gpu(0, 2)])
    assert short.where == ""
    assert short.more > 0


def test_the_longest_context_is_the_longest() -> None:
    room = [ram(), gpu(0, 12)]
    longest = largest_context(eight(), Settings(context=1), room, most=131_072)
    assert longest % 256 == 0
    assert split_over(eight(), Settings(context=longest), room) is not None
    assert split_over(eight(), Settings(context=longest + 256), room) is None
    assert largest_context(eight(), Settings(context=1), room, most=4000) == 4000
    assert largest_context(eight(), Settings(context=1), [ram(), gpu(0, 2)], most=4000) == 0


rooms = st.tuples(st.floats(0.1, 3), st.lists(st.tuples(st.floats(0.1, 1.5), st.booleans()), max_size=3)).map(
    lambda room: [ram(room[0]), *(gpu(at, gib, shared=shared) for at, (gib, shared) in enumerate(room[1]))]
)


@settings(deadline=None, max_examples=60)
@given(room=rooms, context=st.integers(256, 16_384), offload=st.booleans())
def test_a_split_never_exceeds_what_is_free(room: list[tuple[Device, int]], context: int, offload: bool) -> None:
    wanted = Settings(context=context)
    parts = split_over(SMALL, wanted, room, offload=offload)
    if parts is None:
        assert shortfall(SMALL, wanted, room, offload=offload).more > 0
        return
    free = {device.id: count for device, count in room}
    assert all(part.need.total <= free[part.device] for part in parts)
    of_ram = {device.id for device, _ in room if device.shared or device.id == "ram"}
    assert sum(part.need.total for part in parts if part.device in of_ram) <= free["ram"]
    assert sum(part.layers for part in parts) == SMALL.units
    assert offload or len(room) == 1 or parts[0].layers == 0


@settings(deadline=None, max_examples=40)
@given(room=rooms, context=st.integers(256, 16_384), cuts=st.lists(st.integers(0, 8), min_size=2, max_size=2))
def test_what_any_split_holds_is_found(room: list[tuple[Device, int]], context: int, cuts: list[int]) -> None:
    wanted = Settings(context=context)
    low, high = sorted(cuts)
    counts = (0, low, high - low, 8 - high)[: len(room)]
    if len(room) == 1 or sum(counts) != 8:
        return
    split = [Share(device=device, layers=count) for (device, _), count in zip(room, counts, strict=True)]
    needs = price(SMALL, wanted, split)
    shared = sum(need.total for need, (device, _) in zip(needs, room, strict=True) if device.shared)
    # With several cards a few bytes of copies are counted for cards that stay empty.
    busy = sum(1 for count in counts if count) == len(room) - 1
    if (
        busy
        and needs[0].total + shared <= room[0][1]
        and all(n.total <= f for n, (_, f) in zip(needs, room, strict=True))
    ):
        assert split_over(SMALL, wanted, room) is not None
