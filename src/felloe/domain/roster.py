"""Who is in the network and what each node serves: what crosses the wire, and the snapshot that routing reads."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId
from felloe.domain.models import Model

Role = Literal["hub", "spoke"]
ReplicaState = Literal["starting", "ready", "draining", "failed"]


class Replica(Struct, frozen=True, kw_only=True):
    """One loaded copy of a model. `slots` answers at once; `context` is what one slot holds, in tokens."""

    model: Model
    engine: str
    state: ReplicaState
    slots: int
    context: int


class Load(Struct, frozen=True, array_like=True):
    """How busy a node is, per model name: requests being answered, requests waiting; and whether it is stopping."""

    active: dict[str, int] = {}
    waiting: dict[str, int] = {}
    draining: bool = False


class Endpoints(Struct, frozen=True, kw_only=True):
    """Where other nodes could dial this one as a hub: host names or addresses, and the TCP ports there.

    `peer` takes joins and renewals over HTTPS, `mesh` message clients, `route` the other hubs' message servers;
    `state` and the port after it take the other hubs' state servers.
    """

    hosts: tuple[str, ...]
    peer: int
    mesh: int
    route: int
    state: int


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where other members fetch models from this node: host names or addresses, and the TCP port there."""

    hosts: tuple[str, ...]
    port: int


class NodeRecord(Struct, frozen=True, kw_only=True):
    """What a node says about itself; it signs the encoded record with its node key.

    `sealing_config` is an OHTTP key configuration (RFC 9458 section 3). `issued_at` is in Unix seconds; a later
    record replaces an earlier one of the same node. `endpoints` is None on a node that will not be a hub. `changed_at`
    is when anything but the free memory last changed, 0 in what older versions say. `transfer` is None while nothing
    listens there. `holds` begins the content ids of the models that are here whole or in part, 16 hex digits each.
    """

    id: NodeId
    name: str
    roles: tuple[Role, ...]
    version: str
    public_key: bytes
    sealing_config: bytes
    hardware: Hardware
    replicas: tuple[Replica, ...]
    started_at: float
    issued_at: float
    endpoints: Endpoints | None = None
    changed_at: float = 0.0
    transfer: Endpoint | None = None
    holds: tuple[str, ...] = ()


class Member(Struct, frozen=True, kw_only=True):
    """A node as this node sees it now. `alive` is false after it was seen to die or fell silent."""

    record: NodeRecord
    load: Load
    alive: bool
    seen_at: float


class Roster(Struct, frozen=True):
    """An immutable snapshot; a new one replaces it on every change. `this` is the node that holds it."""

    this: NodeId
    members: Mapping[NodeId, Member]
    version: int = 0
