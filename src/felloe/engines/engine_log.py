"""A log file of bounded size for one engine."""

import os
from pathlib import Path

_LINE_LIMIT = 2000


class EngineLog:
    """Appends lines to `path` (mode 0600); at `limit` bytes the file becomes `<name>.1` and a new one begins."""

    def __init__(self, path: Path, limit: int = 1024 * 1024) -> None:
        self.path = path
        self._limit = limit
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, line: str) -> None:
        """A full disk loses the line, never the engine."""
        data = line[:_LINE_LIMIT].encode(errors="replace") + b"\n"
        try:
            if os.fstat(self._descriptor).st_size + len(data) > self._limit:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                full, self._descriptor = self._descriptor, self._open()
                os.close(full)
            os.write(self._descriptor, data)
        except OSError:
            return

    def close(self) -> None:
        os.close(self._descriptor)
