"""Numbers as people read them."""

from collections.abc import Sequence

from felloe.domain.plan import Part, Refusal


def amount(size: int, *, up: bool = True) -> str:
    """Bytes: `512 MiB`, `4.2 GiB` (powers of 1024, as memory is sold).

    Rounded up, so that a need is never told too small, or down, so that a device is never told too large.
    """
    mebibytes = -(-size // 2**20) if up else size // 2**20
    if mebibytes < 1000:
        return f"{mebibytes} MiB"
    tenths = -(-mebibytes * 10 // 1024) if up else mebibytes * 10 // 1024
    return f"{tenths // 10}.{tenths % 10} GiB"


def tokens(count: int) -> str:
    """`8,192 tokens`."""
    return f"{count:,} tokens"


def layers(parts: Sequence[Part]) -> tuple[str, ...]:
    """What lies in each part: `20 layers`, `19 layers and the output`, or nothing.

    The output counts as a layer; it lies behind the last one.
    """
    last = max((place for place, part in enumerate(parts) if part.layers), default=-1)
    return tuple(_layers(part.layers, with_output=place == last) for place, part in enumerate(parts))


def not_placed(refusal: Refusal) -> str:
    """`not placed`, `2 copies not placed`."""
    return "not placed" if refusal.missing == 1 else f"{refusal.missing} copies not placed"


def _layers(count: int, *, with_output: bool) -> str:
    pieces = [f"{count - with_output} layer{'' if count - with_output == 1 else 's'}"] if count > with_output else []
    return " and ".join([*pieces, "the output"] if with_output else pieces)
