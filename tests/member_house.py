"""Members of a network with their certificates on disk, for the tests of what they say to each other."""

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh.rotation import Keys, found
from felloe.mesh.transfer_tls import MemberTls
from felloe.mesh.trust import Trust


@dataclass
class House:
    """A network's keys; `keys` may be replaced while members run."""

    folder: Path
    keys: Keys

    @property
    def trust(self) -> Trust:
        return self.keys.trust

    def member(self, seconds: int = 3600, key: Ed25519PrivateKey | None = None) -> "HouseMember":
        return HouseMember(self, key or Ed25519PrivateKey.generate(), seconds)


class HouseMember:
    """A node key and its certificate in files."""

    def __init__(self, house: House, key: Ed25519PrivateKey, seconds: int) -> None:
        self.house = house
        self.raw = key.public_key().public_bytes_raw()
        self.id = NodeId(id_from_public_key(self.raw))
        self.certificate, self.key = (house.folder / f"{self.id}.{kind}" for kind in ("crt", "key"))
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.certify(seconds)
        self.tls = MemberTls(self.certificate, self.key, lambda: house.trust)

    def certify(self, seconds: int = 3600) -> None:
        """A new certificate, by the network's newest keys."""
        issued = self.house.keys.authority.issue(self.raw, "spoke", time.time(), seconds=seconds)
        self.certificate.write_text(issued.certificate)


def open_house(folder: Path) -> House:
    """A new network."""
    folder.mkdir(exist_ok=True)
    return House(folder, found(time.time()))
