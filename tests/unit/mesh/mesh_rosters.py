"""Records that nodes say in the tests of rosters, and what a roster shows of them."""

from typing import Any

from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.models import Model
from felloe.domain.roster import NodeRecord, Replica
from felloe.mesh.roster_service import RosterService

HARDWARE = Hardware(system="Linux", machine="x86_64", processor="", cores=2, memory_total=1, memory_available=1)


def make_record(public_key: bytes, /, **changes: Any) -> NodeRecord:
    fields: dict[str, Any] = {
        "id": NodeId(id_from_public_key(public_key)),
        "name": "box",
        "roles": ("spoke",),
        "version": "0.1.0",
        "public_key": public_key,
        "sealing_config": b"sealing",
        "hardware": HARDWARE,
        "replicas": (),
        "started_at": 1.0,
        "issued_at": 2.0,
    }
    return NodeRecord(**(fields | changes))


def make_replica(name: str) -> Replica:
    model = Model(name=name, digest="", size=1, architecture="llama", quantisation="q8_0", context=2048)
    return Replica(model=model, engine="llama.cpp", state="ready", slots=4, context=512)


def alive(roster: RosterService) -> set[NodeId]:
    return {node for node, member in roster.snapshot().members.items() if member.alive}


def name_of(roster: RosterService, node: NodeId) -> str | None:
    member = roster.snapshot().members.get(node)
    return member.record.name if member else None
