"""What a real engine takes is what was reckoned from the model's header before."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from engine_house import MODEL_FILE, tiny_model
from felloe.catalog.sources.front import layout_of_file
from felloe.domain.plan import KvType
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines
from felloe.placement.settings import Settings
from felloe.placement.shape import shape_of
from felloe.placement.split import split_over
from placement_shapes import ram


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    built = Engines(state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=monotonic)
    yield built
    await built.close()


@pytest.mark.parametrize(
    ("context", "slots", "kv_type", "embedding"),
    [(2048, 4, "f16", False), (1000, 3, "q8_0", False), (2048, 1, "f16", True)],
)
async def test_a_replica_takes_what_was_reckoned(
    engines: Engines, context: int, slots: int, kv_type: KvType, embedding: bool
) -> None:
    shape = shape_of(await layout_of_file(MODEL_FILE))
    wanted = Settings(context=context, slots=slots, kv_type=kv_type, embedding=embedding)
    planned = split_over(shape, wanted, [ram()])
    assert planned is not None
    options = EngineOptions(context=context, slots=slots, kv_type=kv_type, embedding=embedding, parts=planned)
    replica = await engines.load(tiny_model(), MODEL_FILE, options)
    (took,), (said,) = replica.parts, planned
    assert took.need.weights == pytest.approx(said.need.weights, rel=0.01)
    assert took.need.kv == pytest.approx(said.need.kv, rel=0.01)
    assert took.need.compute == pytest.approx(said.need.compute, rel=0.03)
