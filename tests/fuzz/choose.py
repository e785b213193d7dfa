"""Which inputs are worth trying for ever: for each way an input can go, the smallest that goes it."""

import hashlib
from pathlib import Path

from fuzz.surface import CORPUS, MOST_INPUT_BYTES, Finding, Surface, kept, try_input

_MOST_KEPT = 22
_NAME_CHARACTERS = 16


def keep(surface: Surface, found: Path) -> None:
    """Take what `found` adds into the kept corpus, up to a bound, and drop what a smaller input makes needless."""
    smallest: dict[str, bytes] = {}
    inputs = [*surface.seeds(), *(path.read_bytes() for path in [*kept(surface), *found.iterdir()])]
    for data in sorted({data for data in inputs if len(data) <= MOST_INPUT_BYTES}, key=lambda data: (len(data), data)):
        try:
            smallest.setdefault(try_input(surface, data), data)
        except Finding:
            continue  # it becomes a kept input once it is mended
    folder = CORPUS / surface.name
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {_name(data): data for data in _spread(sorted(smallest.values(), key=len))}
    for path in kept(surface):
        if path.name not in chosen:
            path.unlink()
    for name, data in chosen.items():
        (folder / name).write_bytes(data)


def _spread(inputs: list[bytes]) -> list[bytes]:
    """As many as are kept, from the shortest to the longest: those that got far are long."""
    if len(inputs) <= _MOST_KEPT:
        return inputs
    return [inputs[number * (len(inputs) - 1) // (_MOST_KEPT - 1)] for number in range(_MOST_KEPT)]


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_NAME_CHARACTERS]
