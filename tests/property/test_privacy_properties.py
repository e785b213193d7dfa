"""Sealing holds for arbitrary texts, and no parser fails on noise in any other way than `FelloeError`."""

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.privacy.binary_http import (
    Request,
    Response,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
    parse_response_head,
)
from felloe.privacy.hpke import AES_128_GCM, SequenceCipher
from felloe.privacy.kems import XWingKem
from felloe.privacy.ohttp import (
    CHUNKED,
    KeyConfiguration,
    accept_request,
    begin_request,
    open_chunk,
    open_response,
    parse_header,
    parse_key_configuration,
    seal_chunk,
)
from felloe.privacy.padding import CHUNK, LARGEST_REQUEST, answer_bucket, request_bucket
from felloe.privacy.sealing import SealingKeys, seal
from felloe.privacy.varint import decode_varint, encode_varint

KEYS = SealingKeys()
CONFIGURATION = parse_key_configuration(KEYS.config)
KEM_KEY = XWingKem().generate()
NAMES = st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
VALUES = st.binary(max_size=40).map(lambda value: value.translate(None, b"\0\r\n").strip(b" \t"))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple)
PARTS = st.lists(
    st.one_of(st.binary(max_size=600), st.integers(0, 50_000).map(lambda size: b"x" * size)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(body=st.binary(max_size=40_000), parts=PARTS)
def test_any_request_and_any_sequence_of_parts_arrive_as_they_were_sent(body: bytes, parts: list[bytes]) -> None:
    sealed, opener = seal(KEYS.config, body)
    opened, sealer = KEYS.open(sealed)
    assert opened == body
    received = [opener.open(sealer.seal(part)) for part in parts[:-1]]
    assert not opener.finished
    received.append(opener.open(sealer.finish(parts[-1])))
    assert received == parts
    assert opener.finished


@settings(deadline=None)
@given(data=st.data(), count=st.integers(2, 6))
def test_no_other_order_of_messages_is_ever_accepted(data: st.DataObject, count: int) -> None:
    sealed, opener = seal(KEYS.config, b"")
    _, sealer = KEYS.open(sealed)
    messages = [sealer.seal(b"%d" % number) for number in range(count - 1)]
    messages.append(sealer.finish(b"last"))
    order = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count + 2))
    accepted = 0
    try:
        for position, number in enumerate(order):
            opener.open(messages[number])
            assert number == position
            accepted += 1
    except FelloeError:
        assert accepted == count or order[accepted] != accepted
    assert opener.finished == (accepted == count)


@settings(deadline=None)
@given(value=st.integers(0, (1 << 62) - 1), rest=st.binary(max_size=3))
def test_integers_read_back(value: int, rest: bytes) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded + rest, 0) == (value, len(encoded))


@settings(deadline=None)
@given(
    headers=FIELDS,
    content=st.binary(max_size=300),
    trailers=FIELDS,
    known_length=st.booleans(),
    padding=st.integers(0, 20),
)
def test_binary_http_reads_back(
    headers: tuple[tuple[bytes, bytes], ...],
    content: bytes,
    trailers: tuple[tuple[bytes, bytes], ...],
    known_length: bool,
    padding: int,
) -> None:
    request = Request(b"POST", b"https", b"felloe", b"/v1/infer", headers, content, trailers)
    assert parse_request(encode_request(request, known_length=known_length) + bytes(padding)) == request
    response = Response(200, headers, content, trailers, ((103, headers),))
    assert parse_response(encode_response(response, known_length=known_length) + bytes(padding)) == response


@settings(deadline=None)
@given(key_id=st.integers(0, 255), suites=st.lists(st.tuples(*[st.integers(0, 65535)] * 2), min_size=1, max_size=16))
def test_key_configurations_read_back(key_id: int, suites: list[tuple[int, int]]) -> None:
    encoded = KeyConfiguration(key_id, XWingKem(), KEM_KEY.public_key, tuple(suites)).encode()
    assert parse_key_configuration(encoded).encode() == encoded


@settings(deadline=None)
@given(length=st.integers(0, LARGEST_REQUEST), longer=st.integers(0, 1000))
def test_a_bucket_holds_its_content_and_never_shrinks(length: int, longer: int) -> None:
    assert length <= request_bucket(length) <= max(1024, 2 * length)
    assert request_bucket(length) <= request_bucket(min(length + longer, LARGEST_REQUEST))
    if length <= CHUNK:
        assert length <= answer_bucket(length) <= max(512, 2 * length)


def open_answer(noise: bytes) -> None:
    seal(KEYS.config, b"")[1].open(noise)


def open_answer_with_true_start(noise: bytes) -> None:
    sealed, opener = seal(KEYS.config, b"")
    opener.open(KEYS.open(sealed)[1].seal(b"first"))
    opener.open(noise)


def open_well_sealed_request(noise: bytes) -> None:
    start, asker = begin_request(CONFIGURATION, AES_128_GCM, CHUNKED)
    KEYS.open(start + seal_chunk(asker.context, noise, final=True))


def open_well_sealed_answer(noise: bytes) -> None:
    sealed, opener = seal(KeyConfiguration(1, XWingKem(), KEM_KEY.public_key, ((1, 1),)).encode(), b"")
    accepted, _ = accept_request(sealed, XWingKem(), KEM_KEY, CHUNKED)
    opener.open(bytes(16) + seal_chunk(accepted.response_cipher(bytes(16)), noise, final=True))


READERS: list[Callable[[bytes], object]] = [
    lambda noise: decode_varint(noise, 0),
    parse_request,
    parse_response,
    parse_response_head,
    parse_key_configuration,
    parse_header,
    lambda noise: seal(noise, b"request", allow_classical=True),
    lambda noise: accept_request(noise, XWingKem(), KEM_KEY, CHUNKED),
    lambda noise: open_chunk(SequenceCipher(AES_128_GCM, bytes(16), bytes(12)), noise, 0),
    lambda noise: open_response(begin_request(CONFIGURATION, AES_128_GCM, CHUNKED)[1], noise),
    KEYS.open,
    lambda noise: KEYS.open(KEYS.config[:1] + b"\x64\x7a\0\1\0\1" + noise),
    open_answer,
    open_answer_with_true_start,
    open_well_sealed_request,
    open_well_sealed_answer,
]
HTTP_LIKE = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"\0", b"\1", b"\2", b"\3", b"\x40\xc8", b"\3GET", b"\5https", b"\1/", b"\1a\1b", b"\x40\4"]),
    ),
    max_size=12,
).map(b"".join)


@pytest.mark.parametrize("read", READERS, ids=range(len(READERS)))
@settings(deadline=None)
@given(noise=st.one_of(st.binary(max_size=80), HTTP_LIKE, st.binary(min_size=1100, max_size=1300)))
@example(noise=b"")
@example(noise=b"\0\x20" + bytes(32) + b"\0\4\0\1\0\1")
def test_noise_is_refused_with_an_error_of_the_catalogue_or_read(read: Callable[[bytes], object], noise: bytes) -> None:
    try:
        read(noise)
    except FelloeError as error:
        assert error.code == "unsealed"
