"""The operator API about what the network serves."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from operator_house import RecordedOperations

from felloe.console.messages import NameRequest, Nothing
from felloe.console.serving_messages import Declared, ServingView
from felloe.domain.errors import FelloeError
from felloe.domain.plan import DesiredModel


class Serving(RecordedOperations):
    async def view(self) -> ServingView:
        return ServingView(rows=(), number=3)

    async def declare(self, desired: DesiredModel) -> Declared:
        self.told.append(desired)
        return Declared(desired=desired)

    async def retire(self, request: NameRequest) -> Nothing:
        self.told.append(request)
        raise FelloeError("wrong_node", "run it on hub-a")


@pytest.fixture
def operations() -> Iterator[RecordedOperations]:
    yield Serving()


async def test_a_wish_arrives_with_all_that_was_not_said_at_its_default(
    client: httpx.AsyncClient, operations: Any
) -> None:
    answer = await client.post("/serving/declare", json={"model": "a", "replicas_min": 0, "idle_seconds": 60})
    assert answer.status_code == 200
    assert operations.told == [DesiredModel(model="a", replicas_min=0, idle_seconds=60.0)]  # type: ignore[arg-type]
    assert (await client.get("/serving")).json()["number"] == 3


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model": 3}', b'{"model": "a", "kv_type": "f32"}', b"{" * 5000])
async def test_what_is_no_wish_is_refused(client: httpx.AsyncClient, operations: Any, body: bytes) -> None:
    answer = await client.post("/serving/declare", content=body)
    assert answer.status_code == 400
    assert operations.told == []


async def test_where_it_cannot_be_changed_the_answer_says_where(client: httpx.AsyncClient) -> None:
    answer = await client.post("/serving/retire", json={"name": "a"})
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_node")
    assert "hub-a" in answer.json()["detail"]
