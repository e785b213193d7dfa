"""Who may use a listener: pure decisions from what a request shows of itself.

A web page in the user's browser can reach loopback. It cannot know a key, and it cannot hide the Origin and Host
headers that the browser sends; without a key those two must therefore name this node (this also defeats DNS
rebinding).
"""

import ipaddress
import re
from collections.abc import Collection, Sequence

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.gateway.config import Listener

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.IGNORECASE)
_BEARER = re.compile(rb"[Bb]earer +([A-Za-z0-9._~+/=-]{1,512})")
_KEY_PREFIX = b"fk-"


class Shown(Struct, frozen=True, kw_only=True):
    """The parts of a request that decide whether it may enter; each header with every value that was sent."""

    secure: bool
    hosts: tuple[bytes, ...] = ()
    origins: tuple[bytes, ...] = ()
    fetch_sites: tuple[bytes, ...] = ()


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_required(*, loopback: bool, require_key: bool) -> bool:
    """Whether a listener answers only requests that carry a valid key."""
    return require_key or not loopback


def start_refusal(listener: Listener, *, any_key: bool) -> str | None:
    """Why a listener must not be opened, or None when it may."""
    where = f"{listener.host}:{listener.port}"
    if (listener.certificate is None) != (listener.private_key is None):
        return f"the listener {where} has only one of certificate and private_key"
    if is_loopback(listener.host):
        return None
    if listener.certificate is None:
        return f"the listener {where} is not loopback, so it needs a TLS certificate and private_key"
    if not any_key:
        return f"the listener {where} is not loopback, so it needs an API key; make one with `felloe key create`"
    return None


def bearer_token(values: Sequence[bytes]) -> bytes | None:
    """The one token in the Authorization headers, None when there is no such header.

    Raises `invalid_api_key` for several headers, another scheme or characters that no token has (RFC 6750 section 2.1).
    """
    if not values:
        return None
    if len(values) > 1:
        raise FelloeError("invalid_api_key", "there is more than one Authorization header")
    match = _BEARER.fullmatch(values[0].strip())
    if match is None:
        raise FelloeError("invalid_api_key", "the Authorization header is not `Bearer <key>`")
    return match[1]


def is_our_key(token: bytes) -> bool:
    """Whether a token claims to be one of our keys, and must then be valid wherever it is shown.

    Programs that insist on some key send placeholders to local servers; those count as no key.
    """
    return token.startswith(_KEY_PREFIX)


def check_visitor(shown: Shown, *, names: Collection[str], origins: Collection[str]) -> None:
    """Refuse (`forbidden`) a request without key that may come from a web page of somebody else."""
    if len(shown.hosts) != 1:
        raise FelloeError("forbidden", "a request without key must carry exactly one Host header")
    host = shown.hosts[0].decode("latin-1").lower()
    match = _HOST.fullmatch(host)
    if match is None or (match[1] not in _LOCAL_NAMES and match[1] not in names):
        raise FelloeError("forbidden", "without a key, the Host header must be a name of this machine")
    scheme = "https" if shown.secure else "http"
    for value in shown.origins:
        if value.decode("latin-1").lower() != f"{scheme}://{host}" and value.decode("latin-1") not in origins:
            raise FelloeError("forbidden", "without a key, web pages of other origins are refused")
    if not shown.origins and any(value.lower() in (b"cross-site", b"same-site") for value in shown.fetch_sites):
        raise FelloeError("forbidden", "without a key, web pages of other origins are refused")
