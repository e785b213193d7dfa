"""Sizes and rates as people write them: `10GB`, `12 GiB`, `936GB/s`."""

import re

MOST_BYTES = 1 << 53
"""More is a slip of the pen; it is also where JSON numbers stop being exact."""

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a number and its unit: kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024), or B.

    Upper and lower case mean the same. Only 0 needs no unit. A graphics card that is sold with 12 GB has 12 GiB.
    Raises `ValueError`, whose text fits behind the name of a setting.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:64]!r} is no size such as '10GB' or '12GiB'")
    number, unit = found[1], found[2].lower()
    if not unit and float(number) != 0:
        raise ValueError(f"{text[:64]!r} lacks a unit: kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    if unit and unit not in _UNITS:
        raise ValueError(f"{text[:64]!r} has no unit that is known: kB, MB, GB, TB, KiB, MiB, GiB or TiB")
    count = round(float(number) * _UNITS.get(unit, 1)) if "." in number else int(number) * _UNITS.get(unit, 1)
    if count > MOST_BYTES:
        raise ValueError(f"{text[:64]!r} is more than any machine has")
    return count


def parse_rate(text: str) -> float:
    """Bytes a second of a size with `/s` behind it. Raises `ValueError` as `parse_size` does."""
    size, slash, second = text.strip().rpartition("/")
    if not slash or second.strip() != "s":
        raise ValueError(f"{text[:64]!r} is no rate such as '936GB/s'")
    return float(parse_size(size))
