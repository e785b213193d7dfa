"""A model comes from other nodes' stores: whole, under its maker's manifest, and nobody need be whole himself."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from catalog_house import CHUNK, KEY, opened, take, write_model
from felloe.catalog.manifests import content_id, open_signed, sign_manifest, signer_of
from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.store import ModelStore
from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.model_pull import PeerPulls
from felloe.catalog.transfer.serving import Serving
from felloe.catalog.transfer.swarm import SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest
from gguf_bytes import tiny_model
from transfer_house import ServedPeer, node
from waiting import until

OWN = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SETTINGS = SwarmSettings(look_seconds=0.05, patience_seconds=0.5, answer_seconds=5)


class House:
    """A node that has a model and one that wants it."""

    def __init__(self, folder: Path, first: ModelStore, own: ModelStore, name: str) -> None:
        self.folder = folder
        self.first = first
        self.own = own
        self.name = name
        self.bans = Bans(folder / "peers-banned.json", time.time)
        self.pulls = PeerPulls(own, self.bans, signer_of(OWN), settings=SETTINGS)
        self.steps: list[PullProgress] = []

    @property
    def content(self) -> ContentId:
        return content_id(self.first.manifest_of(self.name))

    async def pull(self, *peers: ServedPeer) -> None:
        envelope = await self.first.envelope_of(self.name)
        await self.pulls.pull(self.content, envelope, lambda: peers, self.steps.append)

    def is_here(self) -> bool:
        there = self.first.path_of(self.name).read_bytes()
        return self.own.find(self.name) is not None and self.own.path_of(self.name).read_bytes() == there


def served(store: ModelStore, number: int = 1, **options: object) -> ServedPeer:
    return ServedPeer(node(number), Serving(store, may_serve=lambda _: True, bundle=lambda: b"bundle"), **options)  # type: ignore[arg-type]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    file = tiny_model()
    file.data_size = 5 * CHUNK + 77
    write_model(tmp_path / "tiny.gguf", file)
    first, own = await opened(tmp_path / "first"), ModelStore(tmp_path / "own", OWN)
    await own.open()
    model = await take(first, tmp_path / "tiny.gguf")
    yield House(tmp_path, first, own, model.name)


async def test_a_model_comes_from_another_node_and_keeps_its_makers_manifest(house: House) -> None:
    await house.pull(served(house.first))
    assert house.is_here()
    assert house.own.contents() == {house.content: house.name}
    envelope = await house.own.envelope_of(house.name)
    assert envelope == await house.first.envelope_of(house.name)
    assert house.own.manifest_of(house.name).made_by == signer_of(KEY)
    assert (house.steps[-1].done, house.steps[-1].total) == (house.first.list()[0].size,) * 2
    again = ModelStore(house.folder / "own", OWN)
    await again.open()
    assert (again.problems(), [model.name for model in again.list()]) == ((), [house.name])


async def test_a_model_that_is_here_already_is_not_fetched_again(house: House) -> None:
    await house.pull(served(house.first))
    peer = served(house.first)
    await house.pull(peer)
    assert peer.reads == []


async def test_a_node_that_has_only_a_part_serves_it_at_once(house: House) -> None:
    manifest = house.first.manifest_of(house.name)
    file, blob = manifest.files[0], house.first.blobs.find(manifest.files[0].digest)
    assert blob is not None
    other = await opened(house.folder / "other")
    part = await other.blobs.gather(file.digest, file.size, blob.chunks)
    data = blob.path.read_bytes()
    for chunk in (0, 2, 4):
        assert await part.put(chunk, data[chunk * CHUNK : (chunk + 1) * CHUNK])
    first, half = served(house.first), served(other, 2)
    await house.pull(first, half)
    assert house.is_here()
    assert set(half.reads) <= {0, 2, 4}
    assert set(first.reads) >= {1, 3, 5}
    await part.close()


async def test_a_lying_node_is_banned_over_a_restart_and_the_model_is_whole_all_the_same(house: House) -> None:
    # In every chunk: which ones it is asked for is chance.
    liar = served(house.first, 2, spoil=lambda _, data: data[:-1] + b"!")
    await house.pull(liar, served(house.first))
    assert house.is_here()
    again = Bans(house.folder / "peers-banned.json", time.time)
    again.load()
    assert again.is_banned(node(2))


async def test_wrong_chunk_hashes_are_a_lie(house: House) -> None:
    class Strange(ServedPeer):
        async def chunks(self, digest: ModelDigest, count: int) -> bytes:
            return os.urandom(count * 32)

    liar = Strange(node(2), Serving(house.first, may_serve=lambda _: True, bundle=lambda: None))
    with pytest.raises(FelloeError) as caught:
        await house.pull(liar)
    assert caught.value.code == "no_holder"
    assert house.bans.is_banned(node(2))
    assert liar.reads == []
    await house.pull(served(house.first))
    assert house.is_here()


async def test_when_nobody_has_it_the_pull_says_where_it_can_come_from(house: House) -> None:
    other = await opened(house.folder / "other")
    for peers in ((), (served(other),)):
        with pytest.raises(FelloeError, match=r"it can be pulled from .*tiny\.gguf") as caught:
            await house.pull(*peers)
        assert caught.value.code == "no_holder"
    assert not house.pulls.coming


async def test_a_pull_that_was_called_off_goes_on_where_it_was(house: House) -> None:
    class Slow(ServedPeer):
        async def read(self, digest: ModelDigest, chunk: int, length: int, came: object) -> bytes:
            if len(self.reads) >= 3:
                await asyncio.Event().wait()
            return await super().read(digest, chunk, length, came)  # type: ignore[arg-type]

    slow = Slow(node(1), Serving(house.first, may_serve=lambda _: True, bundle=lambda: None))
    pulling = asyncio.create_task(house.pull(slow))
    digest = house.first.manifest_of(house.name).files[0].digest
    await until(lambda: (part := house.own.blobs.partial(digest)) and part.whole.bit_count() == 3)
    assert set(house.pulls.coming) == {house.content}
    with pytest.raises(FelloeError) as caught:
        await house.pull(slow)
    assert caught.value.code == "already_pulling"
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    peer = served(house.first)
    await house.pull(peer)
    assert house.is_here()
    assert sorted(peer.reads + slow.reads) == [0, 1, 2, 3, 4, 5]


async def test_only_damaged_chunks_are_fetched_again(house: House) -> None:
    await house.pull(served(house.first))
    path = house.own.path_of(house.name)
    path.chmod(0o600)
    with path.open("r+b") as stream:
        for chunk in (1, 4):
            stream.seek(chunk * CHUNK + 5)
            stream.write(b"rot")
    (verified,) = await house.own.verify()
    assert [file.bad_chunks for file in verified.damaged] == [(1, 4)]
    peer = served(house.first)
    await house.pull(peer)
    assert sorted(peer.reads) == [1, 4]
    assert house.is_here()
    assert house.own.problems() == ()


async def test_an_envelope_of_another_content_or_maker_is_refused(house: House) -> None:
    envelope = await house.first.envelope_of(house.name)
    manifest, _ = open_signed(envelope)
    assert manifest.made_by == signer_of(KEY)
    forged = envelope.replace(b'"signature":"', b'"signature":"AAAA', 1)
    stranger = sign_manifest(b"{}", OWN)
    for content, bad in ((ContentId("0" * 64), envelope), (house.content, forged), (house.content, stranger)):
        with pytest.raises(FelloeError) as caught:
            await house.pulls.pull(content, bad, lambda: [served(house.first)], house.steps.append)
        assert caught.value.code == "bad_manifest"


async def test_a_name_that_stands_for_other_files_is_refused_before_anything_is_fetched(house: House) -> None:
    write_model(house.folder / "other.gguf")
    await take(house.own, house.folder / "other.gguf", house.name)
    peer = served(house.first)
    with pytest.raises(FelloeError) as caught:
        await house.pull(peer)
    assert (caught.value.code, peer.reads) == ("invalid_value", [])


async def test_two_pulls_do_not_count_the_same_room(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 20 * CHUNK

    monkeypatch.setattr("felloe.catalog.store.shutil.disk_usage", lambda _: Usage)
    blobs = house.own.blobs
    first, second = await blobs.receive("first", 12 * CHUNK), await blobs.receive("second", 12 * CHUNK)
    await house.own.make_room(12 * CHUNK, first)
    await house.own.make_room(12 * CHUNK, first)
    with pytest.raises(FelloeError) as caught:
        await house.own.make_room(12 * CHUNK, second)
    assert caught.value.code == "disk_full"
    await first.write(bytes(5 * CHUNK))
    assert blobs.promised_bytes() == 7 * CHUNK
    await house.own.make_room(12 * CHUNK, second)
    await first.close()
    assert blobs.promised_bytes() == 12 * CHUNK
    await second.close()
    assert blobs.promised_bytes() == 0


async def test_what_is_served_is_bounded_checked_and_only_what_may_be(house: House) -> None:
    manifest = house.first.manifest_of(house.name)
    digest = manifest.files[0].digest
    allowed = {digest}
    serving = Serving(house.first, may_serve=allowed.__contains__, bundle=lambda: b"bundle")
    path, whole = f"/blobs/{digest[7:]}", house.first.path_of(house.name).read_bytes()
    assert await serving.answer("/catalog") == (b"bundle", 6)
    assert await serving.answer("/catalog", 2, 3) == (b"ndl", 6)
    assert (await serving.answer(f"{path}/have")).body == b"\x3f"
    assert (await serving.answer(f"{path}/chunks", 32, 32)).size == 6 * 32
    assert await serving.answer(path, CHUNK, CHUNK) == (whole[CHUNK : 2 * CHUNK], len(whole))
    assert (await serving.answer(path, CHUNK + 7, 100)).body == whole[CHUNK + 7 : CHUNK + 107]
    assert open_signed((await serving.answer(f"/manifests/{house.content}")).body)[0] == manifest
    for start, length in ((0, None), (0, CHUNK + 1), (1, CHUNK), (-1, 5), (0, 0), (len(whole), 1), (len(whole) - 1, 2)):
        with pytest.raises(FelloeError) as caught:
            await serving.answer(path, start, length)
        assert caught.value.code == "invalid_value"
    allowed.clear()
    for refused in (path, f"{path}/have", f"{path}/chunks", f"/manifests/{house.content}", f"/blobs/{'0' * 64}"):
        with pytest.raises(FelloeError) as caught:
            await serving.answer(refused, 0, 1)
        assert caught.value.code == "not_found"
    for strange in (
        "",
        "/",
        "/blobs/../../etc/passwd",
        f"{path}/x",
        f"{path}\n",
        "/manifests/" + "g" * 64,
        "/catalog/",
    ):
        with pytest.raises(FelloeError) as caught:
            await serving.answer(strange, 0, 1)
        assert caught.value.code == "not_found"


async def test_a_damaged_chunk_is_never_served(house: House) -> None:
    digest = house.first.manifest_of(house.name).files[0].digest
    path = house.first.blobs.path_of(digest)
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(CHUNK)
        stream.write(b"rot")
    peer = served(house.first)
    with pytest.raises(FelloeError) as caught:
        await peer.read(digest, 1, CHUNK, lambda _: None)
    assert caught.value.code == "not_found"
    assert await peer.read(digest, 0, CHUNK, lambda _: None)
