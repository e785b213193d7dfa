"""What the owner's commands do to the models in the store of a running node."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from catalog_house import KEY, take, write_model
from felloe.catalog.manifests import content_id
from felloe.catalog.store import ModelStore
from felloe.console.catalog_messages import CatalogRow
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
        self.transfer = SimpleNamespace(repair=self.repair)
        self.can_repair = False
        self.roster = SimpleNamespace(snapshot=lambda: make_roster(make_member(node_id(1), make_replica())))

    async def repair(self, name: str, told: Callable[[int, int], None]) -> bool:
        told(1, 2)
        return self.can_repair


@pytest.fixture
async def node(tmp_path: Path) -> FakeNode:
    node = FakeNode(ModelStore(tmp_path / "models", KEY))
    await node.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(node.store, tmp_path / "mine.gguf", "mine")
    return node


class FakeCatalog:
    """Knows these rows of the catalogue."""

    def __init__(self) -> None:
        self.rows: list[CatalogRow] = []

    async def glance(self) -> tuple[CatalogRow, ...]:
        return tuple(self.rows)


@pytest.fixture
def catalog() -> FakeCatalog:
    return FakeCatalog()


@pytest.fixture
def operations(node: Any, catalog: Any) -> ModelOperations:
    return ModelOperations(node, catalog)


async def row(operations: ModelOperations, name: str) -> ModelRow:
    return next(row for row in await operations.list() if row.model.name == name)


async def steps(operations: ModelOperations, name: str = "") -> list[VerifyStep]:
    return [step async for step in operations.verify(NameRequest(name))]


async def test_the_list_holds_what_is_stored_and_what_others_serve(operations: ModelOperations) -> None:
    served = make_replica().model.name
    assert {row.model.name: row.stored for row in await operations.list()} == {"mine": True, served: False}
    assert (await row(operations, served)).replicas


async def test_the_list_says_what_curators_say_and_who_else_has_a_model(
    operations: ModelOperations, node: FakeNode, catalog: FakeCatalog
) -> None:
    content = content_id(node.store.manifest_of("mine"))
    afar = "ab" * 32
    catalog.rows = [
        CatalogRow(content=content, name="mine", standing="waiting", wanted=2, approved_by=("anna",)),
        CatalogRow(content=afar, name="afar", standing="approved", size=7, approved_by=("anna", "bob")),
        CatalogRow(content="cd" * 32, name="nowhere", standing="approved"),
    ]
    other = make_member(node_id(1), make_replica())
    holding = replace(other, record=replace(other.record, holds=(content[:16], afar[:16])))
    node.roster.snapshot = lambda: make_roster(holding)
    mine, there = await row(operations, "mine"), await row(operations, "afar")
    assert mine.approval is not None and mine.approval.standing == "waiting"
    assert mine.held_by == there.held_by == (other.record.name,)
    assert (there.stored, there.model.size) == (False, 7)
    assert "nowhere" not in {row.model.name for row in await operations.list()}


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
    assert not found[0].repaired
    assert (await row(operations, "mine")).problem


async def test_what_other_nodes_have_is_repaired_and_told(operations: ModelOperations, node: FakeNode) -> None:
    path = node.store.path_of("mine")
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    node.can_repair = True
    *progress, last = await steps(operations)
    assert (progress[-1].done, progress[-1].total) == (1, 2)
    assert last.models is not None and [row.repaired for row in last.models] == [True]


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
