"""The home folder: where everything of one node lies, and who may read it."""

import hashlib
import os
import tempfile
from pathlib import Path

from felloe.domain.errors import FelloeError
from felloe.host.files import make_private_directory, write_atomic

_LONGEST_SOCKET_PATH = 100  # sockaddr_un holds 108 bytes on Linux and 104 on macOS


class Home:
    """Paths below one folder; makes nothing until `prepare`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.keys = folder / "keys"
        self.models = folder / "models"
        self.state = folder / "state"
        self.catalog = self.state / "catalog"
        self.logs = folder / "logs"
        self.lock = folder / "lock"

    @property
    def operator_socket(self) -> Path:
        """The unix socket of the operator API; in a private temporary folder when the home's path is too long."""
        return self.socket("operator")

    def socket(self, name: str) -> Path:
        """A unix socket path short enough for the system; its folder is private to the user."""
        direct = self.state / f"{name}.sock"
        if len(str(direct).encode()) <= _LONGEST_SOCKET_PATH:
            return direct
        short = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"felloe-{os.getuid()}-{short}" / f"{name}.sock"

    def prepare(self) -> None:
        """Make the folders, private to the owner. Raises `bad_state` when someone else owns the socket folder."""
        for folder in (self.folder, self.keys, self.models, self.state, self.logs, self.operator_socket.parent):
            make_private_directory(folder)
            if folder.stat().st_uid != os.getuid():
                raise FelloeError("bad_state", f"{folder} belongs to another user")

    def read_key(self, name: str) -> bytes | None:
        """A secret of `keys/`, or None; a secret that others can read is refused."""
        path = self.keys / name
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return None
        if mode & 0o077:
            raise FelloeError("bad_state", f"{path} can be read by others; check who did, then `chmod 600` it")
        return path.read_bytes()

    def write_key(self, name: str, secret: bytes) -> None:
        """Keep a secret in `keys/`, readable by the owner alone."""
        path = self.keys / name
        make_private_directory(path.parent)
        write_atomic(path, secret)
