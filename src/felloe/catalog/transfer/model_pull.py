"""Fetches all files of a model from other nodes and gives it its name, under the manifest that its maker signed."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from blake3 import blake3

from felloe.catalog.incoming import Blob
from felloe.catalog.manifests import content_id, open_signed
from felloe.catalog.sources.progress import Meter, PullProgress
from felloe.catalog.store import ModelStore
from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.circle import Circle
from felloe.catalog.transfer.hashes import chunk_hashes
from felloe.catalog.transfer.peers import Lied, Peer
from felloe.catalog.transfer.swarm import Swarm, SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId
from felloe.domain.manifest import CHUNK_BYTES, Manifest, ManifestFile
from felloe.domain.models import Model

Report = Callable[[PullProgress], None]

_CHUNK_SECONDS = 60.0


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

    async def piece(self, file: ManifestFile, first: int, count: int, peers: Callable[[], Sequence[Peer]]) -> bytes:
        """So many chunks of a file from the `first` on, each as the manifest vouches for it; nothing of it is kept.

        Raises `no_holder` when nobody has them, `bad_manifest` when the manifest contradicts itself.
        """
        circle = self._circle(peers)
        hashes = await chunk_hashes(file, circle, self._settings, self._chance)
        wanted = list(enumerate(hashes))[first : first + count]
        return b"".join([await self._chunk(file, chunk, expected, peers) for chunk, expected in wanted])

    async def _chunk(
        self, file: ManifestFile, chunk: int, expected: bytes, peers: Callable[[], Sequence[Peer]]
    ) -> bytes:
        length = min(CHUNK_BYTES, file.size - chunk * CHUNK_BYTES)
        for peer in peers():
            if peer.node == self._own or self._bans.is_banned(peer.node):
                continue
            try:
                async with asyncio.timeout(_CHUNK_SECONDS):
                    data = await peer.read(file.digest, chunk, length, lambda _: None)
            except (FelloeError, TimeoutError):
                continue
            except Lied as lie:
                await self._bans.lied(peer.node, str(lie))
                continue
            if len(data) == length and blake3(data).digest() == expected:
                return data
            await self._bans.lied(peer.node, f"chunk {chunk} of {file.path[:80]!r} is not what its hash says")
        raise FelloeError("no_holder", f"no node that can be reached has the beginning of {file.path[:80]!r}")

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
