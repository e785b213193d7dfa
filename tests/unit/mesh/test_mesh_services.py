"""Questions to a hub, over the real server."""

import asyncio

import msgspec
import pytest
from mesh_network import Network

from felloe.domain.errors import FelloeError
from felloe.mesh import services as hub_services
from felloe.mesh.permissions import hub_service
from felloe.mesh.services import MAX_AT_WORK, MAX_PER_ASKER, MAX_QUESTION_BYTES, HubClient, HubServices
from felloe.mesh.state import StateValue
from waiting import until


class Sum(msgspec.Struct, array_like=True):
    numbers: list[int]


class Total(msgspec.Struct, array_like=True):
    total: int


async def hub(network: Network) -> HubServices:
    services = HubServices(await network.connect(network.hub))
    network.closers.append(services.close)
    return services


async def client(network: Network) -> HubClient:
    return HubClient(await network.connect(network.member()))


async def add(question: Sum) -> Total:
    return Total(sum(question.numbers))


async def test_a_hub_answers_what_it_serves(network: Network) -> None:
    await (await hub(network)).serve("sum", Sum, add)
    assert (await (await client(network)).ask("sum", Sum([1, 2, 3]), Total)).total == 6


async def test_without_a_hub_the_question_fails_at_once(network: Network) -> None:
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total, timeout=30)
    assert refused.value.code == "network_unreachable"


async def test_an_error_comes_back_with_its_code_and_detail(network: Network) -> None:
    async def refuse(question: Sum) -> Total:
        raise FelloeError("token_refused", "it has run out", retry_after=2.0)

    await (await hub(network)).serve("sum", Sum, refuse)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total)
    assert (refused.value.code, refused.value.detail, refused.value.retry_after) == (
        "token_refused",
        "it has run out",
        2.0,
    )


async def test_a_bug_in_a_handler_is_told_as_internal_without_its_text(network: Network) -> None:
    async def fail(question: Sum) -> Total:
        raise RuntimeError("secret")

    await (await hub(network)).serve("sum", Sum, fail)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total)
    assert refused.value.code == "internal"
    assert "secret" not in str(refused.value)


async def test_an_unexpected_answer_is_not_taken(network: Network) -> None:
    await (await hub(network)).serve("sum", Sum, add)
    with pytest.raises(FelloeError, match="cannot be read"):
        await (await client(network)).ask("sum", Sum([1]), StateValue)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100_000, b"\x91\xa1x", bytes(MAX_QUESTION_BYTES + 1)])
async def test_hostile_questions_are_refused_and_the_hub_lives(network: Network, data: bytes) -> None:
    await (await hub(network)).serve("sum", Sum, add)
    line = await network.connect(network.member())
    reply = await line.request(hub_service("sum"), data, timeout=5)
    assert b"invalid_value" in reply or b"body_too_large" in reply
    assert (await HubClient(line).ask("sum", Sum([2]), Total)).total == 2


async def test_too_large_a_question_does_not_leave_the_node(network: Network) -> None:
    await (await hub(network)).serve("sum", Sum, add)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([2**60] * 100_000), Total)
    assert refused.value.code == "body_too_large"


async def test_one_asker_that_floods_is_refused_as_overloaded_and_the_others_are_answered(network: Network) -> None:
    gate = asyncio.Event()
    at_work = 0

    async def wait(question: Sum) -> Total:
        nonlocal at_work
        at_work += 1
        if question.numbers:
            await gate.wait()
        return Total(0)

    await (await hub(network)).serve("sum", Sum, wait)
    flooding, other = await client(network), await client(network)
    held = [asyncio.create_task(flooding.ask("sum", Sum([1]), Total)) for _ in range(MAX_PER_ASKER)]
    await until(lambda: at_work == MAX_PER_ASKER)
    with pytest.raises(FelloeError) as refused:
        await flooding.ask("sum", Sum([1]), Total)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after is not None
    assert (await other.ask("sum", Sum([]), Total)).total == 0
    gate.set()
    assert len(await asyncio.gather(*held)) == MAX_PER_ASKER


async def test_beyond_the_bound_questions_are_refused_as_overloaded(network: Network) -> None:
    gate = asyncio.Event()
    at_work = 0

    async def wait(question: Sum) -> Total:
        nonlocal at_work
        at_work += 1
        await gate.wait()
        return Total(0)

    await (await hub(network)).serve("sum", Sum, wait)
    askers = [await client(network) for _ in range(MAX_AT_WORK // MAX_PER_ASKER)]
    held = [asyncio.create_task(asker.ask("sum", Sum([]), Total)) for asker in askers for _ in range(MAX_PER_ASKER)]
    await until(lambda: at_work == MAX_AT_WORK)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total)
    assert refused.value.code == "overloaded"
    gate.set()
    assert len(await asyncio.gather(*held)) == MAX_AT_WORK


async def test_a_question_whose_answer_would_go_to_nobodys_inbox_is_not_worked_at(network: Network) -> None:
    served: list[Sum] = []

    async def count(question: Sum) -> Total:
        served.append(question)
        return Total(0)

    await (await hub(network)).serve("sum", Sum, count)
    line = await network.connect(network.member())
    for reply in ("roster.gone.x", "state.keys", ""):
        await line.publish(hub_service("sum"), msgspec.msgpack.encode(Sum([1])), reply)
    assert (await HubClient(line).ask("sum", Sum([2]), Total)).total == 0
    assert [question.numbers for question in served] == [[2]]


async def test_a_handler_that_hangs_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_services, "HANDLER_SECONDS", 0.1)

    async def hang(question: Sum) -> Total:
        await asyncio.Event().wait()
        return Total(0)

    await (await hub(network)).serve("sum", Sum, hang)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total)
    assert refused.value.code == "deadline_exceeded"
