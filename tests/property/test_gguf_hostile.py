import io
import struct
import time
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.domain.gguf import read_header
from gguf_bytes import ARRAY, STRING, array, tiny_model

GOOD = bytes(tiny_model())
HEADER_LENGTH = len(tiny_model().header())


def outcome(data: bytes) -> str:
    """`read`, or the refusal; anything else that is raised fails the test."""
    try:
        read_header(io.BytesIO(data).read, file="m.gguf", file_size=len(data))
    except FelloeError as error:
        assert error.code == "bad_model_file"
        assert error.detail.startswith("m.gguf: ")
        assert len(error.detail) < 600
        return error.detail
    return "read"


def test_every_prefix_is_refused() -> None:
    for length in range(len(GOOD)):
        assert outcome(GOOD[:length]) != "read", length
    assert outcome(GOOD) == "read"


@given(st.binary(max_size=4096))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert outcome(data) != "read"


@given(st.binary(max_size=4096))
def test_random_bytes_after_a_good_start_never_break_the_reader(data: bytes) -> None:
    outcome(GOOD[:24] + data)


@given(
    st.lists(st.tuples(st.integers(0, HEADER_LENGTH - 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_changed_bytes_never_break_the_reader(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for position, byte in changes:
        data[position] = byte
    outcome(bytes(data))


@given(
    st.integers(0, HEADER_LENGTH),
    st.integers(0, HEADER_LENGTH),
    st.sampled_from([b"", b"\xff" * 8, b"\x00" * 8, b"\xff" * 7 + b"\x7f", b"\x09\x00\x00\x00", b"\x08\x00\x00\x00"]),
)
def test_cut_and_spliced_files_never_break_the_reader(first: int, second: int, between: bytes) -> None:
    outcome(GOOD[:first] + between + GOOD[second:])


@given(st.binary(min_size=8, max_size=8), st.integers(4, HEADER_LENGTH - 8))
def test_any_length_or_count_anywhere_never_breaks_the_reader(number: bytes, position: int) -> None:
    outcome(GOOD[:position] + number + GOOD[position + 8 :])


def test_the_longest_legal_vocabulary_takes_bounded_time() -> None:
    count = 2**21 - 16
    data = bytes(tiny_model(long=(ARRAY, struct.pack("<IQ", STRING, count) + bytes(8 * count))))
    started = time.process_time()
    assert outcome(data) == "read"
    assert time.process_time() - started < 5


def test_a_long_vocabulary_is_never_held() -> None:
    words = array(STRING, ["0123456789abcdef" * 16] * 20_000)
    stream = io.BytesIO(bytes(tiny_model(long=(ARRAY, words))))
    tracemalloc.start()
    read_header(stream.read, file="m.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(words) > 5 * 2**20
    assert peak < 2**20
