"""A model that is approved and not here, or damaged, comes from other nodes when it is to be loaded."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.store import ModelStore
from felloe.console.messages import LoadRequest
from felloe.domain.errors import FelloeError
from felloe.domain.models import Model
from felloe.domain.roster import Replica
from felloe.engines.service import Engines
from felloe.node import loading
from felloe.node.config import EngineConfig
from felloe.node.loading import Loading
from routing_fakes import make_replica
from waiting import until


class FewEngines:
    """Runs nothing, and says that it does."""

    def __init__(self) -> None:
        self.running: dict[str, Replica] = {}

    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self.running.values())

    def find(self, name: str) -> Replica | None:
        return self.running.get(name)

    async def load(self, model: Model, path: Path, options: object, *, forgive: bool) -> Replica:
        self.running[model.name] = make_replica(model.name)
        return self.running[model.name]


class House:
    """A node's loading with a real store, and other nodes that have `mine` unless the test says what they answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "models", KEY)
        self.engines = FewEngines()
        self.failure: FelloeError | None = None
        self.asked: list[str] = []
        engines = cast("Engines", self.engines)
        self.loading = Loading(
            folder / "loaded.json", self.store, engines, EngineConfig(), pull=self.pull, gate=lambda _: None
        )

    async def pull(self, name: str) -> Model:
        self.asked.append(name)
        if self.failure is not None:
            raise self.failure
        return await take(self.store, self.folder / "mine.gguf", name)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    await built.store.open()
    write_model(tmp_path / "mine.gguf")
    task = asyncio.create_task(built.loading.run())
    yield built
    task.cancel()
    await asyncio.wait({task})


NOT_HERE = FelloeError("model_not_found", "neither here nor approved")
NO_HOLDER = FelloeError("no_holder", "no node that is up has mine")


async def damage(house: House) -> None:
    await take(house.store, house.folder / "mine.gguf", "mine")
    (blob,) = (path for path in (house.folder / "models" / "blobs").iterdir() if not path.suffix)
    blob.chmod(0o600)
    blob.write_bytes(bytes(blob.stat().st_size))
    await house.store.verify("mine")


async def test_what_is_not_here_is_fetched_and_loaded(house: House) -> None:
    await house.loading.load(LoadRequest("mine"))
    assert (house.asked, list(house.engines.running)) == (["mine"], ["mine"])


async def test_what_is_here_is_not_fetched(house: House) -> None:
    await take(house.store, house.folder / "mine.gguf", "mine")
    await house.loading.load(LoadRequest("mine"))
    assert house.asked == []


async def test_what_is_damaged_is_fetched_and_loaded(house: House) -> None:
    await damage(house)
    await house.loading.load(LoadRequest("mine"))
    assert list(house.engines.running) == ["mine"]


@pytest.mark.parametrize(
    ("prepare", "failure", "code"),
    [
        (None, NOT_HERE, "model_not_found"),
        (None, NO_HOLDER, "no_holder"),
        (damage, NOT_HERE, "bad_model_file"),
        (damage, NO_HOLDER, "no_holder"),
    ],
)
async def test_what_cannot_be_fetched_is_told(
    house: House, prepare: Callable[..., object] | None, failure: FelloeError, code: str
) -> None:
    if prepare is not None:
        await damage(house)
    house.failure = failure
    with pytest.raises(FelloeError) as refused:
        await house.loading.load(LoadRequest("mine"))
    assert refused.value.code == code
    assert not (house.folder / "loaded.json").exists()


async def test_what_is_loaded_at_start_is_fetched_once_it_is_approved(house: House) -> None:
    house.failure = NOT_HERE
    await house.loading.load_all(("mine",))
    assert house.loading.problems() == {"mine": "neither here nor approved"}
    house.failure = None
    house.loading.approvals_changed()
    await until(lambda: house.engines.running)
    assert house.loading.problems() == {}


async def test_what_is_loaded_at_start_is_fetched_once_somebody_has_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_AGAIN_SECONDS", 0.05)
    house.failure = NO_HOLDER
    await house.loading.load_all(("mine",))
    house.loading.approvals_changed()
    await until(lambda: len(house.asked) > 2)
    house.failure = None
    await until(lambda: house.engines.running)
