"""Manifests and their signed envelopes, as another node may send them."""

from pathlib import Path

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.catalog.manifests import (
    decode_manifest,
    encode_manifest,
    manifest_id,
    open_signed,
    sign_manifest,
    signer_of,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest, ModelName, is_id, is_model_name
from felloe.domain.manifest import CHUNK_BYTES, Manifest, ManifestFile
from fuzz.json_mutation import mutate_json
from fuzz.surface import Surface

_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
_DIGEST = ModelDigest("blake3:" + "ab" * 32)


def _take(data: bytes) -> str:
    """As it is and, where it is JSON at all, in the one spelling that counts; signed, and as an envelope."""
    refusal: FelloeError | None = None
    taken: list[str] = []
    for spelling in (data, _canonical(data)):
        try:
            taken.append(_open(spelling))
        except FelloeError as error:
            refusal = error
    try:
        manifest, _ = open_signed(data)
        taken.append(f"envelope {is_id(manifest.made_by)}")
    except FelloeError as error:
        refusal = refusal or error
    if not taken and refusal is not None:
        raise refusal
    return " ".join(taken)


def _open(data: bytes) -> str:
    manifest = decode_manifest(data)
    assert encode_manifest(manifest) == data
    assert is_model_name(manifest.name)
    for file in manifest.files:
        inside = Path("/models/here")
        assert (inside / file.path).resolve().is_relative_to(inside)
        assert 0 <= file.size <= 2**44
    signed = sign_manifest(data, _KEY)
    if manifest.made_by == signer_of(_KEY):
        assert open_signed(signed) == (manifest, manifest_id(data))
    return f"manifest {len(manifest.files)} {sorted(type(value).__name__ for value in manifest.defaults.values())}"


def _canonical(data: bytes) -> bytes:
    try:
        return msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return data


def _seeds() -> list[bytes]:
    hashes = blake3(b"x").hexdigest()
    files = tuple(
        ManifestFile(path=path, size=5, digest=_DIGEST, chunks=hashes, role=role)
        for path, role in (("m-00001-of-00002.gguf", "model"), ("m-00002-of-00002.gguf", "part"), ("L", "licence"))
    )
    full = Manifest(
        version=1,
        name=ModelName("tiny"),
        files=files,
        chunk_size=CHUNK_BYTES,
        architecture="llama",
        quantisation="Q8_0",
        context=512,
        parameters=1000,
        capabilities=("chat", "vision"),
        template="{{ x }}",
        defaults={"temperature": 0.7, "stop": ("a", "b"), "top_k": 40, "echo": True, "system": "be kind"},
        licence="MIT",
        base="",
        lineage=(_DIGEST,),
        source="hf:owner/repo",
        revision="main",
        made_by=signer_of(_KEY),
        created_at=1_800_000_000,
    )
    data = encode_manifest(full)
    small = msgspec.structs.replace(full, files=files[:1], defaults={}, lineage=(), template=None)
    return [data, sign_manifest(data, _KEY), encode_manifest(small), b"", b"{}", b"[" * 2000, b'{"version":2}']


MANIFEST = Surface(
    name="manifest",
    take=_take,
    codes=frozenset({"bad_manifest"}),
    seeds=_seeds,
    words=("version", "files", "chunk_size", "made_by", "signature"),
    mutate=mutate_json,
)
