"""How often one network address may fail at the join port before it has to wait."""

import ipaddress
from collections import OrderedDict


class FailureLimiter:
    """Counts failures per address in windows of `window` seconds; remembers a bounded number of addresses.

    An IPv6 address counts as its /64, because one machine has them all.
    """

    def __init__(self, *, failures: int = 10, window: float = 60.0, addresses: int = 4096) -> None:
        self._failures = failures
        self._window = window
        self._addresses = addresses
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may try again; 0 when it may now."""
        started, count = self._counts.get(_group(address), (now, 0))
        left = started + self._window - now
        return left if count >= self._failures and left > 0 else 0.0

    def note_failure(self, address: str, now: float) -> None:
        """Count one failure."""
        group = _group(address)
        started, count = self._counts.pop(group, (now, 0))
        if now >= started + self._window:
            started, count = now, 0
        self._counts[group] = (started, count + 1)
        while len(self._counts) > self._addresses:
            self._counts.popitem(last=False)


def _group(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
