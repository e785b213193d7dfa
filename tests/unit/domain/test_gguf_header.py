import io
import struct
import time
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.gguf import GgufHeader, read_header
from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT32,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    GgufFile,
    array,
    tensor,
    text,
    tiny_model,
)

REPOSITORY = Path(__file__).parents[3]


def parse(data: bytes, **options: int) -> GgufHeader:
    return read_header(io.BytesIO(data).read, file="m.gguf", file_size=len(data), **options)


def refusal(data: bytes, **options: int) -> str:
    with pytest.raises(FelloeError) as caught:
        parse(data, **options)
    assert caught.value.code == "bad_model_file"
    assert caught.value.detail.startswith("m.gguf: ")
    return caught.value.detail.removeprefix("m.gguf: ")


def test_a_small_model_is_described_in_full() -> None:
    header = parse(bytes(tiny_model()))
    assert (header.architecture, header.kind, header.name) == ("llama", "model", "Tiny Thing")
    assert (header.context, header.block_count, header.embedding_length) == (512, 2, 64)
    assert (header.heads, header.kv_heads, header.key_length, header.value_length) == (4, (2, 1), 16, 16)
    assert header.feed_forward == (128, 128)
    assert (header.quantisation, header.tokenizer, header.vocabulary) == ("Q8_0", "gpt2", 16)
    assert header.chat_template == "{{ messages }}"
    assert header.pooling is None
    assert (header.tensor_count, header.parameters, header.tensor_bytes) == (2, 64 * 16 + 64, 1088 + 256)


def test_the_shipped_model_is_read() -> None:
    path = REPOSITORY / "models/tiny-python/tiny-python-q8_0.gguf"
    with path.open("rb") as stream:
        header = read_header(stream.read, file=path.name, file_size=path.stat().st_size)
    assert (header.architecture, header.quantisation, header.tokenizer) == ("llama", "Q8_0", "gpt2")
    assert header.chat_template
    assert header.data_offset + header.tensor_bytes <= path.stat().st_size


def test_version_2_is_read_too() -> None:
    file = tiny_model()
    file.version = 2
    assert parse(bytes(file)).architecture == "llama"


def test_a_reader_that_gives_one_byte_at_a_time_is_enough() -> None:
    stream = io.BytesIO(bytes(tiny_model()))
    assert read_header(lambda _: stream.read(1), file="m.gguf") == parse(bytes(tiny_model()))


def test_an_embedding_model_tells_its_pooling() -> None:
    assert parse(bytes(tiny_model(llama__pooling_type=(UINT32, 2)))).pooling == "cls"


def test_without_a_file_type_the_type_of_most_bytes_names_the_quantisation() -> None:
    assert parse(bytes(tiny_model(general__file_type=None))).quantisation == "Q8_0"


def test_an_empty_chat_template_is_none() -> None:
    assert parse(bytes(tiny_model(tokenizer__chat_template=(STRING, "")))).chat_template is None


def test_a_long_vocabulary_is_stepped_over_across_chunks() -> None:
    words: list[object] = [f"word {number} " * (number % 7) for number in range(60_000)]
    file = tiny_model(tokenizer__ggml__merges=(ARRAY, array(STRING, words)), after=(UINT32, 1))
    assert parse(bytes(file)).parameters == 1088


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "magic: the file ends here, after 0 bytes"),
        (b"GG", "magic: the file ends here"),
        (b"PK\x03\x04" + bytes(100), "magic: is not GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version: the file is big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version: 1 is not 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensor count: 9223372036854775808 is more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 10**9, 0), "tensor count: 1000000000 is more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "metadata count: 1099511627776 is more than"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "metadata key 0 length: 4611686018427387904 is more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"\xff\xfe"), "metadata key 0: is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture: is missing"),
    ],
)
def test_what_is_not_a_model_is_refused_by_field(data: bytes, expected: str) -> None:
    assert refusal(data).startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"odd": (ARRAY, struct.pack("<IQ", 99, 1))}, "metadata 'odd': value type 99 is unknown"),
        ({"odd": (ARRAY, struct.pack("<IQ", ARRAY, 1))}, "metadata 'odd': arrays in arrays"),
        ({"odd": (ARRAY, struct.pack("<IQ", UINT8, 2**63))}, "metadata 'odd': the header would be longer"),
        ({"odd": (ARRAY, struct.pack("<IQ", UINT64, 2**61))}, "metadata 'odd': the header would be longer"),
        ({"odd": (ARRAY, struct.pack("<IQ", STRING, 2**62))}, "metadata 'odd': the file lists more than"),
        ({"odd": (ARRAY, struct.pack("<IQ", STRING, 2**20))}, "metadata 'odd': the"),
        ({"odd": (ARRAY, struct.pack("<IQQ", STRING, 1, 2**62))}, "metadata 'odd': the header would be longer"),
        ({"odd": (BOOL, 2)}, "metadata 'odd': 2 is neither true nor false"),
        ({"general__architecture": (UINT32, 3)}, "general.architecture: is not a string"),
        ({"general__architecture": (STRING, "../../etc")}, "general.architecture: '../../etc' is no name"),
        ({"general__name": (STRING, b"\xc3")}, "metadata 'general.name': is not UTF-8"),
        ({"general__alignment": (UINT32, 0)}, "general.alignment: 0 is no power of two"),
        ({"general__alignment": (UINT32, 24)}, "general.alignment: 24 is no power of two"),
        ({"general__alignment": (UINT32, 2**30)}, "general.alignment: 1073741824 is no whole number up to"),
        ({"llama__block_count": (UINT32, 2**31)}, "llama.block_count: 2147483648 is no whole number up to"),
        ({"llama__block_count": (INT32, -1)}, "llama.block_count: -1 is no whole number"),
        ({"llama__block_count": (STRING, "2")}, "llama.block_count: the value is no whole number"),
        ({"llama__block_count": (FLOAT32, 2.5)}, "llama.block_count: 2.5 is no whole number"),
        ({"llama__context_length": (UINT64, 2**63)}, "llama.context_length: 9223372036854775808 is no whole"),
        ({"llama__attention__head_count_kv": (ARRAY, array(INT32, [1]))}, "llama.attention.head_count_kv: has 1 entri"),
        ({"llama__attention__head_count_kv": (ARRAY, array(INT32, [1, -1]))}, "llama.attention.head_count_kv: -1 is"),
        ({"llama__pooling_type": (UINT32, 9)}, "llama.pooling_type: 9 is no whole number up to 4"),
    ],
)
def test_hostile_metadata_is_refused_by_field(change: dict[str, tuple[int, object]], expected: str) -> None:
    assert refusal(bytes(tiny_model(**change))).startswith(expected)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([("t", (1,) * 5, F32, 0)], "tensor 't': 5 dimensions are more than 4"),
        ([("t", (2**40, 2**40), F32, 0)], "tensor 't': its dimensions (1099511627776, 1099511627776) hold"),
        ([("t", (0, 8), F32, 0)], "tensor 't': its dimensions (0, 8) hold nothing"),
        ([("t", (2**62,), F32, 0)], "tensor 't': it ends beyond what a file can hold"),
        ([("t", (33,), Q8_0, 0)], "tensor 't': rows of 33 elements do not fill blocks of 32 (Q8_0)"),
        ([("t", (8,), 99, 0)], "tensor 't': tensor type 99 is unknown"),
        ([("t", (8,), F32, 7)], "tensor 't': its offset 7 is no multiple of 32"),
        ([("t", (8,), F32, 2**63)], "tensor 't': it ends beyond what a file can hold"),
        ([("t", (8,), F32, 4096)], "tensor 't': it ends 2784 bytes beyond the end of the file"),
        ([("t", (8,), F32, 0), ("t", (8,), F32, 32)], "tensor 't': appears twice"),
        ([("t", (16,), F32, 0), ("u", (8,), F32, 32)], "tensor 'u': it overlaps another tensor"),
        ([("n" * 64, (8,), F32, 0)], "tensor name length: 64 is more than 63"),
    ],
)
def test_hostile_tensors_are_refused_by_name(
    tensors: list[tuple[str, tuple[int, ...], int, int]], expected: str
) -> None:
    file = tiny_model()
    file.tensors = tensors
    assert refusal(bytes(file)).startswith(expected)


def test_a_key_that_appears_twice_is_refused() -> None:
    twice = text("same") + struct.pack("<IB", UINT8, 1)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + twice + twice
    assert refusal(data) == "metadata 'same': appears twice"


def test_counts_that_promise_more_than_the_file_holds_are_refused() -> None:
    file = tiny_model()
    file.metadata_count = len(file.metadata) + 1
    assert refusal(bytes(file))
    file = tiny_model()
    file.tensor_count = 60_000
    assert refusal(bytes(file)).startswith("tensor ")


def test_a_header_longer_than_the_limit_is_refused_before_it_is_read() -> None:
    asked: list[int] = []
    data = io.BytesIO(bytes(tiny_model(odd=(ARRAY, struct.pack("<IQ", UINT8, 10_000) + bytes(10_000)))))

    def read(size: int) -> bytes:
        asked.append(size)
        return data.read(min(size, 512))

    with pytest.raises(FelloeError, match="the header would be longer than 8192 bytes"):
        read_header(read, file="m.gguf", max_header_bytes=8192)
    assert len(asked) * 512 <= 8192


def test_a_header_without_end_is_read_no_further_than_its_counts_may_say() -> None:
    keys = {f"k{number}": (UINT8, 0) for number in range(4095)}
    head = GgufFile(metadata=keys, metadata_count=4096, tensor_count=2**16).header()
    stream, asked = io.BytesIO(head), 0

    def read(size: int) -> bytes:
        nonlocal asked
        asked += size
        return stream.read(size) or bytes(size)

    began = time.process_time()
    with pytest.raises(FelloeError, match="appears twice"):
        read_header(read, file="m.gguf")
    assert (time.process_time() - began < 20, asked < 4 * 2**20) == (True, True)


def test_metadata_that_would_have_to_be_kept_is_bounded() -> None:
    template = "x" * (5 * 2**20)
    assert "the metadata to keep is longer" in refusal(bytes(tiny_model(tokenizer__chat_template=(STRING, template))))


def test_long_strings_that_nobody_needs_are_stepped_over() -> None:
    file = tiny_model(tokenizer__huggingface__json=(STRING, "x" * (5 * 2**20)))
    assert parse(bytes(file)).name == "Tiny Thing"


def test_a_hostile_name_cannot_flood_the_error() -> None:
    key = "k\n\x1b[2J" * 100
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(key) + struct.pack("<I", 77)
    why = refusal(data)
    assert len(why) < 300
    assert "\n" not in why
    assert "\x1b" not in why


def test_a_model_without_tensors_or_sizes_is_described_as_such() -> None:
    header = parse(bytes(GgufFile(metadata={"general.architecture": (STRING, "clip")})))
    assert (header.block_count, header.kv_heads, header.parameters, header.quantisation) == (0, (), 0, "")


def test_an_error_of_the_reader_passes_through() -> None:
    def read(_: int) -> bytes:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        read_header(read, file="m.gguf")


def test_a_tensor_description_survives_any_legal_rank() -> None:
    for rank in range(5):
        data = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.architecture") + struct.pack("<I", STRING)
        data += text("llama") + tensor("t", (2,) * rank, F32, 0)
        assert read_header(io.BytesIO(data).read, file="m").parameters == 2**rank
