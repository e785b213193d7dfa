"""What a source hands to the store, the files of one model and what the source says of it, made into a manifest."""

from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3
from msgspec import Struct

from felloe.catalog.incoming import Blob
from felloe.catalog.rules import abilities_of, check_is_model, check_is_whole, choose_name, stem_of
from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, GgufPart, read_header, read_part
from felloe.domain.ids import NodeId
from felloe.domain.manifest import CHUNK_BYTES, Manifest, ManifestFile, Parameter, Role


class TakenFile(NamedTuple):
    """One file of a model: its path inside the model (`/` between folders), what it is for, and its content."""

    path: str
    role: Role
    blob: Blob


class Facts(Struct, frozen=True, kw_only=True):
    """What the source says beyond the files. `template` None: the GGUF's own. `licence`: SPDX name or text.

    `source` is the reference as the user could pull it again, `revision` the commit or digest it stood for.
    """

    template: str | None = None
    parameters: dict[str, Parameter] = {}
    licence: str = ""
    source: str = ""
    revision: str = ""


def describe(asked: str | None, files: Sequence[TakenFile], facts: Facts, maker: NodeId, now: float) -> Manifest:
    """The manifest of a whole model, from the files' own headers; `now` in Unix seconds. Blocking.

    Raises `bad_model_file` when the files are not one whole model, `invalid_value` for a name that cannot be one.
    """
    models = [file for file in files if file.role == "model"]
    if len(models) != 1:
        raise FelloeError("bad_model_file", f"{len(models)} of the {len(files)} files are a model; one has to be")
    first = models[0]
    header = _header(first)
    check_is_model(header, first.path)
    parts = {file.path: _part(file) for file in files if file.role == "part"}
    check_is_whole(header, first.path, parts)
    for file in files:
        if file.role in ("projector", "adapter"):
            _check_kind(file)
    order = {first.path: -1} | {path: part.split_number for path, part in parts.items()}
    ordered = sorted(files, key=lambda file: (order.get(file.path, len(files)), file.path))
    return Manifest(
        version=1,
        name=choose_name(asked, header, stem_of(first.path)),
        files=tuple(_described(file) for file in ordered),
        chunk_size=CHUNK_BYTES,
        architecture=header.architecture,
        quantisation=header.quantisation,
        context=header.context,
        parameters=header.parameters + sum(part.parameters for part in parts.values()),
        capabilities=abilities_of(header, has_projector=any(file.role == "projector" for file in files)),
        template=header.chat_template if facts.template is None else facts.template,
        defaults=facts.parameters,
        licence=facts.licence,
        base="",
        lineage=(),
        source=facts.source,
        revision=facts.revision,
        made_by=maker,
        created_at=int(now),
    )


def chunks_hash(chunks: Sequence[bytes]) -> str:
    """What a manifest says of a file's chunks: the BLAKE3 of their raw hashes in order, as hex digits."""
    return blake3(b"".join(chunks)).hexdigest()


def _described(file: TakenFile) -> ManifestFile:
    blob = file.blob
    return ManifestFile(
        path=file.path, size=blob.size, digest=blob.digest, chunks=chunks_hash(blob.chunks), role=file.role
    )


def _header(file: TakenFile) -> GgufHeader:
    with file.blob.path.open("rb", buffering=0) as stream:
        return read_header(stream.read, file=file.path, file_size=file.blob.size)


def _part(file: TakenFile) -> GgufPart:
    with file.blob.path.open("rb", buffering=0) as stream:
        return read_part(stream.read, file=file.path, file_size=file.blob.size)


def _check_kind(file: TakenFile) -> None:
    header = _header(file)
    is_right = (
        header.kind == "adapter" if file.role == "adapter" else "mmproj" in header.kind or header.architecture == "clip"
    )
    if not is_right:
        raise FelloeError("bad_model_file", f"{file.path}: general.type: it is no {file.role} but {header.kind[:40]!r}")
