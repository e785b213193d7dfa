"""Oblivious HTTP gives the bytes of RFC 9458 appendix A and of the appendix of draft-ietf-ohai-chunked-ohttp."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from felloe.privacy.binary_http import Request, parse_request, parse_response
from felloe.privacy.hpke import AES_128_GCM
from felloe.privacy.kems import X25519Kem
from felloe.privacy.ohttp import (
    CHUNKED,
    WHOLE,
    KeyConfiguration,
    accept_request,
    begin_request,
    open_chunks,
    open_response,
    parse_key_configuration,
    seal_chunk,
    seal_response,
)

unhex = bytes.fromhex
REQUEST = unhex("00034745540568747470730b6578616d706c652e636f6d012f")
RESPONSE = unhex("0140c8")


def configuration_with_ephemeral(encoded: bytes, ephemeral_secret: bytes) -> KeyConfiguration:
    kem = X25519Kem(ephemeral=lambda: X25519PrivateKey.from_private_bytes(ephemeral_secret))
    return parse_key_configuration(encoded)._replace(kem=kem)


def test_rfc_9458_appendix_a() -> None:
    private_key = X25519Kem().load(unhex("3c168975674b2fa8e465970b79c8dcf09f1c741626480bd4c6162fc5b6a98e1a"))
    encoded = unhex("01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003")
    assert KeyConfiguration(1, X25519Kem(), private_key.public_key, ((1, 1), (1, 3))).encode() == encoded

    ephemeral = unhex("bc51d5e930bda26589890ac7032f70ad12e4ecb37abb1b65b1256c9c48999c73")
    start, asker = begin_request(configuration_with_ephemeral(encoded, ephemeral), AES_128_GCM, WHOLE)
    sealed = start + asker.context.seal(REQUEST)
    assert sealed == unhex(
        "010020000100014b28f881333e7c164ffc499ad9796f877f4e1051ee6d31bad19dec96c208b4726374e469135906992e"
        "1268c594d2a10c695d858c40a026e7965e7d86b83dd440b2c0185204b4d63525"
    )
    answerer, offset = accept_request(sealed, X25519Kem(), private_key, WHOLE)
    assert answerer.context.open(sealed[offset:]) == REQUEST

    answer = seal_response(answerer, RESPONSE, unhex("c789e7151fcba46158ca84b04464910d"))
    assert answer == unhex("c789e7151fcba46158ca84b04464910d86f9013e404feea014e7be4a441f234f857fbd")
    assert open_response(asker, answer) == RESPONSE


def test_the_appendix_of_chunked_ohttp() -> None:
    private_key = X25519Kem().load(unhex("1c190d72acdbe4dbc69e680503bb781a932c70a12c8f3754434c67d8640d8698"))
    encoded = unhex("010020668eb21aace159803974a4c67f08b4152d29bed10735fd08f98ccdd6fe09570800080001000100010003")
    assert KeyConfiguration(1, X25519Kem(), private_key.public_key, ((1, 1), (1, 3))).encode() == encoded

    ephemeral = unhex("b26d565f3f875ed480d1abced3d665159650c99174fd0b124ac4bda0c64ae324")
    start, asker = begin_request(configuration_with_ephemeral(encoded, ephemeral), AES_128_GCM, CHUNKED)
    sealed = (
        start
        + seal_chunk(asker.context, REQUEST[:12])
        + seal_chunk(asker.context, REQUEST[12:])
        + seal_chunk(asker.context, b"", final=True)
    )
    assert sealed == unhex(
        "01002000010001"
        "8811eb457e100811c40a0aa71340a1b81d804bb986f736f2f566a7199761a032"
        "1c2ad24942d4d692563012f2980c8fef437a336b9b2fc938ef77a5834f"
        "1d2e33d8fd25577afe31bd1c79d094f76b6250ae6549b473ecd950501311"
        "001c6c1395d0ef7c1022297966307b8a7f"
    )
    answerer, offset = accept_request(sealed, X25519Kem(), private_key, CHUNKED)
    assert list(open_chunks(answerer.context, sealed, offset, 3)) == [REQUEST[:12], REQUEST[12:], b""]

    nonce = unhex("bcce7f4cb921309ba5d62edf1769ef09")
    assert answerer.context.export(CHUNKED.response_label, 16) == unhex("1d4484834ae36102a6ac42a5523454d9")
    cipher = answerer.response_cipher(nonce)
    answer = nonce + seal_chunk(cipher, b"\x01") + seal_chunk(cipher, b"\x40\xc8") + seal_chunk(cipher, b"", final=True)
    assert answer == unhex(
        "bcce7f4cb921309ba5d62edf1769ef09"
        "1179bf1cc87fa0e2c02de4546945aa3d1e48"
        "12b348b5bd4c594c16b6170b07b475845d1f32"
        "00ed9d8a796617a5b27265f4d73247f639"
    )
    assert b"".join(open_chunks(asker.response_cipher(nonce), answer, len(nonce), 3)) == RESPONSE


def test_the_messages_inside_are_binary_http() -> None:
    assert parse_request(REQUEST) == Request(b"GET", b"https", b"example.com", b"/")
    assert parse_response(RESPONSE).status == 200
