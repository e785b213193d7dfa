"""TOML files that people write for plans on paper, read with every slip named by file and place."""

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from felloe.domain.errors import FelloeError

_MOST_BYTES = 4 * 2**20

_IN_PLAIN_WORDS = (
    (r"Object missing required field `(\w+)`", r"`\1` is missing"),
    (r"Object contains unknown field `(.*)`", r"`\1` is no setting that is known here"),
    (r"Expected `str`, got .*", 'must be text in quotes; sizes too, such as "12GiB"'),
    (r"Expected `int( \| null)?`, got .*", "must be a whole number"),
    (r"Expected `float`, got .*", "must be a number"),
    (r"Expected `bool`, got .*", "must be true or false"),
    (r"Expected `array`, got .*", "must be a list; a table of it begins with `[[`"),
    (r"Expected `object`, got .*", "must be a table"),
    (r"Invalid enum value (.*)", r"\1 is none of the known words"),
)

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
    except UnicodeDecodeError as error:
        raise bad(path, "is no text in UTF-8") from error
    except RecursionError as error:
        raise bad(path, "nests too deep") from error
    except tomllib.TOMLDecodeError as error:
        raise bad(path, f"is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise bad(path, _plain(str(error))) from error


def _plain(problem: str) -> str:
    """What the decoder found, as a writer of TOML would say it, behind the place: the third machine is `machine 3`."""
    what, _, place = problem.partition(" - at `$.")
    for pattern, words in _IN_PLAIN_WORDS:
        what = re.sub(pattern, words, what)
    where = re.sub(r"\[(\d+)\]", lambda found: f" {int(found[1]) + 1}", place.rstrip("`")).replace(".", ", ")
    return f"{where}: {what}" if where else what


def bad(path: Path, why: str) -> FelloeError:
    """The file is at fault."""
    return FelloeError("bad_plan_file", f"{path}: {why}")
