"""What the replicated state holds, key by key. Values are JSON of these structs, so that an owner can read a backup."""

from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Struct

from felloe.domain.approval import CandidateSignature, Publication, SignedDecision
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints

LEASE = "lease"
HUBS = "hubs"
GENERATION = "generation"
NEXT = "next"
BARRIER = "barrier"
MEMBER = "member."
INVITATION = "invitation."
CATALOG = "catalog"
"""What curators have approved: an encoded `Bundle`, the one value that is no JSON."""

CATALOG_BOOK = "catalog-"
PUBLICATION = "catalog-publication."
DECISION = "catalog-decision."
SIGNATURE = "catalog-signature."
"""What leads to the next catalogue: numbered publications and decisions, and by key the curators' signatures."""

SERVING = "serving"
"""What owners want served: a `Serving` (`domain/serving.py`)."""

PLAN = "plan"
"""What is to run where: a `NetworkPlan`, written by the leader."""

Record = TypeVar("Record", bound=Struct)


class Revision(NamedTuple):
    """A point in the history of the state: `sequence` counts the writes of one generation."""

    generation: int
    sequence: int


class Hub(Struct, frozen=True, kw_only=True):
    """A node that is a hub, and where it is dialled. `public_key` is raw; `since` in Unix seconds."""

    id: NodeId
    name: str
    public_key: bytes
    endpoints: Endpoints
    since: float


class HubSet(Struct, frozen=True, kw_only=True):
    """Key `hubs`: the nodes that carry messages and may act for the network, and how many the owner wants.

    `wanted` is 0 for automatic: three as soon as three nodes can be hubs.
    """

    hubs: tuple[Hub, ...]
    wanted: int = 0

    def find(self, node: NodeId) -> Hub | None:
        """The hub with this id."""
        return next((hub for hub in self.hubs if hub.id == node), None)


class Generation(Struct, frozen=True, kw_only=True):
    """Key `generation`, written last into a new generation: it is complete, and these hubs keep it."""

    number: int
    hubs: tuple[NodeId, ...]


class Next(Struct, frozen=True, kw_only=True):
    """Key `next`: the state is to move to `hubs` as generation `number`; once `closed`, this one takes no write.

    Without hubs it is called off.
    """

    number: int
    hubs: tuple[NodeId, ...]
    closed: bool = False


class Lease(Struct, frozen=True, kw_only=True):
    """Key `lease`: who leads. `term` grows with every new leader; `beat` with every renewal."""

    holder: NodeId
    term: int
    beat: int
    seconds: float


class KeptPublication(Struct, frozen=True, kw_only=True):
    """Keys `catalog-publication.<number>`: a model offered for approval, and its signed manifest."""

    publication: Publication
    envelope: bytes


class KeptDecision(Struct, frozen=True, kw_only=True):
    """Keys `catalog-decision.<number>`: what a curator decided; `taken_at` in Unix seconds by the hub's clock."""

    signed: SignedDecision
    taken_at: float


class KeptSignature(Struct, frozen=True, kw_only=True):
    """Keys `catalog-signature.<curator's key>`: the curator's newest signature over a catalogue to come."""

    signature: CandidateSignature


class State(Protocol):
    """The replicated state as the other parts of this package use it."""

    @property
    def revision(self) -> Revision:
        """How new the copy in memory is."""
        ...

    def get(self, key: str) -> bytes | None:
        """A key's value in the copy in memory."""
        ...

    def items(self, prefix: str) -> dict[str, bytes]:
        """All keys that begin with `prefix`, and their values."""
        ...

    async def change(self, key: str, function: "Change", *, term: int | None = None) -> bytes | None:
        """Replace a key's value by `function` of it, acknowledged by most of the hubs when this returns; the new value.

        `function` is called again whenever another hub wrote meanwhile. With `term`, it is refused as `not_leader`
        unless the lease is of that term at the very revision that the write follows. Raises `network_unreachable`
        when the state does not acknowledge (the change may then be in it or not), `body_too_large`, `overloaded`.
        """
        ...

    def on_change(self, prefix: str, callback: "Watcher") -> None:
        """Call `callback` in the event loop, after each change of a key that begins with `prefix`, with that key."""
        ...


class Change(Protocol):
    """Gives a key's new value from the present one; None deletes, the same value leaves it as it is."""

    def __call__(self, before: bytes | None, /) -> bytes | None: ...


class Watcher(Protocol):
    """Is told that a key has changed."""

    def __call__(self, key: str, /) -> None: ...


def encode(record: Struct) -> bytes:
    """A record as it is stored."""
    return msgspec.json.encode(record)


def decode(value: bytes, kind: type[Record]) -> Record:
    """A stored record; `bad_state` when it is damaged or of a newer version."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", f"the network's state holds a damaged {kind.__name__}") from error
