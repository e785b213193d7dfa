"""What a node keeps of its network: its key, membership, credential and trust list; on a hub, the network's own keys.

A hub's signing keys and the trust list that names them are one file, so that a crash never leaves one without the
other. A new root is stored beside the old one until they are.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.host.files import write_atomic
from felloe.hubs.saved_state import SAVED_NAME
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.credentials import Credential
from felloe.mesh.membership import Membership
from felloe.mesh.root_key import RootKey
from felloe.mesh.rotation import Keys
from felloe.mesh.trust import Trust, read
from felloe.node.home import Home

_NODE_KEY = "node.key"
_CREDENTIAL = "credential.json"
_CERTIFICATE = "node.crt"
_ROOT = "network-root.pem"
_NEXT_ROOT = "network-root.next.pem"
_SIGNING_KEYS = "network-keys.json"
_CURATOR_KEY = "curator.pem"

Kept = TypeVar("Kept", Membership, Credential)


class _SigningKeys(msgspec.Struct, frozen=True):
    """What all hubs share, and the trust list of the same version; both as they encode themselves."""

    authority: bytes
    trust: bytes


class NetworkFiles:
    """Reads and writes them; a damaged one is `bad_state` with its name."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.certificate_path = home.keys / _CERTIFICATE
        self.key_path = home.keys / _NODE_KEY
        self.curator_key_path = home.keys / _CURATOR_KEY
        self._membership_path = home.state / "membership.json"
        self._trust_path = home.state / "trust.json"

    def node_key(self) -> Ed25519PrivateKey:
        """This node's key, made the first time."""
        stored = self._home.read_key(_NODE_KEY)
        if stored is None:
            key = Ed25519PrivateKey.generate()
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            self._home.write_key(_NODE_KEY, pem)
            return key
        try:
            loaded = serialization.load_pem_private_key(stored, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FelloeError("bad_state", f"{self.key_path} is damaged") from error
        if not isinstance(loaded, Ed25519PrivateKey):
            raise FelloeError("bad_state", f"{self.key_path} is no Ed25519 key")
        return loaded

    def membership(self) -> Membership | None:
        """What this node knows of its network; None before it founded or joined one."""
        return _read(self._membership_path, Membership)

    def credential(self) -> Credential | None:
        """The newest credential that was stored."""
        return _read(self._home.keys / _CREDENTIAL, Credential)

    def save_credential(self, credential: Credential) -> None:
        """Keep it, and its certificate chain as PEM for servers that want a file."""
        write_atomic(self.certificate_path, credential.certificate.encode())
        write_atomic(self._home.keys / _CREDENTIAL, msgspec.json.encode(credential))

    def save_membership(self, membership: Membership) -> None:
        """Keep it; written last, it makes the node a member."""
        write_atomic(self._membership_path, msgspec.json.format(msgspec.json.encode(membership)))

    def trust(self) -> Trust | None:
        """The newest trust list that was stored."""
        kept = self._signing_keys()
        found = [self._trust_in(kept.trust, self._home.keys / _SIGNING_KEYS)] if kept is not None else []
        if self._trust_path.exists():
            found.append(self._trust_in(self._trust_path.read_bytes(), self._trust_path))
        return max(found, key=lambda trust: trust.version, default=None)

    def save_trust(self, trust: Trust) -> None:
        """Keep it; it is no secret."""
        write_atomic(self._trust_path, trust.encoded)

    def authority(self) -> NetworkAuthority | None:
        """The network's signing keys, where this node is a hub."""
        kept = self._signing_keys()
        try:
            return None if kept is None else NetworkAuthority.from_bytes(kept.authority)
        except FelloeError as error:
            raise FelloeError("bad_state", f"{self._home.keys / _SIGNING_KEYS} is damaged") from error

    def save_authority(self, authority: NetworkAuthority, trust: Trust) -> None:
        """Keep the network's signing keys and the trust list that names them, both or neither."""
        kept = _SigningKeys(authority.to_bytes(), trust.encoded)
        self._home.write_key(_SIGNING_KEYS, msgspec.json.encode(kept))
        self.save_trust(trust)

    def forget_authority(self) -> None:
        """Delete the signing keys: this node is a hub no more."""
        (self._home.keys / _SIGNING_KEYS).unlink(missing_ok=True)

    def root(self) -> RootKey | None:
        """The network's current root, where it is kept here and not offline."""
        trust = self.trust()
        for name in (_ROOT, _NEXT_ROOT):
            root = self._read_root(name)
            if root is not None and trust is not None and root.pin == trust.pin:
                return root
        return None

    def save_keys(self, keys: Keys, *, keep_root: bool = True) -> None:
        """Keep all keys of a network that was founded, or whose keys were replaced; whatever fails, all old or all new.

        With `keep_root` false the root is kept elsewhere by the caller, before this is called.
        """
        if keep_root:
            self._settle_root()
            self._home.write_key(_NEXT_ROOT, keys.root.to_bytes())
        self.save_authority(keys.authority, keys.trust)
        if keep_root:
            (self._home.keys / _NEXT_ROOT).replace(self._home.keys / _ROOT)
        else:
            self.forget_root()

    def _settle_root(self) -> None:
        """Where a crash left the current root under its first name, give it the one that it should have."""
        trust, waiting = self.trust(), self._read_root(_NEXT_ROOT)
        if trust is not None and waiting is not None and waiting.pin == trust.pin:
            (self._home.keys / _NEXT_ROOT).replace(self._home.keys / _ROOT)

    def forget_root(self) -> None:
        """Delete the root from this machine; the caller has made sure that it is kept elsewhere."""
        for name in (_ROOT, _NEXT_ROOT):
            (self._home.keys / name).unlink(missing_ok=True)

    def _signing_keys(self) -> _SigningKeys | None:
        stored = self._home.read_key(_SIGNING_KEYS)
        try:
            return None if stored is None else msgspec.json.decode(stored, type=_SigningKeys)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # What failed may quote a key.
            raise FelloeError("bad_state", f"{self._home.keys / _SIGNING_KEYS} is damaged") from None

    def _read_root(self, name: str) -> RootKey | None:
        stored = self._home.read_key(name)
        try:
            return None if stored is None else RootKey.load(stored)
        except FelloeError as error:
            raise FelloeError("bad_state", f"{self._home.keys / name} is damaged: {error.detail}") from error

    def _trust_in(self, stored: bytes, path: Path) -> Trust:
        try:
            return read(stored)
        except FelloeError as error:
            raise FelloeError("bad_state", f"{path} is damaged: {error.detail}") from error

    def read_state(self, name: str) -> bytes:
        """A file of `state/`, empty when there is none."""
        try:
            return (self._home.state / name).read_bytes()
        except FileNotFoundError:
            return b""

    def saver(self, name: str) -> Callable[[bytes], None]:
        """A function that stores a file of `state/` durably."""
        return lambda data: write_atomic(self._home.state / name, data)

    def forget_state(self) -> None:
        """Delete what a hub keeps of the network's state, and its servers' files."""
        (self._home.state / SAVED_NAME).unlink(missing_ok=True)
        for folder in (*self._home.state.glob("generation-*"), self._home.state / "messages"):
            shutil.rmtree(folder, ignore_errors=True)

    def forget_network(self) -> None:
        """Delete the membership first, then every key and what belonged to the network."""
        self._membership_path.unlink(missing_ok=True)
        self.forget_state()
        shutil.rmtree(self._home.catalog, ignore_errors=True)
        for path in (*self._home.keys.iterdir(), *self._home.state.glob("*.json")):
            if path.is_file():
                path.unlink()


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", f"{path} is damaged") from error
