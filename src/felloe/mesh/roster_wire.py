"""What nodes say on `roster.>`: signed records, heartbeats; the pages of a hub's snapshot, and its digests.

Nothing that a peer sent is believed before it passed through here: size, shape, the id as the hash of the public key,
the signature, and that no text in it can play tricks on a terminal. Times are checked to be times, but not against this
node's clock, which may be the wrong one.
"""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from felloe.domain.ids import NodeId, id_from_public_key, is_id, is_model_name
from felloe.domain.roster import Endpoint, Load, NodeRecord
from felloe.mesh.join_token import is_host
from felloe.mesh.record_rules import impossible

MAX_RECORD_BYTES = 64 * 1024
MAX_HEARTBEAT_BYTES = 64 * 1024
MAX_PAGE_BYTES = 512 * 1024
MAX_DIGEST_BYTES = 1024 * 1024
MAX_TEXT = 512
MAX_TIME = 1e11
MAX_SESSIONS = 1 << 53
MAX_COUNT = 1_000_000
MAX_ASKED_FOR = 256

MAX_HOLDS = 256
MAX_HOSTS = 32

NO_LOAD = Load()

_CONTEXT = b"felloe node record v1\x00"

_HELD = re.compile(r"[0-9a-f]{16}")
_Shape = TypeVar("_Shape", bound=msgspec.Struct)


class SignedRecord(msgspec.Struct, array_like=True, frozen=True):
    """An encoded `NodeRecord` and the node's Ed25519 signature over the context string and these bytes."""

    record: bytes
    signature: bytes


class Heartbeat(msgspec.Struct, array_like=True, frozen=True):
    """A node lives, is this busy, and its newest record is of `issued_at`.

    `session` counts its sessions with hubs since it `started_at`; 0 and 0.0 in what older versions say.
    """

    load: Load
    issued_at: float
    session: int = 0
    started_at: float = 0.0


class RosterRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a hub for the members whose ids come after `after`: those of `only`, or all when it is empty."""

    after: str = ""
    only: tuple[str, ...] = ()


class RosterEntry(msgspec.Struct, array_like=True, frozen=True):
    """A member as the hub knows it; `silence` in seconds, None when it is dead."""

    signed: bytes
    load: Load
    silence: float | None


class RosterPage(msgspec.Struct, array_like=True, frozen=True):
    """Some members, sorted by id; `more` when others follow."""

    entries: list[RosterEntry]
    more: bool


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """How a member stands, as a hub knows it: whether it lives, and since how many seconds that is so for sure.

    `started_at`, `changed_at` and `session` are of the newest record and heartbeat that the hub holds.
    """

    id: str
    started_at: float
    changed_at: float
    session: int
    alive: bool
    age: float
    load: Load


class Digest(msgspec.Struct, array_like=True, frozen=True):
    """What a hub tells everybody: who stands differently now, some of all others in turn, and new signed records."""

    changes: list[Standing] = []
    in_passing: list[Standing] = []
    news: list[bytes] = []


class StandingsRequest(msgspec.Struct, array_like=True, frozen=True):
    """Ask a hub how the members stand whose ids come after `after`."""

    after: str = ""


class StandingsPage(msgspec.Struct, array_like=True, frozen=True):
    """Some members, sorted by id; `more` when others follow."""

    standings: list[Standing]
    more: bool


class BadRecord(Exception):
    """A peer's record or heartbeat is not what it must be; the text says why, without its content."""


def encode_record(record: NodeRecord, sign: Callable[[bytes], bytes]) -> bytes:
    """The bytes that the node publishes; `BadRecord` when they would be too many."""
    encoded = msgspec.msgpack.encode(record)
    signed = msgspec.msgpack.encode(SignedRecord(encoded, sign(_CONTEXT + encoded)))
    if len(signed) > MAX_RECORD_BYTES:
        raise BadRecord("too large")
    return signed


def decode_record(signed: bytes) -> NodeRecord:
    """A record that its node really signed. Raises `BadRecord`."""
    envelope = _decoded(signed, SignedRecord, MAX_RECORD_BYTES, "not a signed record")
    record = _decoded(envelope.record, NodeRecord, MAX_RECORD_BYTES, "not a signed record")
    if len(record.public_key) != 32 or id_from_public_key(record.public_key) != record.id:
        raise BadRecord("the id is not the hash of the public key")
    try:
        Ed25519PublicKey.from_public_bytes(record.public_key).verify(envelope.signature, _CONTEXT + envelope.record)
    except (InvalidSignature, ValueError) as error:
        raise BadRecord("bad signature") from error
    _check_content(record)
    return record


def decode_heartbeat(data: bytes) -> Heartbeat:
    """A heartbeat with sane numbers. Raises `BadRecord`."""
    heartbeat = _decoded(data, Heartbeat, MAX_HEARTBEAT_BYTES, "not a heartbeat")
    check_load(heartbeat.load)
    times = (heartbeat.issued_at, heartbeat.started_at)
    if not 0 <= heartbeat.session < MAX_SESSIONS or not all(map(_is_time, times)):
        raise BadRecord("bad heartbeat")
    return heartbeat


def decode_digest(data: bytes) -> Digest:
    """A digest whose standings are sane; its records are still to be decoded. Raises `BadRecord`."""
    digest = _decoded(data, Digest, MAX_DIGEST_BYTES, "not a digest")
    for standing in digest.changes:
        check_standing(standing)
    for standing in digest.in_passing:
        check_standing(standing)
    return digest


def check_standing(standing: Standing) -> None:
    """Refuse a standing of nobody, and numbers that are none."""
    if standing.load != NO_LOAD:
        check_load(standing.load)
    sane = _is_time(standing.started_at) and _is_time(standing.changed_at) and _is_time(standing.age)
    if not sane or not 0 <= standing.session < MAX_SESSIONS or not is_id(standing.id):
        raise BadRecord("bad standing")


def check_load(load: Load) -> None:
    """Refuse counts that are no counts and names that are no names."""
    for counts in (load.active, load.waiting):
        if not all(is_model_name(name) and 0 <= count <= MAX_COUNT for name, count in counts.items()):
            raise BadRecord("bad load")
    if not all(is_model_name(name) and 0 <= count < MAX_SESSIONS for name, count in load.served.items()):
        raise BadRecord("bad load")


def parse_id(text: str) -> NodeId:
    """`text` as a node id. Raises `BadRecord`."""
    if not is_id(text):
        raise BadRecord("bad id")
    return NodeId(text)


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and abs(seconds) < MAX_TIME


def _check_content(record: NodeRecord) -> None:
    times = (record.started_at, record.issued_at, record.changed_at)
    if not all(map(_is_time, times)) or record.issued_at < 0:
        raise BadRecord("not a time")
    if problem := impossible(record):
        raise BadRecord(problem)
    if record.transfer is not None and not _is_dialable(record.transfer):
        raise BadRecord("bad transfer endpoint")
    if len(record.holds) > MAX_HOLDS or not all(map(_HELD.fullmatch, record.holds)):
        raise BadRecord("bad content id")
    _check_text(msgspec.to_builtins(record, builtin_types=(bytes,)))


def _is_dialable(endpoint: Endpoint) -> bool:
    hosts = endpoint.hosts
    return 0 < endpoint.port < 65536 and len(hosts) <= MAX_HOSTS and all(map(is_host, hosts))


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT or not value.isprintable():
            raise BadRecord("unprintable or long text")
    elif isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list | tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            _check_text(item)


def _decoded(data: bytes, kind: type[_Shape], most_bytes: int, otherwise: str) -> _Shape:
    if len(data) > most_bytes:
        raise BadRecord("too large")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(otherwise) from error
