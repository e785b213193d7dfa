"""What is sealed is read by the two ends only: whole, once, in order."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.privacy.binary_http import Request, Response, encode_request, encode_response_head, parse_response
from felloe.privacy.hpke import AES_128_GCM, AES_256_GCM
from felloe.privacy.kems import X25519Kem, XWingKem
from felloe.privacy.ohttp import (
    CHUNKED,
    WHOLE,
    Exchange,
    KeyConfiguration,
    accept_request,
    begin_request,
    open_chunks,
    parse_key_configuration,
    seal_chunk,
)
from felloe.privacy.padding import CHUNK
from felloe.privacy.sealing import (
    MAXIMUM_PART,
    MAXIMUM_REQUEST,
    MAXIMUM_SEALED_PART,
    MAXIMUM_SEALED_REQUEST,
    AnswerOpener,
    AnswerSealer,
    SealingKeys,
    seal,
)

KEYS = SealingKeys()
PART_SIZES = [0, 1, 250, 507, 508, 509, 16366, 16374, 16378, 16379, 16380, 16381, 16384, 40_000, MAXIMUM_PART]


def exchange(request: bytes = b"question") -> tuple[AnswerSealer, AnswerOpener]:
    sealed, opener = seal(KEYS.config, request)
    opened, sealer = KEYS.open(sealed)
    assert opened == request
    return sealer, opener


def answer(parts: list[bytes]) -> tuple[list[bytes], AnswerOpener]:
    sealer, opener = exchange()
    return [*(sealer.seal(part) for part in parts[:-1]), sealer.finish(parts[-1])], opener


def hand_made_answer(opener_of: KeyConfiguration, private_key: object) -> tuple[AnswerOpener, Exchange]:
    sealed, opener = seal(opener_of.encode(), b"question")
    return opener, accept_request(sealed, opener_of.kem, private_key, CHUNKED)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 980, 990, 16384, 200_000, MAXIMUM_REQUEST])
def test_a_request_of_any_allowed_size_opens_as_it_was_sealed(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed, _ = seal(KEYS.config, body)
    assert len(sealed) <= MAXIMUM_SEALED_REQUEST
    assert KEYS.open(sealed)[0] == body


def test_the_largest_request_takes_the_largest_sealed_size() -> None:
    assert len(seal(KEYS.config, bytes(MAXIMUM_REQUEST))[0]) == MAXIMUM_SEALED_REQUEST - 3


def test_a_request_that_is_too_large_is_refused_on_both_sides() -> None:
    with pytest.raises(FelloeError) as refused:
        seal(KEYS.config, bytes(MAXIMUM_REQUEST + 1))
    assert refused.value.code == "body_too_large"
    with pytest.raises(FelloeError, match="too large") as refused:
        KEYS.open(bytes(MAXIMUM_SEALED_REQUEST + 1))
    assert refused.value.code == "unsealed"


@pytest.mark.parametrize("size", PART_SIZES)
@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_part_of_any_allowed_size_opens_as_it_was_sealed(size: int, position: str) -> None:
    big = bytes([1]) * size
    parts = {"first": [big, b"b", b"c"], "middle": [b"a", big, b"c"], "last": [b"a", b"b", big]}[position]
    messages, opener = answer(parts)
    assert max(map(len, messages)) <= MAXIMUM_SEALED_PART
    for number, (message, part) in enumerate(zip(messages, parts, strict=True)):
        assert not opener.finished
        assert opener.open(message) == part
        assert opener.finished == (number == 2)


@pytest.mark.parametrize("size", PART_SIZES)
def test_an_answer_of_one_part_opens(size: int) -> None:
    messages, opener = answer([b"x" * size])
    assert opener.open(messages[0]) == b"x" * size
    assert opener.finished


def test_a_part_that_is_too_large_is_not_sealed() -> None:
    sealer, _ = exchange()
    for seal_part in (sealer.seal, sealer.finish):
        with pytest.raises(FelloeError) as refused:
            seal_part(bytes(MAXIMUM_PART + 1))
        assert refused.value.code == "internal"


def test_sizes_do_not_tell_parts_apart() -> None:
    sealer, _ = exchange()
    sealer.seal(b"")
    assert {len(sealer.seal(bytes(size))) for size in range(509)} == {530}
    assert {len(seal(KEYS.config, bytes(size))[0]) for size in range(0, 990, 90)} == {2168}


def test_a_sealed_request_and_answer_show_nothing_of_the_text() -> None:
    sealed, _ = seal(KEYS.config, b"the secret question")
    _, sealer = KEYS.open(sealed)
    assert b"secret" not in sealed + sealer.seal(b"the secret answer") + sealer.finish(b"the secret end")


def test_the_messages_of_an_answer_are_one_ordinary_chunked_ohttp_response() -> None:
    private_key = XWingKem().generate()
    configuration = KeyConfiguration(1, XWingKem(), private_key.public_key, ((1, 1),))
    start, asker = begin_request(configuration, AES_128_GCM, CHUNKED)
    sealer = AnswerSealer(accept_request(start, XWingKem(), private_key, CHUNKED)[0])
    stream = sealer.seal(b"one") + sealer.seal(bytes(40_000)) + sealer.finish(b"three")
    cipher = asker.response_cipher(stream[:16])
    chunks = list(open_chunks(cipher, stream, 16, 9))
    assert [len(chunk) for chunk in chunks] == [512, CHUNK, CHUNK, CHUNK, 512]
    response = parse_response(b"".join(chunks))
    assert response == Response(200, content=response.content)
    assert response.content.startswith(b"\0\3one\0\0")


def test_a_request_opens_once() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    KEYS.open(sealed)
    with pytest.raises(FelloeError) as refused:
        KEYS.open(sealed)
    assert refused.value.code == "replayed"


def test_a_request_cannot_be_reused_with_other_chunks() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    KEYS.open(sealed)
    with pytest.raises(FelloeError) as refused:
        KEYS.open(sealed[:-1])
    assert refused.value.code == "replayed"


def test_a_tampered_copy_does_not_use_up_the_request() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    with pytest.raises(FelloeError):
        KEYS.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert KEYS.open(sealed)[0] == b"question"


def test_a_request_cut_at_any_byte_is_refused() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    for length in range(len(sealed)):
        with pytest.raises(FelloeError, match="unsealed"):
            KEYS.open(sealed[:length])
    with pytest.raises(FelloeError, match="unsealed"):
        KEYS.open(sealed + b"\0")
    assert KEYS.open(sealed)[0] == b"question"


def test_a_request_with_any_byte_changed_is_refused() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1 << position % 8
        with pytest.raises(FelloeError, match="unsealed"):
            KEYS.open(bytes(changed))
    assert KEYS.open(sealed)[0] == b"question"


def test_a_large_request_with_chunks_missing_or_exchanged_is_refused() -> None:
    sealed, _ = seal(KEYS.config, bytes(60_000))
    start, size = 7 + XWingKem.encapsulated_length, 4 + CHUNK + 16
    first, second, rest = (
        sealed[start : start + size],
        sealed[start + size : start + 2 * size],
        sealed[start + 2 * size :],
    )
    for chunks in (
        second + first + rest,
        first + rest,
        first + first + rest,
        first + second,
        first + second + rest * 2,
    ):
        with pytest.raises(FelloeError, match="unsealed"):
            KEYS.open(sealed[:start] + chunks)
    assert KEYS.open(sealed)[0] == bytes(60_000)


def test_a_key_that_this_node_does_not_have_is_refused() -> None:
    sealed, _ = seal(KEYS.config, b"question")
    with pytest.raises(FelloeError, match="does not have"):
        KEYS.open(bytes([sealed[0] ^ 0x80]) + sealed[1:])
    configuration = parse_key_configuration(KEYS.config)
    stranger = configuration._replace(public_key=XWingKem().generate().public_key)
    with pytest.raises(FelloeError, match="unsealed"):
        KEYS.open(seal(stranger.encode(), b"question")[0])


def test_a_weaker_key_encapsulation_is_refused_on_both_sides() -> None:
    private_key = X25519Kem().generate()
    weak = KeyConfiguration(KEYS.config[0], X25519Kem(), private_key.public_key, ((1, 1),)).encode()
    with pytest.raises(FelloeError, match="not an X-Wing key"):
        seal(weak, b"question")
    sealed, opener = seal(weak, b"question", allow_classical=True)
    with pytest.raises(FelloeError, match="does not offer"):
        KEYS.open(sealed)
    accepted, _ = accept_request(sealed, X25519Kem(), private_key, CHUNKED)
    assert opener.open(AnswerSealer(accepted).finish(b"answer")) == b"answer"


def test_a_cipher_that_the_node_does_not_offer_is_refused() -> None:
    start, asker = begin_request(parse_key_configuration(KEYS.config), AES_256_GCM, CHUNKED)
    with pytest.raises(FelloeError, match="does not offer"):
        KEYS.open(start + seal_chunk(asker.context, b"x", final=True))


def test_the_second_cipher_of_the_node_works() -> None:
    configuration = parse_key_configuration(KEYS.config)
    sealed, opener = seal(configuration._replace(suites=configuration.suites[1:]).encode(), b"question")
    body, sealer = KEYS.open(sealed)
    assert body == b"question"
    assert [opener.open(sealer.seal(b"a")), opener.open(sealer.finish(b"b"))] == [b"a", b"b"]


def test_a_request_that_is_not_chunked_is_refused() -> None:
    start, asker = begin_request(parse_key_configuration(KEYS.config), AES_128_GCM, WHOLE)
    with pytest.raises(FelloeError, match="unsealed"):
        KEYS.open(start + asker.context.seal(b"x"))
    with pytest.raises(FelloeError, match="unsealed"):
        KEYS.open(start + seal_chunk(asker.context, b"x", final=True))


@pytest.mark.parametrize(
    "inside",
    [
        b"",
        b"no binary HTTP",
        encode_response_head(200),
        encode_request(Request(b"GET", b"https", b"felloe", b"/v1/infer")),
        encode_request(Request(b"POST", b"https", b"felloe", b"/v1/other")),
        encode_request(Request(b"POST", b"https", b"other", b"/v1/infer")),
        encode_request(Request(b"POST", b"https", b"felloe", b"/v1/infer")) + b"\1",
    ],
    ids=["nothing", "noise", "response", "method", "path", "authority", "padding"],
)
def test_a_well_sealed_request_for_something_else_is_refused(inside: bytes) -> None:
    start, asker = begin_request(parse_key_configuration(KEYS.config), AES_128_GCM, CHUNKED)
    with pytest.raises(FelloeError, match="unsealed"):
        KEYS.open(start + seal_chunk(asker.context, inside, final=True))


def test_a_request_in_more_chunks_than_it_needs_is_refused() -> None:
    start, asker = begin_request(parse_key_configuration(KEYS.config), AES_128_GCM, CHUNKED)
    sealed = start + b"".join(seal_chunk(asker.context, b"x") for _ in range(600))
    with pytest.raises(FelloeError, match="too many chunks"):
        KEYS.open(sealed + seal_chunk(asker.context, b"x", final=True))


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2], [0, 0, 1, 2], [0, 1, 1, 2], [2], [1], [0, 2, 1]], ids=str)
def test_messages_out_of_order_left_out_or_repeated_are_refused(order: list[int]) -> None:
    messages, opener = answer([b"one", b"two", b"three"])
    with pytest.raises(FelloeError, match="unsealed"):
        for number in order:
            opener.open(messages[number])
    assert not opener.finished


def test_after_a_refusal_the_answer_stays_lost() -> None:
    messages, opener = answer([b"one", b"two", b"three"])
    opener.open(messages[0])
    with pytest.raises(FelloeError, match="changed"):
        opener.open(messages[2])
    with pytest.raises(FelloeError, match="after its end"):
        opener.open(messages[1])
    assert not opener.finished


def test_nothing_follows_the_last_message() -> None:
    messages, opener = answer([b"one", b"two"])
    opener.open(messages[0])
    opener.open(messages[1])
    for message in (messages[1], messages[0], b""):
        with pytest.raises(FelloeError, match="after its end"):
            opener.open(message)
    assert opener.finished


def test_a_finished_answer_seals_nothing_more() -> None:
    sealer, _ = exchange()
    sealer.finish()
    for seal_part in (sealer.seal, sealer.finish):
        with pytest.raises(FelloeError, match="already finished"):
            seal_part(b"more")


def test_an_answer_to_another_request_is_refused() -> None:
    messages, _ = answer([b"one", b"two"])
    _, other = exchange()
    with pytest.raises(FelloeError, match="unsealed"):
        other.open(messages[0])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_cut_at_any_byte_is_refused(number: int) -> None:
    sealed, _ = seal(KEYS.config, b"question")
    _, sealer = KEYS.open(sealed)
    length = len([sealer.seal(b"one"), sealer.seal(b"two"), sealer.finish(b"three")][number])
    for cut in range(length):
        messages, opener = answer([b"one", b"two", b"three"])
        for message in messages[:number]:
            opener.open(message)
        with pytest.raises(FelloeError, match="unsealed"):
            opener.open(messages[number][:cut])
        assert not opener.finished


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_message_with_any_byte_changed_is_refused(number: int) -> None:
    messages, _ = answer([b"one", b"two", b"three"])
    for position in range(len(messages[number])):
        messages, opener = answer([b"one", b"two", b"three"])
        for message in messages[:number]:
            opener.open(message)
        changed = bytearray(messages[number])
        changed[position] ^= 1 << position % 8
        with pytest.raises(FelloeError, match="unsealed"):
            opener.open(bytes(changed))
        assert not opener.finished


def test_a_message_that_is_followed_by_anything_is_refused() -> None:
    for number in range(3):
        messages, opener = answer([b"one", b"two", b"three"])
        for message in messages[:number]:
            opener.open(message)
        with pytest.raises(FelloeError, match="unsealed"):
            opener.open(messages[number] + b"\0")


def test_two_messages_in_one_are_refused() -> None:
    messages, opener = answer([b"one", b"two", b"three"])
    with pytest.raises(FelloeError, match="more than one part"):
        opener.open(messages[0] + messages[1])


def test_half_of_a_large_part_is_refused() -> None:
    messages, opener = answer([b"one", bytes(60_000), b"three"])
    opener.open(messages[0])
    with pytest.raises(FelloeError, match="unsealed"):
        opener.open(messages[1][: 4 + CHUNK + 16])


def test_a_message_that_is_too_large_is_refused_before_it_is_opened() -> None:
    _, opener = exchange()
    with pytest.raises(FelloeError, match="message of a sealed answer is too large"):
        opener.open(bytes(MAXIMUM_SEALED_PART + 1))


HEAD = encode_response_head(200)


@pytest.mark.parametrize(
    ("inside", "final"),
    [
        (b"", True),
        (b"\0", False),
        (HEAD, False),
        (HEAD + b"\x40\x04\0\3a\0", False),  # the content chunk is longer than what is there
        (HEAD + b"\x40\x03\0\1a\0", False),  # the content chunk is shorter than what is there
        (HEAD + b"\x04\0\1a\0", False),  # a one-byte length
        (HEAD + b"\x40\x04\0\3ab", False),  # the part is longer than the chunk
        (HEAD + b"\x40\x04\0\1a\1", False),  # padding that is not zero
        (HEAD + b"\x40\x04\0\1a\0", True),  # a final chunk without the end of the content
        (HEAD + b"\x40\x04\0\1a\0\0\1", True),  # an end of the content that is none
        (HEAD + b"\x40\x04\0\3a\0\0\0", True),  # the part takes in the end of the content
        (HEAD + b"\x40\x04\x80\1a\0\0\0", True),  # the final chunk says that the part goes on
        (HEAD + b"\x40\x04\x80\1a\0", False),  # the part goes on, the message does not
        (encode_response_head(500) + b"\x40\x04\0\1a\0", False),
        (encode_response_head(200, known_length=True) + b"\x40\x04\0\1a\0", False),
        (encode_request(Request(b"GET", b"https", b"", b"/")), False),
    ],
)
def test_a_well_sealed_answer_of_the_wrong_form_is_refused(inside: bytes, final: bool) -> None:
    private_key = XWingKem().generate()
    opener, accepted = hand_made_answer(KeyConfiguration(1, XWingKem(), private_key.public_key, ((1, 1),)), private_key)
    nonce = bytes(16)
    cipher = accepted.response_cipher(nonce)
    message = seal_chunk(cipher, inside, final=final) if inside or final else b"\x10" + cipher.seal(b"")
    with pytest.raises(FelloeError, match="unsealed"):
        opener.open(nonce + message)


def test_the_form_that_the_others_are_measured_against_opens() -> None:
    private_key = XWingKem().generate()
    opener, accepted = hand_made_answer(KeyConfiguration(1, XWingKem(), private_key.public_key, ((1, 1),)), private_key)
    cipher = accepted.response_cipher(bytes(16))
    assert opener.open(bytes(16) + seal_chunk(cipher, HEAD + b"\x40\x04\0\1a\0")) == b"a"
    assert opener.open(seal_chunk(cipher, b"\x40\x04\0\1b\0\0\0", final=True)) == b"b"
    assert opener.finished


def test_a_part_in_more_chunks_than_it_needs_is_refused() -> None:
    private_key = XWingKem().generate()
    opener, accepted = hand_made_answer(KeyConfiguration(1, XWingKem(), private_key.public_key, ((1, 1),)), private_key)
    cipher = accepted.response_cipher(bytes(16))
    message = bytes(16) + seal_chunk(cipher, HEAD + b"\x40\x03\x80\1a")
    message += b"".join(seal_chunk(cipher, b"\x40\x03\x80\1a") for _ in range(70)) + seal_chunk(
        cipher, b"\x40\x03\0\1a"
    )
    with pytest.raises(FelloeError, match="does not end"):
        opener.open(message)
