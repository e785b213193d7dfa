"""Models and machines on paper, for tests of what fits where."""

from felloe.domain.fleet import RAM, Device, DeviceKind
from felloe.placement.paper import Lengths, shape_from_parameters
from felloe.placement.shape import Shape

GIB = 2**30
LLAMA_8B = Lengths(layers=32, width=4096, heads=32, kv_heads=8, feed_forward=14336, vocabulary=128256)
LLAMA_70B = Lengths(layers=80, width=8192, heads=64, kv_heads=8, feed_forward=28672, vocabulary=128256)
QWEN_1_5B = Lengths(layers=28, width=1536, heads=12, kv_heads=2, feed_forward=8960, vocabulary=151936, tied=True)


def eight() -> Shape:
    """Llama 8B, Q4_K_M."""
    return shape_from_parameters(LLAMA_8B, context=131_072)


def ram(gib: float = 64) -> tuple[Device, int]:
    """A machine's own memory with so much free."""
    return Device(id=RAM, kind="cpu", memory=int(gib * GIB)), int(gib * GIB)


def gpu(number: int, gib: float, kind: DeviceKind = "cuda", *, shared: bool = False) -> tuple[Device, int]:
    """A card with so much free."""
    return Device(id=f"gpu{number}", kind=kind, memory=int(gib * GIB), shared=shared), int(gib * GIB)
