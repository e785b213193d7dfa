"""What a model file may be called, what it can do, whether files are a whole model, and which models make room."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blake3 import blake3

from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, GgufPart
from felloe.domain.ids import ModelDigest, ModelName, is_model_name
from felloe.domain.manifest import Ability, Manifest, ManifestFile
from felloe.domain.models import Capability, Model

_EMBEDDING_POOLING = ("mean", "cls", "last")
_ENCODERS = ("bert", "embed", "t5encoder")
_PARTS_CONTEXT = b"felloe parts 1\0"
_MAX_DEFAULT_NAME = 100
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def check_is_model(header: GgufHeader, file: str) -> None:
    """Raise `bad_model_file` when the file holds something else than a text model, or than the first part of one."""
    if header.kind != "model":
        _refuse(file, "general.type", f"it is of kind {header.kind[:40]!r}, not a model")
    if header.split_number:
        _refuse(file, "split.no", f"it is part {header.split_number + 1} of a model; name the first part")
    if header.block_count == 0:
        _refuse(file, f"{header.architecture}.block_count", "it has no layers")
    if not header.tokenizer or header.tokenizer in ("no_vocab", "none"):
        _refuse(file, "tokenizer.ggml.model", "it has no tokenizer")
    if header.tensor_count == 0:
        _refuse(file, "tensor count", "it has no tensors")


def check_is_whole(header: GgufHeader, file: str, parts: Mapping[str, GgufPart]) -> None:
    """Raise `bad_model_file` unless `parts`, by path, are all further parts of the model whose first is `file`.

    llama.cpp finds the parts by their names, so these have to be as it writes them.
    """
    count = max(1, header.split_count)
    if len(parts) != count - 1:
        _refuse(file, "split.count", f"{len(parts) + 1} of its {count} parts are here; a model needs all of them")
    if count == 1:
        return
    named = _PART_NAME.fullmatch(file)
    if named is None or int(named["number"]) != 1 or int(named["count"]) != count:
        _refuse(file, "name", f"the first of {count} parts is called NAME-00001-of-{count:05d}.gguf")
    stem = file.removesuffix(f"-00001-of-{count:05d}.gguf")
    for path, part in parts.items():
        if path != f"{stem}-{part.split_number + 1:05d}-of-{count:05d}.gguf":
            _refuse(path, "name", f"it is not the name of part {part.split_number + 1} of {file}")
        if (part.split_count, part.split_tensors) != (count, header.split_tensors):
            _refuse(path, "split.count", f"it is a part of another model than {file}")
    tensors = header.tensor_count + sum(part.tensor_count for part in parts.values())
    if tensors != header.split_tensors:
        _refuse(file, "split.tensors.count", f"the parts hold {tensors} tensors of {header.split_tensors}")


def _refuse(file: str, field: str, why: str) -> None:
    raise FelloeError("bad_model_file", f"{file}: {field}: {why}")


def abilities_of(header: GgufHeader, *, has_projector: bool) -> tuple[Ability, ...]:
    """What the model is good for. A chat template means chat, with tools and JSON schemas by grammar."""
    if header.pooling in _EMBEDDING_POOLING or any(word in header.architecture for word in _ENCODERS):
        return ("embedding",)
    if header.pooling == "rank":
        return ("rerank",)
    seeing: tuple[Ability, ...] = ("vision",) if has_projector else ()
    if header.chat_template is None:
        return ("completion", *seeing)
    return ("chat", "completion", "tools", "json_schema", *seeing)


def choose_name(asked: str | None, header: GgufHeader, stem: str) -> ModelName:
    """The name asked for, or one made from the file: `general.name`, else the file's own name.

    Raises `invalid_value` when the name asked for cannot be one.
    """
    if asked is not None:
        if not is_model_name(asked):
            raise FelloeError(
                "invalid_value",
                "a model's name has at most 128 letters, digits and . _ : / @ + -, and starts with a letter or digit",
                param="name",
            )
        return ModelName(asked)
    for candidate in (header.name, stem):
        name = _normalised(candidate)
        if is_model_name(name):
            return ModelName(name)
    return ModelName("model")


def stem_of(path: str) -> str:
    """What a file is called, without folders, part numbers and the ending."""
    name = path.rpartition("/")[2]
    part = _PART_NAME.fullmatch(name)
    return part["stem"] if part else name.removesuffix(".gguf")


def _normalised(text: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    name = re.sub(r"\.\.+", ".", name)
    return name.strip("-._")[:_MAX_DEFAULT_NAME].rstrip("-._")


def digest_of(files: Sequence[ManifestFile]) -> ModelDigest:
    """What stands for the weights: the file's digest, or for a sharded model one over all parts' in order."""
    weights = [file.digest for file in files if file.role in ("model", "part")]
    if len(weights) == 1:
        return weights[0]
    return ModelDigest(f"blake3:{blake3(_PARTS_CONTEXT + ' '.join(weights).encode()).hexdigest()}")


def model_of(manifest: Manifest) -> Model:
    """What the rest of Felloe needs to know of a model in the store."""
    served: tuple[Capability, ...] = tuple(
        ability for ability in manifest.capabilities if ability != "rerank" and ability != "vision"
    )
    return Model(
        name=manifest.name,
        digest=digest_of(manifest.files),
        size=sum(file.size for file in manifest.files),
        architecture=manifest.architecture,
        quantisation=manifest.quantisation,
        context=manifest.context,
        parameters=manifest.parameters,
        capabilities=served,
        created=manifest.created_at,
    )


class Candidate(NamedTuple):
    """A model as clean-up sees it; `used_at` in Unix seconds, `is_spared`: pinned, loaded or about to be."""

    name: ModelName
    used_at: float
    is_spared: bool
    blobs: frozenset[ModelDigest]


def choose_victims(
    candidates: Sequence[Candidate], sizes: Mapping[ModelDigest, int], missing: int
) -> tuple[ModelName, ...] | None:
    """Which models to delete so that at least `missing` bytes become free, the least recently used first.

    `sizes` holds the bytes of each blob; a blob goes only with the last model that names it. Nobody is named whose end
    is not needed. None: all that may be deleted is not enough.
    """
    victims: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: (each.used_at, each.name)):
        if _freed(victims, candidates, sizes) >= missing:
            break
        if not candidate.is_spared:
            victims.append(candidate)
    if _freed(victims, candidates, sizes) < missing:
        return None
    for victim in reversed(victims.copy()):
        others = [each for each in victims if each is not victim]
        if _freed(others, candidates, sizes) >= missing:
            victims = others
    return tuple(victim.name for victim in victims)


def _freed(victims: Sequence[Candidate], candidates: Sequence[Candidate], sizes: Mapping[ModelDigest, int]) -> int:
    gone = {victim.name for victim in victims}
    kept = {blob for candidate in candidates if candidate.name not in gone for blob in candidate.blobs}
    freed = {blob for victim in victims for blob in victim.blobs} - kept
    return sum(sizes.get(blob, 0) for blob in freed)
