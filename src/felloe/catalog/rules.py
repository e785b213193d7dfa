"""What a model file may be called, what it can do, and whether it is a model at all."""

import re

from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader
from felloe.domain.ids import ModelDigest, ModelName, is_model_name
from felloe.domain.models import Capability, Model

_EMBEDDING_POOLING = ("mean", "cls", "last")
_ENCODERS = ("bert", "embed", "t5encoder")
_MAX_DEFAULT_NAME = 100


def check_is_model(header: GgufHeader, file: str) -> None:
    """Raise `bad_model_file` when the file holds something else than one whole text model."""
    if header.kind != "model":
        _refuse(file, "general.type", f"it is of kind {header.kind[:40]!r}, not a model")
    if header.split_count > 1:
        _refuse(file, "split.count", f"it is one of {header.split_count} parts; join them with llama-gguf-split first")
    if header.block_count == 0:
        _refuse(file, f"{header.architecture}.block_count", "it has no layers")
    if not header.tokenizer or header.tokenizer in ("no_vocab", "none"):
        _refuse(file, "tokenizer.ggml.model", "it has no tokenizer")
    if header.tensor_count == 0:
        _refuse(file, "tensor count", "it has no tensors")


def _refuse(file: str, field: str, why: str) -> None:
    raise FelloeError("bad_model_file", f"{file}: {field}: {why}")


def capabilities_of(header: GgufHeader) -> tuple[Capability, ...]:
    """What requests the model can answer. A chat template means chat, with tools and JSON schemas by grammar."""
    if header.pooling in _EMBEDDING_POOLING or any(word in header.architecture for word in _ENCODERS):
        return ("embedding",)
    if header.pooling == "rank":
        return ()
    if header.chat_template is None:
        return ("completion",)
    return ("chat", "completion", "tools", "json_schema")


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


def _normalised(text: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower())
    name = re.sub(r"\.\.+", ".", name)
    return name.strip("-._")[:_MAX_DEFAULT_NAME].rstrip("-._")


def describe(header: GgufHeader, name: ModelName, digest: ModelDigest, size: int, created: int) -> Model:
    """The catalogue's entry for a checked file; `size` in bytes, `created` in Unix seconds."""
    return Model(
        name=name,
        digest=digest,
        size=size,
        architecture=header.architecture,
        quantisation=header.quantisation,
        context=header.context,
        parameters=header.parameters,
        capabilities=capabilities_of(header),
        created=created,
    )
