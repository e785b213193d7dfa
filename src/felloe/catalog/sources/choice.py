"""Which files of a repository or folder make up the model that was asked for. Pure."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.domain.manifest import Role

MOST_PARTS = 400
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE)
_USUAL_QUANTISATION = "Q4_K_M"
_PROJECTOR_ORDER = ("f16", "bf16", "q8_0", "f32")
_MOST_NAMED = 12


class Chosen(NamedTuple):
    """A file of the source and what it is for."""

    path: str
    role: Role


def parts_of(path: str) -> tuple[str, ...]:
    """The paths of all parts of the sharded model that `path` is a part of, in order; `path` alone otherwise."""
    match = _PART.fullmatch(path)
    if match is None:
        return (path,)
    stem, count = match[1], int(match[3])
    if not 1 <= int(match[2]) <= count <= MOST_PARTS:
        raise FelloeError("source_failed", f"{_named(path)}: a model has at most {MOST_PARTS} parts")
    return tuple(f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def roles_of(parts: Sequence[str]) -> tuple[Chosen, ...]:
    """The first file is the model, each further one a part of it."""
    return tuple(Chosen(path, "part" if number else "model") for number, path in enumerate(parts))


def choose(paths: Iterable[str], wanted: str, where: str) -> tuple[Chosen, ...]:
    """The model that `wanted` (a path, a quantisation, or empty) means among `paths`, and its projector if it has one.

    Empty means: the only model, or the one in Q4_K_M. Raises `source_not_found` naming what there is.
    """
    files = sorted(path for path in paths if path.lower().endswith(".gguf"))
    models: dict[str, tuple[str, ...]] = {}
    for path in files:
        if not _is_extra(path):
            whole = parts_of(path)
            models[whole[0]] = whole
    parts = models[_pick(sorted(models), wanted, where)]
    missing = [path for path in parts if path not in files]
    if missing:
        raise FelloeError("source_not_found", f"{where} lacks {_named(missing[0])}, a part of the model")
    projector = _projector(files, parts[0])
    return roles_of(parts) + ((Chosen(projector, "projector"),) if projector else ())


def _pick(models: list[str], wanted: str, where: str) -> str:
    if not models:
        raise FelloeError("source_not_found", f"{where} holds no GGUF model; look for a repository with GGUF files")
    if wanted.lower().endswith(".gguf"):
        first = parts_of(wanted)[0]
        found = [path for path in models if first in (path, path.rpartition("/")[2])]
    elif wanted:
        found = [path for path in models if _holds(path, wanted)]
    elif len(models) == 1:
        found = models
    else:
        found = [path for path in models if _holds(path, _USUAL_QUANTISATION)]
    if len(found) != 1:
        raise _not_one(found or models, wanted, where)
    return found[0]


def _not_one(candidates: list[str], wanted: str, where: str) -> FelloeError:
    named = ", ".join(_named(path) for path in candidates[:_MOST_NAMED])
    more = f" and {len(candidates) - _MOST_NAMED} more" if len(candidates) > _MOST_NAMED else ""
    asked = f"{wanted[:80]!r} names no one model there" if wanted else "several models are there"
    return FelloeError("source_not_found", f"{where}: {asked}; put a file behind a colon: {named}{more}")


def _named(path: str) -> str:
    """A path that somebody else chose, as an error may show it."""
    part = path[:120]
    return part if part.isprintable() else repr(part)


def _holds(path: str, quantisation: str) -> bool:
    """Whether the quantisation stands in the file's name as a word of its own, or names its folder."""
    return re.search(rf"(?:^|[-./]){re.escape(quantisation)}(?:[-./]|$)", path, re.IGNORECASE) is not None


def _is_extra(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return "mmproj" in name or "imatrix" in name


def _projector(files: list[str], model: str) -> str:
    """The projector beside the model, the usual precision first."""
    folder = model.rpartition("/")[0]
    found = [
        path for path in files if "mmproj" in path.rpartition("/")[2].lower() and path.rpartition("/")[0] == folder
    ]
    for precision in _PROJECTOR_ORDER:
        for path in found:
            if _holds(path, precision):
                return path
    return found[0] if found else ""
