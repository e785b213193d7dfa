"""Binary HTTP is read strictly and within bounds."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.privacy.binary_http import (
    Fields,
    Request,
    Response,
    encode_request,
    encode_response,
    encode_response_head,
    parse_request,
    parse_response,
    parse_response_head,
)
from felloe.privacy.varint import decode_varint, encode_varint

POST = Request(
    b"POST",
    b"https",
    b"felloe",
    b"/v1/infer",
    ((b"accept", b"a"), (b"accept", b"b c")),
    b"body",
    ((b"after", b""),),
)
OK = Response(200, ((b"a", b"1"),), b"body", ((b"t", b"2"),), ((103, ((b"link", b"x"),)),))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (37, "25"),
        (63, "3f"),
        (64, "4040"),
        (15293, "7bbd"),
        (16383, "7fff"),
        (16384, "80004000"),
        (494878333, "9d7f3e7d"),
        (1 << 30, "c000000040000000"),
        (151288809941952652, "c2197c5eff14e88c"),
        ((1 << 62) - 1, "ffffffffffffffff"),
    ],
)
def test_integers_are_written_and_read_as_in_rfc_9000(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert decode_varint(b"x" + bytes.fromhex(encoded) + b"y", 1) == (value, 1 + len(encoded) // 2)


def test_an_integer_may_be_longer_than_it_need_be() -> None:
    assert decode_varint(bytes.fromhex("4025"), 0) == (37, 2)


@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_integers_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="variable-length integer"):
        encode_varint(value)


@pytest.mark.parametrize("encoded", ["", "40", "80ffff", "c0ffffffffffff"])
def test_an_integer_that_is_cut_off_is_refused(encoded: str) -> None:
    with pytest.raises(FelloeError, match="unsealed"):
        decode_varint(bytes.fromhex(encoded), 0)


@pytest.mark.parametrize("known_length", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 1000])
def test_messages_read_back_as_they_were_written(known_length: bool, padding: int) -> None:
    assert parse_request(encode_request(POST, known_length=known_length) + bytes(padding)) == POST
    assert parse_response(encode_response(OK, known_length=known_length) + bytes(padding)) == OK


@pytest.mark.parametrize("known_length", [True, False])
def test_cutting_a_message_anywhere_is_refused(known_length: bool) -> None:
    request = encode_request(POST, known_length=known_length)
    allowed = {
        len(encode_request(POST._replace(headers=(), content=b"", trailers=()), known_length=known_length)) - 3,
        len(encode_request(POST._replace(content=b"", trailers=()), known_length=known_length)) - 2,
        len(encode_request(POST._replace(trailers=()), known_length=known_length)) - 1,
    }  # an end that equals empty sections is the same as leaving them out
    for length in range(len(request)):
        if length not in allowed:
            with pytest.raises(FelloeError, match="unsealed"):
                parse_request(request[:length])


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(FelloeError, match="padding"):
        parse_request(encode_request(POST) + b"\0\0\1")
    with pytest.raises(FelloeError, match="padding"):
        parse_response(encode_response(OK) + b"\1")


@pytest.mark.parametrize("framing", [1, 3, 4, 63, 1 << 40])
def test_a_request_with_another_framing_is_refused(framing: int) -> None:
    with pytest.raises(FelloeError, match="not a request"):
        parse_request(encode_varint(framing) + encode_request(POST)[1:])


@pytest.mark.parametrize("framing", [0, 2, 4, 63])
def test_a_response_with_another_framing_is_refused(framing: int) -> None:
    with pytest.raises(FelloeError, match="not a response"):
        parse_response(encode_varint(framing) + encode_response(OK)[1:])


@pytest.mark.parametrize("status", [0, 99, 600, 65536])
def test_a_status_that_http_does_not_know_is_refused(status: int) -> None:
    with pytest.raises(FelloeError, match="status"):
        parse_response(encode_response(OK._replace(status=status)))


@pytest.mark.parametrize(
    "change",
    [
        {"method": b""},
        {"method": b"PO ST"},
        {"scheme": b""},
        {"scheme": b"1http"},
        {"path": b""},
        {"path": b"/a b"},
        {"path": b"/\r\n"},
        {"authority": b"felloe\n"},
    ],
    ids=str,
)
def test_a_target_that_http_does_not_allow_is_refused(change: dict[str, bytes]) -> None:
    with pytest.raises(FelloeError, match="unsealed"):
        parse_request(encode_request(POST._replace(**change)))


@pytest.mark.parametrize(
    "field",
    [
        (b":path", b"/"),
        (b":other", b"x"),
        (b"na me", b"x"),
        (b"name\n", b"x"),
        (b"n\xe4me", b"x"),
        (b"name", b"x\r\ny"),
        (b"name", b"x\0"),
        (b"name", b" x"),
        (b"name", b"x\t"),
        (b"name", b"x\n"),
    ],
    ids=str,
)
@pytest.mark.parametrize("known_length", [True, False])
def test_a_field_that_http_does_not_allow_is_refused(field: tuple[bytes, bytes], known_length: bool) -> None:
    with pytest.raises(FelloeError, match="invalid field"):
        parse_request(encode_request(POST._replace(headers=(field,)), known_length=known_length))
    with pytest.raises(FelloeError, match="invalid field"):
        parse_response(encode_response(OK._replace(trailers=(field,)), known_length=known_length))


def test_a_field_without_a_name_is_refused() -> None:
    with pytest.raises(FelloeError, match="invalid field"):
        parse_request(encode_request(POST._replace(headers=((b"", b"x"),))))


@pytest.mark.parametrize("known_length", [True, False])
def test_more_fields_than_the_limit_are_refused(known_length: bool) -> None:
    fields: Fields = ((b"a", b""),) * 128
    assert parse_request(encode_request(POST._replace(headers=fields), known_length=known_length)).headers == fields
    with pytest.raises(FelloeError, match="too many fields"):
        parse_request(encode_request(POST._replace(headers=(*fields, (b"a", b""))), known_length=known_length))


def test_more_informational_responses_than_the_limit_are_refused() -> None:
    with pytest.raises(FelloeError, match="too many informational"):
        parse_response(encode_response(Response(200, informational=((100, ()),) * 9)))


def test_more_content_chunks_than_the_limit_are_refused() -> None:
    with pytest.raises(FelloeError, match="too many content chunks"):
        parse_response(encode_response_head(200) + b"\x01x" * 16385 + b"\0\0")


@pytest.mark.parametrize("length", [1 << 20, (1 << 62) - 1])
def test_a_length_beyond_the_message_is_refused_without_reserving_it(length: int) -> None:
    with pytest.raises(FelloeError, match="cut off"):
        parse_request(b"\0" + encode_varint(length) + b"POST")
    with pytest.raises(FelloeError, match="cut off"):
        parse_response(encode_response_head(200) + encode_varint(length) + b"x")


def test_a_head_is_read_before_the_content_has_come() -> None:
    head = encode_response_head(200, ((b"a", b"1"),), [(100, ())])
    read = parse_response_head(head + b"\x40\xff")
    assert (read.status, read.known_length, read.content_offset) == (200, False, len(head))
    assert (read.headers, read.informational) == (((b"a", b"1"),), ((100, ()),))
