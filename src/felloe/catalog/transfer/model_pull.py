"""Fetches all files of a model from other nodes and gives it its name, under the manifest that its maker signed."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from felloe.catalog.incoming import Blob
from felloe.catalog.manifests import content_id, open_signed
from felloe.catalog.sources.progress import Meter, PullProgress
from felloe.catalog.store import ModelStore
from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.circle import Circle
from felloe.catalog.transfer.hashes import chunk_hashes
from felloe.catalog.transfer.peers import Peer
from felloe.catalog.transfer.swarm import Swarm, SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId
from felloe.domain.manifest import Manifest, ManifestFile
from felloe.domain.models import Model

Report = Callable[[PullProgress], None]


class PeerPulls:
    """All that this node fetches from others. `own` is its id; `changed` is told when `coming` has changed."""

    def __init__(
        self,
        store: ModelStore,
        bans: Bans,
        own: NodeId,
        *,
        settings: SwarmSettings | None = None,
        chance: random.Random | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._bans = bans
        self._own = own
        self._settings = settings or SwarmSettings()
        self._chance = chance or random.Random()  # noqa: S311 it spreads load, it guards nothing
        self._changed = changed
        self._coming: dict[ContentId, Manifest] = {}

    @property
    def coming(self) -> Mapping[ContentId, Manifest]:
        """What is fetched now: others can have of it what is here already."""
        return self._coming

    async def pull(
        self, content: ContentId, envelope: bytes, peers: Callable[[], Sequence[Peer]], report: Report
    ) -> Model:
        """Bring the model that the signed manifest in `envelope` describes into the store and return it.

        `peers` is asked about every second for those that may have it, or parts of it. Cancelled or failed, it keeps
        what came, and the next pull goes on there. Raises `bad_manifest` for an envelope that is not of `content`,
        `invalid_value` when the name stands for other files here, `already_pulling`, `no_holder` when nobody has it,
        and what the store raises.
        """
        manifest, _ = open_signed(envelope)
        if content_id(manifest) != content:
            raise FelloeError("bad_manifest", f"manifest: it is another model's than {content[:16]}")
        self._store.check_name(manifest)
        if content in self._coming:
            raise FelloeError("already_pulling", f"{manifest.name} is being fetched already")
        self._coming[content] = manifest
        self._changed()
        try:
            await _Pull(manifest, self._store, self._circle(peers), self._settings, self._chance, report).run()
            return await self._store.take_over(envelope)
        except FelloeError as error:
            if error.code != "no_holder":
                raise
            again = f"; it can be pulled from {manifest.source}" if manifest.source else ""
            raise FelloeError("no_holder", f"{manifest.name}: {error.detail}{again}") from error
        finally:
            del self._coming[content]
            self._changed()
            self._store.blobs.let_go([file.digest for file in manifest.files])

    def _circle(self, peers: Callable[[], Sequence[Peer]]) -> Circle:
        return Circle(peers, self._bans, self._own, self._chance)


class _Pull:
    def __init__(
        self,
        manifest: Manifest,
        store: ModelStore,
        circle: Circle,
        settings: SwarmSettings,
        chance: random.Random,
        report: Report,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._circle = circle
        self._settings = settings
        self._chance = chance
        self._report = report
        self._meter = Meter()

    async def run(self) -> None:
        files = self._manifest.files
        self._meter.expect({file.path: file.size for file in files})
        later = sum(file.size for file in files)
        for file in files:
            later -= file.size
            if self._store.blobs.held(file.digest, file.size) is None:
                await self._fetch(file, later)
            self._told(file, file.size)

    async def _fetch(self, file: ManifestFile, later: int) -> Blob:
        hashes = await chunk_hashes(file, self._circle, self._settings, self._chance)
        gathering = await self._store.blobs.gather(file.digest, file.size, hashes)
        try:
            await self._store.make_room(file.size - gathering.length + later, gathering)
            told = partial(self._told, file)
            await Swarm(file.digest, gathering, self._circle, self._settings, self._chance, told).run()
            self._report(self._meter.waiting("reading the whole file once more"))
            return await gathering.finish()
        finally:
            await gathering.close()

    def _told(self, file: ManifestFile, length: int) -> None:
        due = self._meter.length(file.path, length, file.size, asyncio.get_running_loop().time())
        if due is not None:
            self._report(due)
