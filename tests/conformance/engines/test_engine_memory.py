"""A real engine says what it takes up, and lies where it is told."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest

from engine_house import MODEL_FILE, tiny_model
from felloe.domain.fleet import RAM
from felloe.domain.plan import Need, Part
from felloe.engines.backends import backends
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines

MIB = 2**20


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    built = Engines(state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=monotonic)
    yield built
    await built.close()


async def test_a_planned_replica_tells_the_figures_of_its_engine(engines: Engines, tmp_path: Path) -> None:
    planned = (Part(device=RAM, layers=5, need=Need(weights=1, kv=1, compute=1, overhead=70 * MIB)),)
    options = EngineOptions(context=1024, slots=2, kv_type="q8_0", parts=planned)
    replica = await engines.load(tiny_model(), MODEL_FILE, options)
    (part,) = replica.parts
    assert (part.device, part.layers, part.need.overhead) == (RAM, 5, 70 * MIB)
    assert abs(part.need.weights - MODEL_FILE.stat().st_size) < MIB
    # 4 layers, 2 x 64 keys and as many values, 34 bytes for 32 of them: for each of 2 x 1,024 tokens.
    assert part.need.kv == pytest.approx(2048 * 4 * 2 * 128 * 34 / 32, rel=0.01)
    assert part.need.compute > MIB
    assert replica.kv_type == "q8_0"
    assert len(engines.process_ids()) == 1
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text() == ""


async def test_what_an_owner_loads_tells_its_figures_too(engines: Engines) -> None:
    replica = await engines.load(tiny_model(), MODEL_FILE, EngineOptions(context=512, slots=1))
    (part,) = replica.parts
    assert part.need.kv == 512 * 4 * 2 * 128 * 2
    assert part.need.overhead > 256 * MIB


async def test_the_engines_say_what_they_can_compute_on() -> None:
    assert "cpu" in await backends()
