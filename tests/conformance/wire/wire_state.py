"""Shared state as it crosses the wire."""

import msgspec
from wire_case import Case, longer

from felloe.mesh.state import StateRequest, StateValue

CASES = [
    Case(
        "state-question",
        lambda: msgspec.msgpack.encode(StateRequest("keys")),
        lambda data: msgspec.msgpack.decode(data, type=StateRequest),
        grow=longer,
    ),
    Case(
        "state-value",
        lambda: msgspec.msgpack.encode(StateValue(1_790_000_000_000_000, 42, b"[]")),
        lambda data: msgspec.msgpack.decode(data, type=StateValue),
        grow=longer,
    ),
    Case(
        "state-announcement",
        lambda: msgspec.msgpack.encode(StateValue(1_790_000_000_000_000, 43, None)),
        lambda data: msgspec.msgpack.decode(data, type=StateValue),
        grow=longer,
    ),
]
