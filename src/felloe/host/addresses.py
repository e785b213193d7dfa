"""This machine's own network addresses."""

import ipaddress
import socket

import psutil


def reachable_addresses() -> tuple[str, ...]:
    """IP addresses at which others may reach this machine, IPv4 first; loopback when it has no other."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if name in up and entry.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(entry.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local):
                    found.append(address)
    ordered = sorted(found, key=lambda address: (address.version, int(address)))
    return tuple(map(str, ordered)) or ("127.0.0.1",)
