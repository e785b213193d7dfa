"""A curator's key: a file that only its owner reads, and the line by which others add the curator."""

import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.approval import is_curator_name
from felloe.domain.errors import FelloeError
from felloe.host.files import write_new

_PREFIX = "curator:"
_MOST_FILE_BYTES = 4096


class CuratorKey:
    """An Ed25519 key that signs decisions and catalogues, and nothing else."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a key and keep it at `path`. Raises `FileExistsError` where there is one, `disk_full`."""
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_new(path, pem)
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The key at `path`, None where there is none. Raises `bad_state` when it is damaged or not private."""
        try:
            with path.open("rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                stored = stream.read(_MOST_FILE_BYTES)
        except FileNotFoundError:
            return None
        if mode & 0o077:
            raise FelloeError("bad_state", f"{path} can be read by others; check who did, then `chmod 600` it")
        try:
            key = serialization.load_pem_private_key(stored, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # What failed may quote the key.
            raise FelloeError("bad_state", f"{path} is damaged") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise FelloeError("bad_state", f"{path} is no Ed25519 key")
        return cls(key)

    def sign(self, statement: bytes) -> bytes:
        """The raw signature, 64 bytes."""
        return self._key.sign(statement)


def curator_text(name: str, public_key: bytes) -> str:
    """The line that names a curator to those who may add one."""
    return f"{_PREFIX}{name}:{public_key.hex()}"


def read_curator(text: str) -> tuple[str, bytes]:
    """The name and the raw public key in a line; raises `invalid_value`."""
    name, colon, key = text.strip().removeprefix(_PREFIX).rpartition(":")
    try:
        raw = bytes.fromhex(key) if len(key) == 64 else b""
    except ValueError:
        raw = b""
    if not text.strip().startswith(_PREFIX) or not colon or not is_curator_name(name) or len(raw) != 32:
        raise FelloeError(
            "invalid_value", "that is no curator's line; `felloe curators key` prints one", param="curator"
        )
    return name, raw
