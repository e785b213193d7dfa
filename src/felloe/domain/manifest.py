"""What a model is, in full: its files and what they hold, where it came from, who says so. Pure, without I/O.

A manifest from anywhere is hostile until checked. Its paths become file names on this machine, so they are held to what
every file system takes and to one meaning on all of them.
"""

import math
import re
import unicodedata
from typing import Literal

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName, NodeId, is_id, is_model_name
from felloe.domain.models import Capability

CHUNK_BYTES = 4 * 2**20
MOST_FILE_BYTES = 16 * 2**40
MOST_FILES = 512
MOST_MANIFEST_BYTES = 2**20
MOST_TEXT_CHARACTERS = 256 * 2**10

Role = Literal["model", "part", "projector", "adapter", "template", "licence"]
"""`model` is the (first) GGUF file, `part` each further one of a sharded model."""

Ability = Capability | Literal["rerank", "vision"]
"""What the files are good for, also where no engine serves it yet."""

Parameter = str | int | float | bool | tuple[str, ...]
"""A default for requests that say nothing, for example `temperature` or `stop`."""

_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9._+-]{0,64}")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MOST_PATH_BYTES, _MOST_SEGMENT_BYTES = 1024, 255
_FORBIDDEN_IN_PATHS = frozenset('\\:*?"<>|')
_MOST_PARAMETERS, _MOST_STOPS, _MOST_PARAMETER_CHARACTERS = 64, 64, 4096
_MOST_LINEAGE, _MOST_SOURCE, _MOST_REVISION = 64, 2048, 256
_MOST_COUNT = 2**53


class ManifestFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file: `path` inside the model (`/` between folders), `size` in bytes, `digest` of the whole.

    `chunks` is the BLAKE3 (64 hex digits) of the file's chunk hashes, raw and in order: it stands for every one of
    them, and a manifest stays small however large the model is.
    """

    path: str
    size: int
    digest: ModelDigest
    chunks: str
    role: Role


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model. `context` in tokens, `parameters` a count, `created_at` in Unix seconds, `chunk_size` in bytes.

    `template` None: there is none. `defaults` apply to requests that say nothing. `licence` is an SPDX name or a text.
    `base` and `lineage` name, by digest, what an adapter belongs to and what it was made from.
    """

    version: int
    name: ModelName
    files: tuple[ManifestFile, ...]
    chunk_size: int
    architecture: str
    quantisation: str
    context: int
    parameters: int
    capabilities: tuple[Ability, ...]
    template: str | None
    defaults: dict[str, Parameter]
    licence: str
    base: str
    lineage: tuple[str, ...]
    source: str
    revision: str
    made_by: NodeId
    created_at: int


def check_manifest(manifest: Manifest) -> None:
    """Raise `bad_manifest`, naming the field, unless every value is one that a model may have."""
    _require(manifest.version == 1, "version", f"{manifest.version} is not known here; update the older side")
    _require(is_model_name(manifest.name), "name", "it cannot name a model")
    _require(manifest.chunk_size == CHUNK_BYTES, "chunk_size", f"it is not {CHUNK_BYTES}")
    _check_files(manifest.files)
    for field in ("architecture", "quantisation"):
        _require(_WORD.fullmatch(getattr(manifest, field)) is not None, field, "it is no word")
    for field in ("context", "parameters", "created_at"):
        _require(0 <= getattr(manifest, field) <= _MOST_COUNT, field, "it is out of range")
    _require(len(set(manifest.capabilities)) == len(manifest.capabilities), "capabilities", "one appears twice")
    for field, text in (("template", manifest.template or ""), ("licence", manifest.licence)):
        _require(len(text) <= MOST_TEXT_CHARACTERS, field, f"it is longer than {MOST_TEXT_CHARACTERS} characters")
    _check_defaults(manifest.defaults)
    _require(len(manifest.lineage) <= _MOST_LINEAGE, "lineage", f"it is longer than {_MOST_LINEAGE}")
    for digest in (*manifest.lineage, manifest.base):
        _require(not digest or is_digest(digest), "base and lineage", "one is no digest")
    _require(_is_line(manifest.source, _MOST_SOURCE), "source", "it is too long or holds control characters")
    _require(_is_line(manifest.revision, _MOST_REVISION), "revision", "it is too long or holds control characters")
    _require(is_id(manifest.made_by), "made_by", "it is no node's id")


def is_digest(text: str) -> bool:
    """Whether `text` has the shape of a file's digest."""
    return _DIGEST.fullmatch(text) is not None


def is_manifest_id(text: str) -> bool:
    """Whether `text` has the shape of a manifest's id: 64 hex digits."""
    return _HASH.fullmatch(text) is not None


def check_path(path: str) -> None:
    """Raise `bad_manifest` unless `path` means one file below the model's folder on every system."""
    field = f"path {path[:80]!r}"
    _require(0 < len(path.encode(errors="replace")) <= _MOST_PATH_BYTES, field, "it is empty or too long")
    for segment in path.split("/"):
        _require(segment not in ("", ".", ".."), field, "it leaves its folder or is not in its shortest form")
        _require(len(segment.encode(errors="replace")) <= _MOST_SEGMENT_BYTES, field, "a part of it is too long")
        printable = segment.isprintable() and not _FORBIDDEN_IN_PATHS & set(segment)
        _require(printable and segment[-1] not in " .", field, "it holds characters that not every system takes")


def _check_files(files: tuple[ManifestFile, ...]) -> None:
    _require(0 < len(files) <= MOST_FILES, "files", f"there are {len(files)}, not 1 to {MOST_FILES}")
    for file in files:
        check_path(file.path)
        field = f"file {file.path[:80]!r}"
        _require(0 <= file.size <= MOST_FILE_BYTES, field, "its size is out of range")
        _require(is_digest(file.digest), field, "its digest is none")
        _require(_HASH.fullmatch(file.chunks) is not None, field, "its chunks' hash is none")
    # Some systems take `A` and `a`, or two spellings of `é`, for one file.
    paths = {unicodedata.normalize("NFC", file.path).casefold() for file in files}
    _require(len(paths) == len(files), "files", "one path appears twice")
    folders = {path[:at] for path in paths for at, character in enumerate(path) if character == "/"}
    _require(not folders & paths, "files", "one path is a file and a folder")
    roles = [file.role for file in files]
    _require(roles.count("model") <= 1, "files", "two are the model")
    _require("model" in roles or "adapter" in roles, "files", "none is the model or an adapter")


def _check_defaults(defaults: dict[str, Parameter]) -> None:
    _require(len(defaults) <= _MOST_PARAMETERS, "defaults", f"there are more than {_MOST_PARAMETERS}")
    for name, value in defaults.items():
        field = f"default {name[:64]!r}"
        _require(_PARAMETER.fullmatch(name) is not None, field, "it is no parameter")
        if isinstance(value, str | tuple):
            texts = (value,) if isinstance(value, str) else value
            _require(len(texts) <= _MOST_STOPS, field, f"it has more than {_MOST_STOPS} values")
            _require(all(len(text) <= _MOST_PARAMETER_CHARACTERS for text in texts), field, "it is too long")
        else:
            _require(math.isfinite(value) and abs(value) <= _MOST_COUNT, field, "it is out of range")


def _is_line(text: str, limit: int) -> bool:
    return len(text) <= limit and (text.isprintable() or not text)


def _require(condition: bool, field: str, why: str) -> None:
    if not condition:
        raise FelloeError("bad_manifest", f"manifest: {field}: {why}")
