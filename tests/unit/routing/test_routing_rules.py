"""Which replica takes a request, and what is tried again."""

from random import Random

import pytest

from felloe import __version__
from felloe.domain.requests import Piece
from felloe.domain.roster import Load, Member, Replica
from felloe.domain.versions import parse
from felloe.routing import rules
from felloe.routing.model_index import IndexCache, ModelIndex
from felloe.routing.rules import Busy, Others, Wanted
from felloe.routing.targets import Target
from routing_fakes import HERE, MODEL, make_member, make_replica, make_request, make_roster, node_id

WANTED = Wanted(MODEL, ("chat",))


def others(*members: Member, outstanding: dict[int, int] | None = None) -> Others:
    roster = make_roster(*members)
    offers = ModelIndex(roster).get(MODEL)
    sent = {(node_id(number), MODEL): count for number, count in (outstanding or {}).items()}
    return Others(offers.ready, offers.free, roster.members, sent)


def local(active: int, waiting: int = 0, slots: int = 2) -> tuple[Target, Busy]:
    return Target(HERE, None, make_replica(slots=slots)), Busy(active, waiting)


def busy_member(number: int, active: int, waiting: int = 0, slots: int = 2) -> Member:
    load = Load(active={MODEL: active}, waiting={MODEL: waiting})
    return make_member(node_id(number), make_replica(slots=slots), load=load)


def choose(here: tuple[Target, Busy] | None, there: Others, wanted: Wanted = WANTED, seed: int = 0) -> Target | None:
    return rules.choose(wanted, here, there, lambda node, issued_at: False, Random(seed).random)


def test_this_node_comes_first_while_it_has_a_free_slot():
    chosen = choose(local(1), others(busy_member(1, 0)))
    assert chosen is not None and chosen.node == HERE


def test_an_idle_node_is_preferred_to_a_queue_here():
    chosen = choose(local(2), others(busy_member(1, 0)))
    assert chosen is not None and chosen.node == node_id(1)


def test_this_node_is_preferred_when_everybody_is_as_busy():
    chosen = choose(local(2), others(busy_member(1, 2)))
    assert chosen is not None and chosen.node == HERE


def test_a_shorter_queue_elsewhere_is_preferred_to_a_long_one_here():
    chosen = choose(local(2, waiting=10), others(busy_member(1, 2, waiting=1)))
    assert chosen is not None and chosen.node == node_id(1)


def test_the_less_pressed_of_two_is_chosen():
    for seed in range(20):
        chosen = choose(None, others(busy_member(1, 1), busy_member(2, 0)), seed=seed)
        assert chosen is not None and chosen.node == node_id(2)


def test_two_different_nodes_are_drawn():
    there = others(busy_member(1, 1), busy_member(2, 0), busy_member(3, 1))
    chosen = rules.choose(WANTED, None, there, lambda *_: False, lambda: 0.0)
    assert chosen is not None and chosen.node == node_id(2)


def test_more_free_slots_break_a_tie():
    for seed in range(20):
        chosen = choose(None, others(busy_member(1, 0, slots=1), busy_member(2, 0, slots=8)), seed=seed)
        assert chosen is not None and chosen.node == node_id(2)


def test_what_was_sent_since_the_last_report_counts():
    chosen = choose(None, others(busy_member(1, 0), busy_member(2, 1), outstanding={1: 2}))
    assert chosen is not None and chosen.node == node_id(2)


def test_the_one_free_node_among_many_full_ones_is_found():
    full = [busy_member(number, 2, waiting=1) for number in range(2, 100)]
    for seed in range(20):
        chosen = choose(None, others(busy_member(1, 1), *full), seed=seed)
        assert chosen is not None and chosen.node == node_id(1)


@pytest.mark.parametrize(
    "member",
    [
        make_member(node_id(1), make_replica(), alive=False),
        make_member(node_id(1), make_replica(), load=Load(draining=True)),
        make_member(node_id(1), make_replica(state="starting")),
        make_member(node_id(1), make_replica(state="failed")),
        make_member(node_id(1), make_replica("another")),
        make_member(node_id(1), make_replica(capabilities=("embedding",))),
        make_member(node_id(1)),
    ],
)
def test_nobody_unfit_is_chosen(member: Member):
    assert choose(None, others(member)) is None


def test_only_the_same_file_goes_on():
    there = others(make_member(node_id(1), make_replica(digest="sha256:" + "1" * 64)))
    assert choose(None, there, WANTED._replace(digest=make_replica().model.digest)) is None
    assert choose(None, there) is not None


def test_a_shorter_context_than_wanted_is_left_out():
    there = others(make_member(node_id(1), make_replica(context=2048)))
    assert choose(None, there, WANTED._replace(context=2049)) is None


def test_a_node_that_died_since_the_index_was_built_is_not_chosen():
    old = make_roster(make_member(node_id(1), make_replica()))
    offers = ModelIndex(old).get(MODEL)
    new = make_roster(make_member(node_id(1), make_replica(), alive=False))
    assert choose(None, Others(offers.ready, offers.free, new.members, {})) is None


def test_choices_spread_over_equals():
    there = others(*(busy_member(number, 0) for number in range(100)))
    random = Random(1)
    nodes = {rules.choose(WANTED, None, there, lambda *_: False, random.random).node for _ in range(400)}  # type: ignore[union-attr]
    assert len(nodes) > 80


def test_the_index_is_kept_while_it_would_cost_too_much_to_build():
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    cache = IndexCache(clock)
    first = cache.get(make_roster(make_member(node_id(1), make_replica())))
    newer = make_roster(make_member(node_id(2), make_replica()))
    assert cache.get(newer) is first
    now[0] += 1.0
    assert cache.get(newer).roster is newer
    newest = make_roster()
    assert cache.get(newest, fresh=True).roster is newest


def test_requests_name_what_they_need():
    assert rules.needed_capabilities(make_request(kind="embedding")) == ("embedding",)
    assert rules.needed_capabilities(make_request(body={"tools": [{}]})) == ("chat", "tools")
    assert rules.needed_capabilities(make_request(body={"tools": []})) == ("chat",)
    assert rules.needed_capabilities(make_request(body={"response_format": {"type": "text"}})) == ("chat",)
    formatted = make_request(body={"response_format": {"type": "json_schema"}})
    assert rules.needed_capabilities(formatted) == ("chat", "json_schema")
    assert rules.needed_capabilities(make_request(body={"response_format": "x"})) == ("chat",)


def test_the_smaller_reach_holds():
    assert rules.narrower("device", "market") == "device"
    assert rules.narrower("market", "network") == "network"


@pytest.mark.parametrize("code", ["context_length_exceeded", "invalid_value", "resume_diverged", "deadline_exceeded"])
def test_what_another_replica_cannot_mend_is_final(code: str):
    assert not rules.should_retry(code, failures=1, barren=1, cuts=1, refusals=1)


def test_a_request_that_kills_whoever_answers_it_does_not_go_round():
    assert rules.should_retry("engine_failed", failures=3, barren=3, cuts=0, refusals=0)
    assert not rules.should_retry("engine_failed", failures=4, barren=4, cuts=0, refusals=0)
    assert not rules.should_retry("engine_failed", failures=17, barren=0, cuts=0, refusals=0)


def test_a_way_that_breaks_is_tried_more_often_than_a_replica_that_dies():
    assert rules.should_retry("line_lost", failures=0, barren=0, cuts=256, refusals=0)
    assert not rules.should_retry("line_lost", failures=0, barren=0, cuts=257, refusals=0)


def test_refusals_are_bounded():
    assert rules.should_retry("overloaded", failures=0, barren=0, cuts=0, refusals=8)
    assert not rules.should_retry("overloaded", failures=0, barren=0, cuts=0, refusals=9)


def test_retry_after_grows_with_the_queue_and_stays_in_bounds():
    assert rules.retry_after(0, 4, 0.1) == 1.0
    assert rules.retry_after(7, 4, 10.0) == 20.0
    assert rules.retry_after(1000, 1, 60.0) == 60.0


def test_pieces_follow_without_a_gap():
    assert rules.follows(3, Piece(5, (1, 2), b"x"))
    assert not rules.follows(3, Piece(6, (1, 2), b"x"))
    assert not rules.follows(3, Piece(4, (1, 2), b"x"))
    assert rules.follows(3, Piece(3, (), b"x"))
    assert not rules.follows(3, Piece(2, (), b"x"))


def test_the_token_that_ends_an_answer_is_counted_without_an_id():
    end = b'data: {"finish_reason":"stop"}'
    assert rules.follows(3, Piece(5, (1,), end))
    assert not rules.follows(3, Piece(3, (1,), end))


def test_text_that_looks_like_an_end_is_none():
    said = b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"stop\\""},"finish_reason":null}]}\n\n'
    assert rules.FINISH_MARK not in said
    ended = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    assert rules.FINISH_MARK in ended


def test_capabilities_are_known_of_dead_nodes_too():
    roster = make_roster(make_member(node_id(1), make_replica(capabilities=("embedding",)), alive=False))
    offers = ModelIndex(roster).get(MODEL)
    assert offers.known and offers.capabilities == {"embedding"} and not offers.ready


def test_this_node_is_not_among_the_others():
    replica: Replica = make_replica()
    assert not ModelIndex(make_roster(make_member(HERE, replica))).get(MODEL).known


def version(minor: int) -> str:
    """This program's version, but for the minor number."""
    own = parse(__version__)
    assert own is not None
    return f"{own.major}.{own.minor + minor}.7"


@pytest.mark.parametrize("other", [version(2), "7.0.0", "", "new"])
def test_a_node_of_a_version_that_does_not_work_with_ours_is_known_and_never_asked(other: str):
    roster = make_roster(make_member(node_id(1), make_replica(), version=other))
    offers = ModelIndex(roster).get(MODEL)
    assert offers.known and offers.capabilities
    assert not offers.ready and not offers.free
    chosen = choose(None, Others(offers.ready, offers.free, roster.members, {}))
    assert chosen is None


def test_a_node_of_the_next_version_is_asked():
    member = make_member(node_id(1), make_replica(), version=version(1))
    chosen = choose(None, others(member))
    assert chosen is not None and chosen.node == node_id(1)


def test_what_this_node_itself_runs_decides():
    roster = make_roster(make_member(node_id(1), make_replica(), version="0.3.0"))
    assert not ModelIndex(roster, "0.5.0").get(MODEL).ready
    assert ModelIndex(roster, "0.4.2").get(MODEL).ready
