"""What an owner loads by hand is reserved before its engine has said what it takes up."""

from pathlib import Path

from catalog_house import write_model
from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.models import Model
from felloe.engines.options import EngineOptions
from felloe.node.promises import promised

GIB = 2**30
GPU = Device(id="gpu0", kind="cuda", memory=12 * GIB)
MACHINE = Machine(id=NodeId("a" * 26), name="here", devices=(Device(id=RAM, kind="cpu", memory=32 * GIB), GPU))
MODEL = Model(
    name=ModelName("mine"),
    digest="",
    size=1,
    architecture="llama",
    quantisation="",
    context=512,
    capabilities=("chat",),
)


async def test_a_load_is_reserved_on_the_gpu_where_there_is_room_and_else_in_the_machines_memory(
    tmp_path: Path,
) -> None:
    write_model(tmp_path / "mine.gguf")
    parts = await promised(MODEL, tmp_path / "mine.gguf", EngineOptions(), MACHINE, {})
    assert {part.device: part.layers > 0 for part in parts} == {RAM: False, "gpu0": True}
    parts = await promised(MODEL, tmp_path / "mine.gguf", EngineOptions(), MACHINE, {"gpu0": 12 * GIB})
    assert [part.device for part in parts if part.layers] == [RAM]


async def test_a_file_that_cannot_be_read_promises_nothing(tmp_path: Path) -> None:
    (tmp_path / "odd.gguf").write_bytes(b"GGUF and then nothing")
    assert await promised(MODEL, tmp_path / "odd.gguf", EngineOptions(), MACHINE, {}) == ()
    assert await promised(MODEL, tmp_path / "gone.gguf", EngineOptions(), MACHINE, {}) == ()
