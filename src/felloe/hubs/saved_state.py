"""The state as this hub saw it last, in a file: what it starts from while the other hubs are not there yet.

It is also what the state is built from anew when the state server's own files are lost.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.hubs.records import Generation
from felloe.hubs.store import Entry

SAVED_NAME = "network-state.json"
_VERSION = 1


class SavedState(Struct, frozen=True, kw_only=True):
    """The generation that is current as far as this hub knows, and a copy of its keys.

    `entries` may be of an older moment than what the hubs agreed on, never of another network.
    """

    generation: Generation
    entries: dict[str, Entry]
    version: int = _VERSION


def read_saved(data: bytes, path: Path) -> SavedState | None:
    """What was saved, None when nothing was. Raises `bad_state` naming the file."""
    if not data:
        return None
    try:
        saved = msgspec.json.decode(data, type=SavedState)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", f"{path} is damaged") from error
    if saved.version != _VERSION:
        raise FelloeError("bad_state", f"{path} is of version {saved.version}, not {_VERSION}")
    return saved


def write_saved(save: Callable[[bytes], None], generation: Generation, entries: Mapping[str, Entry]) -> None:
    """Store it durably."""
    save(msgspec.json.encode(SavedState(generation=generation, entries=dict(entries))))
