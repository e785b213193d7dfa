"""Oblivious HTTP refuses malformed keys, other variants and misplaced chunks."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.privacy.hpke import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, SequenceCipher
from felloe.privacy.kems import X25519Kem, XWingKem
from felloe.privacy.ohttp import (
    CHUNKED,
    WHOLE,
    KeyConfiguration,
    accept_request,
    begin_request,
    open_chunk,
    open_chunks,
    open_response,
    parse_header,
    parse_key_configuration,
    seal_chunk,
    seal_response,
)
from felloe.privacy.varint import encode_varint

PRIVATE_KEY = X25519Kem().load(bytes(range(32)))
CONFIGURATION = KeyConfiguration(7, X25519Kem(), PRIVATE_KEY.public_key, ((1, 1), (1, 3)))


def cipher() -> SequenceCipher:
    return SequenceCipher(AES_128_GCM, bytes(16), bytes(12))


def test_a_key_configuration_reads_back_as_it_was_written() -> None:
    read = parse_key_configuration(CONFIGURATION.encode())
    assert read[0] == 7
    assert read[2:] == CONFIGURATION[2:]
    assert read.kem.identifier == X25519Kem.identifier


def test_a_key_configuration_is_refused_when_cut_anywhere_or_followed_by_anything() -> None:
    encoded = CONFIGURATION.encode()
    for length in range(len(encoded)):
        with pytest.raises(FelloeError, match="unsealed"):
            parse_key_configuration(encoded[:length])
    with pytest.raises(FelloeError, match="unsealed"):
        parse_key_configuration(encoded + b"\0\1\0\1")


@pytest.mark.parametrize("suites", [b"", b"\0\1", b"\0\1\0\1\0", b"\0\1\0\1" * 17])
def test_suites_of_an_impossible_length_are_refused(suites: bytes) -> None:
    encoded = CONFIGURATION._replace(suites=()).encode()[:-2]
    with pytest.raises(FelloeError, match="suites"):
        parse_key_configuration(encoded + len(suites).to_bytes(2, "big") + suites)


def test_a_key_configuration_with_the_length_of_another_kem_is_refused() -> None:
    encoded = CONFIGURATION.encode()
    with pytest.raises(FelloeError, match="cut off"):
        parse_key_configuration(encoded[:1] + XWingKem.identifier.to_bytes(2, "big") + encoded[3:])


def test_the_first_known_suite_is_chosen() -> None:
    assert CONFIGURATION.choose_aead() is AES_128_GCM
    assert CONFIGURATION._replace(suites=((2, 1), (1, 9), (1, 3), (1, 2))).choose_aead() is CHACHA20_POLY1305
    with pytest.raises(FelloeError, match="no cipher"):
        CONFIGURATION._replace(suites=((2, 1), (1, 9))).choose_aead()


@pytest.mark.parametrize("aead", [AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305], ids=lambda aead: f"aead{aead[0]}")
def test_a_whole_exchange_opens_at_both_ends(aead: object) -> None:
    start, asker = begin_request(CONFIGURATION, aead, WHOLE)  # type: ignore[arg-type]
    sealed = start + asker.context.seal(b"question")
    answerer, offset = accept_request(sealed, X25519Kem(), PRIVATE_KEY, WHOLE)
    assert answerer.context.open(sealed[offset:]) == b"question"
    answer = seal_response(answerer, b"answer")
    assert open_response(asker, answer) == b"answer"
    assert seal_response(answerer, b"answer") != answer
    for length in range(len(answer)):
        with pytest.raises(FelloeError, match="unsealed"):
            open_response(asker, answer[:length])


def test_a_chunked_request_does_not_open_as_a_whole_one() -> None:
    start, asker = begin_request(CONFIGURATION, AES_128_GCM, CHUNKED)
    sealed = start + asker.context.seal(b"question")
    answerer, offset = accept_request(sealed, X25519Kem(), PRIVATE_KEY, WHOLE)
    with pytest.raises(FelloeError, match="unsealed"):
        answerer.context.open(sealed[offset:])


@pytest.mark.parametrize(("position", "value"), [(2, 0x21), (4, 2), (6, 9), (1, 0x64)])
def test_algorithms_that_the_key_is_not_for_are_refused(position: int, value: int) -> None:
    start, _ = begin_request(CONFIGURATION, AES_128_GCM, CHUNKED)
    with pytest.raises(FelloeError, match="unsealed"):
        accept_request(start[:position] + bytes([value]) + start[position + 1 :], X25519Kem(), PRIVATE_KEY, CHUNKED)


def test_a_request_cut_within_its_header_or_key_is_refused() -> None:
    start, _ = begin_request(CONFIGURATION, AES_128_GCM, CHUNKED)
    for length in range(len(start)):
        with pytest.raises(FelloeError, match="cut off"):
            accept_request(start[:length], X25519Kem(), PRIVATE_KEY, CHUNKED)
    assert parse_header(start).encode() == start[:7]


def test_an_empty_chunk_is_refused_unless_it_is_the_final_one() -> None:
    sender, recipient = cipher(), cipher()
    with pytest.raises(ValueError, match="empty"):
        seal_chunk(sender, b"")
    empty = sender.seal(b"")
    with pytest.raises(FelloeError, match="empty"):
        open_chunk(recipient, encode_varint(len(empty)) + empty, 0)
    assert open_chunk(cipher(), seal_chunk(cipher(), b"", final=True), 0) == (b"", 17, True)


def test_a_chunk_larger_than_every_receiver_accepts_is_refused() -> None:
    assert open_chunk(cipher(), seal_chunk(cipher(), bytes(16384)), 0)[0] == bytes(16384)
    for final in (True, False):
        with pytest.raises(FelloeError, match="too large"):
            open_chunk(cipher(), seal_chunk(cipher(), bytes(16385), final=final), 0)


@pytest.mark.parametrize("length", [18, 1 << 20, (1 << 62) - 1])
def test_a_chunk_longer_than_the_message_is_refused(length: int) -> None:
    with pytest.raises(FelloeError, match="cut off"):
        open_chunk(cipher(), encode_varint(length) + bytes(17), 0)


def test_a_chunk_cannot_turn_final_or_cease_to_be() -> None:
    sealed = seal_chunk(cipher(), b"text")
    with pytest.raises(FelloeError, match="changed"):
        open_chunk(cipher(), b"\0" + sealed[1:], 0)
    sealed = seal_chunk(cipher(), b"text", final=True)
    with pytest.raises(FelloeError, match="changed"):
        open_chunk(cipher(), encode_varint(len(sealed) - 1) + sealed[1:], 0)


def test_a_message_without_a_final_chunk_is_refused() -> None:
    sealed = seal_chunk(cipher(), b"text")
    with pytest.raises(FelloeError, match="unsealed"):
        list(open_chunks(cipher(), sealed, 0, 9))


def test_a_second_final_chunk_is_refused() -> None:
    sender = cipher()
    sealed = seal_chunk(sender, b"one", final=True) + seal_chunk(sender, b"two", final=True)
    with pytest.raises(FelloeError, match="unsealed"):
        list(open_chunks(cipher(), sealed, 0, 9))


def test_more_chunks_than_allowed_are_refused() -> None:
    sender = cipher()
    sealed = b"".join(seal_chunk(sender, b"x") for _ in range(3)) + seal_chunk(sender, b"x", final=True)
    assert list(open_chunks(cipher(), sealed, 0, 4)) == [b"x"] * 4
    with pytest.raises(FelloeError, match="too many chunks"):
        list(open_chunks(cipher(), sealed, 0, 3))
