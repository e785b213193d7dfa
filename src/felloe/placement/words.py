"""Numbers as people read them."""


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
