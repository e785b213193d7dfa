"""Writes small GGUF files, right and wrong ones, value by value."""

import struct
from dataclasses import dataclass, field

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, F16, Q8_0 = 0, 1, 8
_LAYOUTS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: object) -> bytes:
    return text(content) if kind == STRING else struct.pack(_LAYOUTS[kind], content)


def array(kind: int, items: list[object]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(value(kind, item) for item in items)


def pair(key: str, kind: int, content: object) -> bytes:
    """One metadata entry; for `ARRAY` the content is bytes made by `array`."""
    encoded = content if kind == ARRAY else value(kind, content)
    return text(key) + struct.pack("<I", kind) + encoded


def tensor(name: str, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


@dataclass
class GgufFile:
    """A small but complete model; tests change what they are about, then take `bytes(...)`."""

    magic: bytes = b"GGUF"
    version: int = 3
    metadata: dict[str, tuple[int, object]] = field(default_factory=dict)
    tensors: list[tuple[str, tuple[int, ...], int, int]] = field(default_factory=list)
    metadata_count: int | None = None
    tensor_count: int | None = None
    data_size: int = 0

    def header(self) -> bytes:
        count = len(self.metadata) if self.metadata_count is None else self.metadata_count
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + struct.pack("<IQQ", self.version, tensors, count)
        pairs = b"".join(pair(key, kind, content) for key, (kind, content) in self.metadata.items())
        return head + pairs + b"".join(tensor(*each) for each in self.tensors)

    def __bytes__(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % 32) + bytes(self.data_size)


def tiny_model(**changes: tuple[int, object] | None) -> GgufFile:
    """A decoder with a chat template. `changes` sets metadata, `__` standing for `.`; None removes."""
    metadata: dict[str, tuple[int, object]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "Tiny Thing"),
        "general.file_type": (UINT32, 7),
        "llama.block_count": (UINT32, 2),
        "llama.context_length": (UINT32, 512),
        "llama.embedding_length": (UINT32, 64),
        "llama.feed_forward_length": (UINT32, 128),
        "llama.attention.head_count": (UINT32, 4),
        "llama.attention.head_count_kv": (ARRAY, array(INT32, [2, 1])),
        "llama.rope.freq_base": (FLOAT32, 10000.0),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ARRAY, array(STRING, [f"token {number}" for number in range(16)])),
        "tokenizer.ggml.scores": (ARRAY, array(FLOAT32, [0.5] * 16)),
        "tokenizer.ggml.add_bos_token": (BOOL, 1),
        "tokenizer.chat_template": (STRING, "{{ messages }}"),
    }
    for name, change in changes.items():
        key = name.replace("__", ".")
        metadata.pop(key, None)
        if change is not None:
            metadata[key] = change
    embedding_bytes = 64 * 16 // 32 * 34
    tensors = [
        ("token_embd.weight", (64, 16), Q8_0, 0),
        ("output_norm.weight", (64,), F32, embedding_bytes),
    ]
    return GgufFile(metadata=metadata, tensors=tensors, data_size=embedding_bytes + 64 * 4)
