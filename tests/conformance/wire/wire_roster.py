"""Roster records, heartbeats, pages; the subjects that everything travels on."""

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wire_case import Case, changed, longer

from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.hardware import Gpu, Hardware
from felloe.domain.ids import ContentId, ModelDigest, ModelName, NodeId, id_from_public_key
from felloe.domain.models import Model
from felloe.domain.plan import Need, Part
from felloe.domain.roster import Load, LoadFailure, LoadingReplica, NodeRecord, Replica
from felloe.mesh import permissions
from felloe.mesh.roster_wire import (
    Digest,
    Heartbeat,
    RosterEntry,
    RosterPage,
    RosterRequest,
    Standing,
    StandingsPage,
    StandingsRequest,
    decode_digest,
    decode_heartbeat,
    decode_record,
    encode_record,
)

NODE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = NODE_KEY.public_key().public_bytes_raw()
NODE = NodeId(id_from_public_key(PUBLIC_KEY))
ISSUED_AT = 1_790_000_000.5
LOAD = Load(active={"tiny-python": 2}, waiting={"tiny-python": 1}, draining=True)

_RECORD_CONTEXT = b"felloe node record v1\x00"


def record() -> NodeRecord:
    """A node that serves a model."""
    model = Model(
        name=ModelName("tiny-python"),
        digest=ModelDigest("sha256:" + "5a" * 32),
        size=3_900_000,
        architecture="llama",
        quantisation="q8_0",
        context=4096,
        parameters=3_700_000,
        capabilities=("chat", "completion", "embedding", "tools", "json_schema"),
        created=1_780_000_000,
    )
    gpu = Gpu(index=1, vendor="nvidia", name="RTX 9", memory_total=24 << 30, memory_free=20 << 30)
    hardware = Hardware(
        system="Linux",
        machine="x86_64",
        processor="Some CPU",
        cores=16,
        memory_total=64 << 30,
        memory_available=48 << 30,
        gpus=(gpu,),
    )
    return NodeRecord(
        id=NODE,
        name="attic",
        roles=("hub", "spoke"),
        version="0.1.0",
        public_key=PUBLIC_KEY,
        sealing_config=b"a sealing key's configuration",
        hardware=hardware,
        replicas=(Replica(model=model, engine="llama.cpp", state="ready", slots=4, context=4096),),
        started_at=1_789_999_000.25,
        issued_at=ISSUED_AT,
    )


def planned_record() -> NodeRecord:
    """A node that follows a plan: one replica serves, one is on its way, one has failed."""
    part = Part(device="gpu0", layers=33, need=Need(weights=4 << 30, kv=1 << 30, compute=300 << 20, overhead=400 << 20))
    name, variant, content = ModelName("tiny-python"), ModelName("tiny-python-q8"), ContentId("c0" * 32)
    replica = msgspec.structs.replace(
        record().replicas[0],
        parts=(part,),
        kv_type="q8_0",
        planned=True,
        variant=variant,
        content=content,
        speed=41.5,
    )
    devices = (
        Device(id=RAM, kind="cpu", memory=60 << 30, name="Some CPU"),
        Device(id="gpu0", kind="cuda", memory=22 << 30, name="RTX 9", bandwidth=936e9),
    )
    failure = LoadFailure(
        model=ModelName("large"),
        variant=variant,
        content=content,
        code="out_of_memory",
        detail="gpu0 is short of 512 MiB",
        devices=("gpu0",),
        short={"gpu0": 512 << 20},
        times=2,
        at=ISSUED_AT,
        retry_in=120.0,
    )
    return msgspec.structs.replace(
        record(),
        replicas=(replica,),
        machine=Machine(id=NODE, name="attic", devices=devices),
        loading=(LoadingReplica(model=name, variant=variant, stage="fetching", done=1, total=2, ready_in=9.5),),
        failures=(failure,),
        plan=7,
    )


def _signed() -> bytes:
    return encode_record(record(), NODE_KEY.sign)


def _read_page(data: bytes) -> Any:
    page = msgspec.msgpack.decode(data, type=RosterPage)
    return {
        "more": page.more,
        "entries": [
            {"record": decode_record(entry.signed), "load": entry.load, "silence": entry.silence}
            for entry in page.entries
        ],
    }


def newer_record(signed: bytes) -> bytes:
    """The record with fields that only a newer version knows, at every depth, signed by the same node."""
    record = msgspec.msgpack.decode(msgspec.msgpack.decode(signed)[0])
    for part in (
        record,
        record["hardware"],
        record["hardware"]["gpus"][0],
        record["replicas"][0],
        record["replicas"][0]["model"],
    ):
        part["of_a_newer_version"] = {"x": [1, 2]}
    encoded = msgspec.msgpack.encode(record)
    return msgspec.msgpack.encode([encoded, NODE_KEY.sign(_RECORD_CONTEXT + encoded), "new"])


def newer_planned_record(signed: bytes) -> bytes:
    """As `newer_record`, in what a node says of its machine and its plan."""
    record = msgspec.msgpack.decode(msgspec.msgpack.decode(signed)[0])
    part = record["replicas"][0]["parts"][0]
    for grown in (
        record["machine"],
        record["machine"]["devices"][1],
        part,
        part["need"],
        record["loading"][0],
        record["failures"][0],
    ):
        grown["of_a_newer_version"] = {"x": [1, 2]}
    encoded = msgspec.msgpack.encode(record)
    return msgspec.msgpack.encode([encoded, NODE_KEY.sign(_RECORD_CONTEXT + encoded)])


def _grow_heartbeat(content: Any) -> None:
    content[0].append("new")
    content.append("new")


def _grow_page(content: Any) -> None:
    content[0][0][0] = newer_record(content[0][0][0])
    content[0][0][1].append("new")
    content[0][0].append("new")
    content.append("new")


def _standings() -> list[Standing]:
    alive = Standing(NODE, 1_789_999_000.25, ISSUED_AT, 3, True, 0.5, LOAD)
    return [alive, Standing(NODE, 1_789_999_000.25, ISSUED_AT, 3, False, 2.5, Load())]


def _read_digest(data: bytes) -> Any:
    digest = decode_digest(data)
    news = [decode_record(signed) for signed in digest.news]
    return {"changes": digest.changes, "in_passing": digest.in_passing, "news": news}


def _grow_digest(content: Any) -> None:
    content[0][0][6].append("new")
    content[0][0].append("new")
    content[2][0] = newer_record(content[2][0])
    content.append("new")


def _grow_standings(content: Any) -> None:
    content[0][0].append("new")
    content.append("new")


def _unsigned(content: Any) -> None:
    record = msgspec.msgpack.decode(content[0])
    record["name"] = "cellar"
    content[0] = msgspec.msgpack.encode(record)


def _subjects() -> bytes:
    return msgspec.json.encode(
        {
            "infer": permissions.infer(NODE),
            "flow": permissions.flow(NODE),
            "inbox": permissions.inbox(NODE),
            "record": permissions.roster_record(NODE),
            "load": permissions.roster_load(NODE),
            "gone": permissions.roster_gone(NODE),
            "service": permissions.hub_service("roster"),
            "state": permissions.state("keys"),
            "command": permissions.command(NODE, "drain"),
            "digest": permissions.digest(NODE),
        }
    )


def _read_subjects(data: bytes) -> Any:
    """Where this version sends and listens; a version that spelled them otherwise would not be heard."""
    del data
    return msgspec.json.decode(_subjects())


CASES = [
    Case("subjects.json", _subjects, _read_subjects),
    Case(
        "roster-record",
        _signed,
        decode_record,
        grow=newer_record,
        refuse=changed(_unsigned),
    ),
    Case(
        "roster-planned-record",
        lambda: encode_record(planned_record(), NODE_KEY.sign),
        decode_record,
        grow=newer_planned_record,
    ),
    Case(
        "roster-heartbeat",
        lambda: msgspec.msgpack.encode(Heartbeat(LOAD, ISSUED_AT)),
        decode_heartbeat,
        grow=changed(_grow_heartbeat),
    ),
    Case(
        "roster-question",
        lambda: msgspec.msgpack.encode(RosterRequest(NODE)),
        lambda data: msgspec.msgpack.decode(data, type=RosterRequest),
        grow=longer,
    ),
    Case(
        "roster-page",
        lambda: msgspec.msgpack.encode(
            RosterPage([RosterEntry(_signed(), LOAD, 1.5), RosterEntry(_signed(), Load(), None)], True)
        ),
        _read_page,
        grow=changed(_grow_page),
    ),
    Case(
        "roster-digest",
        lambda: msgspec.msgpack.encode(Digest(_standings(), _standings()[:1], [_signed()])),
        _read_digest,
        grow=changed(_grow_digest),
    ),
    Case(
        "roster-standings-question",
        lambda: msgspec.msgpack.encode(StandingsRequest(NODE)),
        lambda data: msgspec.msgpack.decode(data, type=StandingsRequest),
        grow=longer,
    ),
    Case(
        "roster-standings",
        lambda: msgspec.msgpack.encode(StandingsPage(_standings(), True)),
        lambda data: msgspec.msgpack.decode(data, type=StandingsPage),
        grow=changed(_grow_standings),
    ),
]
