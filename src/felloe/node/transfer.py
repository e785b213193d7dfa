"""Models from and to the other members of the network: wires the catalogue's swarm to the mesh.

Any member serves what the curators have approved, whole or in part, and the catalogue itself. A model that is approved
and not here comes from whoever has it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.store import ModelStore
from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.model_pull import PeerPulls
from felloe.catalog.transfer.pacing import Pacer
from felloe.catalog.transfer.peers import Lied
from felloe.catalog.transfer.serving import Serving
from felloe.catalog.transfer.swarm import SwarmSettings
from felloe.domain.approval import ENVELOPE, Approved, Bundle, EnvelopeAnswer, EnvelopeQuestion
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelDigest, NodeId
from felloe.domain.manifest import Manifest, ManifestFile
from felloe.domain.models import Model
from felloe.domain.roster import HELD_DIGITS, Endpoint, Roster
from felloe.host.processor import IdleShare
from felloe.mesh.connection import Connection
from felloe.mesh.fetching import FetchAnswer, FetchQuestion, FetchServer
from felloe.mesh.join_token import is_host
from felloe.mesh.roster_wire import MAX_HOLDS
from felloe.mesh.services import HubClient
from felloe.mesh.transfer_https import MOST_HOSTS
from felloe.mesh.transfer_tls import MemberTls
from felloe.node.config import NodeConfig
from felloe.node.founding import advertised_hosts
from felloe.node.identity import Identity
from felloe.node.links import Links, asks_over_mesh
from felloe.node.transfer_peers import PeerFinder
from felloe.node.transfer_server import TransferServer

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 30.0
_HOLDER_LOOKS, _HOLDER_LOOK_SECONDS = 30, 0.1
_ASKED_FOR_CATALOG = 3
_MOST_ASKED_FOR_MANIFEST = 8

Report = Callable[[PullProgress], None]


class Transfer:
    """Owns the transfer port, the pulls from peers and the memory of liars (`bans`, a file).

    `is_busy` says whether requests are being answered here, `may_ask` whether a node is still a member. `changed` is
    called when what this node says of itself has changed.
    """

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        connection: Connection,
        store: ModelStore,
        catalog: TrustedCatalog,
        bans: Path,
        *,
        roster: Callable[[], Roster],
        is_busy: Callable[[], bool],
        may_ask: Callable[[NodeId], bool],
        changed: Callable[[], None],
    ) -> None:
        self._peer = config.peer
        self._connection = connection
        self._store = store
        self._catalog = catalog
        files, rates, idle = identity.files, config.transfer, IdleShare()
        tls = MemberTls(files.certificate_path, files.key_path, lambda: identity.trust)
        identity.keeper.on_change(lambda _: tls.refresh())
        identity.on_trust(tls.refresh)
        self.links = Links(asks_over_mesh(connection), roster)
        download = Pacer(rates.download_rate, busy=is_busy, idle=idle)
        self._finder = PeerFinder(connection, roster, tls, download, self.links)
        self._bans = Bans(bans, time.time)
        self._pulls = PeerPulls(
            store,
            self._bans,
            identity.membership.node,
            settings=SwarmSettings(download_rate=rates.download_rate),
            changed=changed,
        )
        self._upload = Pacer(rates.upload_rate, busy=is_busy, idle=idle)
        self._serving = Serving(store, may_serve=self._may_serve, bundle=self._bundle)
        self._server = TransferServer(tls, self._serving.answer, self._upload, may_ask)
        self._questions = FetchServer(connection)

    @property
    def place(self) -> Endpoint | None:
        """Where other members fetch models from this node."""
        if not self._server.port:
            return None
        hosts = tuple(host for host in advertised_hosts(self._peer) if is_host(host))
        return Endpoint(hosts=hosts[:MOST_HOSTS], port=self._server.port)

    def holds(self) -> tuple[str, ...]:
        """The beginnings of the content ids of the models that are here whole or in part."""
        held = {*self._store.contents(), *self._pulls.coming}
        return tuple(sorted(content[:HELD_DIGITS] for content in held)[:MAX_HOLDS])

    async def start(self) -> None:
        """Serve members; a port that is taken is replaced by a free one. Raises `bad_config`."""
        self._bans.load()
        await self._server.start(self._peer.host, self._peer.transfer_port)
        await self._questions.serve(self._answer_over_mesh)

    async def run(self) -> None:
        """Measure the ways to the other members, and see to it that the catalogue does not run out."""
        await asyncio.gather(self.links.run(), self._look_after_catalog())

    async def _look_after_catalog(self) -> None:
        """While no hub is connected, ask others for the catalogue."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if not self._connection.is_up:
                await self.ask_for_catalog()

    async def stop(self) -> None:
        """End what goes on; a pull goes on where it stopped when it is asked for again."""
        await self._questions.close()
        await self._server.stop()
        self._finder.close()

    def approved(self, text: str) -> Approved:
        """What the curators have approved as `text`: a name, or the beginning of a content id.

        Raises `model_withdrawn`, `model_not_found`.
        """
        approvals = self._catalog.approvals
        found = None if approvals is None else approvals.find(text)
        if approvals is not None and found is None:
            gone = next((one for one in approvals.withdrawn.values() if one.name == text), None)
            if gone is not None:
                approvals.check(gone.content, gone.name, time.time())
        if found is None:
            raise FelloeError(
                "model_not_found",
                f"{text[:128]!r} is neither in this node's store nor approved in this network; pull it from a source",
                param="model",
            )
        return found

    async def pull(self, text: str, report: Report) -> Model:
        """Bring an approved model here from the members that have it; what is here of it is not fetched again.

        Raises `model_not_found`, `no_holder` when no living member has it, and what the catalogue and the store raise.
        """
        content = self.approved(text).listing.content
        if (here := self._store.contents().get(content)) is not None:
            return self._store.usable(here)
        await self._wait_for_holder(content)
        envelope, manifest = await self._signed_manifest(content)
        if not self._finder.holders(content):
            again = f"; pull it from {manifest.source}" if manifest.source else ""
            raise FelloeError("no_holder", f"no node that is up has {manifest.name}{again}")
        return await self._pulls.pull(content, envelope, partial(self._finder.holders, content), report)

    async def manifest(self, content: ContentId) -> Manifest:
        """The manifest of an approved content: the own one, or from the hubs or whoever has the model."""
        if (here := self._store.contents().get(content)) is not None:
            return self._store.manifest_of(here)
        await self._wait_for_holder(content)
        return (await self._signed_manifest(content))[1]

    async def piece(self, content: ContentId, file: ManifestFile, first: int, count: int) -> bytes:
        """Chunks of a file of an approved content, from whoever has them. Raises as `PeerPulls.piece`."""
        return await self._pulls.piece(file, first, count, partial(self._finder.holders, content))

    async def repair(self, name: str, told: Callable[[int, int], None]) -> bool:
        """Bring what is damaged of a model of the store from other members; whether the model is whole then.

        `told` hears the bytes that are here and those of the whole model.
        """
        try:
            await self.pull(name, lambda step: told(step.done, step.total))
        except FelloeError as error:
            logger.warning("%s was not repaired: %s", name, error)
        kept = next((kept for kept in self._store.kept() if kept.entry.name == name), None)
        return kept is not None and not kept.problem

    async def ask_for_catalog(self) -> None:
        """Take the newest catalogue that a few other members have."""
        for peer in self._finder.some(_ASKED_FOR_CATALOG):
            try:
                await self._catalog.take(Bundle.decode(await peer.bundle()))
            except (FelloeError, Lied) as error:
                logger.info("no catalogue from %s: %s", peer.node, error)

    async def _wait_for_holder(self, content: ContentId) -> None:
        """A node that has just started hears of the others within a moment."""
        for _ in range(_HOLDER_LOOKS):
            if self._finder.holders(content):
                return
            await asyncio.sleep(_HOLDER_LOOK_SECONDS)

    async def _signed_manifest(self, content: ContentId) -> tuple[bytes, Manifest]:
        """The manifest that the curators have signed for, from the hubs or from whoever has the model."""
        try:
            answer = await HubClient(self._connection).ask(ENVELOPE, EnvelopeQuestion(content), EnvelopeAnswer)
            return answer.envelope, self._catalog.check_envelope(content, answer.envelope)
        except FelloeError as error:
            failure = error
        for peer in self._finder.holders(content)[:_MOST_ASKED_FOR_MANIFEST]:
            try:
                # Whoever pulled the same model by itself has a manifest of its own, which is no lie.
                envelope = await peer.manifest(content)
                return envelope, self._catalog.check_envelope(content, envelope)
            except (FelloeError, Lied) as error:
                logger.info("no manifest of %s from %s: %s", content[:HELD_DIGITS], peer.node, error)
        raise failure

    async def _answer_over_mesh(self, question: FetchQuestion) -> FetchAnswer:
        answer = await self._serving.answer(question.path, question.start, question.length)
        await self._upload.take(len(answer.body))
        return FetchAnswer(answer.size, answer.body)

    def _may_serve(self, digest: ModelDigest) -> bool:
        approvals = self._catalog.approvals
        if approvals is None:
            return False
        here = {content: self._store.manifest_of(name) for content, name in self._store.contents().items()}
        return any(
            content in approvals.approved and any(file.digest == digest for file in manifest.files)
            for content, manifest in (here | dict(self._pulls.coming)).items()
        )

    def _bundle(self) -> bytes | None:
        bundle = self._catalog.bundle
        return None if bundle is None else bundle.encode()
