"""Renewing and leaving over real TLS: who gets the network's signing keys, and who never does."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from join_house import VERSION, Hub, b64, id_of, join_with, listening, raw, serving

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh import certificates
from felloe.mesh.certificates import client_context, node_of_certificate, read_chain, server_context
from felloe.mesh.join_client import Welcomed, ask_instance, leave, renew
from felloe.mesh.join_token import Address
from felloe.mesh.join_wire import leave_statement, renewal_statement
from felloe.mesh.nats_jwt import read_token
from felloe.mesh.rotation import found, rotate, rotate_root

Now = Callable[[], float]


@dataclass
class Joined:
    """A member's side: its key and what it was given."""

    welcomed: Welcomed
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def node(self) -> NodeId:
        return id_of(self.key)

    async def renew(self, *hubs: Address, now: Now = time.time, **options: Any) -> Welcomed:
        membership = self.welcomed.membership
        if hubs:
            membership = msgspec.structs.replace(membership, hubs=tuple(map(str, hubs)))
        settings = {"version": VERSION} | options
        return await renew(membership, self.welcomed.trust, self.key, now=now, **settings)

    async def refusal(self, *hubs: Address, **options: Any) -> FelloeError:
        with pytest.raises(FelloeError) as caught:
            await self.renew(*hubs, **options)
        return caught.value


async def member(hub: Hub, role: str = "spoke") -> Joined:
    key = Ed25519PrivateKey.generate()
    return Joined(await join_with(await hub.token(role=role), key), key)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with serving(Hub(), tmp_path) as running:
        yield running


async def test_a_member_renews_also_after_its_credential_ran_out(hub: Hub) -> None:
    one = await member(hub)
    hub.clock.offset = 3600
    renewed = await one.renew(now=hub.clock)
    assert renewed.credential.issued_at >= one.welcomed.credential.issued_at + 3600
    assert renewed.credential.certificate != one.welcomed.credential.certificate
    assert renewed.authority is None


async def test_a_hub_that_renews_gets_the_signing_keys_and_its_addresses_in_its_certificate(hub: Hub) -> None:
    one = await member(hub, "hub")
    renewed = await one.renew(addresses=("attic.local", "10.0.0.7", "fd00::7"))
    assert renewed.authority is not None
    assert renewed.authority.to_bytes() == hub.authority.to_bytes()
    assert renewed.credential.system_token
    leaf = read_chain(renewed.credential.certificate)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "attic.local" in names.get_values_for_type(x509.DNSName)
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "fd00::7"]


async def test_a_spoke_that_was_promoted_becomes_a_hub_as_it_renews_and_a_demoted_hub_a_spoke(hub: Hub) -> None:
    one = await member(hub)
    await hub.members.set_role(one.node, "hub", hub.clock())
    promoted = await one.renew(addresses=("shed.local",))
    assert (promoted.membership.role, promoted.authority is not None) == ("hub", True)
    await hub.members.set_role(one.node, "spoke", hub.clock())
    demoted = await one.renew(addresses=("shed.local",))
    assert (demoted.membership.role, demoted.authority, demoted.credential.system_token) == ("spoke", None, "")
    leaf = read_chain(demoted.credential.certificate)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "shed.local" not in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("ahead", [0, 3600])
async def test_what_a_demoted_hub_renews_is_newer_than_its_demotion_by_whatever_clock(hub: Hub, ahead: float) -> None:
    one = await member(hub, "hub")
    listed = await hub.members.set_role(one.node, "spoke", time.time() + ahead)
    renewed = await one.renew()
    assert read_token(renewed.credential.user_token).issued_at > listed.demoted_at
    assert renewed.credential.issued_at <= time.time(), "the certificate is good by every clock"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a b",
        "*",
        "*.local",
        "a..b",
        "http://x",
        "10.0.0.1:80",
        "[::1]",
        "fe80::1%eth0",
        "-",
        "x" * 254,
        "a\0b",
        "é",
    ],
)
async def test_what_is_no_address_is_refused(hub: Hub, address: str) -> None:
    one = await member(hub, "hub")
    assert (await one.refusal(addresses=(address,))).code in ("invalid_value", "invalid_type")


async def test_nobody_gets_a_name_that_says_who_a_node_is(hub: Hub) -> None:
    one, other = await member(hub, "hub"), await member(hub)
    network = hub.trust.network
    for name in (
        certificates.node_tls_name(network, other.node),
        certificates.hub_tls_name(network).upper(),
        "felloe.internal.",
    ):
        assert (await one.refusal(addresses=(name,))).code == "invalid_value"
    assert (await one.refusal(addresses=("a.local",) * 9)).code == "invalid_type"


async def test_a_removed_node_neither_renews_nor_joins_again(hub: Hub) -> None:
    key, token = Ed25519PrivateKey.generate(), await hub.token(uses=5)
    one = Joined(await join_with(token, key), key)
    await hub.members.revoke(one.node, hub.clock())
    error = await one.refusal()
    assert (error.code, "removed" in error.detail) == ("forbidden", True)
    for again in (token, await hub.token()):
        with pytest.raises(FelloeError, match="removed"):
            await join_with(again, key)
    assert hub.invitations.all()[0].joined == (), "no use is lost on it"


async def test_only_the_key_itself_renews(hub: Hub) -> None:
    one = await member(hub)
    stranger = Ed25519PrivateKey.generate()
    for claimed in (one.node, id_of(stranger)):
        membership = msgspec.structs.replace(one.welcomed.membership, node=claimed)
        assert (await Joined(one.welcomed._replace(membership=membership), stranger).refusal()).code == "forbidden"


async def test_a_hub_of_another_network_cannot_renew(hub: Hub, tmp_path: Path) -> None:
    one = await member(hub)
    async with serving(Hub(), tmp_path) as other:
        assert (await one.refusal(other.address)).code == "wrong_network"
        assert b"".join(other.received) == b""


async def test_a_hub_that_refuses_everything_cannot_keep_a_node_out(hub: Hub, tmp_path: Path) -> None:
    one = await member(hub)
    async with serving(Hub(keys=hub.keys), tmp_path) as forgetful:
        assert (await one.refusal(forgetful.address)).code == "forbidden"
        renewed = await one.renew(forgetful.address, hub.address)
    assert renewed.membership.hubs[0] == str(hub.address)


@pytest.mark.parametrize("version", ["", "0.3.0", "1.0.0", "0.1.0\0x"])
async def test_a_version_too_far_away_does_not_renew(hub: Hub, version: str) -> None:
    error = await (await member(hub)).refusal(version=version)
    assert error.code == "version_refused"
    assert VERSION in error.detail


async def statuses(hub: Hub, one: Joined, statement: Callable[[bytes], bytes], **fields: object) -> int:
    """What the hub answers to a renewal that is signed otherwise."""
    async with hub.client() as client:
        nonce = msgspec.json.decode((await client.get("/v1/nonce")).content, type=dict[str, bytes])["nonce"]
        body = {
            "node": one.node,
            "nonce": b64(nonce),
            "signature": b64(one.key.sign(statement(nonce))),
            "version": VERSION,
        }
        return (await client.post("/v1/renew", json=body | fields)).status_code


async def test_a_renewal_is_signed_for_this_network_node_hub_nonce_version_and_addresses(hub: Hub) -> None:
    one = await member(hub)
    network, this = hub.trust.network, id_of(hub.key)
    other = found(time.time()).trust.network

    def good(nonce: bytes) -> bytes:
        return renewal_statement(network, one.node, this, nonce, VERSION, ())

    assert await statuses(hub, one, good) == 200
    assert await statuses(hub, one, lambda nonce: nonce) == 403, "a bare nonce"
    assert await statuses(hub, one, lambda n: renewal_statement(other, one.node, this, n, VERSION, ())) == 403
    assert await statuses(hub, one, lambda n: renewal_statement(network, one.node, one.node, n, VERSION, ())) == 403
    assert await statuses(hub, one, lambda n: leave_statement(network, one.node, this, n)) == 403
    assert await statuses(hub, one, good, version="0.1.1") == 403
    assert await statuses(hub, one, good, addresses=["evil.example"]) == 403
    assert await statuses(hub, one, good, nonce=b64(bytes(40))) == 403, "a nonce of another hub"
    assert await statuses(hub, one, good, nonce="") == 403
    hub.clock.offset = 60
    assert await statuses(hub, one, lambda n: good(n.replace(n[:8], b"\0" * 8))) == 403


async def test_a_nonce_is_good_for_a_minute(hub: Hub) -> None:
    one = await member(hub)
    async with hub.client() as client:
        nonce = msgspec.json.decode((await client.get("/v1/nonce")).content, type=dict[str, bytes])["nonce"]
        statement = renewal_statement(hub.trust.network, one.node, id_of(hub.key), nonce, VERSION, ())
        body = {"node": one.node, "nonce": b64(nonce), "signature": b64(one.key.sign(statement)), "version": VERSION}
        assert (await client.post("/v1/renew", json=body)).status_code == 200
        hub.clock.offset = 120
        assert (await client.post("/v1/renew", json=body)).status_code == 403


def impostor_files(hub: Hub, folder: Path, claims: Ed25519PrivateKey) -> tuple[Path, Path, Ed25519PrivateKey]:
    """What a thief of the issuing key makes: a certificate with the names of `claims` for a key of the thief's own."""
    key = Ed25519PrivateKey.generate()
    (issuer,) = read_chain(hub.authority.issuer)
    real = read_chain(hub.authority.issue(raw(claims), "hub", time.time()).certificate)[0]
    forged = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    for extension in real.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        forged = forged.add_extension(value, extension.critical)
    chain, secret = folder / "forged.pem", folder / "forged.key"
    chain.write_text(certificates.pem(forged.sign(hub.authority._issuer_key, None), issuer))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain, secret, key


async def test_a_stolen_hub_cannot_fetch_the_new_keys_in_another_hubs_name(hub: Hub, tmp_path: Path) -> None:
    """It still has an issuer that the sleeping hub trusts, and stands between it and a hub that has the new keys."""
    one = await member(hub, "hub")
    chain, secret, _ = impostor_files(hub, tmp_path, claims=hub.key)
    hub.replace(rotate(hub.keys, time.time(), 3600))
    answers: list[int] = []

    async def relay(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[dict[str, Any]], Any]) -> None:
        body = (await receive()).get("body", b"")
        async with hub.client() as client:
            headers = {"Content-Type": "application/json"} if body else {}
            answer = await client.request(scope["method"], scope["path"], content=body, headers=headers)
        if scope["method"] == "POST":
            answers.append(answer.status_code)
        await send({"type": "http.response.start", "status": answer.status_code, "headers": []})
        await send({"type": "http.response.body", "body": answer.content})

    async with listening(relay, server_context(chain, secret)) as port:
        error = await one.refusal(Address("127.0.0.1", port))
    assert answers == [403], "the hub sees that the signature is for another one"
    assert error.code == "forbidden"


async def test_nothing_is_signed_over_to_a_hub_that_takes_the_place_of_another_between_two_requests(
    hub: Hub, tmp_path: Path
) -> None:
    one = await member(hub, "hub")
    chain, secret, _ = impostor_files(hub, tmp_path, claims=hub.key)
    heard: list[bytes] = []

    async def listen(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[dict[str, Any]], Any]) -> None:
        heard.append((await receive()).get("body", b""))

    async with listening(listen, server_context(chain, secret)) as impostor:
        targets = iter([hub.port])

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", next(targets, impostor))

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)
            writer.close()

        switch = await asyncio.start_server(forward, "127.0.0.1", 0)
        error = await one.refusal(Address("127.0.0.1", switch.sockets[0].getsockname()[1]))
        switch.close()
    assert error.code == "wrong_network"
    assert b"".join(heard) == b""


async def test_a_node_that_slept_through_new_keys_and_a_new_root_still_renews(hub: Hub) -> None:
    one = await member(hub)
    for replace in (rotate, rotate_root, rotate_root, rotate):
        hub.replace(replace(hub.keys, time.time(), 0))
    renewed = await one.renew()
    assert renewed.trust == hub.trust
    assert renewed.membership.network == one.welcomed.membership.network


async def test_new_keys_reach_a_hub_as_it_renews(hub: Hub) -> None:
    one = await member(hub, "hub")
    hub.replace(rotate(hub.keys, time.time(), 3600))
    renewed = await one.renew()
    assert renewed.authority is not None
    assert (renewed.authority.version, renewed.trust.version) == (2, 2)


async def test_a_revoked_hub_cannot_lead_a_node_back_to_old_keys(hub: Hub, tmp_path: Path) -> None:
    one = await member(hub)
    stolen = Hub(keys=hub.keys, state=hub.state)
    hub.replace(rotate(hub.keys, time.time(), 0))
    informed = Joined(await one.renew(), one.key)
    async with serving(stolen, tmp_path):
        assert (await informed.refusal(stolen.address)).code == "wrong_network"
        assert b"".join(stolen.received) == b""
        # One that has not heard of it yet is served by the stolen hub, until it meets another one.
        assert (await one.renew(stolen.address)).trust == stolen.trust


async def test_signing_keys_that_the_trust_list_does_not_name_are_not_taken(hub: Hub, tmp_path: Path) -> None:
    one = await member(hub, "hub")
    strange = found(time.time()).authority.to_bytes()

    class Lying:
        def to_bytes(self) -> bytes:
            return strange

        def __getattr__(self, name: str) -> Any:
            return getattr(hub.authority, name)

    for wrong in (strange, b"damaged"):
        strange = wrong
        liar = Hub(keys=hub.keys._replace(authority=Lying()), state=hub.state)
        async with serving(liar, tmp_path):
            assert (await one.refusal(liar.address)).code == "wrong_network"


async def test_a_forged_trust_list_in_the_answer_spoils_it(hub: Hub, tmp_path: Path) -> None:
    one = await member(hub)
    for wrong in (found(time.time()).trust, rotate(found(time.time()), time.time(), 0).trust):
        liar = Hub(keys=hub.keys, state=hub.state)
        async with serving(liar, tmp_path):
            liar.keys = hub.keys._replace(trust=wrong)
            assert (await one.refusal(liar.address)).code == "wrong_network"
            assert (await one.renew(liar.address, hub.address)).trust == hub.trust


async def test_a_node_that_leaves_is_a_member_no_more(hub: Hub) -> None:
    one = await member(hub)
    membership, trust = one.welcomed.membership, one.welcomed.trust
    await leave(membership, trust, one.key, now=time.time)
    assert hub.members.is_revoked(one.node)
    await leave(membership, trust, one.key, now=time.time)
    assert (await one.refusal()).code == "forbidden"


async def test_nobody_makes_another_node_leave(hub: Hub) -> None:
    one, other = await member(hub), await member(hub)
    network, this = hub.trust.network, id_of(hub.key)
    with pytest.raises(FelloeError, match="signed"):
        await leave(one.welcomed.membership, one.welcomed.trust, other.key, now=time.time)
    async with hub.client() as client:
        nonce = msgspec.json.decode((await client.get("/v1/nonce")).content, type=dict[str, bytes])["nonce"]
        for statement in (
            renewal_statement(network, one.node, this, nonce, VERSION, ()),
            leave_statement(network, one.node, other.node, nonce),
            leave_statement(network, other.node, this, nonce),
            nonce,
        ):
            body = {"node": one.node, "nonce": b64(nonce), "signature": b64(one.key.sign(statement))}
            assert (await client.post("/v1/leave", json=body)).status_code == 403
        for body in ({}, {"node": 1}):
            assert (await client.post("/v1/leave", json=body)).status_code == 400
    assert not hub.members.is_revoked(one.node)


async def test_a_hub_tells_which_process_it_is(hub: Hub, tmp_path: Path) -> None:
    instance = await ask_instance(hub.address, hub.trust, now=time.time)
    assert (instance.node, instance.instance) == (id_of(hub.key), "this process")
    async with serving(Hub(), tmp_path) as other:
        with pytest.raises(FelloeError, match="wrong_network"):
            await ask_instance(other.address, hub.trust, now=time.time)


async def test_a_spoke_cannot_say_that_it_is_a_hub(hub: Hub, tmp_path: Path) -> None:
    async with serving(Hub(keys=hub.keys), tmp_path, role="spoke") as spoke:
        with pytest.raises(FelloeError, match="wrong_network"):
            await ask_instance(spoke.address, hub.trust, now=time.time)


async def test_tls_trusts_the_listed_issuers_and_not_all_that_the_root_has_signed(hub: Hub) -> None:
    replaced = rotate(hub.keys, time.time(), 0)
    for issuers, trusted in (
        (hub.authority.issuer, True),
        (replaced.authority.issuer + hub.authority.issuer, True),
        (replaced.authority.issuer, False),
        (found(time.time()).authority.issuer, False),
    ):
        context = client_context(issuers)
        context.check_hostname = False
        async with httpx.AsyncClient(verify=context, base_url=f"https://{hub.address}", trust_env=False) as client:
            try:
                assert (await client.get("/v1/ca")).status_code == 200
            except httpx.ConnectError:
                assert not trusted
            else:
                assert trusted


def test_a_nodes_id_is_read_from_the_key_of_a_certificate() -> None:
    keys, key = found(time.time()), Ed25519PrivateKey.generate()
    leaf = read_chain(keys.authority.issue(raw(key), "spoke", time.time()).certificate)[0]
    assert node_of_certificate(leaf.public_bytes(Encoding.DER)) == id_of(key)
    for wrong in (b"", b"x", leaf.public_bytes(Encoding.DER)[:-1]):
        with pytest.raises(FelloeError, match="wrong_network"):
            node_of_certificate(wrong)
