"""What nodes ask the hubs, over messages and over HTTPS, and what hubs tell everybody."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
from wire_case import Case, changed, more_json
from wire_roster import NODE

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId
from felloe.gateway.keys import KeyRecord
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import Credential
from felloe.mesh.join_token import Address, JoinToken, read_token, write_token
from felloe.mesh.join_wire import (
    ErrorBody,
    ErrorReply,
    Instance,
    JoinRequest,
    LeaveRequest,
    Left,
    Nonce,
    RenewRequest,
    Welcome,
    leave_statement,
    renewal_statement,
)
from felloe.mesh.membership import Membership
from felloe.mesh.roster_wire import RosterRequest
from felloe.mesh.services import HubClient, HubServices
from felloe.mesh.stream_wire import reply_subject

NETWORK = NetworkId("n" * 26)
HUB = NodeId("h" * 26)
NONCE = bytes(range(40))
SIGNATURE = bytes(range(64))


class _Line:
    """A hub's connection that brings one question and keeps the answer."""

    subject = "hub.roster"
    reply = reply_subject(NODE, "0f" * 16)
    headers = None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def subscribe(self, subject: str, handler: Any, **_: object) -> "_Line":
        del subject
        handler(self)
        return self

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        del subject, reply
        self.answer.set_result(data)

    async def request(self, subject: str, data: bytes, **_: object) -> bytes:
        del subject, data
        return self.data

    async def close(self) -> None:
        pass


def _answer_of_a_hub(outcome: RosterRequest | FelloeError) -> bytes:
    async def answer(_: RosterRequest) -> RosterRequest:
        if isinstance(outcome, FelloeError):
            raise outcome
        return outcome

    async def serve() -> bytes:
        line = _Line(msgspec.msgpack.encode(RosterRequest("after")))
        services = HubServices(cast(Connection, line))
        await services.serve("roster", RosterRequest, answer)
        async with asyncio.timeout(10):
            said = await line.answer
        await services.close()
        return said

    return asyncio.run(serve())


def _read_answer(data: bytes) -> Any:
    async def ask() -> Any:
        client = HubClient(cast(Connection, _Line(data)))
        try:
            return await client.ask("roster", RosterRequest(), RosterRequest)
        except FelloeError as error:
            return error

    return asyncio.run(ask())


def _grow_answer(content: Any) -> None:
    if content[0] == "s":
        content[1].append("new")
    content.append("new")


def _unknown_answer(content: Any) -> None:
    content[0] = "x"


def _read_answer_strictly(data: bytes) -> Any:
    answer = _read_answer(data)
    if isinstance(answer, FelloeError) and answer.code == "internal":
        raise answer
    return answer


def _welcome() -> Welcome:
    membership = Membership(
        network=NETWORK,
        node=NODE,
        name="attic",
        role="spoke",
        account="A" * 56,
        nats_urls=("tls://192.0.2.1:8472", "tls://[2001:db8::1]:8472"),
        hubs=("192.0.2.1:8471", "[2001:db8::1]:8471"),
    )
    credential = Credential(
        certificate="-----BEGIN CERTIFICATE-----\nnode\n-----END CERTIFICATE-----\n",
        user_token="e30.e30.AA",
        issued_at=1_790_000_000,
        expires_at=1_790_086_400,
        system_token="e30.e30.BB",
    )
    return Welcome(membership=membership, credential=credential, trust=b"a trust list", authority=b"signing keys")


def _grow_welcome(data: bytes) -> bytes:
    welcome = msgspec.json.decode(data)
    for part in (welcome, welcome["membership"], welcome["credential"]):
        part["of_a_newer_version"] = {"x": 1}
    return msgspec.json.encode(welcome)


def _keys() -> list[KeyRecord]:
    return [
        KeyRecord(
            id="0123456789ab",
            name="app",
            digest="ab" * 32,
            created=1_790_000_000,
            expires=1_800_000_000,
            rights=("metrics",),
        ),
        KeyRecord(id="ba9876543210", name="other", digest="cd" * 32, created=1_790_000_001),
    ]


def _grow_keys(data: bytes) -> bytes:
    return msgspec.json.encode([msgspec.json.decode(data)[0] | {"of_a_newer_version": 1}])


def _json(name: str, message: Any, grow: Callable[[bytes], bytes] = more_json) -> Case:
    kind = type(message)
    return Case(
        f"{name}.json",
        lambda: msgspec.json.encode(message),
        lambda data: msgspec.json.decode(data, type=kind),
        grow=grow,
    )


def _signed_text(name: str, text: bytes) -> Case:
    """Bytes that one side signs and the other makes anew to check, so they may not differ at all."""
    return Case(name, lambda: text, lambda _: text)


JOIN_TOKEN = JoinToken(
    addresses=(Address("192.0.2.1", 8471), Address("2001:db8::1", 8471)),
    pin=bytes(range(32)),
    id=bytes(range(10)),
    secret=bytes(range(50, 70)),
)

CASES = [
    Case(
        "service-answer",
        lambda: _answer_of_a_hub(RosterRequest("what came out")),
        _read_answer_strictly,
        grow=changed(_grow_answer),
        refuse=changed(_unknown_answer),
    ),
    Case(
        "service-failure",
        lambda: _answer_of_a_hub(FelloeError("overloaded", "too much", retry_after=2.5)),
        _read_answer_strictly,
        grow=changed(_grow_answer),
    ),
    Case(
        "join-token.txt",
        lambda: write_token(JOIN_TOKEN).encode(),
        lambda data: read_token(data.decode()),
        refuse=lambda data: b"fl2" + data[3:],
    ),
    _json(
        "join-request",
        JoinRequest(
            token=JOIN_TOKEN.id,
            secret=JOIN_TOKEN.secret,
            request="-----BEGIN CERTIFICATE REQUEST-----\nx\n-----END CERTIFICATE REQUEST-----\n",
            name="attic",
            version="0.1.0",
        ),
    ),
    _json("nonce", Nonce(NONCE)),
    _json(
        "renew-request",
        RenewRequest(node=NODE, nonce=NONCE, signature=SIGNATURE, version="0.1.0", addresses=("192.0.2.7", "attic")),
    ),
    _json("leave-request", LeaveRequest(node=NODE, nonce=NONCE, signature=SIGNATURE)),
    _signed_text("renewal-statement", renewal_statement(NETWORK, NODE, HUB, NONCE, "0.1.0", ("192.0.2.7", "attic"))),
    _signed_text("leave-statement", leave_statement(NETWORK, NODE, HUB, NONCE)),
    _json("left", Left(NODE)),
    _json("instance", Instance(NODE, "a random text")),
    _json("welcome", _welcome(), grow=_grow_welcome),
    _json("refusal", ErrorReply(ErrorBody("forbidden", "this node was removed", "invalid_request_error"))),
    Case(
        "api-keys.json",
        lambda: msgspec.json.encode(_keys()),
        lambda data: msgspec.json.decode(data, type=list[KeyRecord]),
        refuse=_grow_keys,
    ),
]
