"""What is told about hubs and keys reaches its operation, and passphrases show nowhere."""

from collections.abc import AsyncGenerator

import httpx
import msgspec
import pytest
from operator_house import RecordedOperations

from felloe.console.hub_messages import (
    ChangeStep,
    HubsRequest,
    HubsView,
    KeysReplaced,
    RootExportRequest,
    RootRotateRequest,
    RotateRequest,
    SealedRoot,
)
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError

SECRET = "a long passphrase"


class RecordedHubs(RecordedOperations):
    """Answers what is about hubs and keys."""

    async def view(self) -> HubsView:
        return HubsView(hubs=(), wanted=0, generation=1, survives="survives all", writable=True)

    async def set_wanted(self, request: HubsRequest) -> HubsView:
        self.told.append(request)
        return await self.view()

    async def promote(self, request: NameRequest) -> AsyncGenerator[ChangeStep, None]:
        self.told.append(request)
        yield ChangeStep(says="trying the ports")
        raise FelloeError("node_unreachable", "attic cannot be dialled as a hub")

    async def rotate(self, request: RotateRequest) -> KeysReplaced:
        self.told.append(request)
        return KeysReplaced(version=2, pin="00", overlap_until=0, here=True)

    async def export(self, request: RootExportRequest) -> None:
        raise RuntimeError(f"a bug that quotes {request}")


@pytest.fixture
def operations() -> RecordedHubs:
    return RecordedHubs()


async def test_the_hubs_are_asked_for_and_their_number_is_set(
    client: httpx.AsyncClient, operations: RecordedHubs
) -> None:
    assert msgspec.json.decode((await client.get("/hubs")).content, type=HubsView).survives == "survives all"
    assert (await client.post("/hubs/wanted", content=b'{"wanted": 3}')).status_code == 200
    assert operations.told == [HubsRequest(3)]


async def test_a_promotion_streams_its_steps_and_its_error(client: httpx.AsyncClient, operations: RecordedHubs) -> None:
    reply = await client.post("/hubs/promote", content=b'{"name": "attic"}')
    first, last = (msgspec.json.decode(line, type=ChangeStep) for line in reply.content.splitlines())
    assert operations.told == [NameRequest("attic")]
    assert first == ChangeStep(says="trying the ports")
    assert last.error is not None and last.error.code == "node_unreachable"


async def test_a_root_file_travels_in_the_body(client: httpx.AsyncClient, operations: RecordedHubs) -> None:
    request = RotateRequest(60.0, SealedRoot(b"-----BEGIN\n\x00", SECRET))
    reply = await client.post("/network/rotate", content=msgspec.json.encode(request))
    assert reply.status_code == 200
    assert operations.told == [request]


async def test_a_bug_tells_no_passphrase(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    reply = await client.post("/root/export", content=msgspec.json.encode(RootExportRequest("/x.pem", SECRET)))
    assert reply.status_code == 500
    assert SECRET not in reply.text + caplog.text


async def test_a_message_that_does_not_fit_is_refused_without_its_passphrase(client: httpx.AsyncClient) -> None:
    for body in (
        b'{"path": 1, "passphrase": "a long passphrase"}',
        b'{"path": "/x", "passphrase": ["a long passphrase"]}',
        b'{"path": "/x", "passphrase": "a long passphrase", "more": 1}',
        b'{"path": "/x", "passphrase": "a long passphrase"',
    ):
        reply = await client.post("/root/export", content=body)
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_value")
        assert SECRET not in reply.text


@pytest.mark.parametrize(
    "message",
    [
        SealedRoot(b"key", SECRET),
        RotateRequest(0.0, SealedRoot(b"key", SECRET)),
        RootExportRequest("/x", SECRET),
        RootRotateRequest(0.0, SealedRoot(b"key", SECRET), "/x", SECRET),
    ],
)
def test_no_message_shows_its_secrets(message: object) -> None:
    for text in (repr(message), str(message), f"{message}"):
        assert SECRET not in text and "key" not in text
