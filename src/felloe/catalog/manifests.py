"""A manifest as bytes: one spelling for each, an id made from it, and a signature of the node that made it.

Canonical is JSON in UTF-8 with sorted keys and no white space, as msgspec writes it; other bytes are refused, so that a
manifest has one id. The signature covers the canonical bytes behind a context that nothing else of ours is signed with.
"""

import hashlib
from typing import Literal, TypeVar

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from felloe.domain import approval
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId, id_from_public_key
from felloe.domain.manifest import MOST_MANIFEST_BYTES, Manifest, check_manifest

_CONTEXT = b"felloe manifest 1\0"
MOST_ENVELOPE_BYTES = MOST_MANIFEST_BYTES * 2
_ENCODER = msgspec.json.Encoder(order="sorted")
_Kind = TypeVar("_Kind")


class _Versioned(msgspec.Struct):
    version: int


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed manifest as it is kept and sent. `key` is the raw public key of the node that made it."""

    version: Literal[1] = 1
    key: bytes
    manifest: bytes
    signature: bytes


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest; raises `bad_manifest` for one that may not be."""
    check_manifest(manifest)
    data = _ENCODER.encode(manifest)
    if len(data) > MOST_MANIFEST_BYTES:
        raise FelloeError("bad_manifest", f"manifest: it is longer than {MOST_MANIFEST_BYTES} bytes")
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Read canonical bytes; raises `bad_manifest` for anything else."""
    if len(data) > MOST_MANIFEST_BYTES:
        raise FelloeError("bad_manifest", f"manifest: it is longer than {MOST_MANIFEST_BYTES} bytes")
    version = _decoded(data, _Versioned).version
    if version != 1:
        raise FelloeError("bad_manifest", f"manifest: version {version} is not known here; update the older side")
    manifest = _decoded(data, Manifest)
    if encode_manifest(manifest) != data:
        raise FelloeError("bad_manifest", "manifest: it is not in its canonical form")
    return manifest


def manifest_id(data: bytes) -> str:
    """The id of a manifest: the BLAKE3 of its canonical bytes, 64 hex digits."""
    return blake3(data).hexdigest()


def content_id(manifest: Manifest) -> ContentId:
    """The id of what a model is under its name, whatever its files were called, wherever they came from and whenever.

    Two nodes that pull the same model by themselves make different manifests of the same content.
    """
    files = sorted((file.role, file.digest) for file in manifest.files)
    content = (manifest.name, files, manifest.template, manifest.defaults, manifest.licence)
    return ContentId(blake3(_ENCODER.encode(content)).hexdigest())


def listing(envelope: bytes) -> approval.Listing:
    """What an approval of a signed manifest binds. Raises `bad_manifest`, also for one too large to be published."""
    manifest, _ = open_signed(envelope)
    if len(envelope) > approval.MOST_ENVELOPE_BYTES:
        size, most = len(envelope), approval.MOST_ENVELOPE_BYTES
        why = f"the signed manifest of {manifest.name} has {size} bytes; one of at most {most} can be published"
        raise FelloeError("bad_manifest", why)
    return approval.Listing(
        content=content_id(manifest),
        name=manifest.name,
        sha256=hashlib.sha256(envelope).digest(),
        length=len(envelope),
        size=sum(file.size for file in manifest.files),
        made_by=manifest.made_by,
        architecture=manifest.architecture,
        quantisation=manifest.quantisation,
    )


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that name the signer."""
    return key.public_key().public_bytes_raw()


def signer_of(key: Ed25519PrivateKey) -> NodeId:
    """The id of the node whose key this is."""
    return NodeId(id_from_public_key(raw_public_key(key)))


def sign_manifest(data: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signed envelope around canonical bytes."""
    envelope = _Envelope(key=raw_public_key(key), manifest=data, signature=key.sign(_CONTEXT + data))
    return _ENCODER.encode(envelope)


def open_signed(envelope: bytes) -> tuple[Manifest, str]:
    """The manifest inside and its id; raises `bad_manifest` unless the node that it names as maker signed it."""
    if len(envelope) > MOST_ENVELOPE_BYTES:
        raise FelloeError("bad_manifest", f"signed manifest: it is longer than {MOST_ENVELOPE_BYTES} bytes")
    signed = _decoded(envelope, _Envelope)
    try:
        Ed25519PublicKey.from_public_bytes(signed.key).verify(signed.signature, _CONTEXT + signed.manifest)
    except (InvalidSignature, ValueError) as error:
        raise FelloeError("bad_manifest", "signed manifest: the signature does not fit") from error
    manifest = decode_manifest(signed.manifest)
    if manifest.made_by != id_from_public_key(signed.key):
        raise FelloeError("bad_manifest", f"signed manifest: {manifest.made_by} made it, another node signed it")
    return manifest, manifest_id(signed.manifest)


def _decoded(data: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # The error may repeat what a stranger wrote.
        raise FelloeError("bad_manifest", f"manifest: {str(error)!a:.300}") from error
