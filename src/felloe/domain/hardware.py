"""What a machine has."""

from msgspec import Struct

UNKNOWN = -1
"""Nobody tells how many bytes these are."""


class Gpu(Struct, frozen=True, kw_only=True):
    """One accelerator; memory in bytes.

    `index` is the vendor's own number for it. `id` is its name in plans (`gpu0`), which it keeps while another one is
    lost; `uuid` is what a driver chooses it by. `memory_own` of what is taken is held by this node's engines, where the
    driver tells. `bandwidth` in bytes a second is how fast it reads its memory, 0 where nobody knows. `shared`: its
    memory is the machine's own. `vulkan_index` is its number for programs that use Vulkan, -1 where it has none.
    """

    index: int
    vendor: str
    name: str
    memory_total: int
    memory_free: int
    id: str = ""
    uuid: str = ""
    memory_own: int = UNKNOWN
    bandwidth: float = 0.0
    shared: bool = False
    vulkan_index: int = -1


class Hardware(Struct, frozen=True, kw_only=True):
    """One machine; memory in bytes. `cores` counts what this process may use, not what the board has.

    `memory_own` is what this node's engines hold of it for themselves; pages of model files, which the system can drop
    at any time, count as available and not as theirs.
    """

    system: str
    machine: str
    processor: str
    cores: int
    memory_total: int
    memory_available: int
    gpus: tuple[Gpu, ...] = ()
    memory_own: int = UNKNOWN
