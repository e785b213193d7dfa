"""What crosses between nodes is read strictly and in bounds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Done, Failure, InferenceRequest, Piece, ReplayResume, TokenResume, Usage
from felloe.routing.wire import (
    ANSWER_MESSAGE_BYTES,
    MESSAGE_BYTES,
    PartReader,
    decode_request,
    encode_parts,
    encode_request,
    error_of,
    failure_of,
)
from routing_fakes import make_request


def test_a_request_arrives_as_it_was_sent():
    for resume in (None, TokenResume((1, 2, 3)), ReplayResume(10, bytes(32))):
        request = replace(make_request(), resume=resume)
        assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize(
    "change",
    [
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"deadline": 0.0},
        {"deadline": -1.0},
        {"deadline": 1e9},
        {"model": ""},
        {"model": "../../etc/passwd"},
        {"model": "x" * 1000},
        {"id": ""},
        {"id": "x" * 1000},
        {"index": -1},
        {"index": 10**6},
        {"created": -1},
        {"created": 2**60},
        {"reach": "device"},
        {"resume": ReplayResume(-1, bytes(32))},
        {"resume": ReplayResume(1, b"short")},
        {"resume": TokenResume((-1,))},
        {"resume": TokenResume((2**31,))},
        {"kind": "shell"},
        {"body": [1]},
        {"body": {1: 2}},
        {"index": "0"},
        {"resume": {"ids": [1]}},
        {"resume": ["unknown", 1]},
    ],
)
def test_a_bad_request_is_refused_without_quoting_it(change: dict[str, object]):
    fields = msgspec.msgpack.decode(encode_request(make_request()))
    changed = msgspec.to_builtins(change, builtin_types=(bytes,))
    with pytest.raises(FelloeError) as caught:
        decode_request(msgspec.msgpack.encode({**fields, **changed}))
    assert caught.value.code == "invalid_value"
    assert "hello" not in str(caught.value) and "passwd" not in str(caught.value)


def test_nesting_without_end_is_refused():
    prefix = encode_request(make_request(body={"x": 1}))
    deep = prefix.replace(b"\x81\xa1x\x01", b"\x81\xa1x" + b"\x91" * 200_000 + b"\x01")
    with pytest.raises(FelloeError, match="cannot be read"):
        decode_request(deep)


def test_an_endless_request_is_refused_before_it_is_read():
    with pytest.raises(FelloeError) as caught:
        decode_request(bytes(9 * 1024 * 1024))
    assert caught.value.code == "body_too_large"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(data: bytes):
    try:
        assert isinstance(decode_request(data), InferenceRequest)
    except FelloeError as error:
        assert error.code == "invalid_value"


@pytest.mark.parametrize("value", ["\ud800", 2**80])
def test_a_body_that_cannot_travel_is_the_callers_fault(value: object):
    with pytest.raises(FelloeError) as caught:
        encode_request(make_request(body={"messages": value}))
    assert caught.value.code == "invalid_value"


def test_parts_that_are_ready_together_share_a_message():
    parts = [Piece(1, (5,), b"data: a\n\n"), Piece(2, (6,), b"data: b\n\n"), Done(Usage(1, 2), "stop")]
    (message,) = encode_parts(parts)
    assert PartReader().feed(message) == parts


def test_a_large_part_goes_in_fragments():
    parts = [Piece(0, (), bytes(3 * MESSAGE_BYTES)), Done(Usage(1), "stop")]
    messages = encode_parts(parts)
    assert len(messages) == 4 and all(len(message) <= MESSAGE_BYTES + 1 for message in messages)
    reader = PartReader()
    assert [reader.feed(message) for message in messages] == [[], [], [], parts]
    (small,) = encode_parts(parts[1:])
    assert reader.feed(small) == parts[1:], "the reader is ready for the next message"


@pytest.mark.parametrize("message", [b"", b"\x02\x90", b"\x00", b"\x00\xc1", b"\x00\x91\x91\xa1z", b"\x00\x81\x01\x02"])
def test_a_message_that_cannot_be_read_is_a_lost_replica(message: bytes):
    with pytest.raises(FelloeError) as caught:
        PartReader().feed(message)
    assert caught.value.code == "replica_lost"


def test_fragments_without_end_are_refused():
    reader = PartReader()
    fragment = b"\x01" + bytes(1024 * 1024)
    with pytest.raises(FelloeError) as caught:
        for _ in range(ANSWER_MESSAGE_BYTES // (1024 * 1024) + 1):
            reader.feed(fragment)
    assert caught.value.code == "replica_lost"


def test_a_failure_arrives_as_the_error_that_it_was():
    error = error_of(failure_of(FelloeError("overloaded", "busy", param="model", retry_after=3.0)))
    assert (error.code, error.detail, error.param, error.retry_after) == ("overloaded", "busy", "model", 3.0)


def test_an_unknown_code_is_a_lost_replica_and_a_long_detail_is_cut():
    error = error_of(Failure("from_the_future", "x" * 10_000))
    assert error.code == "replica_lost" and len(error.detail) == 2000
