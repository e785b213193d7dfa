"""Joining and renewing over real TLS: what works, and everything that must be refused before a secret leaves."""

import asyncio
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, hub_tls_name, make_request, server_context
from felloe.mesh.invitations import Invitations
from felloe.mesh.join_client import join, renew
from felloe.mesh.join_service import HubAddresses, JoinService
from felloe.mesh.join_token import Address, JoinToken, write_token
from felloe.mesh.join_wire import renewal_statement
from felloe.mesh.membership import MemberList, Membership
from felloe.mesh.nats_jwt import read_token


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def id_of(key: Ed25519PrivateKey) -> NodeId:
    return NodeId(id_from_public_key(raw(key)))


def nothing(data: bytes) -> None:
    """A store for tests that need none."""


@dataclass
class Clock:
    offset: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


@dataclass
class Hub:
    authority: NetworkAuthority
    invitations: Invitations
    members: MemberList
    clock: Clock
    port: int = 0
    received: list[bytes] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def token(
        self, *, uses: int = 1, seconds: float = 3600, role: Role = "spoke", via: tuple[Address, ...] = ()
    ) -> str:
        invitation, secret = self.invitations.invite(role, uses, seconds, self.clock())
        return write_token(JoinToken(via or (self.address,), self.authority.pin, invitation.id, secret))

    def client(self) -> httpx.AsyncClient:
        """A client that trusts the hub, for bodies that the product's own client never sends."""
        context = client_context(self.authority.root)
        context.check_hostname = False
        return httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{self.port}", trust_env=False)


def new_hub() -> Hub:
    return Hub(NetworkAuthority.create(time.time()), Invitations(nothing), MemberList(nothing), Clock())


@asynccontextmanager
async def serving(
    hub: Hub, folder: Path, *, key: Ed25519PrivateKey | None = None, role: Role = "hub", root: str | None = None
) -> AsyncIterator[Hub]:
    """Serve the hub's join port; `root` replaces what /v1/ca gives, as somebody in the middle would."""
    key = key or Ed25519PrivateKey.generate()
    folder = folder / id_of(key)
    folder.mkdir()
    (folder / "chain.pem").write_text(hub.authority.issue(raw(key), role, time.time()).certificate)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    service = JoinService(
        hub.authority,
        hub.invitations,
        hub.members,
        hubs=lambda: HubAddresses(("tls://127.0.0.1:8472",), (str(hub.address),)),
        now=hub.clock,
    ).app()

    async def app(scope: dict[str, object], receive: Callable[[], Awaitable[dict[str, bytes]]], send: object) -> None:
        async def overhear() -> dict[str, bytes]:
            message = await receive()
            hub.received.append(message.get("body", b""))
            return message

        if root is not None and scope.get("path") == "/v1/ca":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": root.encode()})
            return
        await service(scope, overhear, send)

    listener = socket.create_server(("127.0.0.1", 0))
    hub.port = listener.getsockname()[1]
    context = server_context(folder / "chain.pem", folder / "key.pem")
    config = uvicorn.Config(
        app, ssl_context_factory=lambda _config, _default: context, log_config=None, lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(config)
    config.load()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield hub
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with serving(new_hub(), tmp_path) as running:
        yield running


async def join_with(token: str, key: Ed25519PrivateKey | None = None, name: str = "shed") -> Membership:
    key = key or Ed25519PrivateKey.generate()
    membership, _ = await join(token, key, name=name, version="0.1.0", now=time.time)
    return membership


async def refusal(token: str, key: Ed25519PrivateKey | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await join_with(token, key)
    return caught.value


async def test_a_node_joins_with_its_own_key_and_gets_a_short_lived_credential(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    membership, credential = await join(hub.token(), key, name="shed", version="0.1.0", now=time.time)
    assert (membership.network, membership.node, membership.role) == (hub.authority.network, id_of(key), "spoke")
    assert membership.root == hub.authority.root
    assert membership.nats_urls == ("tls://127.0.0.1:8472",)
    assert membership.hubs == (str(hub.address),)
    assert read_token(credential.user_token).name == id_of(key)
    assert 0 < credential.expires_at - time.time() <= 24 * 3600
    assert credential.system_token == ""
    assert [(member.id, member.name) for member in hub.members.all()] == [(id_of(key), "shed")]


async def test_the_role_comes_from_the_invitation(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    membership, credential = await join(hub.token(role="hub"), key, name="attic", version="1", now=time.time)
    assert membership.role == "hub"
    assert credential.system_token


async def test_a_used_up_token_is_refused_by_name_and_to_its_own_user_it_is_not(hub: Hub) -> None:
    key, token = Ed25519PrivateKey.generate(), hub.token()
    await join_with(token, key)
    error = await refusal(token)
    assert (error.code, "used up" in error.detail) == ("token_refused", True)
    assert (await join_with(token, key)).node == id_of(key), "its first answer may have been lost"
    assert len(hub.members.all()) == 1


async def test_of_many_that_present_a_one_use_token_at_once_exactly_one_joins(hub: Hub) -> None:
    token = hub.token()
    results = await asyncio.gather(*(join_with(token) for _ in range(8)), return_exceptions=True)
    joined = [result for result in results if isinstance(result, Membership)]
    refused = [result.code for result in results if isinstance(result, FelloeError)]
    assert len(joined) == 1
    assert refused == ["token_refused"] * 7
    assert len(hub.members.all()) == 1


async def test_an_expired_and_a_withdrawn_token_are_refused_with_the_reason(hub: Hub) -> None:
    expired, withdrawn = hub.token(seconds=60), hub.token(seconds=1000)
    hub.invitations.withdraw(hub.invitations.all()[0].id)
    hub.clock.offset = 61
    assert "expired" in (await refusal(expired)).detail
    assert "withdrawn" in (await refusal(withdrawn)).detail


async def test_who_does_not_know_the_secret_cannot_tell_a_token_that_exists_from_one_that_does_not(hub: Hub) -> None:
    invitation, secret = hub.invitations.invite("spoke", 1, 60, hub.clock())
    answers = set()
    for identifier, guess in ((invitation.id, bytes(20)), (bytes(10), secret), (bytes(10), bytes(20))):
        token = write_token(JoinToken((hub.address,), hub.authority.pin, identifier, guess))
        error = await refusal(token)
        answers.add((error.code, error.detail))
    hub.clock.offset = 100
    error = await refusal(write_token(JoinToken((hub.address,), hub.authority.pin, invitation.id, bytes(20))))
    assert answers == {(error.code, error.detail)}
    assert error.code == "token_refused"


async def test_a_mistyped_or_cut_token_is_refused_before_any_connection(hub: Hub) -> None:
    token = hub.token()
    for wrong in (token[:-3], token[:40] + ("a" if token[40] != "a" else "b") + token[41:], "hello", ""):
        assert (await refusal(wrong)).code == "bad_token"
    assert hub.received == []


async def test_somebody_in_the_middle_with_their_own_root_gets_no_byte_of_the_secret(hub: Hub, tmp_path: Path) -> None:
    async with serving(new_hub(), tmp_path) as middle:
        error = await refusal(hub.token(via=(middle.address,)))
        assert error.code == "wrong_network"
        assert b"".join(middle.received) == b""


async def test_somebody_in_the_middle_who_replays_the_real_root_gets_no_byte_of_the_secret(
    hub: Hub, tmp_path: Path
) -> None:
    async with serving(new_hub(), tmp_path, root=hub.authority.root + hub.authority.issuer) as middle:
        error = await refusal(hub.token(via=(middle.address,)))
        assert error.code == "wrong_network"
        assert b"".join(middle.received) == b""


async def test_a_spoke_of_the_network_cannot_pose_as_a_hub(hub: Hub, tmp_path: Path) -> None:
    impostor = Hub(hub.authority, Invitations(nothing), MemberList(nothing), Clock())
    async with serving(impostor, tmp_path, role="spoke"):
        error = await refusal(hub.token(via=(impostor.address,)))
        assert error.code == "wrong_network"
        assert b"".join(impostor.received) == b""


async def test_a_forged_root_with_the_pinned_key_is_refused(hub: Hub, tmp_path: Path) -> None:
    real = x509.load_pem_x509_certificate(hub.authority.root.encode())
    forged = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.subject)
        .public_key(real.public_key())
        .serial_number(1)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
        .sign(Ed25519PrivateKey.generate(), None)
    )
    async with serving(new_hub(), tmp_path, root=forged.public_bytes(Encoding.PEM).decode()) as middle:
        assert (await refusal(hub.token(via=(middle.address,)))).code == "wrong_network"


async def test_what_answers_need_not_be_a_hub_at_all(hub: Hub, tmp_path: Path) -> None:
    for root in ("<html>hello</html>", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "x" * 300_000):
        async with serving(new_hub(), tmp_path, root=root) as other:
            error = await refusal(hub.token(via=(other.address,)))
            assert error.code in ("wrong_network", "network_unreachable")


async def test_it_goes_on_to_the_next_address(hub: Hub, tmp_path: Path) -> None:
    async with serving(new_hub(), tmp_path) as middle:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = Address("127.0.0.1", closed.getsockname()[1])
            assert (await refusal(hub.token(via=(dead,)))).code == "network_unreachable"
            assert (await refusal(hub.token(via=(middle.address, dead)))).code == "wrong_network"
            membership = await join_with(hub.token(via=(dead, middle.address, hub.address)))
    assert membership.hubs[0] == str(hub.address)


async def test_a_peer_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.mesh.join_client._EXCHANGE_SECONDS", 0.05)
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    address = Address("127.0.0.1", silent.sockets[0].getsockname()[1])
    assert (await refusal(hub.token(via=(address,)))).code == "network_unreachable"
    silent.close()
    for writer in held:
        writer.transport.abort()


async def test_a_member_renews_also_after_its_credential_ran_out(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    membership, first = await join(hub.token(), key, name="shed", version="1", now=hub.clock)
    hub.clock.offset = 3600
    _, second = await renew(membership, key, now=hub.clock)
    assert second.issued_at >= first.issued_at + 3600
    assert second.certificate != first.certificate


async def test_a_removed_node_neither_renews_nor_joins_again(hub: Hub) -> None:
    key, token = Ed25519PrivateKey.generate(), hub.token(uses=5)
    membership, _ = await join(token, key, name="shed", version="1", now=time.time)
    hub.members.revoke(id_of(key), hub.clock())
    with pytest.raises(FelloeError, match="removed") as caught:
        await renew(membership, key, now=time.time)
    assert caught.value.code == "forbidden"
    assert (await refusal(token, key)).code == "forbidden"
    assert (await refusal(hub.token(), key)).code == "forbidden"
    assert hub.invitations.all()[0].joined == (), "no use is lost on it"


async def test_only_the_key_itself_renews(hub: Hub) -> None:
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    membership = await join_with(hub.token(), key)
    for claimed in (id_of(key), id_of(stranger)):
        with pytest.raises(FelloeError) as caught:
            await renew(msgspec.structs.replace(membership, node=claimed), stranger, now=time.time)
        assert caught.value.code == "forbidden"


async def test_a_hub_of_another_network_cannot_renew(hub: Hub, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    membership = await join_with(hub.token(), key)
    async with serving(new_hub(), tmp_path) as other:
        with pytest.raises(FelloeError) as caught:
            await renew(msgspec.structs.replace(membership, hubs=(str(other.address),)), key, now=time.time)
    assert caught.value.code == "wrong_network"


async def test_a_renewal_needs_a_fresh_nonce_of_this_hub_and_a_statement_for_this_network(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    membership = await join_with(hub.token(), key)

    async def status(client: httpx.AsyncClient, nonce: bytes, statement: bytes) -> int:
        body = {"node": membership.node, "nonce": b64(nonce), "signature": b64(key.sign(statement))}
        return (await client.post("/v1/renew", json=body)).status_code

    async with hub.client() as client:
        nonce = msgspec.json.decode((await client.get("/v1/nonce")).content, type=dict[str, bytes])["nonce"]
        good = renewal_statement(hub.authority.network, membership.node, nonce)
        assert await status(client, nonce, good) == 200
        assert await status(client, nonce, nonce) == 403, "a bare nonce"
        assert await status(client, nonce, good.replace(membership.network.encode(), b"other")) == 403
        assert await status(client, nonce[:-1] + bytes([nonce[-1] ^ 1]), good) == 403, "a nonce of another hub"
        assert await status(client, b"", good) == 403
        hub.clock.offset = 120
        assert await status(client, nonce, good) == 403, "too old"


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def good_body(hub: Hub, key: Ed25519PrivateKey | None = None) -> dict[str, object]:
    invitation, secret = hub.invitations.invite("spoke", 1, 3600, hub.clock())
    return {
        "token": b64(invitation.id),
        "secret": b64(secret),
        "request": make_request(key or Ed25519PrivateKey.generate()),
        "name": "shed",
        "version": "0.1.0",
    }


def request_without_proof() -> str:
    """A request for one key, signed by another."""
    key = Ed25519PrivateKey.generate()
    request = x509.load_pem_x509_csr(make_request(key).encode())
    der = bytearray(request.public_bytes(Encoding.DER))
    position = bytes(der).index(raw(key))
    der[position : position + 32] = raw(Ed25519PrivateKey.generate())
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{b64(bytes(der))}\n-----END CERTIFICATE REQUEST-----\n"


def request_of_another_kind() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("request", request_without_proof()),
        ("request", request_of_another_kind()),
        ("request", "not PEM"),
        ("request", "x" * 5000),
        ("request", 7),
        ("token", "not base64!"),
        ("token", None),
        ("secret", ["a"]),
        ("secret", b64(bytes(65))),
        ("name", ""),
        ("name", "x" * 65),
        ("name", "bell\x07"),
        ("name", "\x1b[31mred"),
        ("name", " padded "),
        ("name", "right\u202eleft"),
        ("version", "1; drop"),
        ("version", "1\n"),
        ("surprise", 1),
    ],
)
async def test_a_wrong_field_is_refused_and_costs_no_use(hub: Hub, field_name: str, value: object) -> None:
    body = good_body(hub) | {field_name: value}
    async with hub.client() as client:
        answer = await client.post("/v1/join", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_type", "invalid_value")
    assert hub.invitations.all()[0].joined == ()
    assert hub.members.all() == ()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[" * 10_000, "invalid_type"),
        (b"\xff\xfe", "invalid_type"),
        (b"null", "invalid_type"),
        (b'{"name": "\xed\xa0\x80"}', "invalid_json"),
        (b"x" * 20_000, "body_too_large"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(hub: Hub, body: bytes, code: str) -> None:
    async with hub.client() as client:
        answer = await client.post("/v1/join", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["code"] in (code, "invalid_json")


async def test_encoded_bodies_other_types_and_other_paths_are_refused(hub: Hub) -> None:
    async with hub.client() as client:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert (await client.post("/v1/join", content=b"{}", headers=headers)).status_code == 415
        assert (await client.post("/v1/join", content=b"{}")).status_code == 415
        assert (await client.get("/v1/join")).json()["error"]["code"] == "method_not_allowed"
        assert (await client.get("/docs")).json()["error"]["code"] == "not_found"


async def test_an_endless_body_is_cut(hub: Hub) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 4096
            yield b" " * 4096

    async with hub.client() as client:
        try:
            answer = await client.post("/v1/join", content=endless(), headers={"Content-Type": "application/json"})
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the hub hung up in mid-body
    assert sent < 50_000_000


async def test_a_body_that_trickles_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.mesh.join_service._BODY_SECONDS", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with hub.client() as client:
        answer = asyncio.create_task(
            client.post("/v1/join", content=trickle(), headers={"Content-Type": "application/json"})
        )
        async with asyncio.timeout(5):
            while not hub.received:
                await asyncio.sleep(0.01)
        reader, writer = await raw_connection(hub)
        writer.write(
            b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
        writer.transport.abort()
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def raw_connection(hub: Hub) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = client_context(hub.authority.root)
    name = hub_tls_name(hub.authority.network)
    return await asyncio.open_connection("127.0.0.1", hub.port, ssl=context, server_hostname=name)


async def test_an_address_that_keeps_failing_has_to_wait(hub: Hub) -> None:
    body = good_body(hub) | {"secret": b64(bytes(20))}
    async with hub.client() as client:
        for _ in range(10):
            assert (await client.post("/v1/join", json=body)).status_code == 403
        answer = await client.post("/v1/join", json=body)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 61
        assert (await refusal(hub.token())).code == "rate_limited"
        hub.clock.offset = 61
        assert (await client.post("/v1/join", json=good_body(hub))).status_code == 200


async def test_names_in_the_certificate_request_are_ignored(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    wanted = x509.SubjectAlternativeName(
        [x509.DNSName(hub_tls_name(hub.authority.network)), x509.UniformResourceIdentifier("spiffe://x/role/hub")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")]))
        .add_extension(wanted, critical=False)
        .sign(key, None)
    )
    body = good_body(hub) | {"request": request.public_bytes(Encoding.PEM).decode()}
    async with hub.client() as client:
        answer = (await client.post("/v1/join", json=body)).json()
    leaf = x509.load_pem_x509_certificates(answer["credential"]["certificate"].encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{hub.authority.network}/node/{id_of(key)}",
        f"spiffe://{hub.authority.network}/role/spoke",
    ]
    assert names.get_values_for_type(x509.DNSName) == [f"{id_of(key)}.{hub.authority.network}.felloe.internal"]
    assert "admin" not in leaf.subject.rfc4514_string()


async def test_a_use_that_cannot_be_stored_is_not_acknowledged(tmp_path: Path) -> None:
    full = False

    def save(data: bytes) -> None:
        if full:
            raise FelloeError("disk_full", "no room")

    broken = Hub(NetworkAuthority.create(time.time()), Invitations(save), MemberList(nothing), Clock())
    async with serving(broken, tmp_path) as hub:
        token = hub.token()
        full = True
        assert (await refusal(token)).code == "disk_full"
        full = False
        assert await join_with(token)


async def test_nobody_gets_in_without_tls(hub: Hub) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"CERTIFICATE" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_tls_older_than_1_3_is_refused(hub: Hub) -> None:
    context = client_context(hub.authority.root)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection(
            "127.0.0.1", hub.port, ssl=context, server_hostname=hub_tls_name(hub.authority.network)
        )
