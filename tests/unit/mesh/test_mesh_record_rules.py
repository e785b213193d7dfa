"""A record with figures that no honest node tells is refused, whoever signed it."""

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.hardware import Hardware
from felloe.domain.ids import ContentId, ModelName, NodeId, id_from_public_key
from felloe.domain.plan import Need, Part
from felloe.domain.roster import LoadFailure, LoadingReplica, NodeRecord
from felloe.mesh.record_rules import MOST_FAILURES, MOST_LOADING
from felloe.mesh.roster_wire import BadRecord, decode_record, encode_record
from routing_fakes import make_replica

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
NODE = NodeId(id_from_public_key(PUBLIC))
RAM_DEVICE = Device(id=RAM, kind="cpu", memory=32 << 30, name="memory")
GPU = Device(id="gpu0", kind="cuda", memory=12 << 30, bandwidth=3e11)
MACHINE = Machine(id=NODE, name="attic", devices=(RAM_DEVICE, GPU))
PART = Part(device="gpu0", layers=33, need=Need(weights=4 << 30, kv=1 << 30))
NAME = ModelName("chat")
REPLICA = msgspec.structs.replace(
    make_replica(NAME),
    parts=(PART,),
    planned=True,
    variant=ModelName("chat-q4"),
    content=ContentId("ab" * 32),
    speed=41.0,
)
LOADING = LoadingReplica(model=NAME, variant=NAME, stage="fetching", done=1, total=2, ready_in=30.0)
FAILURE = LoadFailure(
    model=NAME,
    variant=NAME,
    content=ContentId("ab" * 32),
    code="out_of_memory",
    detail="gpu0 was short",
    devices=("gpu0",),
    short={"gpu0": 1 << 30},
    at=1_800_000_000.0,
    retry_in=60.0,
)


def record(**changes: Any) -> NodeRecord:
    honest = NodeRecord(
        id=NODE,
        name="attic",
        roles=("spoke",),
        version="0.1.0",
        public_key=PUBLIC,
        sealing_config=b"",
        hardware=Hardware(system="Linux", machine="x", processor="", cores=1, memory_total=1, memory_available=1),
        replicas=(REPLICA,),
        started_at=1.0,
        issued_at=2.0,
        machine=MACHINE,
        loading=(LOADING,),
        failures=(FAILURE,),
        plan=3,
    )
    return msgspec.structs.replace(honest, **changes)


def test_an_honest_record_comes_out_as_it_went_in() -> None:
    assert decode_record(encode_record(record(), KEY.sign)) == record()
    assert record().replicas[0].devices == ("gpu0",)


def device(**changes: Any) -> Machine:
    return msgspec.structs.replace(MACHINE, devices=(RAM_DEVICE, msgspec.structs.replace(GPU, **changes)))


def part(**changes: Any) -> tuple[Any, ...]:
    return (msgspec.structs.replace(REPLICA, parts=(msgspec.structs.replace(PART, **changes),)),)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": msgspec.structs.replace(MACHINE, id=NodeId("a" * 26))},
        {"machine": msgspec.structs.replace(MACHINE, devices=())},
        {"machine": msgspec.structs.replace(MACHINE, devices=(RAM_DEVICE, GPU, GPU))},
        {"machine": device(memory=-1)},
        {"machine": device(memory=2**62)},
        {"machine": device(bandwidth=float("nan"))},
        {"machine": device(bandwidth=-1.0)},
        {"machine": device(name="\x1b[2J")},
        {"replicas": part(layers=-1)},
        {"replicas": part(need=Need(weights=-1))},
        {"replicas": part(need=Need(kv=2**62))},
        {"replicas": part(device="x" * 600)},
        {"replicas": (msgspec.structs.replace(REPLICA, parts=(PART,) * 65),)},
        {"replicas": (msgspec.structs.replace(REPLICA, speed=float("inf")),)},
        {"replicas": (msgspec.structs.replace(REPLICA, speed=-1.0),)},
        {"replicas": (msgspec.structs.replace(REPLICA, variant=ModelName("../up")),)},
        {"replicas": (msgspec.structs.replace(REPLICA, content=ContentId("short")),)},
        {"loading": (LOADING,) * (MOST_LOADING + 1)},
        {"loading": (msgspec.structs.replace(LOADING, done=-1),)},
        {"loading": (msgspec.structs.replace(LOADING, ready_in=float("nan")),)},
        {"loading": (msgspec.structs.replace(LOADING, model=ModelName("")),)},
        {"failures": (FAILURE,) * (MOST_FAILURES + 1)},
        {"failures": (msgspec.structs.replace(FAILURE, short={"gpu0": -1}),)},
        {"failures": (msgspec.structs.replace(FAILURE, short={"\x1b[2J": 1}),)},
        {"failures": (msgspec.structs.replace(FAILURE, times=0),)},
        {"failures": (msgspec.structs.replace(FAILURE, at=float("inf")),)},
        {"failures": (msgspec.structs.replace(FAILURE, retry_in=-1.0),)},
        {"failures": (msgspec.structs.replace(FAILURE, detail="x" * 600),)},
        {"plan": -1},
        {"plan": 2**53},
    ],
)
def test_what_no_honest_node_says_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRecord):
        decode_record(encode_record(record(**changes), KEY.sign))


def test_a_full_record_of_a_large_node_still_fits() -> None:
    replicas = tuple(
        msgspec.structs.replace(REPLICA, parts=tuple(msgspec.structs.replace(PART, device=f"gpu{n}") for n in range(8)))
        for _ in range(16)
    )
    full = record(
        replicas=replicas, loading=(LOADING,) * MOST_LOADING, failures=(FAILURE,) * MOST_FAILURES, machine=MACHINE
    )
    assert decode_record(encode_record(full, KEY.sign)) == full
