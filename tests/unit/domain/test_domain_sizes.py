"""Sizes as people write them, and machines as strangers tell of them."""

import math

import pytest

from felloe.domain.fleet import Device, DeviceKind, Machine
from felloe.domain.fleet_rules import check_machine
from felloe.domain.ids import NodeId
from felloe.domain.sizes import parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10**10),
        (" 12 GiB ", 12 * 2**30),
        ("1.5kB", 1500),
        ("0.5MiB", 2**19),
        ("0", 0),
        ("0GB", 0),
        ("7b", 7),
        ("8192TiB", 2**53),
    ],
)
def test_a_size_has_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1GB",
        "+1GB",
        "1e9GB",
        "10",
        "10 G",
        "10GBs",
        "1.GB",
        ".5GB",
        "9000TiB",
        "9" * 5000,
        "١GB",
        "nanGB",
        "1_0GB",
    ],
)
def test_what_is_no_size_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|lacks a unit|no unit|any machine") as refused:
        parse_size(text)
    assert len(str(refused.value)) < 200


def test_a_rate_is_a_size_a_second() -> None:
    assert parse_rate("936GB/s") == parse_rate("936 GB / s") == 936e9
    for text in ("936GB", "936GB/h", "/s", "-1GB/s"):
        with pytest.raises(ValueError, match="is no"):
            parse_rate(text)


RAM = Device(id="ram", kind="cpu", memory=1)


def gpu(
    name: str = "gpu0", memory: int = 1, bandwidth: float = 0.0, kind: DeviceKind = "cuda", label: str = ""
) -> Device:
    return Device(id=name, kind=kind, memory=memory, bandwidth=bandwidth, name=label)


def test_a_machine_is_its_memory_and_its_gpus() -> None:
    assert check_machine(Machine(id=NodeId("n"), name="n", devices=(RAM, gpu(), gpu("gpu1", 0, 1e12)))) == ""


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ((), "its own memory"),
        ((gpu(), RAM), "its own memory"),
        ((RAM, gpu(), gpu()), "'gpu0' twice"),
        ((RAM, RAM), "'ram' twice"),
        ((RAM, *(gpu(f"gpu{number}") for number in range(64))), "more than 64"),
        ((RAM, gpu(memory=-1)), "-1 bytes"),
        ((RAM, gpu(memory=2**54)), "which no device has"),
        ((RAM, gpu(bandwidth=math.nan)), "bandwidth"),
        ((RAM, gpu(bandwidth=math.inf)), "bandwidth"),
        ((RAM, gpu(bandwidth=-1.0)), "bandwidth"),
        ((RAM, gpu(kind="cpu")), "neither"),
        ((RAM, gpu("")), "cannot be shown"),
        ((RAM, gpu("hub/gpu0")), "cannot be shown"),
        ((RAM, gpu("\x1b[2J")), "cannot be shown"),
        ((RAM, gpu(label="x" * 129)), "cannot be shown"),
    ],
)
def test_an_impossible_machine_is_refused(devices: tuple[Device, ...], why: str) -> None:
    assert why in check_machine(Machine(id=NodeId("n"), name="n", devices=devices))
