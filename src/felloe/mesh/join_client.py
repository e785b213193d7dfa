"""The joining side: trust nothing but the token's pin, prove the node key, and check what comes back.

The root is fetched from a hub that nobody vouches for yet and compared with the pin. Only then, on a second connection
that must end in exactly that root and at a certificate with the hub role, are the secret and the request sent.
"""

import asyncio
import http.client
import io
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.domain.ids import NetworkId, NodeId, id_from_public_key
from felloe.mesh import nats_jwt
from felloe.mesh.certificates import (
    check_node_chain,
    check_root,
    client_context,
    hub_tls_name,
    make_request,
    pem,
    read_chain,
    role_uri,
)
from felloe.mesh.credentials import Credential
from felloe.mesh.join_token import Address, JoinToken, parse_address, read_token
from felloe.mesh.join_wire import (
    CA_PATH,
    JOIN_PATH,
    LARGEST_REPLY,
    NONCE_PATH,
    RENEW_PATH,
    ErrorReply,
    JoinRequest,
    Nonce,
    RenewRequest,
    Welcome,
    renewal_statement,
)
from felloe.mesh.membership import Membership

_EXCHANGE_SECONDS = 15.0
_MOST_ADDRESSES = 16
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_* of OpenSSL


async def join(
    token_text: str, node_key: Ed25519PrivateKey, *, name: str, version: str, now: Callable[[], float]
) -> tuple[Membership, Credential]:
    """Join the token's network with this node's key; tries the token's addresses in their order.

    Raises `bad_token` before any connection; `wrong_network` before the secret is sent; `token_refused`,
    `network_unreachable`.
    """
    token = read_token(token_text)

    async def attempt(address: Address) -> tuple[Membership, Credential]:
        root = await _fetch_root(address, token)
        network = check_root(read_chain(root)[0], token.pin)
        body = JoinRequest(
            token=token.id, secret=token.secret, request=make_request(node_key), name=name, version=version
        )
        reply = await _Peer(address, root, network).post(JOIN_PATH, body)
        return _accept(_decode(reply, Welcome), address, root, network, node_key, now())

    return await _first_success(token.addresses, attempt)


async def renew(
    membership: Membership, node_key: Ed25519PrivateKey, *, now: Callable[[], float]
) -> tuple[Membership, Credential]:
    """A new credential from any known hub, also when the old one has run out.

    Raises `forbidden` when this node was removed, `wrong_network`, `network_unreachable`.
    """

    async def attempt(address: Address) -> tuple[Membership, Credential]:
        peer = _Peer(address, membership.root, membership.network)
        nonce = _decode(await peer.get(NONCE_PATH), Nonce).nonce
        signature = node_key.sign(renewal_statement(membership.network, membership.node, nonce))
        body = RenewRequest(node=membership.node, nonce=nonce, signature=signature)
        reply = await peer.post(RENEW_PATH, body)
        return _accept(_decode(reply, Welcome), address, membership.root, membership.network, node_key, now())

    return await _first_success([parse_address(hub) for hub in membership.hubs], attempt)


async def _first_success(
    addresses: Iterable[Address], attempt: Callable[[Address], Awaitable[tuple[Membership, Credential]]]
) -> tuple[Membership, Credential]:
    """Go on to the next address when one cannot be reached or is not of the network; any other refusal is final."""
    failures: list[FelloeError] = []
    for address in addresses:
        try:
            return await attempt(address)
        except FelloeError as error:
            if error.code not in ("network_unreachable", "wrong_network", "internal", "rate_limited"):
                raise
            failures.append(FelloeError(error.code, f"{address}: {error.detail}", retry_after=error.retry_after))
    if not failures:
        raise FelloeError("network_unreachable", "no hub's address is known")
    # Somebody in the middle matters more than a machine that is off.
    raise next((failure for failure in failures if failure.code == "wrong_network"), failures[-1])


async def _fetch_root(address: Address, token: JoinToken) -> str:
    """The root certificate (PEM) that the pin names, from a hub that is not trusted yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nothing is sent on this connection but GET /v1/ca, and its answer must fit the pin.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    text = (await _exchange(address, context, None, "GET", CA_PATH)).decode(errors="replace")
    try:
        root = read_chain(text)[0]
    except FelloeError as error:
        raise FelloeError("wrong_network", "what answers there is not a Felloe hub") from error
    check_root(root, token.pin)
    return pem(root)


class _Peer:
    """A hub of a known network: every connection must end in its root and at a certificate with the hub role."""

    def __init__(self, address: Address, root: str, network: NetworkId) -> None:
        self._address = address
        self._context = client_context(root)
        self._network = network

    async def get(self, path: str) -> bytes:
        return await _exchange(self._address, self._context, self._network, "GET", path)

    async def post(self, path: str, body: msgspec.Struct) -> bytes:
        return await _exchange(self._address, self._context, self._network, "POST", path, msgspec.json.encode(body))


async def _exchange(
    address: Address, context: ssl.SSLContext, network: NetworkId | None, method: str, path: str, body: bytes = b""
) -> bytes:
    """One request on a connection of its own; the body of a 200. With `network` given, nothing is sent to a non-hub."""
    try:
        async with asyncio.timeout(_EXCHANGE_SECONDS):
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                ssl=context,
                server_hostname=address.host if network is None else hub_tls_name(network),
            )
            try:
                if network is not None:
                    _check_is_hub(writer, network)
                writer.write(_request_head(address, method, path, len(body)) + body)
                answer = await _read_all(reader)
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise _as_felloe_error(error) from error
    except (OSError, TimeoutError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise FelloeError("network_unreachable", reason) from error
    return _body_of(answer, trusted=network is not None)


def _as_felloe_error(error: ssl.SSLCertVerificationError) -> FelloeError:
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        detail = "the hub's certificate is not valid at this machine's time: check the clocks of both machines"
        return FelloeError("network_unreachable", detail)
    return FelloeError("wrong_network", f"what answers there is no hub of the network: {error.verify_message}")


def _check_is_hub(writer: asyncio.StreamWriter, network: NetworkId) -> None:
    certificate: dict[str, Any] = writer.get_extra_info("peercert") or {}
    names = certificate.get("subjectAltName", ())
    if ("URI", role_uri(network, "hub")) not in names:
        raise FelloeError("wrong_network", "what answers there does not have the hub role")


def _request_head(address: Address, method: str, path: str, length: int) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}", "Connection: close", "Accept: application/json"]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while part := await reader.read(1 << 16):
        answer += part
        if len(answer) > LARGEST_REPLY:
            raise FelloeError("network_unreachable", "the answer is too large for a hub's")
    return bytes(answer)


class _Answer:
    """Bytes that the standard library's parser takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _body_of(answer: bytes, *, trusted: bool) -> bytes:
    response = http.client.HTTPResponse(cast("Any", _Answer(answer)))
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ValueError) as error:
        raise FelloeError("network_unreachable", "what answers there does not speak HTTP") from error
    if response.status == 200:
        return body
    if not trusted:
        raise FelloeError("network_unreachable", f"what answers there gave status {response.status}")
    try:
        failure = msgspec.json.decode(body, type=ErrorReply).error
    except msgspec.MsgspecError as error:
        raise FelloeError("network_unreachable", f"the hub answered with status {response.status}") from error
    known = failure.code in CATALOGUE
    raise FelloeError(failure.code if known else "network_unreachable", _one_line(failure.message))


def _one_line(message: str) -> str:
    """Text from another machine, fit for a terminal."""
    return "".join(character if character.isprintable() else " " for character in message[:300])


def _decode(body: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise FelloeError("network_unreachable", "the hub's answer is of another version") from error


def _accept(
    welcome: Welcome, address: Address, root: str, network: NetworkId, node_key: Ed25519PrivateKey, now: float
) -> tuple[Membership, Credential]:
    """Check that the credential is for this key and network before anything is stored; put what worked first."""
    public_key = node_key.public_key()
    node = NodeId(id_from_public_key(public_key.public_bytes_raw()))
    membership, credential = welcome.membership, welcome.credential
    if (membership.network, membership.node) != (network, node):
        raise FelloeError("wrong_network", "the hub answered for another network or node")
    certificate_expiry = check_node_chain(credential.certificate, root, key=public_key, role=membership.role, now=now)
    claims = nats_jwt.read_token(credential.user_token)
    if (claims.subject, claims.name) != (nats_jwt.public_name("user", public_key.public_bytes_raw()), node):
        raise FelloeError("wrong_network", "the hub's NATS token is for another node")
    if not certificate_expiry == claims.expires_at == credential.expires_at > credential.issued_at:
        raise FelloeError("wrong_network", "the parts of the hub's credential run out at different times")
    return _with_reached_first(membership, address, root), credential


def _with_reached_first(membership: Membership, address: Address, root: str) -> Membership:
    """A hub may not know the address that others reach it at, so the one that worked comes first."""
    try:
        hubs = [str(parse_address(hub)) for hub in membership.hubs[:_MOST_ADDRESSES]]
        servers = [parse_address(url.removeprefix("tls://")) for url in membership.nats_urls[:_MOST_ADDRESSES]]
    except ValueError as error:
        raise FelloeError("network_unreachable", f"the hub names an address that cannot be dialled: {error}") from error
    if servers:
        servers.insert(0, Address(address.host, servers[0].port))
    return msgspec.structs.replace(
        membership,
        root=root,
        hubs=tuple(dict.fromkeys((str(address), *hubs))),
        nats_urls=tuple(dict.fromkeys(f"tls://{server}" for server in servers)),
    )
