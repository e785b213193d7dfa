"""Questions to a hub and the state it shares, over the real server."""

import asyncio
import os
import signal
from collections.abc import Callable

import msgspec
import pytest
from mesh_network import Network

from felloe.domain.errors import FelloeError
from felloe.mesh import services as hub_services
from felloe.mesh.permissions import hub_service
from felloe.mesh.services import MAX_AT_WORK, MAX_QUESTION_BYTES, HubClient, HubServices
from felloe.mesh.state import MAX_VALUE_BYTES, StateFollower, StateKeeper, StateRequest, StateValue


class Sum(msgspec.Struct, array_like=True):
    numbers: list[int]


class Total(msgspec.Struct, array_like=True):
    total: int


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


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


async def test_beyond_the_bound_questions_are_refused_as_overloaded(network: Network) -> None:
    gate = asyncio.Event()
    at_work = 0

    async def wait(question: Sum) -> Total:
        nonlocal at_work
        at_work += 1
        await gate.wait()
        return Total(0)

    await (await hub(network)).serve("sum", Sum, wait)
    asker = await client(network)
    held = [asyncio.create_task(asker.ask("sum", Sum([]), Total)) for _ in range(MAX_AT_WORK)]
    await until(lambda: at_work == MAX_AT_WORK)
    with pytest.raises(FelloeError) as refused:
        await asker.ask("sum", Sum([]), Total)
    assert refused.value.code == "overloaded"
    gate.set()
    assert len(await asyncio.gather(*held)) == MAX_AT_WORK


async def test_a_handler_that_hangs_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_services, "HANDLER_SECONDS", 0.1)

    async def hang(question: Sum) -> Total:
        await asyncio.Event().wait()
        return Total(0)

    await (await hub(network)).serve("sum", Sum, hang)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("sum", Sum([]), Total)
    assert refused.value.code == "deadline_exceeded"


async def keeper(network: Network) -> StateKeeper:
    line = await network.connect(network.hub)
    services = HubServices(line)
    kept = StateKeeper(line)
    await kept.start(services)
    network.closers.extend([services.close, kept.close])
    return kept


async def follower(network: Network, topic: str) -> tuple[StateFollower, list[bytes]]:
    heard: list[bytes] = []
    follows = StateFollower(await network.connect(network.member()))
    await follows.follow(topic, heard.append)
    network.closers.append(follows.close)
    return follows, heard


async def test_followers_hear_a_change_and_newcomers_the_present_value(network: Network) -> None:
    kept = await keeper(network)
    early, heard_early = await follower(network, "keys")
    assert early.value("keys") is None
    await kept.change("keys", lambda before: b"one")
    await until(lambda: heard_early == [b"one"])
    _, heard_late = await follower(network, "keys")
    await until(lambda: heard_late == [b"one"])
    await kept.change("keys", lambda before: (before or b"") + b" two")
    await until(lambda: heard_early[-1] == heard_late[-1] == b"one two")


async def test_a_change_that_changes_nothing_is_not_told(network: Network) -> None:
    kept = await keeper(network)
    first = await kept.change("keys", lambda before: b"one")
    assert await kept.change("keys", lambda before: b"one") == first


async def test_two_hubs_that_write_at_once_lose_no_change(network: Network) -> None:
    one, two = await keeper(network), await keeper(network)
    additions = [kept.change("keys", lambda before, n=n: (before or b"") + n) for n, kept in ((b"1", one), (b"2", two))]
    await asyncio.gather(*additions)
    assert sorted((await one.get("keys")).value or b"") == sorted(b"12")


async def test_what_was_acknowledged_survives_a_killed_server(network: Network) -> None:
    kept = await keeper(network)
    follows, heard = await follower(network, "keys")
    await kept.change("keys", lambda before: b"precious")
    await until(lambda: heard == [b"precious"])
    running = asyncio.create_task(network.server.run())
    assert network.server.process_id is not None
    os.kill(network.server.process_id, signal.SIGKILL)
    fresh, heard_fresh = await follower(network, "keys")
    await until(lambda: heard_fresh == [b"precious"], 30)
    assert fresh.value("keys") == follows.value("keys") == b"precious"
    await network.close()
    await network.server.stop()
    await running


async def test_a_missed_change_is_fetched_when_its_revision_is_announced(network: Network) -> None:
    kept = await keeper(network)
    follows, heard = await follower(network, "keys")
    await kept.change("keys", lambda before: b"one")
    await until(lambda: heard == [b"one"])
    follows._values["keys"] = StateValue(0, 0, None)
    newest = await kept.get("keys")
    await kept._tell("keys", StateValue(newest.epoch, newest.revision, None))
    await until(lambda: heard == [b"one", b"one"])


async def test_an_older_value_never_replaces_a_newer_one(network: Network) -> None:
    kept = await keeper(network)
    follows, heard = await follower(network, "keys")
    first = await kept.change("keys", lambda before: b"one")
    await kept.change("keys", lambda before: b"two")
    await kept._tell("keys", first)
    await kept.change("keys", lambda before: b"three")
    await until(lambda: heard[-1] == b"three")
    assert heard in ([b"one", b"two", b"three"], [b"two", b"three"])
    assert follows.value("keys") == b"three"


async def test_a_value_has_a_largest_size(network: Network) -> None:
    kept = await keeper(network)
    largest = bytes(MAX_VALUE_BYTES)
    with pytest.raises(FelloeError) as refused:
        await kept.change("keys", lambda before: largest + b"x")
    assert refused.value.code == "body_too_large"
    await kept.change("keys", lambda before: largest)
    _, heard = await follower(network, "keys")
    await until(lambda: heard == [largest])


@pytest.mark.parametrize("topic", ["", "a.b", "*", ">", "a b", "x" * 100])
async def test_a_strange_topic_is_refused(network: Network, topic: str) -> None:
    await keeper(network)
    with pytest.raises(FelloeError) as refused:
        await (await client(network)).ask("state", StateRequest(topic), StateValue)
    assert refused.value.code == "invalid_value"
