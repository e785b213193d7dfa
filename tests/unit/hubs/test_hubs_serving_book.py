"""What owners want served and the plan, as the state keeps them."""

import msgspec
import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import DesiredModel, Need, Part, Placement, Plan, Refusal
from felloe.domain.serving import MOST_DESIRED, NetworkPlan, Serving, check_desired, decode_plan, decode_serving
from felloe.hubs.records import LEASE, PLAN, SERVING, Lease, encode
from felloe.hubs.serving_book import MOST_REASON_CHARACTERS, ServingBook
from felloe.hubs.topics import PUBLIC
from hubs_fakes import FakeState, FakeStore

A, B = ModelName("a"), ModelName("b")


def wish(model: str, **fields: object) -> DesiredModel:
    return DesiredModel(model=ModelName(model), **fields)  # type: ignore[arg-type]


def books() -> tuple[FakeStore, ServingBook, ServingBook]:
    store = FakeStore()
    assert store.commit(0, LEASE, encode(Lease(holder=NodeId("x"), term=3, beat=0, seconds=15.0)))
    return store, ServingBook(FakeState(store)), ServingBook(FakeState(store))


async def test_a_wish_made_on_one_hub_is_known_on_all_and_can_be_replaced_and_retired() -> None:
    _, here, there = books()
    await here.declare(wish("b"))
    await there.declare(wish("a", replicas_min=0))
    await here.declare(wish("b", priority=2))
    assert [(one.model, one.priority) for one in there.serving().models] == [("a", 0), ("b", 2)]
    await there.retire("b")
    assert here.serving().find("b") is None
    with pytest.raises(FelloeError) as refused:
        await here.retire("b")
    assert refused.value.code == "not_found"


async def test_wishes_of_two_hubs_at_once_are_both_kept() -> None:
    store = FakeStore()
    first, second = FakeState(store), FakeState(store, follows=False)
    await ServingBook(first).declare(wish("a"))
    await ServingBook(second).declare(wish("b"))
    assert len(ServingBook(first).serving().models) == 2


async def test_there_is_a_most_of_wishes() -> None:
    store, here, _ = books()
    full = Serving(models=tuple(wish(f"m{number:03}") for number in range(MOST_DESIRED)))
    assert store.commit(len(store.log), SERVING, encode(full))
    await here.declare(wish("m000", priority=1))
    with pytest.raises(FelloeError) as refused:
        await here.declare(wish("one-more"))
    assert refused.value.code == "overloaded"


async def test_a_plan_gets_the_next_number_and_the_leaders_term() -> None:
    _, here, there = books()
    placement = Placement(
        model=A,
        variant=A,
        node=NodeId("n"),
        parts=(Part(device="ram", layers=3, need=Need(weights=5)),),
        context=1,
        slots=1,
    )
    refusal = Refusal(model=B, missing=1, reason="x" * 10_000)
    first = await here.write_plan(Plan(placements=(placement,), refusals=(refusal,)), term=3, now=50.0)
    second = await there.write_plan(Plan(placements=()), term=3, now=60.0)
    assert (first.plan.number, second.plan.number) == (1, 2)
    assert (first.term, first.made_at, first.plan.placements) == (3, 50.0, (placement,))
    assert len(first.plan.refusals[0].reason) == MOST_REASON_CHARACTERS
    assert here.plan() == second


async def test_who_leads_no_more_cannot_write_a_plan() -> None:
    _, here, _ = books()
    with pytest.raises(FelloeError) as refused:
        await here.write_plan(Plan(placements=()), term=2, now=0.0)
    assert refused.value.code == "not_leader"
    assert here.plan() is None


def test_every_node_may_follow_both() -> None:
    assert {SERVING, PLAN} <= set(PUBLIC)


@pytest.mark.parametrize(
    "damaged", [b"", b"{}", b"\xff", b"null", b'{"models": [{"model": 1}]}', b"[" * 100_000, b'{"plan": {}}']
)
def test_what_a_hub_tells_must_be_readable(damaged: bytes) -> None:
    with pytest.raises(FelloeError) as refused:
        decode_plan(damaged)
    assert refused.value.code == "bad_state"
    if damaged not in (b"{}", b'{"plan": {}}'):
        with pytest.raises(FelloeError) as refused:
            decode_serving(damaged)
        assert refused.value.code == "bad_state"


def test_what_a_newer_hub_adds_is_passed_over() -> None:
    plan = msgspec.to_builtins(NetworkPlan(plan=Plan(placements=()), term=1, made_at=2.0))
    plan["more"] = plan["plan"]["more"] = {"x": 1}
    assert decode_plan(msgspec.json.encode(plan)).term == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "../a"},
        {"model": ""},
        {"variants": ("a", "a")},
        {"variants": ("..",)},
        {"variants": tuple(f"v{number}" for number in range(9))},
        {"replicas_min": 2, "replicas_max": 1},
        {"replicas_min": -1},
        {"replicas_max": 0, "replicas_min": 0},
        {"replicas_max": 10**9},
        {"priority": 10**6},
        {"demand": 0.0},
        {"demand": float("nan")},
        {"demand": float("inf")},
        {"context": -1},
        {"context": 4096, "context_least": 8192},
        {"slots": 0},
        {"slots": 100_000},
        {"pins": ("",)},
        {"pins": ("a/",)},
        {"pins": ("a/b/c",)},
        {"pins": ("a\x1b[2J",)},
        {"pins": ("x" * 1000,)},
        {"idle_seconds": -1.0},
        {"idle_seconds": float("nan")},
    ],
)
def test_wishes_that_mean_nothing_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(FelloeError) as refused:
        check_desired(wish(**({"model": "a"} | fields)))  # type: ignore[arg-type]
    assert refused.value.code == "invalid_value"
    assert refused.value.param


def test_what_an_owner_may_want_passes() -> None:
    check_desired(wish("org/a:q4", variants=("a", "b"), context=8192, context_least=512, pins=("hub", "hub/gpu0")))
