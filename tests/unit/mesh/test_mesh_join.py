"""Joining over real TLS: what works, and everything that must be refused before a secret leaves."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from join_house import VERSION, Hub, b64, id_of, join_with, raw, serving

from felloe.domain.errors import FelloeError
from felloe.mesh.certificate_requests import make_request
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.join_client import Welcomed
from felloe.mesh.join_token import Address, JoinToken, write_token
from felloe.mesh.nats_jwt import read_token
from felloe.mesh.rotation import found, rotate, rotate_root
from waiting import until


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with serving(Hub(), tmp_path) as running:
        yield running


async def refusal(token: str, key: Ed25519PrivateKey | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await join_with(token, key)
    return caught.value


async def test_a_node_joins_with_its_own_key_and_gets_a_short_lived_credential(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    membership, credential, trust, authority = await join_with(await hub.token(), key)
    assert (membership.network, membership.node, membership.role) == (hub.authority.network, id_of(key), "spoke")
    assert (trust, authority) == (hub.trust, None)
    assert membership.nats_urls == ("tls://127.0.0.1:8472",)
    assert membership.hubs == (str(hub.address),)
    assert read_token(credential.user_token).name == id_of(key)
    assert 0 < credential.expires_at - time.time() <= 24 * 3600
    assert credential.system_token == ""
    assert [(member.id, member.name) for member in hub.members.all()] == [(id_of(key), "shed")]


async def test_the_role_comes_from_the_invitation(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    welcomed = await join_with(await hub.token(role="hub"), key)
    assert welcomed.membership.role == "hub"
    assert welcomed.credential.system_token
    assert welcomed.authority is None, "only a renewal is bound to the hub that answers it"


async def test_a_member_that_joins_once_more_keeps_its_role(hub: Hub) -> None:
    key = Ed25519PrivateKey.generate()
    await join_with(await hub.token(role="hub"), key)
    assert (await join_with(await hub.token(), key)).membership.role == "hub"


async def test_a_stolen_issuer_that_is_no_longer_trusted_gets_no_byte_of_the_secret(hub: Hub, tmp_path: Path) -> None:
    stolen = Hub(keys=hub.keys)
    hub.replace(rotate(hub.keys, time.time(), 0))
    async with serving(stolen, tmp_path, offered_trust=hub.trust.encoded):
        error = await refusal(await hub.token(via=(stolen.address,)))
        assert error.code == "wrong_network"
        assert b"".join(stolen.received) == b""


async def test_a_token_from_before_the_root_was_replaced_works_in_the_overlap_and_is_then_refused_by_name(
    hub: Hub,
) -> None:
    old = await hub.token(uses=5)
    hub.replace(rotate_root(hub.keys, time.time(), 3600))
    assert (await join_with(old)).trust == hub.trust
    assert (await join_with(await hub.token())).trust == hub.trust
    hub.replace(rotate_root(hub.keys, time.time(), 0))
    hub.received.clear()
    error = await refusal(old)
    assert (error.code, "ask for a new invitation" in error.detail) == ("token_refused", True)
    assert b"".join(hub.received) == b"", "the secret stays here"
    unknown = write_token(JoinToken((hub.address,), found(time.time()).root.pin, bytes(10), bytes(20)))
    assert (await refusal(unknown)).code == "wrong_network"


async def test_a_stranger_who_calls_the_token_old_does_not_stop_the_way_to_the_next_address(
    hub: Hub, tmp_path: Path
) -> None:
    replaced = rotate_root(hub.keys, time.time(), 0)
    async with serving(Hub(), tmp_path, offered_trust=replaced.trust.encoded) as liar:
        assert await join_with(await hub.token(via=(liar.address, hub.address)))


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0", "9", "0.0.x"])
async def test_a_version_too_far_away_is_refused_by_name_and_costs_no_use(hub: Hub, version: str) -> None:
    body = (await good_body(hub)) | {"version": version}
    async with hub.client() as client:
        failure = (await client.post("/v1/join", json=body)).json()["error"]
    assert failure["code"] == "version_refused"
    assert version in failure["message"]
    assert VERSION in failure["message"]
    assert hub.invitations.all()[0].joined == ()


async def test_a_used_up_token_is_refused_by_name_and_to_its_own_user_it_is_not(hub: Hub) -> None:
    key, token = Ed25519PrivateKey.generate(), await hub.token()
    await join_with(token, key)
    error = await refusal(token)
    assert (error.code, "used up" in error.detail) == ("token_refused", True)
    assert (await join_with(token, key)).membership.node == id_of(key), "its first answer may have been lost"
    assert len(hub.members.all()) == 1


async def test_of_many_that_present_a_one_use_token_at_once_exactly_one_joins(hub: Hub) -> None:
    token = await hub.token()
    results = await asyncio.gather(*(join_with(token) for _ in range(8)), return_exceptions=True)
    joined = [result for result in results if isinstance(result, Welcomed)]
    refused = [result.code for result in results if isinstance(result, FelloeError)]
    assert len(joined) == 1
    assert refused == ["token_refused"] * 7
    assert len(hub.members.all()) == 1


async def test_an_expired_and_a_withdrawn_token_are_refused_with_the_reason(hub: Hub) -> None:
    expired, withdrawn = await hub.token(seconds=60), await hub.token(seconds=1000)
    await hub.invitations.withdraw(hub.invitations.all()[0].id)
    hub.clock.offset = 61
    assert "expired" in (await refusal(expired)).detail
    assert "withdrawn" in (await refusal(withdrawn)).detail


async def test_who_does_not_know_the_secret_cannot_tell_a_token_that_exists_from_one_that_does_not(hub: Hub) -> None:
    invitation, secret = await hub.invitations.invite("spoke", 1, 60, hub.clock())
    answers = set()
    for identifier, guess in ((invitation.id, bytes(20)), (bytes(10), secret), (bytes(10), bytes(20))):
        token = write_token(JoinToken((hub.address,), hub.trust.pin, identifier, guess))
        error = await refusal(token)
        answers.add((error.code, error.detail))
    hub.clock.offset = 100
    error = await refusal(write_token(JoinToken((hub.address,), hub.trust.pin, invitation.id, bytes(20))))
    assert answers == {(error.code, error.detail)}
    assert error.code == "token_refused"


async def test_a_mistyped_or_cut_token_is_refused_before_any_connection(hub: Hub) -> None:
    token = await hub.token()
    for wrong in (token[:-3], token[:40] + ("a" if token[40] != "a" else "b") + token[41:], "hello", ""):
        assert (await refusal(wrong)).code == "bad_token"
    assert hub.received == []


async def test_somebody_in_the_middle_with_their_own_root_gets_no_byte_of_the_secret(hub: Hub, tmp_path: Path) -> None:
    async with serving(Hub(), tmp_path) as middle:
        error = await refusal(await hub.token(via=(middle.address,)))
        assert error.code == "wrong_network"
        assert b"".join(middle.received) == b""


async def test_somebody_in_the_middle_who_replays_the_real_root_gets_no_byte_of_the_secret(
    hub: Hub, tmp_path: Path
) -> None:
    async with serving(Hub(), tmp_path, offered_trust=hub.trust.encoded) as middle:
        error = await refusal(await hub.token(via=(middle.address,)))
        assert error.code == "wrong_network"
        assert b"".join(middle.received) == b""


async def test_a_spoke_of_the_network_cannot_pose_as_a_hub(hub: Hub, tmp_path: Path) -> None:
    impostor = Hub(keys=hub.keys)
    async with serving(impostor, tmp_path, role="spoke"):
        error = await refusal(await hub.token(via=(impostor.address,)))
        assert error.code == "wrong_network"
        assert b"".join(impostor.received) == b""


async def test_what_answers_need_not_be_a_hub_at_all(hub: Hub, tmp_path: Path) -> None:
    for offered in (b"<html>hello</html>", hub.authority.issuer.encode(), b"x" * 300_000, b"", b"{}"):
        async with serving(Hub(), tmp_path, offered_trust=offered) as other:
            error = await refusal(await hub.token(via=(other.address,)))
            assert error.code in ("trust_refused", "network_unreachable")


async def test_it_goes_on_to_the_next_address(hub: Hub, tmp_path: Path) -> None:
    async with serving(Hub(), tmp_path) as middle:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = Address("127.0.0.1", closed.getsockname()[1])
            assert (await refusal(await hub.token(via=(dead,)))).code == "network_unreachable"
            assert (await refusal(await hub.token(via=(middle.address, dead)))).code == "wrong_network"
            joined = await join_with(await hub.token(via=(dead, middle.address, hub.address)))
    assert joined.membership.hubs[0] == str(hub.address)


async def test_a_peer_that_never_answers_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.mesh.peer_client._EXCHANGE_SECONDS", 0.05)
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    address = Address("127.0.0.1", silent.sockets[0].getsockname()[1])
    assert (await refusal(await hub.token(via=(address,)))).code == "network_unreachable"
    silent.close()
    for writer in held:
        writer.transport.abort()


async def good_body(hub: Hub, key: Ed25519PrivateKey | None = None) -> dict[str, object]:
    invitation, secret = await hub.invitations.invite("spoke", 1, 3600, hub.clock())
    return {
        "token": b64(invitation.id),
        "secret": b64(secret),
        "request": make_request(key or Ed25519PrivateKey.generate()),
        "name": "shed",
        "version": VERSION,
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
        ("version", "x" * 33),
        ("version", "1\n"),
    ],
)
async def test_a_wrong_field_is_refused_and_costs_no_use(hub: Hub, field_name: str, value: object) -> None:
    body = (await good_body(hub)) | {field_name: value}
    async with hub.client() as client:
        answer = await client.post("/v1/join", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_type", "invalid_value")
    assert hub.invitations.all()[0].joined == ()
    assert hub.members.all() == ()


async def test_what_a_newer_version_adds_to_a_request_is_ignored(hub: Hub) -> None:
    body = await good_body(hub) | {"of_a_newer_version": [1]}
    async with hub.client() as client:
        assert (await client.post("/v1/join", json=body)).status_code == 200


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
    monkeypatch.setattr("felloe.mesh.join_http._BODY_SECONDS", 0.05)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with hub.client() as client:
        answer = asyncio.create_task(
            client.post("/v1/join", content=trickle(), headers={"Content-Type": "application/json"})
        )
        await until(lambda: hub.received, 5)
        reader, writer = await raw_connection(hub)
        writer.write(
            b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
        writer.transport.abort()
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def raw_connection(hub: Hub) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = client_context(hub.trust.issuers(time.time()))
    name = hub_tls_name(hub.authority.network)
    return await asyncio.open_connection("127.0.0.1", hub.port, ssl=context, server_hostname=name)


async def test_an_address_that_keeps_failing_has_to_wait(hub: Hub) -> None:
    body = (await good_body(hub)) | {"secret": b64(bytes(20))}
    async with hub.client() as client:
        for _ in range(10):
            assert (await client.post("/v1/join", json=body)).status_code == 403
        answer = await client.post("/v1/join", json=body)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 61
        assert (await refusal(await hub.token())).code == "rate_limited"
        hub.clock.offset = 61
        assert (await client.post("/v1/join", json=await good_body(hub))).status_code == 200


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
    body = (await good_body(hub)) | {"request": request.public_bytes(Encoding.PEM).decode()}
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
    async with serving(Hub(), tmp_path) as hub:
        token = await hub.token()
        hub.state.reachable = False
        assert (await refusal(token)).code == "network_unreachable"
        hub.state.reachable = True
        assert await join_with(token)


async def test_nobody_gets_in_without_tls(hub: Hub) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"CERTIFICATE" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_tls_older_than_1_3_is_refused(hub: Hub) -> None:
    context = client_context(hub.trust.issuers(time.time()))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection(
            "127.0.0.1", hub.port, ssl=context, server_hostname=hub_tls_name(hub.authority.network)
        )
