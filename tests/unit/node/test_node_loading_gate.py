"""Nothing is loaded that may not be, nothing stays loaded that may no more, and what was refused comes by itself."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.store import ModelStore
from felloe.console.messages import LoadRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.manifest import Manifest
from felloe.domain.models import Model
from felloe.domain.roster import Replica
from felloe.engines.service import Engines
from felloe.node.config import EngineConfig
from felloe.node.loading import Loading
from routing_fakes import make_replica
from waiting import until


class FewEngines:
    """Runs nothing, and says that it does."""

    def __init__(self) -> None:
        self.running: dict[str, Replica] = {}
        self.drained: list[tuple[str, float]] = []
        self.begun = False
        self.hold = asyncio.Event()
        self.hold.set()

    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self.running.values())

    def find(self, name: str) -> Replica | None:
        return self.running.get(name)

    async def load(self, model: Model, path: Path, options: object, *, forgive: bool) -> Replica:
        self.begun = True
        await self.hold.wait()
        self.running[model.name] = make_replica(model.name)
        return self.running[model.name]

    async def unload(self, name: str, drain_seconds: float) -> None:
        if name not in self.running:
            raise FelloeError("model_not_found", "it is not loaded")
        self.drained.append((name, drain_seconds))
        del self.running[name]


class FewPlanned:
    """What the plan has here."""

    def __init__(self) -> None:
        self.names: set[ModelName] = set()
        self.adopted: list[ModelName] = []

    def placed(self) -> set[ModelName]:
        return self.names

    def adopt(self, model: ModelName) -> None:
        self.adopted.append(model)


class House:
    """A node's loading with a real store that holds `mine`, and a gate that the test opens and shuts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = FewEngines()
        self.planned = FewPlanned()
        self.store = ModelStore(folder / "models", KEY)
        self.refusal: FelloeError | None = None
        self.loading = self.restarted()

    def restarted(self) -> Loading:
        async def pull(_: str) -> Model:
            return self.store.usable("mine")

        return Loading(
            self.folder / "loaded.json",
            self.store,
            cast(Engines, self.engines),
            EngineConfig(),
            pull=pull,
            gate=self.gate,
            planned=self.planned,
        )

    def gate(self, manifest: Manifest) -> None:
        assert manifest.name == "mine"
        if self.refusal is not None:
            raise self.refusal

    def change(self, refusal: FelloeError | None) -> None:
        self.refusal = refusal
        self.loading.approvals_changed()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    await built.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(built.store, tmp_path / "mine.gguf", "mine")
    task = asyncio.create_task(built.loading.run())
    yield built
    task.cancel()
    await asyncio.wait({task})


NOT_APPROVED = FelloeError("not_approved", "the curators have not approved mine")
WITHDRAWN = FelloeError("model_withdrawn", "the curators have withdrawn mine: it leaks")
EXPIRED = FelloeError("catalog_expired", "too old")


@pytest.mark.parametrize("refusal", [NOT_APPROVED, WITHDRAWN, EXPIRED])
async def test_what_may_not_be_loaded_is_refused_with_the_reason_and_not_kept(
    house: House, refusal: FelloeError
) -> None:
    house.change(refusal)
    with pytest.raises(FelloeError) as raised:
        await house.loading.load(LoadRequest("mine"))
    assert raised.value is refusal
    house.change(None)
    await asyncio.sleep(0)
    assert house.engines.running == {}
    assert house.loading.problems() == {}
    assert not (house.folder / "loaded.json").exists()


async def test_a_model_to_load_at_start_is_loaded_once_it_is_approved(house: House) -> None:
    house.change(NOT_APPROVED)
    await house.loading.load_all(("mine",))
    assert house.engines.running == {}
    assert house.loading.problems() == {"mine": NOT_APPROVED.detail}
    house.change(None)
    await until(lambda: "mine" in house.engines.running)
    assert house.loading.problems() == {}


async def test_a_model_given_on_the_command_line_waits_for_its_approval_over_restarts(house: House) -> None:
    house.change(NOT_APPROVED)
    with pytest.raises(FelloeError, match="not approved"):
        await house.loading.take_and_load("hf:owner/repo")
    again = house.restarted()
    await again.load_all(())
    assert again.problems() == {"mine": NOT_APPROVED.detail}
    house.change(None)
    await until(lambda: "mine" in house.engines.running)


async def test_unloading_gives_up_a_model_that_waits(house: House) -> None:
    house.change(NOT_APPROVED)
    with pytest.raises(FelloeError):
        await house.loading.take_and_load("mine")
    await house.loading.unload("mine", 0)
    house.change(None)
    await asyncio.sleep(0.05)
    assert house.engines.running == {} and house.loading.problems() == {}


async def test_a_withdrawn_model_is_drained_and_unloaded_and_comes_back_when_it_may(house: House) -> None:
    await house.loading.load(LoadRequest("mine"))
    house.change(WITHDRAWN)
    await until(lambda: house.engines.drained == [("mine", 30.0)])
    assert house.loading.problems() == {"mine": WITHDRAWN.detail}
    house.change(None)
    await until(lambda: "mine" in house.engines.running)


async def test_a_model_that_is_withdrawn_while_it_is_being_loaded_does_not_stay(house: House) -> None:
    house.engines.hold.clear()
    loading = asyncio.create_task(house.loading.load(LoadRequest("mine")))
    await until(lambda: house.engines.begun)
    house.change(WITHDRAWN)
    house.engines.hold.set()
    assert (await loading).model.name == "mine"
    await until(lambda: house.engines.running == {} and house.loading.problems())


async def test_what_is_loaded_stays_when_the_approvals_are_too_old(house: House) -> None:
    await house.loading.load(LoadRequest("mine"))
    house.change(EXPIRED)
    await asyncio.sleep(0.05)
    assert "mine" in house.engines.running and house.engines.drained == []


async def test_a_file_that_was_exchanged_is_not_loaded(house: House) -> None:
    blob = house.store.blobs.path_of(house.store.manifest_of("mine").files[0].digest)
    before = blob.stat()
    blob.chmod(0o600)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FelloeError, match="tampered with") as raised:
        await house.loading.load(LoadRequest("mine"))
    assert raised.value.code == "bad_model_file"
    assert house.engines.running == {}


async def test_a_file_is_read_again_only_when_something_about_it_changed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    verify = house.store.verify

    async def counted(name: str | None = None) -> Any:
        read.append(name)
        return await verify(name)

    monkeypatch.setattr(house.store, "verify", counted)
    for _ in range(3):
        await house.store.assure("mine")
    assert read == ["mine"]
    again = ModelStore(house.folder / "models", KEY)
    await again.open()
    monkeypatch.setattr(again, "verify", counted)
    await again.assure("mine")
    assert read == ["mine"]
    again.blobs.path_of(again.manifest_of("mine").files[0].digest).touch()
    await again.assure("mine")
    assert read == ["mine", "mine"]


async def test_engines_get_the_models_own_file_whatever_lies_in_its_place(house: House, tmp_path: Path) -> None:
    path = house.store.path_of("mine")
    path.unlink()
    path.write_bytes(b"something else")
    await house.loading.load(LoadRequest("mine"))
    assert path.read_bytes() == (tmp_path / "mine.gguf").read_bytes()


async def test_what_the_plan_has_here_is_not_unloaded_by_hand_and_becomes_the_owners_when_loaded(house: House) -> None:
    house.planned.names = {ModelName("mine")}
    house.engines.running["mine"] = make_replica("mine")
    with pytest.raises(FelloeError) as raised:
        await house.loading.unload("mine", 1.0)
    assert "felloe retire mine" in raised.value.detail
    await house.loading.load(LoadRequest("mine"))
    assert house.planned.adopted == ["mine"]
