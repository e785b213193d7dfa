"""Talking to a hub's peer port over HTTPS: one request a connection, bounded in time and size.

Every connection to a known network must end at an issuer that its trust list names, and at a certificate with the hub
role. Only what anybody may hear is asked of a hub that nobody vouches for.
"""

import asyncio
import http.client
import io
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.domain.ids import NetworkId, NodeId
from felloe.mesh.certificates import client_context, hub_tls_name, node_of_certificate, role_uri
from felloe.mesh.join_token import Address
from felloe.mesh.join_wire import LARGEST_REPLY, ErrorReply
from felloe.mesh.trust import Trust

_EXCHANGE_SECONDS = 15.0
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_* of OpenSSL

_Shape = TypeVar("_Shape", bound=msgspec.Struct)


class PeerClient:
    """Asks one hub of a known network; all its requests end at the same node key, or fail as `wrong_network`."""

    def __init__(self, address: Address, trust: Trust, now: float) -> None:
        self._address = address
        self._network = trust.network
        self._context = client_context(trust.issuers(now))
        self._hub: NodeId | None = None

    @property
    def hub(self) -> NodeId:
        """The node that answered, by its key; known after the first request."""
        if self._hub is None:
            raise ValueError("no hub has answered yet")
        return self._hub

    async def get(self, path: str, shape: type[_Shape]) -> _Shape:
        """The decoded answer to a GET. Raises what the hub answers, `wrong_network`, `network_unreachable`."""
        return _decode(await self._exchange("GET", path), shape)

    async def post(self, path: str, body: msgspec.Struct, shape: type[_Shape]) -> _Shape:
        """The decoded answer to a POST; raises as `get`."""
        return _decode(await self._exchange("POST", path, msgspec.json.encode(body)), shape)

    async def _exchange(self, method: str, path: str, body: bytes = b"") -> bytes:
        request = _request(self._address, method, path, body)
        answer = await _exchange(
            self._address, self._context, hub_tls_name(self._network), request, check=self._check_peer
        )
        if answer.status == 200:
            return answer.body
        try:
            failure = msgspec.json.decode(answer.body, type=ErrorReply).error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FelloeError("network_unreachable", f"the hub answered with status {answer.status}") from error
        known = failure.code in CATALOGUE
        raise FelloeError(failure.code if known else "network_unreachable", _one_line(failure.message))

    def _check_peer(self, writer: asyncio.StreamWriter) -> None:
        _check_is_hub(writer, self._network)
        hub = node_of_certificate(cast("ssl.SSLObject", writer.get_extra_info("ssl_object")).getpeercert(True) or b"")
        if self._hub not in (None, hub):
            raise FelloeError("wrong_network", "another hub answers there than before")
        self._hub = hub


async def ask_stranger(address: Address, path: str) -> bytes:
    """The body of a GET from a hub that is not trusted yet: nothing else is sent, and the answer must be checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    answer = await _exchange(address, context, address.host, _request(address, "GET", path, b""))
    if answer.status != 200:
        raise FelloeError("network_unreachable", f"what answers there gave status {answer.status}")
    return answer.body


class _Answer(NamedTuple):
    status: int
    body: bytes


async def _exchange(
    address: Address,
    context: ssl.SSLContext,
    name: str,
    request: bytes,
    check: Callable[[asyncio.StreamWriter], None] = lambda writer: None,
) -> _Answer:
    """One request on a connection of its own; nothing is sent before `check` has passed."""
    try:
        async with asyncio.timeout(_EXCHANGE_SECONDS):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=name
            )
            try:
                check(writer)
                writer.write(request)
                answer = await _read_all(reader)
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise _as_felloe_error(error) from error
    except (OSError, TimeoutError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise FelloeError("network_unreachable", reason) from error
    return _parse(answer)


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


def _request(address: Address, method: str, path: str, body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}", "Connection: close", "Accept: application/json"]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while part := await reader.read(1 << 16):
        answer += part
        if len(answer) > LARGEST_REPLY:
            raise FelloeError("network_unreachable", "the answer is too large for a hub's")
    return bytes(answer)


class _Bytes:
    """Bytes that the standard library's parser takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parse(answer: bytes) -> _Answer:
    response = http.client.HTTPResponse(cast("Any", _Bytes(answer)))
    try:
        response.begin()
        return _Answer(response.status, response.read())
    except (http.client.HTTPException, ValueError) as error:
        raise FelloeError("network_unreachable", "what answers there does not speak HTTP") from error


def _one_line(message: str) -> str:
    """Text from another machine, fit for a terminal."""
    return "".join(character if character.isprintable() else " " for character in message[:300])


def _decode(body: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("network_unreachable", "the hub's answer is of another version") from error
