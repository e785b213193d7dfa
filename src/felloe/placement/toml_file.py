"""TOML files that people write for plans on paper, read with every slip named by file and place."""

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from felloe.domain.errors import FelloeError

_MOST_BYTES = 4 * 2**20

Content = TypeVar("Content", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[Content]) -> Content:
    """The file as `kind`, whose structs forbid unknown fields. Raises `bad_plan_file`."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise bad(path, error.strerror or "cannot be read") from error
    if len(raw) > _MOST_BYTES:
        raise bad(path, f"is larger than {_MOST_BYTES // 2**20} MiB")
    try:
        return msgspec.convert(tomllib.loads(raw.decode()), kind)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise bad(path, str(error)) from error


def bad(path: Path, why: str) -> FelloeError:
    """The file is at fault."""
    return FelloeError("bad_plan_file", f"{path}: {why}")
