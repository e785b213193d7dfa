"""API keys: made from 256 random bits, kept only as SHA-256, looked up in constant time.

One JSON file holds the keys made on this node and those that a hub distributes to the whole network.
"""

import base64
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from felloe.domain.errors import FelloeError
from felloe.gateway.access import bearer_token
from felloe.host.files import write_atomic

_log = logging.getLogger(__name__)

Right = Literal["inference", "metrics"]
RIGHTS: tuple[Right, ...] = ("inference", "metrics")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")
_MOST_KEYS = 10_000
_MOST_BYTES = 16 * 1024 * 1024


class KeyRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a key. `digest` is the SHA-256 of the plaintext in hex; times are in Unix seconds."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    name: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created: int
    expires: int | None = None
    rights: tuple[Right, ...] = ("inference",)


class _File(Struct, forbid_unknown_fields=True):
    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()
    network: tuple[KeyRecord, ...] = ()


class ApiKeys:
    """The one owner of the key file.

    Raises `bad_state` naming the file when it cannot be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._content = _File()
        self._by_digest: dict[str, KeyRecord] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again, after another process has changed it."""
        self._use(_read(self._path))

    def create(
        self, name: str, expires: int | None = None, rights: Sequence[Right] = ("inference",)
    ) -> tuple[KeyRecord, str]:
        """Make a key of this node alone; for the rest see `new`."""
        record, plaintext = self.new(name, expires, rights)
        self._store(msgspec.structs.replace(self._content, keys=(*self._content.keys, record)))
        return record, plaintext

    def new(
        self, name: str, expires: int | None = None, rights: Sequence[Right] = ("inference",)
    ) -> tuple[KeyRecord, str]:
        """A key that is not valid yet; the plaintext `fk-…` exists only in the returned pair.

        `expires` is in Unix seconds. Raises `invalid_value` for a name that is taken or unfit, unknown rights or a time
        that has passed.
        """
        self._check_new(name, expires, rights)
        plaintext = "fk-" + base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        record = KeyRecord(
            id=secrets.token_hex(6),
            name=name,
            digest=hashlib.sha256(plaintext.encode()).hexdigest(),
            created=int(self._clock()),
            expires=expires,
            rights=tuple(rights),
        )
        return record, plaintext

    def list(self) -> tuple[KeyRecord, ...]:
        """Every key that may enter here, this node's own first."""
        return tuple(self._by_digest.values())

    def records(self) -> tuple[KeyRecord, ...]:
        """The keys that are valid on this node alone."""
        return self._content.keys

    def revoke(self, id_or_name: str) -> KeyRecord:
        """Take back a key made on this node; it is refused from the next request on. Raises `not_found`."""
        for record in self._content.keys:
            if id_or_name in (record.id, record.name):
                kept = tuple(other for other in self._content.keys if other is not record)
                network = tuple(other for other in self._content.network if other.digest != record.digest)
                self._store(msgspec.structs.replace(self._content, keys=kept, network=network))
                return record
        raise FelloeError("not_found", "there is no key with this id or name on this node")

    def replace_network(self, records: Sequence[KeyRecord]) -> None:
        """Take over the network's keys as a hub distributes them; those it no longer names are refused."""
        if len(records) > _MOST_KEYS:
            raise FelloeError("invalid_value", f"more than {_MOST_KEYS} keys")
        if tuple(records) != self._content.network:
            content = msgspec.structs.replace(self._content, network=tuple(records))
            # A key that was revoked is refused also while the disk is full.
            self._use(content)
            self._store(content)

    def network_changed(self, value: bytes) -> None:
        """A hub told the network's keys. What cannot be used changes nothing, and is logged."""
        try:
            self.replace_network(msgspec.json.decode(value, type=list[KeyRecord]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, FelloeError) as error:
            _log.error("the network's API keys cannot be used: %s", type(error).__name__)

    def any(self) -> bool:
        """Whether at least one key exists that has not expired."""
        return any(self._valid(record) for record in self._by_digest.values())

    def check(self, authorization: bytes | None) -> KeyRecord | None:
        """The record for the value of an Authorization header; None without a header or for an unknown key.

        Raises `invalid_api_key` when the value is not `Bearer <token>`.
        """
        token = None if authorization is None else bearer_token((authorization,))
        return None if token is None else self.find(token)

    def find(self, token: bytes) -> KeyRecord | None:
        """The record of a plaintext key, None when it is unknown, revoked or expired.

        The lookup is by hash: its timing tells nothing that helps to guess 256 random bits.
        """
        record = self._by_digest.get(hashlib.sha256(token).hexdigest())
        return record if record is not None and self._valid(record) else None

    def _valid(self, record: KeyRecord) -> bool:
        return record.expires is None or self._clock() < record.expires

    def _check_new(self, name: str, expires: int | None, rights: Sequence[Right]) -> None:
        if _NAME.fullmatch(name) is None:
            raise FelloeError("invalid_value", "a key's name has 1 to 64 letters, digits, ` ._@-`", param="name")
        if any(record.name == name for record in self.list()):
            raise FelloeError("invalid_value", "another key has this name", param="name")
        if not rights or any(right not in RIGHTS for right in rights):
            raise FelloeError("invalid_value", f"rights are {', '.join(RIGHTS)}", param="rights")
        if expires is not None and expires <= self._clock():
            raise FelloeError("invalid_value", "the key would have expired already", param="expires")
        if len(self._by_digest) >= _MOST_KEYS:
            raise FelloeError("invalid_value", f"there are {_MOST_KEYS} keys already; revoke some")

    def _store(self, content: _File) -> None:
        write_atomic(self._path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")
        self._use(content)

    def _use(self, content: _File) -> None:
        self._content = content
        # Where a node's own key is distributed too, the node's own record counts.
        self._by_digest = {record.digest: record for record in (*content.network, *content.keys)}


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise FelloeError("bad_state", f"cannot read {path}: {error.strerror}") from error
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(data, type=_File)
    except (ValueError, RecursionError) as error:
        raise FelloeError("bad_state", f"{path} is not a list of API keys") from error
