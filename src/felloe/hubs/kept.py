"""Records of one kind under one prefix of the state, each decoded once."""

from typing import Generic, TypeVar

from msgspec import Struct

from felloe.hubs.records import State, decode

Record = TypeVar("Record", bound=Struct)


class Kept(Generic[Record]):
    """Reads `prefix*` as `kind`; what was decoded is remembered until its key has another value."""

    def __init__(self, state: State, prefix: str, kind: type[Record]) -> None:
        self._state = state
        self._prefix = prefix
        self._kind = kind
        self._read: dict[str, tuple[bytes, Record]] = {}

    def all(self) -> dict[str, Record]:
        """Every record by its key, in the order of the keys; `bad_state` when one is damaged."""
        values = sorted(self._state.items(self._prefix).items())
        self._read = {key: self._decoded(key, value) for key, value in values}
        return {key: record for key, (_, record) in self._read.items()}

    def _decoded(self, key: str, value: bytes) -> tuple[bytes, Record]:
        known = self._read.get(key)
        return known if known is not None and known[0] == value else (value, decode(value, self._kind))
