import base64
import json
import time
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from catalog_house import KEY
from felloe.catalog.manifests import (
    decode_manifest,
    encode_manifest,
    manifest_id,
    open_signed,
    sign_manifest,
    signer_of,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName, NodeId
from felloe.domain.manifest import CHUNK_BYTES, Manifest, ManifestFile, check_path

DIGEST = "blake3:" + "ab" * 32


def file(path: str = "m.gguf", **changes: Any) -> ManifestFile:
    values = {"path": path, "size": 5, "digest": ModelDigest(DIGEST), "chunks": "cd" * 32, "role": "model"}
    return ManifestFile(**(values | changes))


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "version": 1,
        "name": ModelName("tiny"),
        "files": (file(), file("mm/proj.gguf", role="projector")),
        "chunk_size": CHUNK_BYTES,
        "architecture": "llama",
        "quantisation": "Q8_0",
        "context": 512,
        "parameters": 1000,
        "capabilities": ("chat", "vision"),
        "template": "{{ messages }} ä",
        "defaults": {"temperature": 0.7, "stop": ("a", "b"), "top_k": 40},
        "licence": "MIT",
        "base": "",
        "lineage": (DIGEST,),
        "source": "hf:owner/repo",
        "revision": "main",
        "made_by": signer_of(KEY),
        "created_at": 1_800_000_000,
    }
    return Manifest(**(values | changes))


def refusal(data: bytes) -> str:
    with pytest.raises(FelloeError) as caught:
        decode_manifest(data)
    assert caught.value.code == "bad_manifest"
    return caught.value.detail


def test_a_manifest_has_one_spelling_and_an_id_from_it() -> None:
    data = encode_manifest(manifest())
    assert decode_manifest(data) == manifest()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert manifest_id(data) == blake3(data).hexdigest()


def test_the_order_of_the_defaults_makes_no_other_manifest() -> None:
    turned = {name: manifest().defaults[name] for name in reversed(manifest().defaults)}
    assert encode_manifest(manifest(defaults=turned)) == encode_manifest(manifest())


@pytest.mark.parametrize(
    "change", [lambda data: data + b" ", lambda data: b" " + data, lambda data: json.dumps(json.loads(data)).encode()]
)
def test_other_spellings_are_refused(change: Any) -> None:
    assert "canonical" in refusal(change(encode_manifest(manifest())))


def test_a_field_given_twice_is_refused() -> None:
    data = encode_manifest(manifest())
    assert refusal(data.replace(b'"licence":"MIT"', b'"licence":"MIT","licence":"MIT"'))


@pytest.mark.parametrize("version", [0, 2, 99])
def test_an_unknown_version_is_refused_by_its_number(version: int) -> None:
    data = encode_manifest(manifest()).replace(b'"version":1', b'"version":%d,"zukunft":1' % version)
    assert f"version {version} is not known" in refusal(data)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"version":1}', b'{"version":"1"}', b"x" * 2**21]
)
def test_noise_is_refused(data: bytes) -> None:
    refusal(data)


@given(st.binary(max_size=300))
def test_any_noise_is_refused_with_an_error_of_the_catalogue(data: bytes) -> None:
    for read in (decode_manifest, open_signed):
        with pytest.raises(FelloeError):
            read(data)


def test_an_unknown_field_is_named_so_that_no_terminal_obeys_it() -> None:
    why = refusal(encode_manifest(manifest()).replace(b'"base"', b'"\\u001b[2J' + b"x" * 5000 + b'"'))
    assert (why.isprintable(), len(why) < 1000) == (True, True)


@given(st.data())
def test_a_changed_byte_is_never_accepted_as_signed(data: st.DataObject) -> None:
    envelope = sign_manifest(encode_manifest(manifest()), KEY)
    at = data.draw(st.integers(0, len(envelope) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != envelope[at]))
    changed = envelope[:at] + bytes([byte]) + envelope[at + 1 :]
    try:
        assert open_signed(changed)[0] == manifest()  # base64 has bits that say nothing
    except FelloeError as error:
        assert error.code == "bad_manifest"


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\\b", "C:x", "a\0b", "a\nb", "a\u202eb", "\x7f",
        "a" * 256, "/".join(["a" * 200] * 6), "name.", "name ", "a./b", "a*", "\ud800",
    ],
)  # fmt: skip
def test_a_path_that_leaves_its_folder_or_means_two_things_is_refused(path: str) -> None:
    with pytest.raises(FelloeError) as caught:
        check_path(path)
    assert caught.value.code == "bad_manifest"


@pytest.mark.parametrize("path", ["m.gguf", "a/b/c.gguf", ".hidden", "Modell (1) ä.gguf", "..a", "a" * 255])
def test_a_plain_path_is_taken(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ()},
        {"files": (file(), file())},
        {"files": (file("a", role="model"), file("A", role="part"))},
        {"files": (file("é", role="model"), file("e\u0301", role="part"))},
        {"files": (file("a"), file("a/b", role="part"))},
        {"files": (file(), file("b"))},
        {"files": (file(role="licence"),)},
        {"files": tuple(file(f"{n}", role="part") for n in range(513))},
        {"files": (file(size=-1),)},
        {"files": (file(size=2**44 + 1),)},
        {"files": (file(digest="sha256:" + "0" * 64),)},
        {"files": (file(digest="blake3:" + "A" * 64),)},
        {"files": (file(chunks="../x"),)},
        {"name": "../x"},
        {"chunk_size": 1},
        {"context": -1},
        {"created_at": 2**60},
        {"architecture": "a/b"},
        {"capabilities": ("chat", "chat")},
        {"template": "x" * 300_000},
        {"licence": "x" * 300_000},
        {"defaults": {"temperature": float("inf")}},
        {"defaults": {"temperature": float("nan")}},
        {"defaults": {"../x": 1}},
        {"defaults": {"stop": ("x",) * 100}},
        {"defaults": {f"p{n}": n for n in range(100)}},
        {"lineage": ("x",)},
        {"base": "x"},
        {"source": "a\x1b[31mb"},
        {"source": "x" * 3000},
        {"revision": "x" * 300},
        {"made_by": NodeId("")},
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FelloeError) as caught:
        encode_manifest(manifest(**changes))
    assert caught.value.code == "bad_manifest"


def test_what_was_signed_opens_with_its_id() -> None:
    data = encode_manifest(manifest())
    assert open_signed(sign_manifest(data, KEY)) == (manifest(), manifest_id(data))


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_maker_whose_clock_is_an_hour_off_is_believed(seconds: int) -> None:
    """A date is what the maker says; nothing is decided by it."""
    made = manifest(created_at=int(time.time()) + seconds)
    assert open_signed(sign_manifest(encode_manifest(made), KEY))[0] == made


@pytest.mark.parametrize("name", ["../x", "a\n", "\x00", "x" * 10_000, "a/../b", "\u202etiny"])
def test_a_name_that_no_model_may_have_is_refused_in_few_words(name: str) -> None:
    data = encode_manifest(manifest()).replace(b'"name":"tiny"', b'"name":' + json.dumps(name).encode())
    why = refusal(data)
    assert (why.isprintable(), len(why) < 1000) == (True, True)


def test_another_nodes_signature_is_refused() -> None:
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(FelloeError, match="another node signed it"):
        open_signed(sign_manifest(encode_manifest(manifest()), stranger))


def test_a_signature_for_something_else_is_refused() -> None:
    data = encode_manifest(manifest())
    envelope = msgspec.json.decode(sign_manifest(data, KEY))
    envelope["signature"] = base64.b64encode(KEY.sign(data)).decode()
    with pytest.raises(FelloeError, match="does not fit"):
        open_signed(msgspec.json.encode(envelope))
