"""The hubs' state: what they tell every node of it, and what they keep among themselves."""

from typing import Any

import msgspec
from wire_case import Case, more_json
from wire_hubs import HUB
from wire_roster import NODE, PUBLIC_KEY

from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs.invitations import Invitation
from felloe.hubs.records import Generation, HubSet, Lease, Next, decode, encode
from felloe.hubs.records import Hub as HubRecord
from felloe.mesh.membership import ListedMember

SINCE = 1_790_000_000.25


def _record(name: str, record: msgspec.Struct) -> Case:
    kind = type(record)
    return Case(f"network-{name}.json", lambda: encode(record), lambda data: decode(data, kind), grow=more_json)


def _hubs() -> HubSet:
    endpoints = Endpoints(hosts=("192.0.2.1", "attic.example"), peer=8471, mesh=8472, route=8473, state=8474)
    hub = HubRecord(id=NODE, name="attic", public_key=PUBLIC_KEY, endpoints=endpoints, since=SINCE)
    return HubSet(hubs=(hub,), wanted=3)


def _grow_hubs(data: bytes) -> bytes:
    hubs: dict[str, Any] = msgspec.json.decode(data)
    for part in (hubs, hubs["hubs"][0], hubs["hubs"][0]["endpoints"]):
        part["of_a_newer_version"] = {"x": 1}
    return msgspec.json.encode(hubs)


CASES = [
    Case("network-hubs.json", lambda: encode(_hubs()), lambda data: decode(data, HubSet), grow=_grow_hubs),
    Case(
        "network-revoked.json",
        lambda: msgspec.json.encode([HUB, NODE]),
        lambda data: msgspec.json.decode(data, type=list[NodeId]),
    ),
    _record("generation", Generation(number=4, hubs=(HUB, NODE))),
    _record("next", Next(number=5, hubs=(HUB,), closed=True)),
    _record("lease", Lease(holder=HUB, term=7, beat=3, seconds=15.0)),
    _record(
        "member",
        ListedMember(
            id=NODE,
            name="attic",
            role="spoke",
            public_key=PUBLIC_KEY,
            joined_at=SINCE,
            revoked_at=SINCE + 2,
            never_hub=True,
            demoted_at=SINCE + 1,
        ),
    ),
    _record(
        "invitation",
        Invitation(
            id=bytes(range(10)),
            secret_hash=bytes(range(32)),
            role="hub",
            uses=3,
            created_at=SINCE,
            expires_at=SINCE + 3600,
            joined=(NODE,),
            withdrawn=True,
        ),
    ),
]
