"""The one line that lets a machine join: where the hubs are, whose root to trust, and one secret.

`fl1` and base32 (RFC 4648, lower case, no padding) of: the length of what follows (2 bytes), the SHA-256 of the root's
public key info (32), the token's id (10), its secret (20), the hubs' addresses as text with commas between, and a
checksum (4). Base32 survives shells, voice and capitals. Everything is checked before any connection is made.
"""

import base64
import binascii
import hashlib
import ipaddress
import re

from msgspec import Struct

from felloe.domain.errors import FelloeError

ID_BYTES = 10
SECRET_BYTES = 20

_PREFIX = "fl1"
_PIN_BYTES = 32
_CHECKSUM_BYTES = 4
_FIXED_BYTES = _PIN_BYTES + ID_BYTES + SECRET_BYTES + _CHECKSUM_BYTES
_LONGEST_ADDRESSES = 1024
MOST_ADDRESSES = 8
_LONGEST_TEXT = 4096
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")


class Address(Struct, frozen=True):
    """Where a hub takes peers: a host name or IP address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class JoinToken(Struct, frozen=True):
    """What a join token says. `pin` is the SHA-256 of the root's public key info."""

    addresses: tuple[Address, ...]
    pin: bytes
    id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"JoinToken(id={self.id.hex()})"  # never the secret: it would end in a log


def parse_address(text: str) -> Address:
    """An address from `host:port` or `[IPv6]:port`; raises `ValueError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not of the form host:port")
    if host.startswith("[") and host.endswith("]"):
        return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port))
    if _HOST_NAME.fullmatch(host) is None:
        raise ValueError(f"{host!r} is not a host name or an IP address")
    return Address(host, int(port))


def is_host(text: str) -> bool:
    """Whether `text` is a host name or an IP address, without brackets or zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return "%" not in text


def write_token(token: JoinToken) -> str:
    """The token's one line; raises `ValueError` when it has no address or too many."""
    addresses = ",".join(map(str, token.addresses)).encode()
    if not 1 <= len(token.addresses) <= MOST_ADDRESSES or len(addresses) > _LONGEST_ADDRESSES:
        raise ValueError(f"a token names 1 to {MOST_ADDRESSES} addresses")
    if (len(token.pin), len(token.id), len(token.secret)) != (_PIN_BYTES, ID_BYTES, SECRET_BYTES):
        raise ValueError("the token's pin, id or secret has a wrong length")
    body = token.pin + token.id + token.secret + addresses
    data = (len(body) + _CHECKSUM_BYTES).to_bytes(2, "big") + body
    return _PREFIX + base64.b32encode(data + _checksum(data)).decode().rstrip("=").lower()


def read_token(text: str) -> JoinToken:
    """The token in a line that somebody pasted; white space and capitals do not matter.

    Raises `bad_token` saying what is wrong: not a token, of a newer form, cut off, mistyped.
    """
    if len(text) > _LONGEST_TEXT:
        raise _bad("this is too long to be a join token")
    compact = "".join(text.split()).lower()
    if not compact.startswith(_PREFIX):
        newer = re.match(r"fl[0-9]", compact) is not None
        raise _bad("this token is of a newer form; update felloe" if newer else "this is not a join token")
    data = _decode(compact[len(_PREFIX) :])
    expected = 2 + int.from_bytes(data[:2], "big")
    if len(data) < max(expected, 2 + _FIXED_BYTES):
        raise _bad("the token is cut off or mistyped: its end is missing")
    if len(data) > expected:
        raise _bad("the token has something after its end or is mistyped")
    if _checksum(data[:-_CHECKSUM_BYTES]) != data[-_CHECKSUM_BYTES:]:
        raise _bad("the token is mistyped: its checksum does not fit")
    return _take_apart(data[2:-_CHECKSUM_BYTES])


def _decode(text: str) -> bytes:
    if strange := re.search(r"[^a-z2-7]", text):
        raise _bad(f"the token is mistyped: {strange[0]!r} is in no token")
    # A cut may fall inside a byte: whole bytes are kept, the length tells the rest.
    whole = text[: len(text) - (1 if len(text) % 8 in (1, 3, 6) else 0)]
    try:
        return base64.b32decode(whole.upper() + "=" * (-len(whole) % 8))
    except binascii.Error as error:
        raise _bad("the token is mistyped") from error


def _take_apart(body: bytes) -> JoinToken:
    secret_end = _FIXED_BYTES - _CHECKSUM_BYTES
    try:
        addresses = tuple(parse_address(address) for address in body[secret_end:].decode("ascii").split(","))
    except ValueError as error:
        raise _bad(f"the token names an address that cannot be dialled: {error}") from error
    if len(addresses) > MOST_ADDRESSES:
        raise _bad("the token names too many addresses")
    return JoinToken(
        addresses=addresses,
        pin=body[:_PIN_BYTES],
        id=body[_PIN_BYTES : _PIN_BYTES + ID_BYTES],
        secret=body[_PIN_BYTES + ID_BYTES : secret_end],
    )


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"felloe join token 1\0" + data).digest()[:_CHECKSUM_BYTES]


def _bad(detail: str) -> FelloeError:
    return FelloeError("bad_token", detail)
