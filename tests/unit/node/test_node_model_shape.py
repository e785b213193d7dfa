"""A running node tells the shape of a model that it stores, or that is approved and lies elsewhere."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.store import ModelStore
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId
from felloe.node import model_operations
from felloe.node.model_operations import ModelOperations
from felloe.placement.shape import Shape
from placement_shapes import eight

CONTENT = ContentId("c" * 64)


class FakeNode:
    """A node with a store, one approved model called `theirs`, and what is known of its shape."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.answers: list[Shape | None] = []
        self.placing = SimpleNamespace(shapes=SimpleNamespace(find=self.find, problem=self.problem))
        named = {"theirs": SimpleNamespace(listing=SimpleNamespace(content=CONTENT))}
        self.approvals = SimpleNamespace(known=SimpleNamespace(named=named.get))

    def problem(self, content: ContentId) -> str:
        assert content == CONTENT
        return "nobody has it"

    def find(self, content: ContentId) -> Shape | None:
        assert content == CONTENT
        return self.answers.pop(0) if self.answers else None


@pytest.fixture
async def node(tmp_path: Path) -> FakeNode:
    node = FakeNode(ModelStore(tmp_path / "models", KEY))
    await node.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(node.store, tmp_path / "mine.gguf", "mine")
    return node


async def shape(node: Any, name: str) -> Shape:
    return await ModelOperations(node, SimpleNamespace()).shape(NameRequest(name))  # type: ignore[arg-type]


async def test_a_stored_model_is_read_from_the_store(node: FakeNode) -> None:
    found = await shape(node, "mine")
    assert (found.architecture, len(found.layers)) == ("llama", 2)


async def test_an_approved_model_is_waited_for(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_operations, "_SHAPE_PAUSE_SECONDS", 0)
    node.answers = [None, None, eight()]
    assert await shape(node, "theirs") == eight()


async def test_a_front_that_nobody_gives_is_told(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_operations, "_SHAPE_PAUSE_SECONDS", 0)
    with pytest.raises(FelloeError, match="theirs: nobody has it") as caught:
        await shape(node, "theirs")
    assert caught.value.code == "no_holder"


async def test_a_model_that_nobody_approved_is_not_known(node: FakeNode) -> None:
    with pytest.raises(FelloeError) as caught:
        await shape(node, "other")
    assert caught.value.code == "model_not_found"
