"""Models that are wanted but not loaded, as an HTTP client meets them."""

import httpx
import pytest
from gateway_house import House, failing

from felloe.domain.errors import FelloeError
from felloe.gateway import Limits

CHAT = {"model": "large-and-asleep", "messages": [{"role": "user", "content": "hello"}]}
LOADING = FelloeError("model_loading", "the model large-and-asleep is being loaded, about 42 s left", retry_after=41.2)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["wait=30"], 30.0),
        (["wait=0"], 0.0),
        (["respond-async, WAIT = 10; priority=5"], 10.0),
        (["return=minimal", "wait=7"], 7.0),
        (['wait="12"'], 12.0),
        (["wait=5, wait=9"], 5.0),
        (["wait=100000"], 600.0),
        (["wait"], None),
        (["wait="], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=1e3"], None),
        (["wait=9999999999"], None),
        (["await=3"], None),
        (['foo="a, wait=5"'], None),
        (['foo="a\\", wait=5'], None),
        (["x" * 300 + ", wait=3"], None),
        (['"' * 20_000], None),
    ],
)
async def test_how_long_a_request_waits_is_read_from_its_prefer_header(
    house: House, headers: list[str], seconds: float | None
) -> None:
    async with httpx.AsyncClient(timeout=10) as client:
        pairs = [("prefer", value) for value in headers]
        answer = await client.post(house.root + "/v1/chat/completions", json=CHAT, headers=pairs)
    assert answer.status_code == 200
    assert house.answers.requests[0].wait == seconds


async def test_a_wait_is_never_longer_than_a_request_may_take(start_gateway) -> None:  # type: ignore[no-untyped-def]
    house: House = await start_gateway(limits=Limits(deadline_seconds=20.0))
    async with httpx.AsyncClient(timeout=10) as client:
        await client.post(house.root + "/v1/chat/completions", json=CHAT, headers={"prefer": "wait=300"})
    assert house.answers.requests[0].wait == 20.0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_is_still_loading_is_a_plain_503_also_for_a_stream(start_gateway, stream: bool) -> None:  # type: ignore[no-untyped-def]
    house: House = await start_gateway(failing(LOADING))
    async with httpx.AsyncClient(timeout=10) as client:
        answer = await client.post(house.root + "/v1/chat/completions", json=CHAT | {"stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "42")
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == "model_loading" and "about 42 s left" in error["message"] and "Prefer" in error["message"]


async def test_models_say_whether_they_are_ready(house: House) -> None:
    async with httpx.AsyncClient(timeout=10) as client:
        rows = (await client.get(house.root + "/v1/models")).json()["data"]
        shown = (await client.get(house.root + "/v1/models/large-and-asleep")).json()
    assert [row["state"] for row in rows] == ["ready", "ready", "cold"]
    assert (
        shown
        == rows[2]
        == {
            "id": "large-and-asleep",
            "object": "model",
            "created": 0,
            "owned_by": "felloe",
            "state": "cold",
        }
    )
    assert rows[0]["context_window"] == 1024 and rows[0]["capabilities"] == ["chat", "completion"]
