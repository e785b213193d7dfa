"""Writes a model of any size that llama.cpp loads: the tiny model's tokenizer and random weights. It talks nonsense."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_bytes import F32, FLOAT32, Q8_0, STRING, UINT32, pair, tensor, text
from networks import TINY_MODEL

_WIDTH, _HEADS, _FORWARD, _CONTEXT = 2048, 16, 5632, 512
_ALIGNMENT = 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_BLOCK_WEIGHTS, _BLOCK_BYTES = 32, 34
_PIECE_BLOCKS = 100_000


def write_big_model(path: Path, layers: int) -> None:
    """About 55 MB a layer."""
    vocabulary, kept = _tokenizer(TINY_MODEL.read_bytes())
    metadata = [
        pair("general.architecture", STRING, "llama"),
        pair("general.name", STRING, "big nonsense"),
        pair("general.file_type", UINT32, 7),
        pair("llama.block_count", UINT32, layers),
        pair("llama.context_length", UINT32, _CONTEXT),
        pair("llama.embedding_length", UINT32, _WIDTH),
        pair("llama.feed_forward_length", UINT32, _FORWARD),
        pair("llama.attention.head_count", UINT32, _HEADS),
        pair("llama.attention.head_count_kv", UINT32, _HEADS),
        pair("llama.rope.dimension_count", UINT32, _WIDTH // _HEADS),
        pair("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        *kept,
    ]
    rows, offset = list[bytes](), 0
    for name, shape in _tensors(vocabulary, layers):
        rows.append(tensor(name, shape, F32 if len(shape) == 1 else Q8_0, offset))
        offset += _padded(_bytes_of(shape))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(metadata)) + b"".join((*metadata, *rows))
    chance = random.Random(1)
    with path.open("wb") as stream:
        stream.write(head + bytes(-len(head) % _ALIGNMENT))
        for _, shape in _tensors(vocabulary, layers):
            _write_tensor(stream, shape, chance)


def _tensors(vocabulary: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (_WIDTH, vocabulary)
    yield "output_norm.weight", (_WIDTH,)
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (_WIDTH,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", (_WIDTH, _WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", (_WIDTH, _FORWARD)
        yield f"blk.{layer}.ffn_down.weight", (_FORWARD, _WIDTH)


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 4 * shape[0] if len(shape) == 1 else shape[0] * shape[1] // _BLOCK_WEIGHTS * _BLOCK_BYTES


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _write_tensor(stream: BinaryIO, shape: tuple[int, ...], chance: random.Random) -> None:
    size = _bytes_of(shape)
    if len(shape) == 1:
        stream.write(struct.pack("<f", 1.0) * shape[0])
    else:
        blocks = size // _BLOCK_BYTES
        for done in range(0, blocks, _PIECE_BLOCKS):
            count = min(_PIECE_BLOCKS, blocks - done)
            piece = bytearray(chance.randbytes(count * _BLOCK_BYTES))
            # A block begins with its scale: a small number in half precision, never one that is none.
            piece[0::_BLOCK_BYTES], piece[1::_BLOCK_BYTES] = bytes(count), b"\x04" * count
            stream.write(piece)
    stream.write(bytes(-size % _ALIGNMENT))


def _tokenizer(model: bytes) -> tuple[int, list[bytes]]:
    """How many tokens the tiny model knows, and all that it says of them, as it is encoded."""
    (count,) = struct.unpack_from("<Q", model, 16)
    at, vocabulary, kept = 24, 0, list[bytes]()
    for _ in range(count):
        begin = at
        (length,) = struct.unpack_from("<Q", model, at)
        key = model[at + 8 : at + 8 + length].decode()
        (kind,) = struct.unpack_from("<I", model, at + 8 + length)
        at, items = _end_of_value(model, at + 12 + length, kind)
        if key == "tokenizer.ggml.tokens":
            vocabulary = items
        if key.startswith("tokenizer."):
            kept.append(model[begin:at])
    return vocabulary, kept


def _end_of_value(model: bytes, at: int, kind: int) -> tuple[int, int]:
    """Where a value ends, and how many items it has."""
    if kind == 8:
        return at + len(text("")) + struct.unpack_from("<Q", model, at)[0], 1
    if kind != 9:
        return at + _SIZES[kind], 1
    item, count = struct.unpack_from("<IQ", model, at)
    at += 12
    for _ in range(count):
        at, _ = _end_of_value(model, at, item)
    return at, count
