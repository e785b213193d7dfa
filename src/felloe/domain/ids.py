"""Identifiers: what they are made of and how they are checked."""

import base64
import hashlib
import re
from typing import NewType

NodeId = NewType("NodeId", str)
"""26 lower-case base32 characters: the first 16 bytes of SHA-256 over a node's raw Ed25519 public key."""

NetworkId = NewType("NetworkId", str)
"""26 lower-case base32 characters, made the same way from the network's root key."""

RequestId = NewType("RequestId", str)
"""What an API client sees as the answer's `id`, for example `chatcmpl-<32 hex digits>`."""

ModelName = NewType("ModelName", str)
"""The name that a request asks for, for example `tiny-python`."""

ModelDigest = NewType("ModelDigest", str)
"""`blake3:<64 hex digits>` of a model file; equal digests continue each other's token streams."""

ContentId = NewType("ContentId", str)
"""64 hex digits: the BLAKE3 of what a model is under its name; equal wherever and whenever the model was pulled."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_ID = re.compile(r"[a-z2-7]{26}")
_CONTENT_ID = re.compile(r"[0-9a-f]{64}")


def id_from_public_key(raw_public_key: bytes) -> str:
    """The 26-character id of a raw 32-byte Ed25519 public key."""
    return base64.b32encode(hashlib.sha256(raw_public_key).digest()[:16]).decode().rstrip("=").lower()


def is_id(text: str) -> bool:
    """Whether `text` has the shape of a node or network id."""
    return _ID.fullmatch(text) is not None


def is_content_id(text: str) -> bool:
    """Whether `text` has the shape of a content's id."""
    return _CONTENT_ID.fullmatch(text) is not None


def is_model_name(text: str) -> bool:
    """Whether `text` can name a model: it starts with a letter or digit, is at most 128 characters, has no `..`."""
    return _MODEL_NAME.fullmatch(text) is not None and ".." not in text and "//" not in text
