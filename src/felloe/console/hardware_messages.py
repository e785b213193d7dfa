"""What the command line and a running node say to each other about the machine: bytes, and Unix seconds."""

from msgspec import Struct


class DeviceRow(Struct, frozen=True, kw_only=True):
    """One memory of the machine. `models` is what models may take up there: `total` less `others` and what stays free,
    or the owner's `limit`; `held` of it is reserved by engines now.

    `kind` is empty where no engine of this node can use the device; `bandwidth` is 0 where nobody knows it. `shared`:
    it is part of the machine's own memory.
    """

    id: str
    kind: str
    name: str
    total: int
    others: int
    models: int
    held: int
    limit: int | None = None
    bandwidth: float = 0.0
    shared: bool = False
    uuid: str = ""


class LinkRow(Struct, frozen=True, kw_only=True):
    """The way to another node. 0: not measured. `bytes_per_second` is of models that came from it."""

    node: str
    name: str
    round_trip_seconds: float
    bytes_per_second: float
    measured_at: float


class HardwareView(Struct, frozen=True, kw_only=True):
    """One machine. `notes` are sentences about what the owner should know."""

    name: str
    system: str
    architecture: str
    processor: str
    cores: int
    devices: tuple[DeviceRow, ...]
    links: tuple[LinkRow, ...] = ()
    notes: tuple[str, ...] = ()
