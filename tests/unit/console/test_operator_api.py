"""The operator API passes what it is told to the operations, and refuses what is not in its table."""

from collections.abc import AsyncGenerator

import httpx
import msgspec
import pytest
from operator_house import RecordedOperations

from felloe.console.messages import (
    DrainRequest,
    DrainStep,
    KeyCreated,
    KeyRequest,
    NameRequest,
    Nothing,
    Progress,
    PullRequest,
)
from felloe.domain.errors import FelloeError


class FewOperations(RecordedOperations):
    """Keys, models and a drain."""

    async def create_key(self, request: KeyRequest) -> KeyCreated:
        self.told.append(request)
        return KeyCreated("1", request.name, "fk-x")

    async def revoke_key(self, request: NameRequest) -> Nothing:
        raise FelloeError("not_found", "there is no such key")

    async def unload(self, request: object) -> Nothing:
        raise RuntimeError("a bug with a secret in it")

    async def pull(self, request: PullRequest) -> AsyncGenerator[Progress, None]:
        yield Progress(1, 2)
        raise FelloeError("bad_model_file", "x.gguf: magic: this is not GGUF")

    async def drain(self, request: DrainRequest) -> AsyncGenerator[DrainStep, None]:
        self.told.append(request)
        yield DrainStep(running=1)
        raise FelloeError("forbidden", "run `felloe drain` on that node")


@pytest.fixture
def operations() -> FewOperations:
    return FewOperations()


async def test_a_message_reaches_its_operation(client: httpx.AsyncClient, operations: RecordedOperations) -> None:
    reply = await client.post("/keys/create", content=b'{"name": "app"}')
    assert msgspec.json.decode(reply.content, type=KeyCreated) == KeyCreated("1", "app", "fk-x")
    assert operations.told == [KeyRequest("app")]


async def test_an_error_keeps_its_code(client: httpx.AsyncClient) -> None:
    reply = await client.post("/keys/revoke", content=b'{"name": "app"}')
    assert (reply.status_code, reply.json()) == (404, {"code": "not_found", "detail": "there is no such key"})


async def test_a_bug_tells_its_kind_alone(client: httpx.AsyncClient) -> None:
    reply = await client.post("/models/unload", content=b'{"name": "m"}')
    assert reply.status_code == 500
    assert "secret" not in reply.text


async def test_long_work_streams_its_steps_and_its_error(client: httpx.AsyncClient) -> None:
    reply = await client.post("/models/pull", content=b'{"reference": "/x.gguf"}')
    steps = [msgspec.json.decode(line, type=Progress) for line in reply.content.splitlines()]
    assert steps[0] == Progress(1, 2)
    assert steps[-1].error is not None
    assert steps[-1].error.code == "bad_model_file"


async def test_a_drain_streams_its_steps_and_its_error(
    client: httpx.AsyncClient, operations: RecordedOperations
) -> None:
    reply = await client.post("/drain", content=b'{"node": "attic", "timeout_seconds": 5}')
    steps = [msgspec.json.decode(line, type=DrainStep) for line in reply.content.splitlines()]
    assert operations.told == [DrainRequest("attic", 5.0)]
    assert steps[0] == DrainStep(running=1)
    assert steps[-1].error is not None and steps[-1].error.code == "forbidden"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"name": 1}', b'{"name": "a", "more": 1}', b'{"name": "\xff"}', b"[" * 60_000]
)
async def test_a_message_of_another_shape_is_refused(
    client: httpx.AsyncClient, operations: RecordedOperations, body: bytes
) -> None:
    reply = await client.post("/keys/create", content=body)
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid_value"
    assert operations.told == []


async def test_a_large_message_is_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post("/keys/create", content=b" " * 100_000)
    assert reply.status_code == 413


async def test_other_paths_and_methods_are_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).status_code == 404
    assert (await client.get("/keys/create")).status_code == 405
    assert (await client.post("/status")).status_code == 405
