"""A fleet on paper: machines and their memory, written in a TOML file.

    [[machine]]
    name = "hub"
    ram = "120GiB"
    [[machine.gpu]]
    memory = "11.5GiB"
    count = 4

`memory` and `ram` are what models may take up: what the hardware has, less what the system and others need.
"""

from pathlib import Path

from msgspec import Struct, field

from felloe.domain.fleet import RAM, Device, DeviceKind, Fleet, Machine
from felloe.domain.fleet_rules import MOST_DEVICES, check_machine
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.sizes import parse_rate, parse_size
from felloe.placement.toml_file import bad, read_toml

_MOST_MACHINES = 10_000
_MOST_NAME = 128


class _Gpu(Struct, forbid_unknown_fields=True):
    """`count` equal cards."""

    memory: str
    count: int = 1
    kind: DeviceKind = "cuda"
    name: str = ""
    bandwidth: str = ""
    shared: bool = False


class _Machine(Struct, forbid_unknown_fields=True):
    """`count` equal machines get their numbers behind the name: `desk-1`, `desk-2`."""

    name: str
    ram: str
    ram_bandwidth: str = ""
    count: int = 1
    gpu: list[_Gpu] = field(default_factory=list[_Gpu])


class _File(Struct, forbid_unknown_fields=True):
    machine: list[_Machine]


def read_fleet(path: Path) -> Fleet:
    """The fleet that the file describes. Raises `bad_plan_file`, which names the machine and what is wrong with it."""
    machines: list[Machine] = []
    names: set[str] = set()
    for entry in read_toml(path, _File).machine:
        if not 0 < entry.count <= _MOST_MACHINES - len(machines):
            raise bad(
                path, f"machine {entry.name}: count must be from 1 on, and {_MOST_MACHINES} machines are the most"
            )
        for number in range(1, entry.count + 1):
            name = entry.name if entry.count == 1 else f"{entry.name}-{number}"
            if not name.isprintable() or not 0 < len(name) <= _MOST_NAME or "/" in name:
                raise bad(path, f"a machine's name must be printable, without `/`, at most {_MOST_NAME} characters")
            if name in names:
                raise bad(path, f"the machine {name} is there twice; machines need names of their own")
            names.add(name)
            machines.append(_machine(path, name, entry))
    if not machines:
        raise bad(path, "holds no machine")
    return Fleet(machines=tuple(machines))


def _machine(path: Path, name: str, entry: _Machine) -> Machine:
    where = f"machine {name}"
    bandwidth = _rate(path, where, entry.ram_bandwidth)
    devices = [Device(id=RAM, kind="cpu", memory=_size(path, f"{where}: ram", entry.ram), bandwidth=bandwidth)]
    for gpu in entry.gpu:
        if not 0 < gpu.count <= MOST_DEVICES:
            raise bad(path, f"{where}: a gpu's count must be from 1 to {MOST_DEVICES}")
        for _ in range(gpu.count):
            place = f"gpu{len(devices) - 1}"
            devices.append(
                Device(
                    id=place,
                    kind=gpu.kind,
                    memory=_size(path, f"{where}: {place}", gpu.memory),
                    name=gpu.name,
                    bandwidth=_rate(path, f"{where}: {place}", gpu.bandwidth),
                    shared=gpu.shared,
                )
            )
    machine = Machine(id=NodeId(id_from_public_key(name.encode())), name=name, devices=tuple(devices))
    if why := check_machine(machine):
        raise bad(path, f"{where} {why}")
    return machine


def _size(path: Path, where: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise bad(path, f"{where}: {error}") from error


def _rate(path: Path, where: str, text: str) -> float:
    try:
        return parse_rate(text) if text else 0.0
    except ValueError as error:
        raise bad(path, f"{where}: {error}") from error
