"""The shape of a model is read from the front of its file, here or elsewhere, once, and kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.manifests import content_id
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId
from felloe.domain.manifest import Manifest, ManifestFile
from felloe.node.shapes import Fronts, Shapes
from waiting import until

STRANGER = ContentId("ab" * 32)


class House:
    """Shapes of a store that holds `mine`, whose file is here or, when `remote`, only elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "models", KEY)
        self.remote = False
        self.asked: list[int] = []
        self.front = b""
        self.chunk = 4 * 2**20
        self.now = 0.0
        self.changes = 0
        self.shapes = self.restarted()

    def restarted(self) -> Shapes:
        fronts = Fronts(manifest=self.manifest, here=self.here, fetch=self.fetch)
        shapes = Shapes(self.folder / "shapes", fronts, clock=lambda: self.now)
        shapes.on_change(self.changed)
        return shapes

    def changed(self) -> None:
        self.changes += 1

    @property
    def mine(self) -> ContentId:
        return content_id(self.store.manifest_of("mine"))

    async def manifest(self, content: ContentId) -> Manifest:
        if content == STRANGER:
            raise FelloeError("no_holder", "no node that is up has it")
        return self.store.manifest_of("mine")

    def here(self, file: ManifestFile) -> Path | None:
        return None if self.remote else self.store.blobs.path_of(file.digest)

    async def fetch(self, content: ContentId, file: ManifestFile, first: int, count: int) -> bytes:
        self.asked.append(first)
        return self.front[first * self.chunk : (first + count) * self.chunk]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    await built.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(built.store, tmp_path / "mine.gguf", "mine")
    built.front = (tmp_path / "mine.gguf").read_bytes()
    task = asyncio.create_task(built.shapes.run())
    yield built
    task.cancel()
    await asyncio.wait({task})


async def test_a_model_of_the_own_store_is_read_there(house: House) -> None:
    assert house.shapes.find(house.mine) is None
    await until(lambda: house.changes)
    shape = house.shapes.find(house.mine)
    assert shape is not None
    assert (shape.architecture, len(shape.layers), shape.heads) == ("llama", 2, 4)
    assert not house.asked


async def test_a_model_of_other_nodes_is_read_from_its_first_chunk(house: House) -> None:
    house.remote = True
    house.shapes.find(house.mine)
    await until(lambda: house.changes)
    assert house.asked == [0]
    assert house.shapes.find(house.mine) is not None


async def test_a_header_that_ends_in_a_later_chunk_is_read_to_there_and_no_chunk_twice(house: House) -> None:
    house.remote, house.chunk = True, 256
    house.shapes.find(house.mine)
    await until(lambda: house.changes)
    assert house.asked == [0, 1, 2, 4][: len(house.asked)]
    assert len(house.asked) > 1
    assert house.shapes.find(house.mine) is not None


async def test_a_shape_outlives_the_program(house: House) -> None:
    house.shapes.find(house.mine)
    await until(lambda: house.changes)
    house.remote, house.front = True, b""
    again = house.restarted()
    task = asyncio.create_task(again.run())
    again.find(house.mine)
    await until(lambda: house.changes == 2)
    assert again.find(house.mine) == house.shapes.find(house.mine)
    assert not house.asked
    task.cancel()
    await asyncio.wait({task})


async def test_a_damaged_memory_of_a_shape_is_made_anew(house: House) -> None:
    (house.folder / "shapes").mkdir()
    (house.folder / "shapes" / f"{house.mine}.json").write_bytes(b'{"version": 1, "content": "x"')
    house.shapes.find(house.mine)
    await until(lambda: house.changes)
    assert house.shapes.find(house.mine) is not None


async def test_what_nobody_has_is_told_and_asked_for_again_later(house: House) -> None:
    house.shapes.find(STRANGER)
    await until(lambda: house.shapes.problem(STRANGER))
    assert house.shapes.problem(STRANGER) == "no node that is up has it"
    assert house.shapes.find(STRANGER) is None


async def test_a_front_that_is_no_gguf_is_refused_and_not_asked_for_for_ever(house: House) -> None:
    house.remote, house.front = True, b"GGUF" + bytes(4 * 2**20)
    house.shapes.find(house.mine)
    await until(lambda: house.shapes.problem(house.mine))
    assert house.asked == [0]
    house.now += 1e6
    asked = len(house.asked)
    house.shapes.find(house.mine)
    assert len(house.asked) == asked


async def test_what_is_no_content_id_is_never_looked_for(house: House) -> None:
    assert house.shapes.find(ContentId("../../etc/passwd")) is None
    assert house.shapes.problem(ContentId("../../etc/passwd")) == ""
