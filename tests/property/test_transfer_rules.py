import random

from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.catalog.transfer.rules import (
    MOST_IN_FLIGHT_OF_PEER,
    Flight,
    Holder,
    Pace,
    ask_again,
    ban_seconds,
    by_rarity,
    choose,
    look_seconds,
    most_in_flight,
    pause_seconds,
    slow_peers,
    stripe_of,
)
from transfer_house import node

COUNT = 24
ALL = (1 << COUNT) - 1
masks = st.integers(0, ALL)


@st.composite
def circles(draw: st.DrawFn) -> list[Holder]:
    haves = draw(st.lists(st.one_of(masks, st.just(ALL)), max_size=6))
    return [
        Holder(
            node(number),
            have,
            in_flight=draw(st.integers(0, 5)),
            rate=draw(st.sampled_from((0.0, 1.0, 100.0))),
            is_whole=have == ALL,
            is_slow=draw(st.booleans()),
        )
        for number, have in enumerate(haves)
    ]


def bits(mask: int) -> set[int]:
    return {number for number in range(mask.bit_length()) if mask >> number & 1}


@given(masks, masks, circles(), masks, st.integers(0, 32), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_only_what_is_wanted_is_asked_once_of_who_has_it_and_never_too_much(
    wanted: int, asked: int, holders: list[Holder], stripe: int, room: int, seed: int
) -> None:
    chosen = choose(wanted, asked, holders, stripe, room, random.Random(seed))
    chunks = [request.chunk for request in chosen]
    assert len(chunks) == len(set(chunks)) <= room
    assert set(chunks) <= bits(wanted & ~asked)
    for holder in holders:
        its = [request.chunk for request in chosen if request.node == holder.node]
        assert set(its) <= bits(holder.have)
        assert holder.in_flight + len(its) <= max(MOST_IN_FLIGHT_OF_PEER, holder.in_flight)


@given(masks, circles(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_nobody_is_idle_while_somebody_has_what_is_wanted(wanted: int, holders: list[Holder], seed: int) -> None:
    idle = [holder._replace(in_flight=0) for holder in holders]
    chosen = choose(wanted, 0, idle, ALL, 32, random.Random(seed))
    there = 0
    for holder in idle:
        there |= holder.have
    assert bool(chosen) == bool(wanted & there)


@given(masks, st.lists(masks, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_each_peer_is_asked_first_for_the_rarest_that_it_has(wanted: int, haves: list[int], seed: int) -> None:
    holders = [Holder(node(number), have) for number, have in enumerate(haves)]
    chosen = choose(wanted, 0, holders, 0, 1, random.Random(seed))
    for request in chosen:
        its = next(holder.have for holder in holders if holder.node == request.node)
        count = {chunk: sum(have >> chunk & 1 for have in haves) for chunk in bits(wanted & its)}
        assert count[request.chunk] == min(count.values())


@given(st.lists(masks, max_size=6))
@settings(max_examples=40, deadline=None)
def test_rarity_counts_who_has_a_chunk(haves: list[int]) -> None:
    levels = by_rarity(haves)
    for chunk in range(COUNT):
        count = sum(have >> chunk & 1 for have in haves)
        assert [number + 1 for number, level in enumerate(levels) if level >> chunk & 1] == ([count] if count else [])


def test_who_has_all_is_not_asked_for_what_others_have_in_part() -> None:
    part, whole = Holder(node(0), 0b0011), Holder(node(1), 0b1111, is_whole=True)
    chosen = choose(0b1111, 0, [whole, part], 0, 32, random.Random(1))
    assert {request.chunk: request.node for request in chosen} == {0: node(0), 1: node(0), 2: node(1), 3: node(1)}


def test_who_has_all_helps_when_the_others_are_slower_or_gone() -> None:
    part = Holder(node(0), 0b0011, in_flight=MOST_IN_FLIGHT_OF_PEER, rate=10.0)
    whole = Holder(node(1), 0b1111, rate=9.0, is_whole=True)
    assert choose(0b0011, 0, [part, whole], 0, 32, random.Random(1)) == []
    for rows in ([part, whole._replace(rate=11.0)], [part._replace(is_slow=True), whole], [whole]):
        assert {request.node for request in choose(0b0011, 0, rows, 0, 32, random.Random(1))} == {node(1)}


def test_nodes_that_begin_together_ask_the_whole_holder_for_different_chunks() -> None:
    nodes, whole = [node(number) for number in range(8)], Holder(node(30), ALL, is_whole=True)
    asked = list[int]()
    for own in nodes:
        stripe = stripe_of(own, [other for other in nodes if other != own], COUNT)
        asked += [request.chunk for request in choose(ALL, 0, [whole], stripe, 3, random.Random(1))]
    assert sorted(asked) == list(range(COUNT))


@given(st.integers(1, 40), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_the_stripes_of_all_are_all_chunks_once(nodes: int, count: int) -> None:
    ids = [node(number) for number in range(nodes)]
    stripes = [stripe_of(own, [other for other in ids if other != own], count) for own in ids]
    assert sum(stripes) == (1 << count) - 1
    assert sum(stripe.bit_count() for stripe in stripes) == count


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, COUNT - 1)), unique=True, max_size=12), circles(), masks)
@settings(max_examples=40, deadline=None)
def test_late_chunks_are_asked_a_second_time_of_another_and_not_more_often(
    flying: list[tuple[int, int]], holders: list[Holder], wanted: int
) -> None:
    flights = [Flight(node(number), chunk, 9.0, 9.0) for number, chunk in flying]
    for request in ask_again(wanted, flights, holders, 1.0, 3):
        askers = [flight.node for flight in flights if flight.chunk == request.chunk]
        holder = next(holder for holder in holders if holder.node == request.node)
        assert len(askers) == 1
        assert request.node not in askers
        assert holder.have & wanted >> request.chunk << request.chunk & 1 << request.chunk
        assert holder.in_flight < MOST_IN_FLIGHT_OF_PEER
    assert len(ask_again(wanted, flights, holders, 1.0, 3)) <= 3


def test_a_chunk_that_comes_as_usual_is_not_asked_twice() -> None:
    other = [Holder(node(1), 1)]
    for age, quiet, typical, is_late in ((1.9, 1.9, 0.1, False), (5.0, 0.1, 4.0, False), (5.0, 0.1, 1.0, True)):
        assert bool(ask_again(1, [Flight(node(0), 0, age, quiet)], other, typical, 9)) == is_late


def test_who_brings_less_than_an_eighth_of_what_is_usual_is_slow() -> None:
    paces = {node(number): Pace(rate, 5.0) for number, rate in enumerate((100.0, 80.0, 9.0, 120.0))}
    assert slow_peers(paces) == {node(2)}
    assert slow_peers({node(0): Pace(1.0, 5.0)}) == set()
    assert slow_peers({**paces, node(2): Pace(9.0, 1.0)}) == set()


def test_bans_double_and_pauses_end() -> None:
    assert [ban_seconds(times) for times in (1, 2, 3, 4)] == [600, 1200, 2400, 4800]
    assert ban_seconds(10**9) == 7 * 86_400
    assert [pause_seconds(failures) for failures in (1, 2, 3)] == [0.5, 1, 2]
    assert pause_seconds(10**9) == 30


def test_what_others_have_is_asked_more_often_where_chunks_come_fast() -> None:
    assert [look_seconds(typical, 1.0) for typical in (0, 0.01, 0.8, 60)] == [1.0, 0.1, 0.4, 1.0]


def test_a_slow_line_has_few_chunks_in_flight() -> None:
    assert [most_in_flight(rate) for rate in (0, 1, 2**18, 2**20, 2**40)] == [32, 1, 2, 8, 32]
