"""What this node does for approvals: it publishes what it pulls, decides and signs with the curator key that it holds.

A person decides; all that follows is mechanical. Every curator's node works out the same next catalogue from the
decisions, and signs it by itself, now or when it is back.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from felloe.catalog.approval.curator_key import CuratorKey, curator_text
from felloe.catalog.approval.decisions import new_decision, sign_decision
from felloe.catalog.approval.metadata import sign_candidate
from felloe.catalog.manifests import content_id, listing
from felloe.catalog.store import ModelStore
from felloe.domain.approval import (
    DECIDE,
    MOST_ENVELOPE_BYTES,
    PUBLISH,
    SIGN,
    Approvals,
    CatalogAnswer,
    DecideQuestion,
    Decision,
    Listing,
    Publication,
    PublishAnswer,
    PublishQuestion,
    SignedDecision,
    SignQuestion,
    Verdict,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName
from felloe.hubs.topics import CATALOG_NEWS
from felloe.mesh.state import StateFollower
from felloe.node.approvals import NodeApprovals
from felloe.node.catalog_reader import BookReader, Hubs

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_AGREE_SECONDS = 20.0
_ARRIVAL_SECONDS = 25.0
_LATER = ("network_unreachable", "deadline_exceeded", "overloaded", "not_leader")
"""What hubs may answer differently in a moment."""


class Curating:
    """Owns `keys/curator.pem`, where this node has one. `approve_pulls`: what is pulled here is approved, too."""

    def __init__(
        self,
        hubs: Hubs,
        approvals: NodeApprovals,
        store: ModelStore,
        reader: BookReader,
        key_path: Path,
        *,
        approve_pulls: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hubs = hubs
        self._approvals = approvals
        self._store = store
        self.reader = reader
        self._key_path = key_path
        self._approve_pulls = approve_pulls
        self._now = now
        self.key = CuratorKey.load(key_path)
        self._wake = asyncio.Event()
        self._published: set[ContentId] = set()
        self._waiting: set[ModelName] = set()
        self._deciding, self._signing = asyncio.Lock(), asyncio.Lock()
        approvals.on_change(self.look_again)

    async def start(self, follower: StateFollower) -> None:
        """Hear of what others publish, decide and sign."""
        await follower.follow(CATALOG_NEWS, self._hear_news)
        self.look_again()

    def _hear_news(self, _: bytes) -> None:
        self.reader.forget_recent()
        self.look_again()

    def look_again(self) -> None:
        """Something has changed that this node may have to publish or to sign."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Publish what could not be published, and sign what was decided, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._publish_all()
                await self._sign()
            except FelloeError as error:
                logger.info("approvals wait: %s", error)
                self._retry()
            except Exception:
                logger.exception("approvals failed")

    def _retry(self) -> None:
        asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._wake.set)

    def make_key(self, name: str) -> str:
        """This node's curator key, made the first time, as the text that other curators add it by."""
        if self.key is None:
            self.key = CuratorKey.create(self._key_path)
            self.look_again()
        return curator_text(name, self.key.public_key)

    @property
    def is_curator(self) -> bool:
        """Whether this node's key counts now."""
        known = self._approvals.known
        return self.key is not None and known is not None and known.curator(self.key.public_key) is not None

    async def publish(self, name: str) -> Publication:
        """Offer a model of the store for approval.

        Raises `model_not_found`, `bad_manifest` for one whose description is too long, and as `HubClient.ask`.
        """
        envelope = await self._store.envelope_of(name)
        if len(envelope) > MOST_ENVELOPE_BYTES:
            detail = f"the description of {name} (template, licence) is longer than {MOST_ENVELOPE_BYTES} bytes"
            raise FelloeError("bad_manifest", f"{detail}, so it cannot be published")
        answer = await self._hubs.ask(PUBLISH, PublishQuestion(envelope), PublishAnswer)
        self._published.add(content_id(self._store.manifest_of(name)))
        return answer.publication

    async def approve(self, found: Listing, reason: str) -> Decision:
        """Approve what was published, after a look at the manifest itself. Raises as `decide`."""
        seen = await asyncio.to_thread(listing, await self.reader.envelope(found.content))
        if seen != found:
            raise FelloeError("bad_manifest", f"what a hub lists as {found.name} is not what was published")
        return await self.decide("approve", content=seen.content, name=seen.name, listing=seen, reason=reason)

    async def decide(self, verdict: Verdict, **fields: Any) -> Decision:
        """Make a decision with this node's key; when this returns, it holds or waits for others, or for slow hubs.

        Raises `not_curator`, and what the hubs answer.
        """
        async with self._deciding:
            key, known = self.key, await self.known()
            if key is None or known.curator(key.public_key) is None:
                names = ", ".join(one.name for one in known.curators)
                raise FelloeError("not_curator", f"this node has no key that may decide; the curators are {names}")
            book = await self.reader.look()
            decision = new_decision(known, key.public_key, verdict, self._now(), book.signed, **fields)
            signed = sign_decision(decision, key)
            await self._wait_for(await self._hubs.ask(DECIDE, DecideQuestion(signed), CatalogAnswer))
            try:
                await self._sign(signed)
            except FelloeError as error:
                # The hub that was asked may be behind the one that has the decision.
                logger.info("signing what was decided waits: %s", error)
                self._retry()
            return decision

    async def known(self) -> Approvals:
        """The approvals that this node trusts. Raises `network_unreachable` when it learns none in a moment."""
        if not await self._approvals.until(lambda: self._approvals.known is not None, _AGREE_SECONDS):
            why = self._approvals.problem or "no hub has told it"
            raise FelloeError("network_unreachable", f"this node does not know yet what is approved: {why}")
        known = self._approvals.known
        assert known is not None  # noqa: S101 - it was waited for
        return known

    async def arrived(self, name: ModelName) -> str:
        """Publish what was pulled, and approve it where this node alone decides; a sentence for the owner.

        Never raises: what could not be done is done later.
        """
        try:
            async with asyncio.timeout(_ARRIVAL_SECONDS):
                return await self._arrived(name)
        except TimeoutError:
            why = "the hubs are slow to answer"
        except FelloeError as error:
            why = error.detail
        self._waiting.add(name)
        self._retry()
        logger.warning("%s could not be published yet: %s", name, why)
        return f"not published yet: {why}; this node tries again"

    async def _arrived(self, name: ModelName) -> str:
        known, content = await self.known(), content_id(self._store.manifest_of(name))
        if known.standing(content) == "unknown":
            publication = await self.publish(name)
            if await self._may_approve(known, name, content):
                await self.approve(publication.listing, "")
                await self._approvals.decided(content, _AGREE_SECONDS)
                known = await self.known()
        if (approved := known.approved.get(content)) is not None:
            return f"approved by {', '.join(approved.approved_by)}"
        if (withdrawn := known.withdrawn.get(content)) is not None:
            return f"withdrawn by the curators: {withdrawn.reason or 'no reason was given'}"
        return f"published; curators approve it with `felloe approve {name}`"

    async def _may_approve(self, known: Approvals, name: ModelName, content: ContentId) -> bool:
        """Whether to approve without a word: this node alone decides, and has not said otherwise."""
        if not self._approve_pulls or known.threshold != 1 or not self.is_curator or self.key is None:
            return False
        if known.named(name) is not None:
            return False
        own = [one for one in (await self.reader.look()).decisions if one.by == self.key.public_key]
        said = [one for one in sorted(own, key=lambda one: one.made_at) if one.content == content]
        return not said or said[-1].verdict == "approve"

    async def _publish_all(self) -> None:
        """Publish what is in the store and was not: a pull while no hub could be reached, or one that was cut off.

        Without a person's word now only what came since the start is approved, too: what lies in the store may have
        been withdrawn so long ago that nobody knows any more.
        """
        known = self._approvals.known
        if known is None:
            return
        for content, name in self._store.contents().items():
            if content in self._published or known.standing(content) != "unknown":
                continue
            try:
                await (self._arrived(name) if name in self._waiting else self.publish(name))
            except FelloeError as error:
                if error.code in _LATER:
                    raise
                logger.warning("%s cannot be published: %s", name, error)
            # Otherwise asking again would not help.
            self._published.add(content)
            self._waiting.discard(name)

    async def _sign(self, *extra: SignedDecision) -> None:
        """Sign what follows from the decisions, `extra` ones included that not every hub has seen yet.

        One after the other: when this returns, what this node's own signature completes is in force here.
        """
        async with self._signing:
            await self._sign_now(extra)

    async def _sign_now(self, extra: tuple[SignedDecision, ...]) -> None:
        key, bundle = self.key, self._approvals.catalog.bundle
        if key is None or bundle is None:
            return
        book = await self.reader.look()
        decisions = tuple(dict.fromkeys((*book.signed, *extra)))
        wanted = await asyncio.to_thread(self.reader.candidate_of, bundle, decisions)
        signature = None if wanted is None else sign_candidate(wanted, key)
        if signature is None or any(
            (one.key, one.digest) == (signature.key, signature.digest) for one in book.signatures
        ):
            return
        await self._wait_for(await self._hubs.ask(SIGN, SignQuestion(signature), CatalogAnswer))

    async def _wait_for(self, answer: CatalogAnswer) -> None:
        """Until this node has taken over the catalogue that a hub has."""

        def is_here() -> bool:
            known = self._approvals.known
            return known is not None and (
                (known.root_version, known.targets_version) >= (answer.root_version, answer.targets_version)
            )

        await self._approvals.until(is_here, _AGREE_SECONDS)
