"""Who is in the network and what each node serves: what crosses the wire, and the snapshot that routing reads."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from felloe.domain.fleet import Machine
from felloe.domain.hardware import Hardware
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.models import Model
from felloe.domain.plan import KvType, Part

Role = Literal["hub", "spoke"]
ReplicaState = Literal["starting", "ready", "draining", "failed"]
LoadStage = Literal["waiting", "fetching", "starting"]

HELD_DIGITS = 16
"""How much of a content id a record names."""


class Replica(Struct, frozen=True, kw_only=True):
    """One loaded copy of a model. `slots` answers at once; `context` is what one slot holds, in tokens.

    `parts` is what it takes up on each device: what its engine said when it was ready, before that what it is allowed;
    empty where nobody knows. `planned` tells it from what the node's owner loaded or attached; `variant` is then the
    model that stands for `model`, and `content` its approved files. `speed` is how many tokens a second one answer
    gets here, 0 while that is unknown.
    """

    model: Model
    engine: str
    state: ReplicaState
    slots: int
    context: int
    parts: tuple[Part, ...] = ()
    kv_type: KvType = "f16"
    planned: bool = False
    variant: ModelName | Literal[""] = ""
    content: ContentId | Literal[""] = ""
    speed: float = 0.0

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it lies on."""
        return tuple(part.device for part in self.parts)


class LoadingReplica(Struct, frozen=True, kw_only=True):
    """A planned replica on its way: its files come (`fetching`), memory is being freed (`waiting`), its engine starts.

    `done` of `total` bytes of the present stage, 0 of 0 where it has none; `ready_in` is how many seconds it takes
    still, as far as is known, 0 where it is not.
    """

    model: ModelName
    variant: ModelName
    stage: LoadStage
    done: int = 0
    total: int = 0
    ready_in: float = 0.0


class LoadFailure(Struct, frozen=True, kw_only=True):
    """A planned replica that this node could not load or keep alive, and why; it tells the newest of each placement.

    `code` is that of the error (`out_of_memory`, `bad_model_file`, ...). `devices` are where it was to lie. For memory,
    `short` says how many bytes more than planned it takes, by device, as far as its engine told; a device with 0 was
    short by an unknown amount. `times` counts failures in a row, `at` is the last one's time in Unix seconds. The node
    tries the same again only after `retry_in` seconds, or when the plan has changed for it; 0: only then.
    """

    model: ModelName
    variant: ModelName
    content: ContentId | Literal[""]
    code: str
    detail: str
    devices: tuple[str, ...]
    short: dict[str, int] = {}
    times: int = 1
    at: float = 0.0
    retry_in: float = 0.0


class Load(Struct, frozen=True, array_like=True):
    """How busy a node is, per model name: requests being answered, requests waiting; and whether it is stopping.

    `served` counts the requests per model name begun here since the node started, so that short ones are seen.
    """

    active: dict[str, int] = {}
    waiting: dict[str, int] = {}
    draining: bool = False
    served: dict[str, int] = {}


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
    `machine` is what plans may use of it, None in what older versions say: no planned model runs there.
    `loading` and `failures` tell what of the plan with the number `plan` is not served here yet.
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
    machine: Machine | None = None
    loading: tuple[LoadingReplica, ...] = ()
    failures: tuple[LoadFailure, ...] = ()
    plan: int = 0


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
