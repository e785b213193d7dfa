"""Who gets through TLS between members: the wanted node of this network, and nobody else."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoint
from felloe.mesh.certificates import client_context
from felloe.mesh.rotation import rotate
from felloe.mesh.transfer_https import HttpsReader, Undialable
from felloe.mesh.transfer_tls import MemberTls
from member_house import House, HouseMember, open_house

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def _nothing(_: int) -> None:
    pass


@asynccontextmanager
async def greeting(server: MemberTls) -> AsyncGenerator[Endpoint]:
    """A transfer port that greets everybody whom TLS and the look at the certificate let in."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                server.member(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
                writer.write(OK)
                await writer.drain()
        except (OSError, EOFError, FelloeError):
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=server.serving)
    async with listener:
        yield Endpoint(hosts=("127.0.0.1",), port=listener.sockets[0].getsockname()[1])


async def read(asker: MemberTls, node: NodeId, place: Endpoint) -> bytes:
    reader = HttpsReader(node, place, asker)
    try:
        return await reader.read("/catalog", None, 100, _nothing)
    finally:
        reader.close()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path / "house")


async def test_two_members_of_a_network_get_through_to_each_other(house: House) -> None:
    server = house.member()
    async with greeting(server.tls) as place:
        assert await read(house.member().tls, server.id, place) == b"hello"


async def test_a_member_of_another_network_is_refused(house: House, tmp_path: Path) -> None:
    server, stranger = house.member(), open_house(tmp_path / "other").member()
    async with greeting(server.tls) as place:
        with pytest.raises(Undialable):
            await read(stranger.tls, server.id, place)
        # Nor does it help to trust the server: the server does not trust the stranger.
        stranger.tls._trust = lambda: house.trust  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(Undialable, match="does not let this node in"):
            await read(stranger.tls, server.id, place)


async def test_who_shows_no_certificate_is_refused(house: House) -> None:
    server = house.member()
    async with greeting(server.tls) as place:
        context = client_context(house.trust.issuers(time.time()))
        with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", place.port, ssl=context, server_hostname=server.tls.server_name(server.id)
            )
            try:
                writer.write(b"GET /catalog HTTP/1.1\r\n\r\n")
                await reader.readexactly(1)
            finally:
                writer.transport.abort()


async def test_another_member_than_the_wanted_one_is_not_believed(house: House) -> None:
    other = house.member()
    async with greeting(other.tls) as place:
        with pytest.raises(Undialable, match="CERTIFICATE_VERIFY_FAILED"):
            await read(house.member().tls, house.member().id, place)


async def test_an_expired_certificate_is_refused(house: House) -> None:
    server, late = house.member(), house.member(seconds=-1)
    async with greeting(server.tls) as place:
        with pytest.raises(Undialable):
            await read(late.tls, server.id, place)


async def test_what_a_replaced_issuer_has_signed_counts_no_more(house: House) -> None:
    """TLS trusts the issuers that the list names, not what else a root has signed."""
    server, before = house.member(), house.member()
    house.keys = rotate(house.keys, time.time(), 0)
    server.certify()
    server.tls = MemberTls(server.certificate, server.key, lambda: house.trust)
    async with greeting(server.tls) as place:
        with pytest.raises(Undialable):
            await read(before.tls, server.id, place)


async def test_renewed_keys_are_taken_up_while_the_port_is_open(house: House) -> None:
    server, asker = house.member(), house.member()
    async with greeting(server.tls) as place:
        house.keys = rotate(house.keys, time.time(), 0)
        for node in (server, asker):
            node.certify()
            node.tls.refresh()
        assert await read(asker.tls, server.id, place) == b"hello"


async def test_an_issuer_that_is_trusted_no_more_is_refused_also_on_an_open_connection(house: House) -> None:
    server, asker = house.member(), house.member()
    async with greeting(server.tls) as place:
        reader = HttpsReader(server.id, place, asker.tls)
        assert await reader.read("/catalog", None, 100, _nothing) == b"hello"
        house.keys = rotate(house.keys, time.time(), 0)
        server.certify()
        server.tls.refresh()
        with pytest.raises(FelloeError):
            await reader.read("/catalog", None, 100, _nothing)
        reader.close()


def test_a_certificate_whose_key_is_another_nodes_names_nobody(house: House) -> None:
    one = house.member()
    with pytest.raises(FelloeError, match="key"):
        one.tls.member(b"no certificate")
    with pytest.raises(FelloeError, match="not of a node"):
        one.tls.member(der(open_house(house.folder / "other").member()))
    assert one.tls.member(der(one)) == one.id


def der(member: HouseMember) -> bytes:
    return ssl.PEM_cert_to_DER_cert(member.certificate.read_text().partition("-----END CERTIFICATE-----")[0] + END)


END = "-----END CERTIFICATE-----\n"
