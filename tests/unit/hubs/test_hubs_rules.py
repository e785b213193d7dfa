"""Which nodes become hubs, and which hubs keep the state."""

from itertools import combinations, permutations

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs.probe import Reached
from felloe.hubs.records import Generation, Hub, HubSet
from felloe.hubs.rules import (
    NodeFacts,
    candidates,
    check_demotion,
    check_promotion,
    check_reached,
    choose_candidate,
    keeps_majority,
    lost_for_good,
    majority,
    odd,
    state_hubs,
    survives,
    wanted_count,
)

A, B, C, D, E, F = ALL = tuple(NodeId(letter * 26) for letter in "abcdef")
ENDPOINTS = Endpoints(hosts=("10.0.0.1",), peer=8471, mesh=8472, route=8473, state=8474)
VERSION = "0.2.0"


def facts(node: NodeId, **changes: object) -> NodeFacts:
    fit = NodeFacts(
        id=node, name=f"node-{node[0]}", role="spoke", version=VERSION, endpoints=ENDPOINTS, alive=True, ready=True
    )
    return replace(replace(fit, steady_seconds=1000.0), **changes)


def hub_set(*nodes: NodeId, wanted: int = 0) -> HubSet:
    hubs = (Hub(id=n, name=f"node-{n[0]}", public_key=b"", endpoints=ENDPOINTS, since=0.0) for n in nodes)
    return HubSet(hubs=tuple(hubs), wanted=wanted)


@pytest.mark.parametrize(
    ("hubs", "alive", "present", "expected"),
    [
        ((A,), (A,), (A,), (A,)),
        ((A, B), (A, B), (A,), (A,)),
        ((A, B, C), (A, B, C), (A,), (A, B, C)),
        ((A, B, C, D), (A, B, C, D), (A, B, C), (A, B, C)),
        ((A, B, C, D, E), (A, B, C, D, E), (A, B, C), (A, B, C, D, E)),
        # A dead one stays while nobody can take its place.
        ((A, B, C), (A, B), (A, B, C), (A, B, C)),
        ((A, B, C, D), (A, B, D), (A, B, C), (A, B, D)),
        ((A, B, C, D), (A, C, D), (A,), (A, C, D)),
        ((A, B, C, D, E), (A, B, C, D), (A, B, C, D, E), (A, B, C, D, E)),
        # Three living ones survive more than three of five.
        ((A, B, C, D, E), (A, B, C), (A, B, C, D, E), (A, B, C)),
        # Who is no hub any more must go, living or not.
        ((A, B), (A, B, C), (A, B, C), (A,)),
        ((B, C), (A, B, C), (A, B, C), (B,)),
        ((A, C, D), (A, D), (A, B, C), (A,)),
        ((B,), (B,), (A,), (B,)),
        # Without a majority nothing can be moved.
        ((A, B, C), (A,), (A, B, C), (A, B, C)),
        ((A, B, C), (), (A, B, C), (A, B, C)),
    ],
)
def test_the_state_lives_on_the_best_odd_set(
    hubs: tuple[NodeId, ...], alive: tuple[NodeId, ...], present: tuple[NodeId, ...], expected: tuple[NodeId, ...]
) -> None:
    assert state_hubs(hubs, alive, present) == expected


def test_the_state_is_always_on_an_odd_number_and_never_worse_off() -> None:
    for size in range(1, 6):
        for alive_count in range(size + 1):
            for alive in combinations(ALL[:size], alive_count):
                for present in (ALL[:1], ALL[:3], ALL[:5], (B, C, F)):
                    chosen = state_hubs(ALL[:size], alive, present)
                    assert len(chosen) % 2 == 1
                    assert len(set(chosen)) == len(chosen)
                    if chosen != present:
                        assert set(chosen) <= set(alive)
                        assert state_hubs(ALL[:size], alive, chosen) == chosen, "it comes to rest"


def test_the_leader_stays_with_the_state_when_it_must_shrink() -> None:
    assert state_hubs((B, C), (B, C), (A, B, C), leader=C) == (C,)


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)])
def test_a_state_has_an_odd_number_of_hubs(count: int, expected: int) -> None:
    assert odd(count) == expected
    assert majority(expected) * 2 > expected


@pytest.mark.parametrize(
    ("setting", "eligible", "present", "expected"),
    [
        *[(0, 1, 1, 1), (0, 2, 1, 1), (0, 3, 1, 3), (0, 9, 1, 3), (0, 2, 2, 2), (0, 4, 4, 4), (0, 2, 3, 3)],
        *[(1, 9, 3, 1), (3, 1, 1, 3), (5, 9, 1, 5)],
    ],
)
def test_three_hubs_are_wanted_as_soon_as_three_nodes_can_be_hubs(
    setting: int, eligible: int, present: int, expected: int
) -> None:
    assert wanted_count(setting, eligible, present) == expected


@pytest.mark.parametrize(
    "unfit",
    [
        {"alive": False},
        {"draining": True},
        {"revoked": True},
        {"never_hub": True},
        {"endpoints": None},
        {"steady_seconds": 599.0},
        {"version": "0.4.0"},
        {"version": "nonsense"},
    ],
)
def test_a_node_that_is_not_fit_is_never_chosen(unfit: dict[str, object]) -> None:
    assert candidates([facts(A, **unfit)], (), VERSION) == ()
    assert candidates([facts(A)], (), VERSION) != ()
    assert candidates([facts(A)], (A,), VERSION) == ()


def test_the_longest_alive_that_was_reached_is_chosen_whatever_the_order() -> None:
    nodes = [facts(A), facts(B, steady_seconds=5000.0), facts(C, steady_seconds=5000.0)]
    for order in permutations(nodes):
        fit = candidates(order, (), VERSION)
        assert [node.id for node in fit] == [B, C, A]
        assert choose_candidate(fit, {C, A}) == nodes[2]
        assert choose_candidate(fit, ()) is None


def test_a_hub_is_lost_for_good_after_ten_minutes() -> None:
    assert not lost_for_good(599.9)
    assert lost_for_good(600.0)


def refused(function: object, *arguments: object) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        function(*arguments)  # type: ignore[operator]
    return caught.value


def test_who_may_not_be_promoted_is_told_why() -> None:
    hubs = hub_set(A)
    cases = [
        (None, "not_found", "no node b"),
        (facts(B, revoked=True), "forbidden", "removed"),
        (facts(A, role="hub"), "invalid_value", "already"),
        (facts(B, alive=False), "node_unreachable", "not in touch"),
        (facts(B, endpoints=None), "node_unreachable", "no address"),
        (facts(B, endpoints=replace(ENDPOINTS, hosts=())), "node_unreachable", "no address"),
    ]
    for node, code, words in cases:
        error = refused(check_promotion, node, "b", hubs, VERSION)
        assert (error.code, words in error.detail) == (code, True), error.detail
    assert check_promotion(facts(B, never_hub=True), "b", hubs, VERSION).id == B, "the owner may change their mind"
    assert check_promotion(facts(A), "a", hubs, VERSION).id == A, "demoted a moment ago"


def test_a_node_that_is_too_old_is_refused_with_both_versions() -> None:
    error = refused(check_promotion, facts(B, version="0.0.9"), "b", hub_set(A), VERSION)
    assert error.code == "version_refused"
    assert "0.0.9" in error.detail
    assert VERSION in error.detail


def test_a_seventh_hub_is_the_last() -> None:
    many = hub_set(*(NodeId(f"{number:026d}") for number in range(7)))
    assert "demote one first" in refused(check_promotion, facts(B), "b", many, VERSION).detail


def test_a_node_that_cannot_be_dialled_is_refused_with_the_addresses_tried() -> None:
    assert check_reached(facts(B), Reached(host="h", failures={"x:1": "no answer"})) == "h"
    error = refused(check_reached, facts(B), Reached(host=None, failures={"10.0.0.1:8473": "Connection refused"}))
    assert error.code == "node_unreachable"
    assert "10.0.0.1:8473: Connection refused" in error.detail
    assert "node-b" in error.detail


@pytest.mark.parametrize(
    ("staying", "alive", "words"),
    [
        ((B, C), (A, B, C), "not a hub"),
        ((A,), (A,), "last hub"),
        ((A, B), (A,), "break the quorum"),
        ((A, B, C), (A, B), "break the quorum"),
        ((A, B, C), (A, C), "break the quorum"),
        ((A, B, C, D, E), (A, B, C), "break the quorum"),
    ],
)
def test_a_demotion_that_would_break_the_quorum_is_refused(
    staying: tuple[NodeId, ...], alive: tuple[NodeId, ...], words: str
) -> None:
    assert words in refused(check_demotion, facts(A), staying, alive).detail


@pytest.mark.parametrize(
    ("staying", "alive"),
    [((A, B), (A, B)), ((A, B), (B,)), ((A, B, C), (A, B, C)), ((A, B, C), (B, C)), ((A, B, C, D), (B, C))],
)
def test_a_demotion_that_leaves_a_majority_is_allowed(staying: tuple[NodeId, ...], alive: tuple[NodeId, ...]) -> None:
    check_demotion(facts(A), staying, alive)


def test_nobody_is_no_majority() -> None:
    assert not keeps_majority((), ())


@pytest.mark.parametrize(
    ("hubs", "keepers", "alive", "sentence"),
    [
        ((A, B, C), (A, B, C), (A, B, C), "survives the loss of one hub"),
        ((A, B, C, D, E), (A, B, C, D, E), ALL, "survives the loss of two hubs"),
        ((A,), (A,), (A,), "cannot survive the loss of node-a: promote another node (`felloe promote NODE`)"),
        ((A, B), (A,), (A, B), "cannot survive the loss of node-a: promote another node (`felloe promote NODE`)"),
        (
            (A, B, C),
            (A, B, C),
            (A, C),
            "cannot survive the loss of node-a or node-c: promote another node (`felloe promote NODE`)",
        ),
        ((A, B, C), (A,), (A, B, C), "cannot survive the loss of node-a yet: its state still has to move to more hubs"),
        (
            (A, B, C),
            (A, B, C),
            (A,),
            "cannot be changed until enough of its hubs are back; node-b and node-c cannot be reached",
        ),
    ],
)
def test_what_it_survives_is_said_in_a_sentence(
    hubs: tuple[NodeId, ...], keepers: tuple[NodeId, ...], alive: tuple[NodeId, ...], sentence: str
) -> None:
    assert survives(hub_set(*hubs), Generation(number=1, hubs=keepers), alive) == sentence
