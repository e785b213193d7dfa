"""The trust list, which every node holds and checks."""

import msgspec
from wire_case import Case
from wire_roster import ISSUED_AT

from felloe.mesh.rotation import found
from felloe.mesh.trust import read


def _newer(data: bytes) -> bytes:
    """More beside the signed body, which itself only a root can change."""
    chain = msgspec.json.decode(data)
    chain["of_a_newer_version"] = chain["lists"][0]["of_a_newer_version"] = 1
    return msgspec.json.encode(chain)


def _another_format(data: bytes) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(data) | {"format": 2})


CASES = [
    Case(
        "trust-list.json",
        lambda: found(ISSUED_AT).trust.encoded,
        lambda data: read(data).list,
        grow=_newer,
        refuse=_another_format,
    )
]
