"""What this node trusts of the network's approvals: it follows the hubs, and says what may be loaded."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NoReturn

from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.manifests import content_id
from felloe.domain.approval import Approvals, Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId
from felloe.domain.manifest import Manifest
from felloe.hubs.topics import CATALOG
from felloe.mesh.state import StateFollower

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_OWN_FAULTS = ("disk_full", "disk_failed")


class NodeApprovals:
    """Feeds a `TrustedCatalog` with what hubs tell and peers hand over; asked before anything is loaded."""

    def __init__(self, catalog: TrustedCatalog, *, now: Callable[[], float] = time.time) -> None:
        self.catalog = catalog
        self._now = now
        self._told: bytes | None = None
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self.problem = ""
        catalog.on_change(lambda _: self._changed())

    @property
    def known(self) -> Approvals | None:
        """What is approved; None while this node has not learned anything it can trust."""
        return self.catalog.approvals

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop after the approvals changed."""
        self._callbacks.append(callback)

    async def start(self, follower: StateFollower) -> None:
        """Know what was known at the last stop, and follow the hubs."""
        await asyncio.to_thread(self.catalog.open)
        await follower.follow(CATALOG, self._hear)

    async def run(self) -> NoReturn:
        """Take what hubs tell, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            told, self._told = self._told, None
            if told is not None:
                await self._take(told)

    def check(self, manifest: Manifest) -> None:
        """Raise `not_approved`, `model_withdrawn` or `catalog_expired` unless this model may be loaded now."""
        self.catalog.check(content_id(manifest), manifest.name, self._now())

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the approvals are such that `condition` holds, at most so long; whether it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
        return condition()

    async def decided(self, content: ContentId, seconds: float) -> bool:
        """Wait until this node knows that a content is approved or withdrawn, at most so long; whether it does."""
        return await self.until(lambda: self.known is not None and self.known.standing(content) != "unknown", seconds)

    def _hear(self, told: bytes) -> None:
        self._told = told
        self._wake.set()

    async def _take(self, told: bytes) -> None:
        try:
            await self.catalog.take(Bundle.decode(told))
        except FelloeError as error:
            # What a hub told is worth a line each time: it is behind, or it lies.
            self.problem = error.detail
            logger.error("a catalogue was refused: %s", error)
            if error.code in _OWN_FAULTS:
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._hear_again, told)
        except Exception:
            logger.exception("a catalogue could not be taken")
        else:
            self.problem = ""

    def _hear_again(self, told: bytes) -> None:
        if self._told is None:
            self._hear(told)

    def _changed(self) -> None:
        self._moved.set()
        for callback in self._callbacks:
            callback()
