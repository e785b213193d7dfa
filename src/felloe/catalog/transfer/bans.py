"""Which peers lied and are not asked for a while; remembered over restarts."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from felloe.catalog.transfer.rules import ban_seconds
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, is_id
from felloe.host.files import write_atomic

_LOG = logging.getLogger(__name__)
_MOST_BANS = 256
_MOST_BYTES = 2**16


class _Ban(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a peer lied, and until when it is not asked, in Unix seconds."""

    times: int
    until: float


class Bans:
    """Owns one file. `now` in Unix seconds. A file that cannot be read is told in the log and counts as empty."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._bans: dict[NodeId, _Ban] = {}
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read what an earlier process wrote. Blocking."""
        try:
            with self._path.open("rb") as stream:
                bans = msgspec.json.decode(stream.read(_MOST_BYTES), type=dict[NodeId, _Ban])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _LOG.warning("%s is not used: %s", self._path, error)
            return
        now = self._now()
        for node, ban in list(bans.items())[:_MOST_BANS]:
            if is_id(node) and ban.times > 0:
                # A clock that was wrong must not make a ban longer than it was meant to be.
                until = min(ban.until, now + ban_seconds(ban.times))
                self._bans[node] = _Ban(ban.times, until)

    def is_banned(self, node: NodeId) -> bool:
        """Whether the peer must not be asked now."""
        ban = self._bans.get(node)
        return ban is not None and ban.until > self._now()

    async def lied(self, node: NodeId, what: str) -> None:
        """Ban a peer: the first time for ten minutes, then for twice as long as before."""
        seconds = self._remember(node)
        _LOG.warning("%s sent what it should not (%s); it is not asked for %.0f s", node, what, seconds)
        async with self._writing:
            data = msgspec.json.format(msgspec.json.encode(self._bans))
            try:
                await asyncio.to_thread(write_atomic, self._path, data)
            except (FelloeError, OSError) as error:
                # It holds as long as this process runs.
                _LOG.warning("%s could not be written: %s", self._path, error)

    def _remember(self, node: NodeId) -> float:
        before = self._bans.pop(node, None)
        times = 1 if before is None else before.times + 1
        self._bans[node] = _Ban(times, self._now() + ban_seconds(times))
        while len(self._bans) > _MOST_BANS:
            self._bans.pop(next(iter(self._bans)))
        return ban_seconds(times)
