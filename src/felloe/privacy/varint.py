"""Variable-length integers of QUIC (RFC 9000 section 16), which Binary HTTP and chunked OHTTP share."""

from felloe.domain.errors import FelloeError

_MAXIMUM = (1 << 62) - 1


def encode_varint(value: int) -> bytes:
    """The shortest encoding of `value`, 1 to 8 bytes; `ValueError` outside 0 to 2^62 - 1."""
    if value < 0:
        raise ValueError("a variable-length integer is not negative")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if value <= _MAXIMUM:
        return (value | 3 << 62).to_bytes(8, "big")
    raise ValueError("the value does not fit a variable-length integer")


def decode_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The integer at `offset` and the offset after it; any of the four lengths is accepted.

    Raises `FelloeError` `unsealed` when `data` ends too early.
    """
    if offset >= len(data):
        raise FelloeError("unsealed", "A sealed message ends before a length.")
    first = data[offset]
    length = 1 << (first >> 6)
    if length == 1:
        return first, offset + 1
    end = offset + length
    if end > len(data):
        raise FelloeError("unsealed", "A sealed message ends within a length.")
    return int.from_bytes(data[offset:end], "big") & ((1 << (8 * length - 2)) - 1), end
