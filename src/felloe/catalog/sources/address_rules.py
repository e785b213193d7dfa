"""Which addresses a source may lead to: public ones over HTTPS, and the servers that the owner named. Pure.

A reference, a redirect and a DNS answer are all somebody else's word. None of them may make this node speak to its own
machine, its own network or a cloud's metadata service.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import NamedTuple

import httpx

from felloe.domain.errors import FelloeError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PORTS = {"http": 80, "https": 443}
_INNER_NAMES = ("localhost", "local", "internal", "home.arpa", "lan")
# Azure answers its machines here, although the address counts as public.
_OTHER_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MOST_PORT = 65_535


class Origin(NamedTuple):
    """Scheme, lower-case host and port."""

    scheme: str
    host: str
    port: int


def parse_url(text: str) -> httpx.URL:
    """The address that `text` spells, with a host and a port that can be asked for; raises `source_failed`."""
    try:
        url = httpx.URL(text)
        # Only when asked for the host does httpx find out that a name in other letters is none.
        _ = url.host
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise FelloeError("source_failed", "the source names an address that is none") from error
    if url.port is not None and not 0 < url.port <= _MOST_PORT:
        raise FelloeError("source_failed", "the source names a port that no machine has")
    return url


def origin_of(url: httpx.URL) -> Origin:
    """Where `url` leads."""
    return Origin(url.scheme, url.host.lower().rstrip("."), url.port or _PORTS.get(url.scheme, 0))


def shown(url: httpx.URL) -> str:
    """`url` as errors and logs may show it: a query or a user part may hold a secret."""
    port = f":{url.port}" if url.port else ""
    # Escaped, as it was sent: what an escape stands for may steer a terminal.
    path = url.raw_path.partition(b"?")[0].decode("ascii")
    return f"{url.scheme}://{url.host}{port}{path}"[:300]


def is_public(address: Address) -> bool:
    """Whether the address is one of the open internet, also where it is wrapped into an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(one is not None and not is_public(one) for one in inner):
            return False
        # A mapped address is as public as the one inside; the class itself calls all of them reserved.
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
    return address.is_global and not address.is_multicast and address not in _OTHER_METADATA


class AddressRules:
    """The rules with the owner's own servers, which may lie anywhere and may speak plain HTTP."""

    def __init__(self, own: Iterable[str]) -> None:
        """`own`: URLs whose origins are the owner's."""
        self._own = frozenset(origin_of(parse_url(url)) for url in own)

    def is_own(self, url: httpx.URL) -> bool:
        return origin_of(url) in self._own

    def check_url(self, url: httpx.URL, before: httpx.URL | None) -> None:
        """Raise `address_refused` unless `url` may be asked, coming by a redirect from `before`."""
        if url.scheme not in _PORTS or not url.host or url.userinfo:
            raise _refused(url, "it is no plain http or https address")
        if url.scheme == "http" and before is not None and before.scheme == "https":
            raise _refused(url, f"{before.host} redirects from https to http")
        if url.scheme == "http" and not self.is_own(url):
            raise _refused(url, "only https is asked")

    def check_addresses(self, url: httpx.URL, addresses: Iterable[Address]) -> None:
        """Raise `address_refused` unless every address that `url`'s host stands for may be dialled."""
        if not self.is_own(url) and not all(is_public(address) for address in addresses):
            raise _refused(url, "it leads to this machine, a private network or a metadata service")

    def check_name(self, url: httpx.URL) -> None:
        """What can be known before a proxy resolves the name; raises `address_refused`."""
        host = origin_of(url).host
        literal = _literal(host)
        if literal is not None:
            self.check_addresses(url, (literal,))
        elif not self.is_own(url) and ("." not in host or host.endswith(tuple(f".{name}" for name in _INNER_NAMES))):
            raise _refused(url, "it leads into a private network")


def _literal(host: str) -> Address | None:
    """The address that `host` spells, also in the old ways (`127.1`, `0x7f000001`) that resolvers still accept."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _refused(url: httpx.URL, why: str) -> FelloeError:
    return FelloeError("address_refused", f"{shown(url)} is not asked: {why}")
