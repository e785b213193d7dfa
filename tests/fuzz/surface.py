"""What a way in owes to any input: one of its own errors or a sound result, in bounded time and memory."""

import atexit
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from felloe.domain.errors import FelloeError

MOST_INPUT_BYTES = 4096
MOST_SECONDS = 2.0
"""Of the processor, for one input."""
MOST_BYTES = 64 * 2**20
"""By which one input may make the process grow."""
MOST_DETAIL_CHARACTERS = 4000
CORPUS = Path(__file__).parent / "corpus"
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_OURS = ("/felloe/", "/fuzz/")


def unchanged(data: bytes, random: Random) -> bytes | None:
    """Leaves mutation to the fuzzer."""
    del data, random


@dataclass(frozen=True)
class Surface:
    """One way in. `take` returns a word for what it accepted, raises FelloeError with one of `codes` for what it does
    not, and AssertionError when an accepted input breaks a promise. `mutate` changes an input by what it means, or
    returns None where it means nothing.
    """

    name: str
    take: Callable[[bytes], str]
    codes: frozenset[str]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()
    mutate: Callable[[bytes, Random], bytes | None] = unchanged


class Finding(Exception):
    """An input did what no input may do; the text says what."""


def try_input(surface: Surface, data: bytes) -> str:
    """Where the input ended: the same text for inputs that went the same way. Raises Finding."""
    memory, began = _peak_bytes(), time.thread_time()
    try:
        place = f"taken: {surface.take(data)}"
    except FelloeError as error:
        place = _judge(surface, error)
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {error} at {_way(error)}") from error
    seconds, grown = time.thread_time() - began, _peak_bytes() - memory
    if seconds > MOST_SECONDS:
        raise Finding(f"it took {seconds:.1f} s ({place})")
    if grown > MOST_BYTES:
        raise Finding(f"it took {grown >> 20} MiB ({place})")
    return place


def _judge(surface: Surface, error: FelloeError) -> str:
    if error.code not in surface.codes:
        raise Finding(f"{error.code} is none of its errors: {error.detail[:200]!r}") from error
    if not error.detail.isprintable():
        raise Finding(f"its error would reach a terminal raw: {error.detail[:200]!r} at {_way(error)}") from error
    if len(error.detail) > MOST_DETAIL_CHARACTERS:
        raise Finding(f"its error has {len(error.detail)} characters, at {_way(error)}") from error
    return f"{error.code}: {_way(error)}"


def _way(error: BaseException) -> str:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if any(part in frame.filename for part in _OURS)
    ]
    return " ".join(f"{Path(frame.filename).stem}.{frame.name}:{frame.lineno}" for frame in frames)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def scratch() -> Path:
    """A new folder, which goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="felloe-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept(surface: Surface) -> Iterator[Path]:
    """The inputs of this surface that every test run tries."""
    yield from sorted((CORPUS / surface.name).glob("*"))
