"""What a node may say of its transfer port and of the models that it holds."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_rosters import make_record

from felloe.domain.roster import Endpoint
from felloe.mesh.roster_wire import MAX_HOLDS, BadRecord, decode_record, encode_record

KEY = Ed25519PrivateKey.generate()


def said(**changes: Any) -> bytes:
    return encode_record(make_record(KEY.public_key().public_bytes_raw(), **changes), KEY.sign)


def test_a_record_tells_where_models_are_fetched_and_which() -> None:
    place = Endpoint(hosts=("192.168.1.7", "fe80::1", "attic.example"), port=8476)
    holds = tuple(f"{number:016x}" for number in range(MAX_HOLDS))
    record = decode_record(said(transfer=place, holds=holds))
    assert (record.transfer, record.holds) == (place, holds)


def test_a_record_of_an_older_version_tells_neither() -> None:
    record = decode_record(said())
    assert (record.transfer, record.holds) == (None, ())


@pytest.mark.parametrize(
    "place",
    [
        Endpoint(hosts=("192.168.1.7",), port=0),
        Endpoint(hosts=("192.168.1.7",), port=65536),
        Endpoint(hosts=("192.168.1.7",), port=-1),
        Endpoint(hosts=("192.168.1.7:80",), port=8476),
        Endpoint(hosts=("-rf",), port=8476),
        Endpoint(hosts=("a b",), port=8476),
        Endpoint(hosts=("",), port=8476),
        Endpoint(hosts=("fe80::1%eth0",), port=8476),
        Endpoint(hosts=("10.0.0.1",) * 33, port=8476),
    ],
)
def test_a_place_that_nobody_can_dial_is_refused(place: Endpoint) -> None:
    with pytest.raises(BadRecord, match="transfer"):
        decode_record(said(transfer=place))


@pytest.mark.parametrize(
    "holds", [("",), ("0" * 15,), ("0" * 17,), ("0" * 64,), ("G" * 16,), ("٠" * 16,), ("0" * 16,) * (MAX_HOLDS + 1)]
)
def test_content_ids_that_are_none_or_too_many_are_refused(holds: tuple[str, ...]) -> None:
    with pytest.raises(BadRecord, match="content"):
        decode_record(said(holds=holds))
