"""What a reference stands for once its source was asked: files to fetch and what the source says of them."""

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.manifest import MOST_TEXT_CHARACTERS, Parameter, Role, check_path

MOST_TEXT_BYTES = MOST_TEXT_CHARACTERS
_REPLACED = str.maketrans(dict.fromkeys('\\:*?"<>|', "_"))


class RemoteFile(Struct, frozen=True, kw_only=True):
    """A file to fetch: from `url`, or from the path `local` on this machine.

    `path` is its name inside the model, `size` in bytes and `sha256` (64 hex digits) where the source tells them.
    """

    path: str
    role: Role
    url: str = ""
    local: str = ""
    size: int | None = None
    sha256: str | None = None


class Plan(Struct, frozen=True, kw_only=True):
    """`source` is the reference that can be pulled again, `revision` the commit or digest that it stood for.

    `template` is a Jinja chat template that replaces the GGUF's own; `licence` an SPDX name or a text.
    """

    files: tuple[RemoteFile, ...]
    source: str
    revision: str = ""
    template: str | None = None
    parameters: dict[str, Parameter] = {}
    licence: str = ""


def file_name(path: str, where: str) -> str:
    """The last part of a path that somebody else chose, as every system can keep it; raises `source_failed`."""
    name = path.rpartition("/")[2].translate(_REPLACED).rstrip(" .")
    try:
        check_path(name)
    except FelloeError as error:
        raise FelloeError("source_failed", f"{where}: {path[:80]!r} cannot be the name of a file") from error
    return name


def check_names(files: tuple[RemoteFile, ...], where: str) -> tuple[RemoteFile, ...]:
    """`files`, when each has a name of its own; raises `source_failed`."""
    names = [file.path.casefold() for file in files]
    if len(set(names)) != len(names):
        raise FelloeError("source_failed", f"{where}: two files have the same name")
    return files
