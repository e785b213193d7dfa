"""Files of this machine: one, several parts, or a folder; resumed, and never half of one and half of another."""

import asyncio
import os
from pathlib import Path
from typing import IO

import pytest
from source_house import House

from felloe.catalog.incoming import Incoming
from felloe.catalog.sources import file
from felloe.domain.errors import FelloeError
from gguf_bytes import UINT16, UINT32, tiny_model


async def refusal(house: House, reference: Path) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(str(reference))
    assert house.store.list() == ()
    return caught.value


async def test_a_file_is_copied_and_described(house: House, tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "some:model.gguf"
    path.write_bytes(model)
    pulled = await house.pull(str(path), "mine")
    assert (pulled.name, house.content("mine")) == ("mine", model)
    assert house.store.manifest_of("mine").source == str(path)
    assert (house.reports[-1].done, house.reports[-1].total) == (len(model), len(model))


async def test_a_folder_is_one_model_with_its_projector(house: House, tmp_path: Path, model: bytes) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(model)
    (folder / "mmproj-tiny-f16.gguf").write_bytes(bytes(tiny_model(general__type=(8, "mmproj"))))
    (folder / "README.md").write_text("tiny")
    pulled = await house.pull(str(folder))
    roles = [(file.path, file.role) for file in house.store.manifest_of(pulled.name).files]
    assert roles == [("tiny.gguf", "model"), ("mmproj-tiny-f16.gguf", "projector")]


async def test_one_part_brings_the_others(house: House, tmp_path: Path) -> None:
    for number in range(2):
        split = {"split__count": (UINT16, 2), "split__no": (UINT16, number), "split__tensors__count": (UINT32, 4)}
        (tmp_path / f"tiny-{number + 1:05}-of-00002.gguf").write_bytes(bytes(tiny_model(**split)))
    pulled = await house.pull(str(tmp_path / "tiny-00002-of-00002.gguf"))
    assert [file.role for file in house.store.manifest_of(pulled.name).files] == ["model", "part"]


async def test_what_is_no_file_is_refused_at_once(house: House, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert (await asyncio.wait_for(refusal(house, tmp_path / "pipe.gguf"), 5)).code == "bad_model_file"
    assert (await refusal(house, tmp_path / "none.gguf")).code == "not_found"
    assert (await refusal(house, Path("/dev/zero"))).code == "bad_model_file"
    (tmp_path / "empty").mkdir()
    assert (await refusal(house, tmp_path / "empty")).code == "source_not_found"


async def test_a_damaged_file_is_refused_before_it_is_copied(house: House, tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model[:-1])
    error = await refusal(house, path)
    assert (error.code, "cut.gguf" in error.detail) == ("bad_model_file", True)
    assert list((tmp_path / "models" / "incoming").iterdir()) == []


async def test_a_copy_that_broke_off_goes_on(
    house: House, tmp_path: Path, large_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(large_model)
    whole_read, reads = file._read, iter(range(8))

    def breaks_off(source: IO[bytes], path: Path) -> bytes:
        if next(reads, None) is None:
            raise FelloeError("bad_model_file", f"{path}: file: Input/output error")
        return whole_read(source, path)

    monkeypatch.setattr(file, "_read", breaks_off)
    assert (await refusal(house, path)).code == "bad_model_file"
    monkeypatch.undo()
    asked: list[int] = []
    make_room = house.store.make_room

    async def noted(size: int, incoming: Incoming) -> None:
        asked.append(size)
        await make_room(size, incoming)

    house.store.make_room = noted
    pulled = await house.pull(str(path))
    assert (house.content(pulled.name), asked) == (large_model, [len(large_model) - 8 * 2**20])


async def test_a_file_that_changes_meanwhile_is_refused(house: House, tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model)

    async def change(_size: int, _incoming: Incoming) -> None:
        path.write_bytes(model + bytes(4096))

    house.store.make_room = change
    assert (await refusal(house, path)).code == "bad_model_file"
