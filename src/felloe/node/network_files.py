"""What a node keeps of its network: its key, its membership and credential; on a hub, the network's own keys."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.host.files import write_atomic
from felloe.mesh.authority import AUTHORITY_FILE, ROOT_FILE, NetworkAuthority
from felloe.mesh.credentials import Credential
from felloe.mesh.membership import Membership
from felloe.node.home import Home

_NODE_KEY = "node.key"
_CREDENTIAL = "credential.json"
_CERTIFICATE = "node.crt"
_OF_THE_NETWORK = (ROOT_FILE, AUTHORITY_FILE)

Kept = TypeVar("Kept", Membership, Credential)


class NetworkFiles:
    """Reads and writes them; a damaged one is `bad_state` with its name."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.certificate_path = home.keys / _CERTIFICATE
        self.key_path = home.keys / _NODE_KEY
        self._membership_path = home.state / "membership.json"

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

    def authority(self) -> NetworkAuthority | None:
        """The network's keys, where this node is a hub; the root may be missing."""
        files = {name: self._home.read_key(name) for name in _OF_THE_NETWORK}
        if files[AUTHORITY_FILE] is None:
            return None
        return NetworkAuthority.from_files({name: data for name, data in files.items() if data is not None})

    def save_authority(self, authority: NetworkAuthority) -> None:
        """Keep the network's keys."""
        for name, data in authority.to_files().items():
            self._home.write_key(name, data)

    def read_state(self, name: str) -> bytes:
        """A file of `state/`, empty when there is none."""
        try:
            return (self._home.state / name).read_bytes()
        except FileNotFoundError:
            return b""

    def saver(self, name: str) -> Callable[[bytes], None]:
        """A function that stores a file of `state/` durably."""
        return lambda data: write_atomic(self._home.state / name, data)

    def forget_network(self) -> None:
        """Delete the membership first, then every key and what belonged to the network."""
        self._membership_path.unlink(missing_ok=True)
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
