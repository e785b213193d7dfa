"""The front of a model file: what a stranger's file says of itself, and the manifest that is made of it."""

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from msgspec.msgpack import decode, encode

from felloe.catalog.incoming import Blob
from felloe.catalog.intake import Facts, TakenFile, describe
from felloe.catalog.manifests import decode_manifest, encode_manifest
from felloe.domain.fleet import RAM, Device
from felloe.domain.gguf import GgufHeader, read_header, read_part
from felloe.domain.gguf_layout import GgufLayout, read_layout
from felloe.domain.ids import ModelDigest, NodeId, is_model_name
from felloe.domain.manifest import CHUNK_BYTES
from felloe.placement.memory import Share, price
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape, shape_of
from fuzz.gguf_pieces import Pieces, PlacedTensor, join, split
from fuzz.surface import Surface, scratch
from gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT8, UINT32, UINT64, GgufFile, array, text, tiny_model

_NODE = NodeId("a" * 26)
_ODD_NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 63, 64, 255, 256, 4095, 4096, 4097, 65_535, 65_536, 65_537, 2**20, 2**21, 10**9,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_KEYS = (
    "general.architecture", "general.name", "general.type", "general.file_type", "general.alignment", "split.no",
    "split.count", "split.tensors.count", "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv", "llama.pooling_type",
    "llama.attention.key_length", "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.chat_template",
)  # fmt: skip
_MOST_CHANGED = 100
_RAM = Device(id=RAM, kind="cpu", memory=0)
_WORDS = ("llama", "bert", "clip", "model", "adapter", "mmproj", "gpt2", "no_vocab", "..", "\x1b[2J", "x" * 70, "ä", "")


def _take(data: bytes) -> str:
    header = read_header(io.BytesIO(data).read, file="m.gguf", file_size=len(data))
    _check(header, len(data))
    slow = io.BytesIO(data)
    assert read_header(lambda _: slow.read(7), file="m.gguf", file_size=len(data)) == header
    part = read_part(io.BytesIO(data).read, file="m.gguf", file_size=len(data))
    assert (part.tensor_count, part.tensor_bytes) == (header.tensor_count, header.tensor_bytes)
    layout = read_layout(io.BytesIO(data).read, file="m.gguf", file_size=len(data))
    assert layout.header == header
    _check_layout(layout)
    path = _file()
    path.write_bytes(data)
    blob = Blob(ModelDigest("blake3:" + "0" * 64), len(data), path, (bytes(32),))
    manifest = describe(None, [TakenFile("m.gguf", "model", blob)], Facts(), _NODE, 0)
    assert is_model_name(manifest.name)
    assert manifest.chunk_size == CHUNK_BYTES
    assert decode_manifest(encode_manifest(manifest)) == manifest
    return f"{header.kind} {manifest.capabilities} {header.tensor_count > 0} {header.quantisation[:1]}"


def _check_layout(layout: GgufLayout) -> None:
    """Every byte has its place, and what a plan makes of it can be sent."""
    ends = layout.input_bytes + layout.output_bytes + layout.vision_bytes
    assert ends + sum(layer.total for layer in layout.layers) == layout.header.tensor_bytes
    shape = shape_of(layout)
    assert decode(encode(shape), type=Shape) == shape
    (need,) = price(shape, Settings(context=2**20, slots=256), [Share(device=_RAM, layers=shape.units)])
    assert 0 <= need.total < 2**63


@cache
def _file() -> Path:
    return scratch() / "m.gguf"


def _check(header: GgufHeader, size: int) -> None:
    assert len(header.kv_heads) == len(header.feed_forward) == header.block_count
    numbers = (
        *header.kv_heads,
        *header.feed_forward,
        header.context,
        header.heads,
        header.vocabulary,
        header.key_length,
    )
    assert all(0 <= number <= 2**64 for number in numbers)
    assert header.tensor_bytes == 0 or header.data_offset + header.tensor_bytes <= size
    assert header.tensor_count <= header.parameters
    assert header.architecture.isprintable()


def _seeds() -> list[bytes]:
    split = {"split__no": (UINT32, 0), "split__count": (UINT32, 1), "split__tensors__count": (UINT32, 2)}
    embedding = tiny_model(general__architecture=(STRING, "bert"), llama__pooling_type=(UINT32, 1))
    odd = tiny_model(
        a=(UINT64, 2**63), b=(BOOL, 1), c=(ARRAY, array(UINT8, [1, 2])), llama__attention__head_count=(UINT32, 4)
    )
    files = [
        tiny_model(),
        tiny_model(**split),
        embedding,
        odd,
        GgufFile(metadata={"general.architecture": (8, "clip")}),
    ]
    old = tiny_model()
    old.version = 2
    return [bytes(file) for file in (*files, old)] + [b"", b"GGUF", bytes(tiny_model())[:300]]


def _mutate(data: bytes, random: Random) -> bytes | None:
    try:
        pieces = split(data, most=_MOST_CHANGED)
    except (ValueError, KeyError, struct.error):
        return None
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(_CHANGES)(pieces, random)
    odd = random.choice(_ODD_NUMBERS)
    counts = random.choice([{"tensor_count": odd}, {"pair_count": odd}]) if random.random() < 0.1 else {}
    return join(pieces, **counts) + data[pieces.header_bytes :]


def _odd_value(random: Random) -> tuple[int, bytes]:
    kind = random.choice(
        (UINT8, INT32, UINT32, UINT64, FLOAT32, BOOL, STRING, STRING, ARRAY, random.choice(_ODD_NUMBERS))
    )
    number = random.choice(_ODD_NUMBERS)
    if kind == STRING:
        return kind, text(random.choice(_WORDS))
    if kind == ARRAY:
        inner = random.choice((UINT8, INT32, STRING, ARRAY, number))
        items = text("a") * 3 if inner == STRING else bytes(random.randrange(40))
        return kind, struct.pack("<IQ", inner % 2**32, random.choice((1, 2, 3, number))) + items
    return kind, struct.pack("<Q", number)[: {UINT8: 1, BOOL: 1, UINT64: 8}.get(kind, 4)]


def _change_pair(pieces: Pieces, random: Random) -> None:
    key = random.choice(_KEYS).encode()
    pair = (key, *_odd_value(random))
    same = [number for number, known in enumerate(pieces.pairs) if known[0] == key]
    if same and random.random() < 0.9:
        pieces.pairs[same[0]] = pair
    else:
        pieces.pairs.insert(random.randint(0, len(pieces.pairs)), pair)


def _drop_pair(pieces: Pieces, random: Random) -> None:
    if pieces.pairs:
        pieces.pairs.pop(random.randrange(len(pieces.pairs)))


def _change_tensor(pieces: Pieces, random: Random) -> None:
    if not pieces.tensors:
        pieces.tensors.append(PlacedTensor(b"t", [8], 0, 0))
    at = random.randrange(len(pieces.tensors))
    name, shape, kind, offset = pieces.tensors[at]
    what = random.randrange(5)
    if what == 0:
        shape = [random.choice(_ODD_NUMBERS) for _ in range(random.randrange(6))]
    elif what == 1:
        kind = random.choice((random.randrange(45), *_ODD_NUMBERS))
    elif what == 2:
        offset = random.choice((offset + 32, offset - 32, *_ODD_NUMBERS))
    elif what == 3:
        name = random.choice((b"token_embd.weight", b"x" * 64, b"\xff", b"", name))
    else:
        pieces.tensors.insert(at, pieces.tensors[at])
    pieces.tensors[at] = PlacedTensor(name, shape, kind, offset)


_CHANGES: tuple[Callable[[Pieces, Random], None], ...] = (_change_pair, _change_pair, _drop_pair, _change_tensor)

GGUF = Surface(
    name="gguf",
    take=_take,
    codes=frozenset({"bad_model_file", "bad_manifest"}),
    seeds=_seeds,
    words=_KEYS,
    mutate=_mutate,
)
