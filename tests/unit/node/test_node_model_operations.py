"""What the owner's commands do to the models in the store of a running node."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.store import ModelStore
from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import ModelRow, VerifyStep
from felloe.domain.errors import FelloeError
from felloe.node.model_operations import ModelOperations
from routing_fakes import make_member, make_replica, make_roster, node_id


class FakeNode:
    """A node of which only the store is real. `loaded` are the names of what its engines run."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.loaded: set[str] = set()
        self.loading = SimpleNamespace(loaded=lambda: self.loaded)
        self.roster = SimpleNamespace(snapshot=lambda: make_roster(make_member(node_id(1), make_replica())))


@pytest.fixture
async def node(tmp_path: Path) -> FakeNode:
    node = FakeNode(ModelStore(tmp_path / "models", KEY))
    await node.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(node.store, tmp_path / "mine.gguf", "mine")
    return node


@pytest.fixture
def operations(node: Any) -> ModelOperations:
    return ModelOperations(node)


async def row(operations: ModelOperations, name: str) -> ModelRow:
    return next(row for row in await operations.list() if row.model.name == name)


async def steps(operations: ModelOperations, name: str = "") -> list[VerifyStep]:
    return [step async for step in operations.verify(NameRequest(name))]


async def test_the_list_holds_what_is_stored_and_what_others_serve(operations: ModelOperations) -> None:
    served = make_replica().model.name
    assert {row.model.name: row.stored for row in await operations.list()} == {"mine": True, served: False}
    assert (await row(operations, served)).replicas


async def test_a_pin_shows_until_it_is_taken_back(operations: ModelOperations) -> None:
    await operations.pin(NameRequest("mine"))
    assert (await row(operations, "mine")).pinned
    await operations.unpin(NameRequest("mine"))
    assert not (await row(operations, "mine")).pinned


async def test_a_loaded_model_is_not_removed(operations: ModelOperations, node: FakeNode) -> None:
    node.loaded.add("mine")
    with pytest.raises(FelloeError, match="felloe unload mine"):
        await operations.remove(NameRequest("mine"))
    node.loaded.clear()
    await operations.remove(NameRequest("mine"))
    assert node.store.list() == ()


async def test_a_check_tells_its_progress_and_then_what_it_found(operations: ModelOperations, node: FakeNode) -> None:
    *progress, last = await steps(operations)
    assert progress[-1].done == progress[-1].total > 0
    assert last.models is not None and [row.damaged for row in last.models] == [()]
    path = node.store.path_of("mine")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    node.loaded.add("mine")
    found = (await steps(operations, "mine"))[-1].models
    assert found is not None
    assert [(row.name, row.loaded, row.damaged[0].bad_chunks) for row in found] == [("mine", True, (0,))]
    assert (await row(operations, "mine")).problem


async def test_a_check_of_an_unknown_model_is_refused(operations: ModelOperations) -> None:
    with pytest.raises(FelloeError) as caught:
        await steps(operations, "absent")
    assert caught.value.code == "model_not_found"


async def test_clean_up_tells_what_it_freed(operations: ModelOperations, node: FakeNode) -> None:
    incoming = await node.store.blobs.receive("partial", None)
    await incoming.write(bytes(2**20))
    await incoming.close()
    cleaned = await operations.clean(Nothing())
    assert cleaned.models == ()
    assert cleaned.freed >= 2**20
