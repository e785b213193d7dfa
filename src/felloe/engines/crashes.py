"""Which models killed their engines, and when: kept on disk, so that it counts across restarts of the node.

In memory times are those of a clock that never goes back. The file holds Unix seconds, because nothing else outlives a
restart; what the file dates in the future, after the machine's clock was set back, counts as just now.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from felloe.domain.errors import FelloeError
from felloe.host.files import make_private_directory, write_atomic

_log = logging.getLogger(__name__)

_MOST_MODELS = 64
_MOST_CRASHES = 16


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model in the file: when it crashed, and why it is in quarantine (empty: it is not)."""

    crashes: tuple[float, ...] = ()
    quarantine: str = ""


class CrashRecord:
    """The crashes of one model file. Owned by `CrashHistory`, written by the one supervisor that runs the file."""

    def __init__(self, history: "CrashHistory") -> None:
        self._history = history
        self.times: list[float] = []
        self.quarantine = ""

    async def add(self, at: float) -> Sequence[float]:
        """Count a crash; returns the times of all that are known."""
        self.times = [*self.times, at][-_MOST_CRASHES:]
        await self._history.save()
        return self.times

    async def keep_out(self, reason: str) -> None:
        """Remember that the model is in quarantine."""
        self.quarantine = reason
        await self._history.save()

    async def forgive(self) -> None:
        """The owner wants the model tried anew."""
        if self.times or self.quarantine:
            self.times = []
            self.quarantine = ""
            await self._history.save()


class CrashHistory:
    """Owns the file at `path`: crashes of the last `window` seconds, and quarantines, by model digest.

    A damaged file is told in the log and counts as empty; a disk that takes no more loses only what outlives a restart.
    """

    def __init__(
        self, path: Path, window: float, *, clock: Callable[[], float], wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._window = window
        self._clock = clock
        self._wall_clock = wall_clock
        self._records: dict[str, CrashRecord] = {}
        self._writing = threading.Lock()
        self._version = self._written = 0
        now, wall = clock(), wall_clock()
        for key, kept in self._read().items():
            record = self.record(key)
            record.times = [now - max(0.0, wall - at) for at in kept.crashes[-_MOST_CRASHES:]]
            record.quarantine = kept.quarantine

    def record(self, key: str) -> CrashRecord:
        """The record of the model file with this digest."""
        return self._records.setdefault(key, CrashRecord(self))

    def stamp(self) -> str:
        """Now, for a person to read."""
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._wall_clock()))

    def _read(self) -> dict[str, _Kept]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Kept])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            _log.warning("%s cannot be read (%s): crashes are counted anew", self._path, type(error).__name__)
            return {}

    async def save(self) -> None:
        """Write what still counts, without holding up the event loop."""
        now, wall = self._clock(), self._wall_clock()
        kept: dict[str, _Kept] = {}
        for key, record in self._records.items():
            recent = tuple(wall - (now - at) for at in record.times if now - at <= self._window)
            if recent or record.quarantine:
                kept[key] = _Kept(recent, record.quarantine)
        newest = sorted(kept, key=lambda key: max(kept[key].crashes, default=0.0))[-_MOST_MODELS:]
        self._version += 1
        data = msgspec.json.encode({key: kept[key] for key in newest})
        await asyncio.to_thread(self._write, data, self._version)

    def _write(self, data: bytes, version: int) -> None:
        with self._writing:
            if version < self._written:
                return
            self._written = version
            try:
                make_private_directory(self._path.parent)
                write_atomic(self._path, data)
            except (OSError, FelloeError) as error:
                _log.warning("%s cannot be written: %s", self._path, error)
