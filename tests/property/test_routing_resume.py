"""Whatever dies and whenever: the stream that a client reads is the undisturbed one, or a prefix and one error."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.ids import NodeId
from felloe.domain.requests import Piece
from felloe.routing import rules
from felloe.routing.admission import Admission
from felloe.routing.answering import AnsweringService
from felloe.routing.remote import RemoteAnswers
from felloe.routing.router import Router
from routing_fakes import (
    HERE,
    Death,
    Deaths,
    FakeEngines,
    FakeExchange,
    FakeKeys,
    FakeNodes,
    FakeRosters,
    Score,
    collect,
    fake_seal,
    make_member,
    make_replica,
    make_request,
    make_roster,
    node_id,
)

scores = st.builds(
    Score,
    st.integers(0, 12),
    with_ids=st.booleans(),
    role_frame=st.booleans(),
    ids_until=st.one_of(st.just(100), st.integers(0, 12)),
)
groupings = st.lists(st.integers(1, 4), min_size=1, max_size=4)
deaths = st.builds(
    Death,
    st.integers(0, 16),
    st.sampled_from(["engine_failed", "replica_lost", "upstream_failed", "internal", ""]),
)


def assert_undisturbed(score: Score, pieces: list[Piece]) -> None:
    assert b"".join(piece.frames for piece in pieces) == score.frames
    ids = [token for piece in pieces for token in piece.ids]
    assert pieces[-1].number == score.last_number
    numbers = [piece.number for piece in pieces]
    assert numbers == sorted(numbers)
    if score.with_ids and score.unknown_from > 1000 + score.tokens:
        assert ids == score.ids
        assert all(
            piece.number == before + len(piece.ids) for before, piece in zip([0, *numbers], pieces[:-1], strict=False)
        )
    else:
        # Which ids belong to one piece depends on how a replica groups them; none may be wrong or come twice.
        assert len(set(ids)) == len(ids) and set(ids) <= set(score.ids)


def assert_prefix_or_whole(score: Score, outcome: tuple[list[Piece], object, Exception | None]) -> None:
    pieces, done, error = outcome
    assert (done is None) != (error is None), "exactly one end"
    if done is not None:
        assert_undisturbed(score, pieces)
        assert done == score.done
    else:
        assert score.frames.startswith(b"".join(piece.frames for piece in pieces))
        assert all(b'"finish_reason":"' not in piece.frames for piece in pieces)


async def routed(
    score: Score, dying: list[Death], groups: list[list[int]], *, here: bool
) -> tuple[list[Piece], object, Exception | None]:
    shared = Deaths(*dying)
    nodes = [node_id(number) for number in range(len(dying) + 1)]
    engines = [FakeEngines(score, deaths=shared, groups=groups[at % len(groups)]) for at in range(len(nodes) + 1)]
    members = [make_member(node, make_replica()) for node in nodes]
    local = Admission(engines[-1] if here else FakeEngines(score, make_replica("other")))
    remote = FakeNodes({node: Admission(engine) for node, engine in zip(nodes, engines, strict=False)})
    router = Router(FakeRosters(make_roster(*members)), local, remote, patience_seconds=0.0)
    outcome = await collect(router, make_request())
    assert all(engine.running == 0 for engine in engines)
    assert local.load().active == {}
    return outcome


@given(scores, st.lists(deaths, max_size=3), st.lists(groupings, min_size=1, max_size=4), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_resumed_stream_equals_the_undisturbed_one(
    score: Score, dying: list[Death], groups: list[list[int]], here: bool
) -> None:
    pieces, done, error = asyncio.run(routed(score, dying, groups, here=here))
    assert error is None
    assert done == score.done
    assert_undisturbed(score, pieces)


@given(scores, st.lists(deaths, min_size=4, max_size=24), st.lists(groupings, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_many_deaths_end_in_the_whole_answer_or_in_a_prefix_and_one_error(
    score: Score, dying: list[Death], groups: list[list[int]]
) -> None:
    assert_prefix_or_whole(score, asyncio.run(routed(score, dying, groups, here=False)))


async def sent(
    score: Score, losses: list[int | None], groups: list[list[int]], dying: list[Death]
) -> tuple[list[Piece], object, Exception | None]:
    shared = Deaths(*dying)
    nodes = [node_id(number) for number in range(len(losses) + len(dying) + 1)]
    services = {
        node: AnsweringService(
            FakeKeys(node.encode()), Admission(FakeEngines(score, deaths=shared, groups=groups[at % len(groups)]))
        )
        for at, node in enumerate(nodes)
    }
    exchange = FakeExchange({node: service.handle for node, service in services.items()}, list(losses))
    roster = make_roster(*(make_member(node, make_replica()) for node in nodes), this=HERE)
    local = Admission(FakeEngines(score, make_replica("other")))
    router = Router(FakeRosters(roster), local, RemoteAnswers(exchange, fake_seal), patience_seconds=0.0)
    try:
        return await collect(router, make_request())
    finally:
        await exchange.close()


@given(
    scores,
    st.lists(st.integers(0, 6), max_size=2),
    st.lists(groupings, min_size=1, max_size=3),
    st.lists(deaths, max_size=1),
)
@settings(max_examples=300, deadline=None)
def test_streams_cut_on_the_wire_resume_too(
    score: Score, losses: list[int | None], groups: list[list[int]], dying: list[Death]
) -> None:
    pieces, done, error = asyncio.run(sent(score, losses, groups, dying))
    assert error is None
    assert done == score.done
    assert_undisturbed(score, pieces)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_replica_that_answers_differently_is_never_joined(
    tokens: int, dies_after: int, differs_at: int, role_frame: bool
) -> None:
    """Without ids the second replica repeats the answer; where it differs from what was delivered it must fail."""
    score = Score(tokens, with_ids=False, role_frame=role_frame)
    other = Score(tokens, with_ids=False, role_frame=role_frame)
    at = min(differs_at, len(other.events)) - 1
    other.events[at] = (other.events[at][0], other.events[at][1].replace(b"}", b',"x":1}'))

    async def run() -> tuple[list[Piece], object, Exception | None]:
        deaths_here = Deaths(Death(dies_after))
        here = FakeEngines(score, deaths=deaths_here)
        there = FakeEngines(other)
        roster = make_roster(make_member(node_id(1), make_replica()))
        remote = FakeNodes({node_id(1): Admission(there)})
        router = Router(FakeRosters(roster), Admission(here), remote, patience_seconds=0.0)
        return await collect(router, make_request())

    pieces, done, error = asyncio.run(run())
    text = b"".join(piece.frames for piece in pieces)
    delivered = min(dies_after, len(score.events) - 1)
    if at < delivered:
        assert error is not None
        assert getattr(error, "code", "") == "resume_diverged"
        assert score.frames.startswith(text)
    else:
        assert done is not None
        assert text == other.frames


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=40), st.floats(0, 0.999))
def test_the_replica_chosen_is_always_one_that_may_answer(loads: list[tuple[int, int]], number: float) -> None:
    from felloe.domain.roster import Load
    from felloe.routing.model_index import ModelIndex
    from felloe.routing.rules import Others, Wanted
    from routing_fakes import MODEL

    def speed_of(active: int, slots: int) -> float:
        return 1.0 + active * slots % 11

    def cost(node: NodeId) -> float:
        member = roster.members[node]
        replica, active = member.record.replicas[0], member.load.active[MODEL]
        return (replica.slots + active) / (replica.slots * replica.speed)

    members = [
        make_member(
            node_id(at),
            make_replica(slots=slots, state="ready" if at % 3 else "starting", speed=speed_of(active, slots)),
            load=Load(active={MODEL: active}, draining=at % 5 == 4),
            alive=at % 7 != 6,
        )
        for at, (active, slots) in enumerate(loads)
    ]
    roster = make_roster(*members)
    offers = ModelIndex(roster).get(MODEL)
    chosen = rules.choose(
        Wanted(MODEL, ("chat",)),
        None,
        Others(offers.ready, offers.free, roster.members, {}),
        lambda node, _: node == node_id(1),
        lambda: number,
    )
    good = {member.record.id for at, member in enumerate(members) if at % 3 and at % 5 != 4 and at % 7 != 6 and at != 1}
    if chosen is None:
        assert not good
    else:
        assert chosen.node in good
        free = {n for n in good if roster.members[n].load.active[MODEL] < roster.members[n].record.replicas[0].slots}
        # A full one is chosen before a free one only where it is so much faster that it will answer sooner.
        assert not free or chosen.node in free or cost(chosen.node) < max(map(cost, free))
