"""Fleets and models on paper: what people may write, and how each slip is named."""

from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.placement.fleet_file import read_fleet
from felloe.placement.models_file import read_models
from felloe.placement.shape import Shape

LENGTHS = "layers = 8\nwidth = 512\nheads = 8\nkv_heads = 2\nfeed_forward = 2048\nvocabulary = 32000\n"


def no_file(path: Path) -> Shape:
    raise AssertionError(path)


def written(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def test_equal_machines_and_cards_are_counted(tmp_path: Path) -> None:
    text = '[[machine]]\nname = "desk"\ncount = 2\nram = "32GiB"\n[[machine.gpu]]\nmemory = "12GB"\ncount = 2\n'
    fleet = read_fleet(written(tmp_path, text))
    assert [machine.name for machine in fleet.machines] == ["desk-1", "desk-2"]
    assert [device.id for device in fleet.machines[0].devices] == ["ram", "gpu0", "gpu1"]
    assert fleet.machines[1].devices[1].memory == 12 * 10**9
    assert fleet.machines[0].id != fleet.machines[1].id


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "machine"),
        ("machine = []", "no machine"),
        ("[[machine]", "file.toml"),
        ('[[machine]]\nname = "a"\nram = "-3GB"', "-3GB"),
        ('[[machine]]\nname = "a"\nram = "3 bananas"', "unit"),
        ('[[machine]]\nname = "a"\nram = "99999999TB"', "more than any machine"),
        ('[[machine]]\nname = "a"\nram = 12', "ram"),
        ('[[machine]]\nname = "a"\nram = "3GB"\nspeed = 3', "speed"),
        ('[[machine]]\nname = "a"\nram = "3GB"\ncount = 0', "count"),
        ('[[machine]]\nname = "a"\nram = "3GB"\ncount = 9999999999', "count"),
        ('[[machine]]\nname = "a/b"\nram = "3GB"', "name"),
        ('[[machine]]\nname = "a"\nram = "3GB"\n' * 2, "twice"),
        ('[[machine]]\nname = "a"\nram = "3GB"\n[[machine.gpu]]\nmemory = "1GB"\ncount = 65', "count"),
        ('[[machine]]\nname = "a"\nram = "3GB"\n[[machine.gpu]]\nmemory = "1GB"\nkind = "abacus"', "abacus"),
        ('[[machine]]\nname = "a"\nram = "3GB"\n[[machine.gpu]]\nmemory = "1GB"\nkind = "cpu"', "neither"),
        ('[[machine]]\nname = "a"\nram = "3GB"\n[[machine.gpu]]\nmemory = "1GB"\nbandwidth = "fast"', "rate"),
    ],
)
def test_a_fleet_with_a_slip_is_refused_by_file_and_place(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(FelloeError, match=named) as failure:
        read_fleet(written(tmp_path, text))
    assert failure.value.code == "bad_plan_file"
    assert "file.toml" in failure.value.detail


def test_a_model_of_a_shape_has_one_variant_a_quantisation(tmp_path: Path) -> None:
    text = f'[[shape]]\nname = "s"\n{LENGTHS}[[model]]\nname = "m"\nshape = "s"\nquantisations = ["Q8_0", "Q4_K_M"]\n'
    [desired], facts = read_models(written(tmp_path, text), no_file)
    assert desired.variants == ("m:Q8_0", "m:Q4_K_M")
    assert facts[desired.variants[0]].shape.weights > facts[desired.variants[1]].shape.weights


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[model]]\nname = "m"', "shape"),
        ('[[model]]\nname = "m"\nshape = "s"', "'s'"),
        ('[[model]]\nname = "../m"\nshape = "s"', "name"),
        (f'[[shape]]\nname = "s"\n{LENGTHS}[[model]]\nname = "m"\nshape = "s"\nquantisations = ["Q3_X"]', "Q3_X"),
        (f'[[shape]]\nname = "s"\n{LENGTHS}[[model]]\nname = "m"\nshape = "s"\nreplicas = -1', "replicas"),
        (f'[[shape]]\nname = "s"\n{LENGTHS}[[model]]\nname = "m"\nshape = "s"\ndemand = nan', "demand"),
        (f'[[shape]]\nname = "s"\n{LENGTHS}' + '[[model]]\nname = "m"\nshape = "s"\n' * 2, "twice"),
        ('[[shape]]\nname = "s"\n' + LENGTHS.replace("8\n", "0\n", 1) + '[[model]]\nname = "m"\nshape = "s"', "layers"),
    ],
)
def test_models_with_a_slip_are_refused_by_file_and_place(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(FelloeError, match=named) as failure:
        read_models(written(tmp_path, text), no_file)
    assert failure.value.code == "bad_plan_file"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FelloeError, match="No such file"):
        read_fleet(tmp_path / "nothing.toml")
