"""The beginning of a file comes from whoever has it, and is believed only as far as the manifest vouches for it."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from catalog_house import CHUNK, KEY, opened, take, write_model
from felloe.catalog.manifests import signer_of
from felloe.catalog.store import ModelStore
from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.model_pull import PeerPulls
from felloe.catalog.transfer.serving import Serving
from felloe.catalog.transfer.swarm import SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import ManifestFile
from gguf_bytes import tiny_model
from transfer_house import ServedPeer, node


class House:
    """A node that asks for the front of a file of three chunks, which another one has."""

    def __init__(self, folder: Path, store: ModelStore, file: ManifestFile) -> None:
        self.whole = (folder / "tiny.gguf").read_bytes()
        self.store = store
        self.file = file
        self.bans = Bans(folder / "peers-banned.json", time.time)
        settings = SwarmSettings(look_seconds=0.05, patience_seconds=0.5, answer_seconds=5)
        self.pulls = PeerPulls(store, self.bans, signer_of(KEY), settings=settings)

    def peer(self, number: int, spoil: Callable[[int, bytes], bytes] = lambda _, data: data) -> ServedPeer:
        serving = Serving(self.store, may_serve=lambda _: True, bundle=lambda: b"bundle")
        return ServedPeer(node(number), serving, spoil)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    file = tiny_model()
    file.data_size = 2 * CHUNK + 77
    write_model(tmp_path / "tiny.gguf", file)
    store = await opened(tmp_path / "store")
    model = await take(store, tmp_path / "tiny.gguf")
    yield House(tmp_path, store, store.manifest_of(model.name).files[0])


async def test_only_the_chunks_that_were_asked_for_are_read(house: House) -> None:
    peer = house.peer(1)
    assert await house.pulls.piece(house.file, 0, 1, lambda: [peer]) == house.whole[:CHUNK]
    assert peer.reads == [0]
    assert await house.pulls.piece(house.file, 1, 9, lambda: [peer]) == house.whole[CHUNK:]


async def test_a_liar_is_banned_and_the_next_one_asked(house: House) -> None:
    liar, honest = house.peer(1, spoil=lambda _, data: bytes(len(data))), house.peer(2)
    assert await house.pulls.piece(house.file, 0, 1, lambda: [liar, honest]) == house.whole[:CHUNK]
    assert house.bans.is_banned(liar.node)
    assert not house.bans.is_banned(honest.node)


async def test_nobody_who_has_it_is_an_error_that_says_so(house: House) -> None:
    with pytest.raises(FelloeError) as raised:
        await house.pulls.piece(house.file, 0, 1, list)
    assert raised.value.code == "no_holder"
