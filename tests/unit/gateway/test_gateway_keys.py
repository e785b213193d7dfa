"""The key store: what it keeps, what it accepts, what it refuses."""

import hashlib
import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from felloe.domain.errors import FelloeError
from felloe.gateway import ApiKeys, KeyRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api-keys.json"


def header(plaintext: str) -> bytes:
    return b"Bearer " + plaintext.encode()


def record(plaintext: str, name: str = "elsewhere") -> KeyRecord:
    digest = hashlib.sha256(plaintext.encode()).hexdigest()
    return KeyRecord(id=digest[:12], name=name, digest=digest, created=1)


def test_a_new_key_is_accepted_also_after_a_restart(path: Path) -> None:
    made, plaintext = ApiKeys(path).create("laptop")
    assert plaintext.startswith("fk-")
    assert len(plaintext) == 46
    assert ApiKeys(path).check(header(plaintext)) == made


def test_the_file_is_private_and_holds_no_plaintext(path: Path) -> None:
    _, plaintext = ApiKeys(path).create("laptop")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert plaintext[3:] not in path.read_text()


def test_keys_differ(path: Path) -> None:
    keys = ApiKeys(path)
    assert len({keys.create(f"key {number}")[1] for number in range(20)}) == 20


@pytest.mark.parametrize("value", [None, b"Bearer fk-", b"Bearer fk-" + b"A" * 43, b"Bearer placeholder"])
def test_an_unknown_key_is_no_key(path: Path, value: bytes | None) -> None:
    keys = ApiKeys(path)
    keys.create("laptop")
    assert keys.check(value) is None


def test_a_digest_is_not_a_key(path: Path) -> None:
    keys = ApiKeys(path)
    made, _ = keys.create("laptop")
    assert keys.check(header(made.digest)) is None


def test_a_header_that_is_no_bearer_token_is_refused(path: Path) -> None:
    for value in (b"", b"Bearer", b"Basic abc", b"Bearer a b", b"Bearer \xff", b"Bearer " + b"x" * 600):
        with pytest.raises(FelloeError) as caught:
            ApiKeys(path).check(value)
        assert caught.value.code == "invalid_api_key"


def test_a_key_ends_when_it_expires(path: Path) -> None:
    clock = Clock()
    keys = ApiKeys(path, clock)
    _, plaintext = keys.create("guest", expires=1_000_060)
    assert keys.any()
    clock.now = 1_000_059.9
    assert keys.check(header(plaintext)) is not None
    clock.now = 1_000_060.0
    assert keys.check(header(plaintext)) is None
    assert not keys.any()


def test_a_key_can_be_revoked_by_id_or_name(path: Path) -> None:
    keys = ApiKeys(path)
    (first, one), (_, two) = keys.create("first"), keys.create("second")
    keys.revoke(first.id)
    keys.revoke("second")
    assert keys.check(header(one)) is None
    assert keys.check(header(two)) is None
    assert ApiKeys(path).list() == ()
    with pytest.raises(FelloeError) as caught:
        keys.revoke("first")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize("name", ["", " x", "x" * 65, "a\nb", "../x", "ключ"])
def test_a_name_must_be_plain(path: Path, name: str) -> None:
    with pytest.raises(FelloeError) as caught:
        ApiKeys(path).create(name)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "name")


def test_a_name_is_taken_once(path: Path) -> None:
    keys = ApiKeys(path)
    keys.create("laptop")
    with pytest.raises(FelloeError, match="name"):
        keys.create("laptop")


def test_rights_and_expiry_are_checked(path: Path) -> None:
    keys = ApiKeys(path)
    assert keys.create("scraper", rights=("metrics",))[0].rights == ("metrics",)
    for rights in ((), ("root",)):
        with pytest.raises(FelloeError) as caught:
            keys.create("other", rights=rights)  # type: ignore[arg-type]
        assert caught.value.param == "rights"
    with pytest.raises(FelloeError) as caught:
        keys.create("other", expires=1)
    assert caught.value.param == "expires"


def test_the_networks_keys_are_accepted_until_the_hub_drops_them(path: Path) -> None:
    keys = ApiKeys(path)
    own, _ = keys.create("mine")
    keys.replace_network([record("fk-shared")])
    assert ApiKeys(path).check(header("fk-shared")) is not None
    assert keys.records() == (own,)
    assert len(keys.list()) == 2
    keys.replace_network([])
    assert keys.check(header("fk-shared")) is None
    assert keys.list() == (own,)


def test_revoking_an_own_key_also_drops_its_copy_from_the_network(path: Path) -> None:
    keys = ApiKeys(path)
    own, plaintext = keys.create("mine")
    keys.replace_network(keys.records())
    keys.revoke(own.id)
    assert keys.check(header(plaintext)) is None


def test_the_same_records_do_not_touch_the_disk_again(path: Path) -> None:
    keys = ApiKeys(path)
    keys.replace_network([record("fk-shared")])
    before = path.stat().st_ino
    keys.replace_network([record("fk-shared")])
    assert path.stat().st_ino == before


def test_another_process_change_is_seen_after_reload(path: Path) -> None:
    keys = ApiKeys(path)
    _, plaintext = ApiKeys(path).create("made elsewhere")
    assert keys.check(header(plaintext)) is None
    keys.reload()
    assert keys.check(header(plaintext)) is not None


DAMAGED = {
    "empty": b"",
    "cut off": b'{"version":1,"keys":[{"id":"',
    "no object": b"[]",
    "another version": b'{"version":2,"keys":[],"network":[]}',
    "unknown field": b'{"version":1,"keys":[],"network":[],"root":true}',
    "bad digest": b'{"version":1,"keys":[{"id":"0123456789ab","name":"x","digest":"zz","created":1}],"network":[]}',
    "bad right": json.dumps(
        {"keys": [msgspec.to_builtins(record("x")) | {"rights": ["root"]}], "network": []}
    ).encode(),
    "deep": b"[" * 100_000,
    "binary": os.urandom(64) + b"\xff",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_not_overwritten(path: Path, name: str) -> None:
    path.write_bytes(DAMAGED[name])
    with pytest.raises(FelloeError) as caught:
        ApiKeys(path)
    assert caught.value.code == "bad_state"
    assert str(path) in caught.value.detail
    assert path.read_bytes() == DAMAGED[name]


def test_a_full_disk_leaves_the_old_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ApiKeys(path)
    _, plaintext = keys.create("kept")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise FelloeError("disk_full", "no room")

    monkeypatch.setattr("felloe.gateway.keys.write_atomic", full)
    with pytest.raises(FelloeError):
        keys.create("lost")
    assert [kept.name for kept in keys.list()] == ["kept"]
    assert path.read_bytes() == before
    assert keys.check(header(plaintext)) is not None
