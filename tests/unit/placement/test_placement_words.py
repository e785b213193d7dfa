"""What a person reads of a plan: nothing looks too full, no speed is guessed, no decoder speaks."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.ids import ModelName, NodeId, id_from_public_key
from felloe.domain.plan import DesiredModel, Need, Part, Placement, Plan, Refusal
from felloe.placement.explain import explain, quality
from felloe.placement.fleet_file import read_fleet
from felloe.placement.models_file import read_models
from felloe.placement.shape import Shape
from felloe.placement.words import amount, layers, not_placed

CHAT = ModelName("chat")
MIB = 2**20
CARD_BYTES = round(11.6 * 2**30)
"""A size that is no whole number of MiB, nor of tenths of GiB."""

WANTED = [DesiredModel(model=CHAT)]


def fleet(bandwidth: float = 0.0) -> Fleet:
    devices = (
        Device(id="ram", kind="cpu", memory=2**30),
        Device(id="gpu0", kind="cuda", memory=CARD_BYTES, bandwidth=bandwidth),
    )
    return Fleet(machines=(Machine(id=NodeId(id_from_public_key(b"desk")), name="desk", devices=devices),))


def full() -> Plan:
    need = Need(weights=CARD_BYTES // MIB * MIB, kv=0, compute=0, overhead=0)
    part = Part(device="gpu0", layers=33, need=need)
    node = fleet().machines[0].id
    placed = Placement(model=CHAT, variant=CHAT, node=node, parts=(part,), context=4096, slots=1)
    return Plan(placements=(placed,), value=1.0, bound=1.0)


def test_a_full_device_never_looks_too_full() -> None:
    text = explain(full(), fleet(), WANTED)
    assert "gpu0: 11,878 of 11,878 MiB planned, 0 MiB left" in text
    assert "ram" not in text.replace("gram", "")
    assert "memory: 0 of 1,024 MiB planned, 1,024 MiB left" in text


def test_a_speed_is_told_only_where_somebody_said_how_fast_the_memory_is() -> None:
    assert "tokens a second" not in explain(full(), fleet(), WANTED)
    assert "about 29 tokens a second at most" in explain(full(), fleet(bandwidth=360e9), WANTED)


def test_the_output_is_not_told_as_a_layer() -> None:
    def of(*counts: int) -> tuple[str, ...]:
        need = Need(weights=1, kv=0, compute=0, overhead=0)
        return layers([Part(device=f"gpu{at}", layers=count, need=need) for at, count in enumerate(counts)])

    assert of(0, 20, 13) == ("", "20 layers", "12 layers and the output")
    assert of(2, 2) == ("2 layers", "1 layer and the output")
    assert of(5, 1) == ("5 layers", "the output")
    assert of(5, 0) == ("4 layers and the output", "")


def test_nothing_wanted_is_not_a_failure() -> None:
    nothing = Plan(placements=())
    assert "Nothing is wanted" in quality(nothing, [])
    assert "No model can be placed" in quality(nothing, WANTED)


def test_how_many_are_missing() -> None:
    one = Refusal(model=CHAT, missing=1, reason="")
    assert (not_placed(one), not_placed(replace(one, missing=2))) == ("not placed", "2 copies not placed")


def test_needs_are_rounded_up_and_room_down() -> None:
    assert (amount(1), amount(MIB - 1, up=False), amount(CARD_BYTES), amount(CARD_BYTES, up=False)) == (
        "1 MiB",
        "0 MiB",
        "11.7 GiB",
        "11.5 GiB",
    )


MACHINE = '[[machine]]\nname = "a"\nram = "3GB"\n'
SHAPE = (
    '[[shape]]\nname = "s"\nlayers = 8\nwidth = 512\nheads = 8\nkv_heads = 2\nfeed_forward = 2048\nvocabulary = 32000\n'
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (MACHINE + "[[machine]]\nname = 'b'\nram = 12", "machine 2, ram: must be text in quotes; sizes too, such as"),
        (MACHINE + "count = 'two'", "machine 1, count: must be a whole number"),
        (MACHINE + "cards = 2", "machine 1: `cards` is no setting that is known here"),
        (MACHINE + "[[machine.gpu]]\ncount = 2", "machine 1, gpu 1: `memory` is missing"),
        (MACHINE + "[[machine.gpu]]\nmemory = '1GB'\nshared = 3", "machine 1, gpu 1, shared: must be true or false"),
        (MACHINE + "gpu = 3", "machine 1, gpu: must be a list"),
        ("machine = 'a'", "machine: must be a list"),
        ("x = " + "[" * 20_000, "nests too deep"),
        ("machine", "is not TOML"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
    ],
)
def test_slips_in_a_file_are_told_in_the_writers_words(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FelloeError) as failure:
        read_fleet(path)
    assert failure.value.code == "bad_plan_file"
    assert told in failure.value.detail
    assert "$" not in failure.value.detail


def test_a_file_without_an_end_is_not_read_to_its_end() -> None:
    with pytest.raises(FelloeError, match="is larger than"):
        read_fleet(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (SHAPE + SHAPE + '[[model]]\nname = "m"\nshape = "s"', "two \\[\\[shape\\]\\]s have the same name"),
        (SHAPE + '[[model]]\nname = "m"\nshape = "s"\nkv_type = "q5"', "kv_type: 'q5' is none of the known words"),
        (SHAPE + '[[model]]\nname = "m"\nshape = "s"\ndemand = "much"', "demand: must be a number"),
        (SHAPE + '[[model]]\nname = "m"\nshape = "s"\ncontext = 512\ncontext_least = 1024', "context"),
        (SHAPE + '[[model]]\nname = "m"\nshape = "s"\nslots = 0', "slots"),
        (SHAPE + '[[model]]\nname = "m"\nshape = "s"\npriority = 1001', "priority"),
        (SHAPE.replace("8\n", "1000000000\n", 1) + '[[model]]\nname = "m"\nshape = "s"', "no model has lengths"),
    ],
)
def test_slips_in_models_are_told_so_too(tmp_path: Path, content: str, told: str) -> None:
    def no_file(path: Path) -> Shape:
        raise AssertionError(path)

    path = tmp_path / "models.toml"
    path.write_text(content)
    with pytest.raises(FelloeError, match=told) as failure:
        read_models(path, no_file)
    assert failure.value.code == "bad_plan_file"
