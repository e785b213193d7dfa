"""What a machine has."""

from msgspec import Struct


class Gpu(Struct, frozen=True, kw_only=True):
    """One accelerator; memory in bytes."""

    index: int
    vendor: str
    name: str
    memory_total: int
    memory_free: int


class Hardware(Struct, frozen=True, kw_only=True):
    """One machine; memory in bytes. `cores` counts what this process may use, not what the board has."""

    system: str
    machine: str
    processor: str
    cores: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
