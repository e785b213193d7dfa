"""Names are looked up once and judged, TLS is checked against the name, and the environment may name a proxy."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from source_house import IMPATIENT, House
from source_servers import Content, SourceServer, redirect

from felloe.catalog.sources.address_rules import Address, AddressRules
from felloe.catalog.sources.web import Anonymous, Web
from felloe.domain.errors import FelloeError

LOOPBACK = ipaddress.ip_address("127.0.0.1")


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for a server called `host`, and for a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(path)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.load_verify_locations(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
    return serving, trusting


class Names:
    """Answers look-ups one after the other, the last one for ever."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = [ipaddress.ip_address(address) for address in addresses]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        del port
        self.asked.append(host)
        return (self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0],)


def web(own: list[str], names: Names, tls: ssl.SSLContext | None = None) -> Web:
    return Web(
        AddressRules(own), IMPATIENT, agent="t", tls=tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), look_up=names
    )


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[SourceServer, ssl.SSLContext, str]]:
    """A server with a certificate for hub.example, what trusts it, and its address by that name."""
    serving, trusting = certificate(tmp_path, "hub.example")
    async with SourceServer(serving).running() as server:
        yield server, trusting, server.url.replace("127.0.0.1", "hub.example")


async def test_a_name_that_leads_inside_is_not_dialled(server: SourceServer) -> None:
    client = web([], Names("127.0.0.1"))
    url = server.url.replace("http://127.0.0.1", "https://rebinding.example")
    with pytest.raises(FelloeError) as caught:
        await client.read(url, Anonymous(), most_bytes=10)
    await client.close()
    assert (caught.value.code, server.seen) == ("address_refused", [])


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(server: SourceServer) -> None:
    named = server.url.replace("127.0.0.1", "hub.example")
    names = Names("127.0.0.1", "192.0.2.1")
    client = web([named], names)
    server.paths["/x"] = Content(b"hello")
    assert (await client.read(f"{named}/x", Anonymous(), most_bytes=10)).content == b"hello"
    await client.close()
    assert names.asked == ["hub.example"]
    assert server.seen[0].headers["host"] == named.removeprefix("http://")


async def test_the_certificate_is_checked_against_the_name(secure: tuple[SourceServer, ssl.SSLContext, str]) -> None:
    server, trusting, url = secure
    other = url.replace("hub.example", "other.example")
    server.paths["/x"] = Content(b"hello")
    client = web([url, other], Names("127.0.0.1"), trusting)
    assert (await client.read(f"{url}/x", Anonymous(), most_bytes=10)).content == b"hello"
    with pytest.raises(FelloeError, match=r"other\.example shows a certificate that cannot be trusted"):
        await client.read(f"{other}/x", Anonymous(), most_bytes=10)
    await client.close()


async def test_https_does_not_lead_to_http_not_even_to_an_own_server(
    secure: tuple[SourceServer, ssl.SSLContext, str], server: SourceServer
) -> None:
    source, trusting, url = secure
    source.paths["/x"] = lambda _: redirect(f"{server.url}/x")
    client = web([url, server.url], Names("127.0.0.1"), trusting)
    with pytest.raises(FelloeError, match="from https to http"):
        await client.read(f"{url}/x", Anonymous(), most_bytes=10)
    await client.close()
    assert server.seen == []


async def test_a_proxy_of_the_environment_is_asked(
    house: House, server: SourceServer, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    house.allow("http://files.example")
    server.paths["/x.gguf"] = Content(model)
    assert house.content((await house.pull("http://files.example/x.gguf")).name) == model
    assert server.seen[0].headers["host"] == "files.example"
    with pytest.raises(FelloeError) as caught:
        await house.pull("http://169.254.169.254/x.gguf", "other")
    assert caught.value.code == "address_refused"


async def test_what_the_environment_exempts_goes_past_the_proxy(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", cdn.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.paths["/x.gguf"] = Content(model)
    assert house.content((await house.pull(f"{server.url}/x.gguf")).name) == model
    assert cdn.seen == []


async def test_a_proxy_that_cannot_be_used_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(FelloeError) as caught:
        await house.pull("https://files.example/x.gguf")
    assert caught.value.code == "bad_config"
