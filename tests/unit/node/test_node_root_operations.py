"""Replacing a network's keys, and taking its root offline, on real keys and files."""

import asyncio
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization

from felloe.console.hub_messages import RootExportRequest, RootRotateRequest, RotateRequest, SealedRoot
from felloe.domain.errors import FelloeError
from felloe.hubs.invitations import InvitationBook
from felloe.hubs.records import HUBS, HubSet, encode
from felloe.hubs.topics import TRUST
from felloe.mesh.root_key import RootKey
from felloe.mesh.rotation import Keys, rotate
from felloe.mesh.trust import newer, read
from felloe.node.config import NodeConfig
from felloe.node.founding import endpoints, found_network
from felloe.node.home import Home
from felloe.node.hub_operations import HubOperations
from felloe.node.identity import Identity
from felloe.node.network_files import NetworkFiles
from felloe.node.root_operations import RootOperations, publish_trust
from hubs_fakes import FakeState, FakeStore

SECRET = "a long passphrase"


class House:
    """A hub that founded a network; its nodes hear the state's trust list when it changes."""

    def __init__(self, folder: Path, *, hub: bool = True) -> None:
        self.home = Home(folder / "home")
        self.home.prepare()
        files = NetworkFiles(self.home)
        membership = found_network(files, NodeConfig(), "first")
        self.identity = Identity(files, membership, endpoints(NodeConfig().peer))
        self.store = FakeStore()
        self.state = FakeState(self.store)
        self.well = True
        self.order: list[str] = []
        self.write(TRUST, self.identity.trust.encoded)
        self.write(HUBS, encode(HubSet(hubs=())))
        self.state.on_change(TRUST, lambda _: self._heard())
        self.identity.on_trust(lambda: self.order.append(f"trust {self.identity.trust.version}"))
        self.identity.keeper.on_change(lambda _: self.order.append("renewed"))
        node = SimpleNamespace(
            identity=self.identity,
            hub=cast(Any, self) if hub else None,
            state=SimpleNamespace(value=lambda _: None),
            roster=SimpleNamespace(snapshot=lambda: SimpleNamespace(members={})),
            membership=membership,
        )
        self.generations = SimpleNamespace(is_well=self._is_well)
        cast(Any, self.state).generations = self.generations
        self.invitations = InvitationBook(self.state)
        self.operations = RootOperations(cast(Any, node), HubOperations(cast(Any, node)))

    @property
    def authority(self) -> Any:
        return self.identity.authority

    @property
    def files(self) -> NetworkFiles:
        return NetworkFiles(self.home)

    def write(self, key: str, value: bytes) -> None:
        self.store.commit(len(self.store.log), key, value)

    def told(self) -> int:
        return read(self.state.get(TRUST) or b"").version

    def keys(self) -> Keys:
        root = self.files.root()
        assert root is not None
        return Keys(root, self.authority, self.identity.trust)

    def _heard(self) -> None:
        self.identity.take_trust(self.state.get(TRUST) or b"")

    async def _is_well(self) -> bool:
        return self.well


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_new_signing_keys_are_told_before_they_are_used(house: House) -> None:
    before = house.authority.to_bytes()
    done = await house.operations.rotate(RotateRequest(3600.0))
    assert (done.version, done.here) == (2, True)
    assert done.overlap_until == pytest.approx(time.time() + 3600, abs=60)
    assert house.told() == house.authority.version == house.identity.trust.version == 2
    assert house.authority.to_bytes() != before
    # Heard as every node hears it, then used, then this hub's own credential.
    assert house.order == ["trust 2", "trust 2", "renewed"]
    house.authority.check(house.identity.trust, time.time())
    assert house.identity.keeper.current == house.files.credential()
    stored = house.files.authority()
    assert stored is not None and stored.to_bytes() == house.authority.to_bytes()


async def test_without_an_overlap_the_old_issuer_is_believed_no_more(house: House) -> None:
    old = house.authority.issuer
    done = await house.operations.rotate(RotateRequest(0.0))
    assert done.overlap_until == 0
    assert old not in house.identity.trust.issuers(time.time())


async def test_a_spoke_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, hub=False)
    with pytest.raises(FelloeError, match="on a hub"):
        await house.operations.rotate(RotateRequest(0.0))
    with pytest.raises(FelloeError, match="on a hub"):
        await house.operations.rotate_root(RootRotateRequest(0.0))


async def test_nothing_is_changed_while_the_state_does_not_answer(house: House) -> None:
    house.well = False
    with pytest.raises(FelloeError, match="do not answer") as refused:
        await house.operations.rotate(RotateRequest(0.0))
    assert refused.value.code == "network_unreachable"
    trust = house.files.trust()
    assert trust is not None and trust.version == 1


async def test_when_it_is_not_known_whether_it_was_told_the_new_keys_stay(house: House) -> None:
    house.state.lose_answers = 1
    with pytest.raises(FelloeError, match="not acknowledged"):
        await house.operations.rotate(RotateRequest(0.0))
    assert house.authority.version == house.identity.trust.version == 2
    # Doing it again makes it right.
    assert (await house.operations.rotate(RotateRequest(0.0))).version == 3
    assert house.told() == 3


async def test_of_two_hubs_that_replace_the_keys_at_once_one_keeps_the_old_ones(house: House) -> None:
    before = house.keys()
    other = rotate(before, time.time(), 60.0)
    original = house.state.change

    async def overtaken(key: str, function: Any, *, term: int | None = None) -> bytes | None:
        house.write(TRUST, other.trust.encoded)
        return await original(key, function, term=term)

    cast(Any, house.state).change = overtaken
    with pytest.raises(FelloeError, match="on another hub at the same time"):
        await house.operations.rotate(RotateRequest(0.0))
    stored = house.files.authority()
    assert stored is not None and stored.to_bytes() == before.authority.to_bytes()
    root = house.files.root()
    assert root is not None and root.pin == before.root.pin


async def test_keys_that_are_older_than_the_trust_list_are_not_replaced(house: House) -> None:
    house.identity.take_trust(rotate(house.keys(), time.time(), 60.0).trust.encoded)
    with pytest.raises(FelloeError, match="newest signing keys") as refused:
        await house.operations.rotate(RotateRequest(0.0))
    assert refused.value.code == "overloaded"


async def test_publishing_twice_or_late_changes_nothing(house: House) -> None:
    first = house.identity.trust
    second = rotate(house.keys(), time.time(), 60.0).trust
    await publish_trust(house.state, second)
    await publish_trust(house.state, second)
    assert house.told() == 2
    with pytest.raises(FelloeError, match="another hub"):
        await publish_trust(house.state, first)


# The root offline


async def export(house: House, path: Path, *, remove: bool = False, passphrase: str = SECRET) -> Path:
    done = await house.operations.export(RootExportRequest(str(path), passphrase, remove))
    assert (done.path, done.removed) == (str(path), remove)
    return path


async def test_an_exported_root_is_private_encrypted_and_opens_with_other_programs(
    house: House, tmp_path: Path
) -> None:
    file = await export(house, tmp_path / "root.pem")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in file.read_bytes()
    serialization.load_pem_private_key(file.read_bytes(), SECRET.encode())
    view = await house.operations.show()
    assert view.here and view.exported_at > 0
    assert view.pin == house.identity.trust.pin.hex()
    assert [len(view.roots), len(view.issuers)] == [1, 1]


async def test_a_removed_root_is_gone_and_the_file_brings_it_back(house: House, tmp_path: Path) -> None:
    file = await export(house, tmp_path / "root.pem", remove=True)
    assert not (await house.operations.show()).here
    with pytest.raises(FelloeError, match="not on this machine"):
        await house.operations.rotate(RotateRequest(0.0))
    sealed = SealedRoot(file.read_bytes(), SECRET)
    done = await house.operations.rotate(RotateRequest(0.0, sealed))
    assert (done.version, done.here) == (2, False)
    assert house.files.root() is None


async def test_a_root_that_was_exported_before_is_removed_once_the_file_opens(house: House, tmp_path: Path) -> None:
    file = await export(house, tmp_path / "root.pem")
    with pytest.raises(FelloeError) as refused:
        await export(house, file, remove=True, passphrase="another passphrase")
    assert refused.value.code == "bad_passphrase"
    assert house.files.root() is not None
    await export(house, file, remove=True)
    assert house.files.root() is None


async def test_no_file_is_overwritten_and_none_without_the_root_lets_it_go(house: House, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(RootKey.create(time.time()).export(SECRET))
    with pytest.raises(FelloeError, match="File exists"):
        await export(house, other)
    with pytest.raises(FelloeError, match="holds another root"):
        await export(house, other, remove=True)
    note = tmp_path / "note.txt"
    note.write_text("mine")
    with pytest.raises(FelloeError, match="no network's root"):
        await export(house, note, remove=True)
    assert note.read_text() == "mine"
    assert house.files.root() is not None


@pytest.mark.parametrize("path", ["root.pem", "/nowhere/at/all/root.pem"])
async def test_a_path_that_cannot_be_written_is_named(house: House, path: str) -> None:
    with pytest.raises(FelloeError, match=path) as refused:
        await house.operations.export(RootExportRequest(path, SECRET))
    assert refused.value.code == "invalid_value"


async def test_a_short_passphrase_leaves_no_file(house: House, tmp_path: Path) -> None:
    with pytest.raises(FelloeError, match="10 to") as refused:
        await export(house, tmp_path / "root.pem", passphrase="short")
    assert "short" not in refused.value.detail
    assert not (tmp_path / "root.pem").exists()


async def test_a_wrong_passphrase_or_another_networks_root_replaces_nothing(house: House, tmp_path: Path) -> None:
    file = await export(house, tmp_path / "root.pem", remove=True)
    foreign = RootKey.create(time.time()).export(SECRET)
    for sealed, code in (
        (SealedRoot(file.read_bytes(), "a wrong passphrase"), "bad_passphrase"),
        (SealedRoot(foreign, SECRET), "wrong_network"),
        (SealedRoot(b"no key at all", SECRET), "bad_state"),
    ):
        with pytest.raises(FelloeError) as refused:
            await house.operations.rotate(RotateRequest(0.0, sealed))
        assert refused.value.code == code
        assert sealed.passphrase not in str(refused.value)
    assert house.told() == house.identity.trust.version == 1


# Another root


async def test_a_new_root_stays_where_the_old_one_was(house: House, tmp_path: Path) -> None:
    first = house.identity.trust
    file = tmp_path / "next.pem"
    done = await house.operations.rotate_root(
        RootRotateRequest(3600.0, export_path=str(file), export_passphrase=SECRET)
    )
    root = house.files.root()
    assert root is not None and done.pin == root.pin.hex() == house.identity.trust.pin.hex()
    assert root.pin != first.pin
    assert RootKey.load(file.read_bytes(), SECRET).pin == root.pin
    assert newer(house.state.get(TRUST) or b"", first).pin == root.pin
    view = await house.operations.show()
    assert [bool(row.until) for row in view.roots] == [False, True]
    assert view.exported_at > 0


@pytest.mark.parametrize(("overlap", "withdrawn"), [(3600.0, 0), (0.0, 1)])
async def test_invitations_end_with_a_root_that_ends_at_once(house: House, overlap: float, withdrawn: int) -> None:
    await house.invitations.invite("spoke", 1, 60, time.time())
    done = await house.operations.rotate_root(RootRotateRequest(overlap))
    assert done.withdrawn == withdrawn
    expected = "withdrawn" if withdrawn else "open"
    assert [one.standing(time.time()) for one in house.invitations.all()] == [expected]


async def test_an_offline_root_is_replaced_by_an_offline_root(house: House, tmp_path: Path) -> None:
    file = await export(house, tmp_path / "root.pem", remove=True)
    sealed = SealedRoot(file.read_bytes(), SECRET)
    with pytest.raises(FelloeError, match="--export"):
        await house.operations.rotate_root(RootRotateRequest(0.0, sealed))
    fresh = tmp_path / "next.pem"
    done = await house.operations.rotate_root(
        RootRotateRequest(0.0, sealed, export_path=str(fresh), export_passphrase=SECRET)
    )
    assert (done.here, house.files.root()) == (False, None)
    with pytest.raises(FelloeError, match="replaced by another"):
        await house.operations.rotate(RotateRequest(0.0, sealed))
    assert (await house.operations.rotate(RotateRequest(0.0, SealedRoot(fresh.read_bytes(), SECRET)))).version == 3


async def test_two_replacements_at_once_come_one_after_the_other(house: House) -> None:
    done = await asyncio.gather(*(house.operations.rotate(RotateRequest(60.0)) for _ in range(2)))
    assert [one.version for one in done] == [2, 3]
