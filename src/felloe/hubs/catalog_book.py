"""The hubs' part in approvals: they keep what was published and decided, and make the next catalogue when it is signed.

A hub approves nothing: it has no curator's key. It can only hold back, and then its catalogue grows old and nothing new
is loaded. All checks are made again by every node.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from felloe.domain.approval import (
    DECIDE,
    ENVELOPE,
    LOOK,
    PUBLISH,
    SIGN,
    Approvals,
    Bundle,
    Candidate,
    CandidateSignature,
    CatalogAnswer,
    DecideQuestion,
    EnvelopeAnswer,
    EnvelopeQuestion,
    LookAnswer,
    LookQuestion,
    Publication,
    PublishAnswer,
    PublishQuestion,
    SignedDecision,
    SignQuestion,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ports import CatalogMaker, StatementSigner
from felloe.hubs.catalog_rules import decision_slot, page, publication_slot
from felloe.hubs.kept import Kept
from felloe.hubs.members import MemberBook
from felloe.hubs.records import (
    CATALOG,
    CATALOG_BOOK,
    DECISION,
    PUBLICATION,
    SIGNATURE,
    KeptDecision,
    KeptPublication,
    KeptSignature,
    State,
    encode,
)
from felloe.mesh.services import HubServices

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
_TRIES = 16


class Issuer(NamedTuple):
    """Who signs for the hubs: the key that the trust list names, since when (Unix seconds), and this hub's own."""

    key: bytes
    since: int
    signer: StatementSigner


class _Moved(Exception):
    """Another hub has used the place meanwhile."""


class CatalogBook:
    """Publications, decisions and signatures on the state, and the catalogue that follows from them.

    `issuer` is asked anew each time; `trusted` gives the catalogue that this node believes; `now` Unix seconds. Writes
    raise what `State.change` raises.
    """

    def __init__(
        self,
        state: State,
        members: MemberBook,
        maker: CatalogMaker,
        *,
        issuer: Callable[[], Issuer],
        trusted: Callable[[], Bundle | None],
        now: Callable[[], float],
    ) -> None:
        self._state = state
        self._members = members
        self._maker = maker
        self._issuer = issuer
        self._trusted = trusted
        self._now = now
        self._publications = Kept(state, PUBLICATION, KeptPublication)
        self._decisions = Kept(state, DECISION, KeptDecision)
        self._signatures = Kept(state, SIGNATURE, KeptSignature)
        self._tending = asyncio.Lock()
        self._wake = asyncio.Event()
        state.on_change(CATALOG_BOOK, lambda _: self._wake.set())

    async def serve(self, services: HubServices) -> None:
        """Answer nodes from now on."""
        await services.serve(PUBLISH, PublishQuestion, self._on_publish)
        await services.serve(DECIDE, DecideQuestion, self._on_decide)
        await services.serve(SIGN, SignQuestion, self._on_sign)
        await services.serve(LOOK, LookQuestion, self._on_look)
        await services.serve(ENVELOPE, EnvelopeQuestion, self._on_envelope)

    async def run(self, leads: Callable[[], bool]) -> NoReturn:
        """While this hub leads: finish what another one began, and give the catalogue fresh dates every day."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            if not leads():
                continue
            try:
                await self.tend()
            except FelloeError as error:
                logger.warning("the catalogue could not be tended: %s", error)
            except Exception:
                logger.exception("the catalogue could not be tended")

    def wake(self) -> None:
        """The network's signing keys are others now."""
        self._wake.set()

    async def publish(self, envelope: bytes) -> Publication:
        """Keep a signed manifest for curators to look at; what is kept for its content then.

        Raises `bad_manifest`, `forbidden` unless a present member made it, `overloaded` when too many wait.
        """
        listing = await asyncio.to_thread(self._maker.listing, envelope)
        kept = KeptPublication(
            publication=Publication(listing=listing, published_at=int(self._now())), envelope=envelope
        )
        approvals = await self._approvals()

        def place() -> str | None:
            if not self._is_member(kept):
                raise FelloeError("forbidden", "who made the manifest is no member of this network")
            return publication_slot(self._publications.all(), kept, approvals, self._is_member)

        await self._keep(place, encode(kept))
        found = self._find(listing.content)
        return kept.publication if found is None else found.publication

    async def decide(self, signed: SignedDecision) -> Approvals:
        """Take a decision, and do what it makes possible. Raises as `CatalogMaker.check_decision`; `overloaded`."""
        bundle = self._bundle()
        if not any(kept.signed == signed for kept in self._decisions.all().values()):
            await asyncio.to_thread(self._maker.check_decision, bundle, signed, self._now())
            kept = KeptDecision(signed=signed, taken_at=self._now())
            curators = len((await self._approvals()).curators)

            def place() -> str | None:
                return decision_slot(self._decisions.all(), kept, self._maker.by, self._is_settled, curators)

            await self._keep(place, encode(kept))
        return await self.tend()

    async def sign(self, signature: CandidateSignature) -> Approvals:
        """Take a curator's signature over the next catalogue, and make it when that was the last one needed.

        Raises `catalog_refused` for a signature over anything else.
        """
        candidate = await self._candidate(self._bundle())
        if candidate is None:
            return await self._approvals()
        if not await asyncio.to_thread(self._maker.fits, candidate, signature):
            raise FelloeError("catalog_refused", "that is no signature over the catalogue to come; look at it again")
        value = encode(KeptSignature(signature=signature))
        await self._state.change(SIGNATURE + signature.key.hex(), lambda _: value)
        return await self.tend()

    async def tend(self) -> Approvals:
        """Make the next catalogue if enough have signed it, or give this one fresh dates; what it says then."""
        async with self._tending:
            for _ in range(_TRIES):
                bundle = self._bundle()
                following = await self._following(bundle)
                if following is None:
                    break
                before, after = bundle.encode(), following.encode()
                # Where another hub was first, all of this is looked at again.
                await self._state.change(CATALOG, lambda now, old=before, new=after: new if now == old else now)
            return await self._approvals()

    def look(self, after: int) -> LookAnswer:
        """What waits, page by page."""
        listed = {kept.publication.listing.content: kept.publication for kept in self._publications.all().values()}
        return page(
            [kept.signed for kept in self._decisions.all().values()],
            list(listed.values()),
            [kept.signature for kept in self._signatures.all().values()],
            after,
        )

    def envelope(self, content: str) -> bytes:
        """The signed manifest that was published for a content; raises `not_found`."""
        found = self._find(content)
        if found is None:
            raise FelloeError("not_found", f"no manifest of the content {content[:16]} is kept here")
        return found.envelope

    async def _following(self, bundle: Bundle) -> Bundle | None:
        """What replaces the present catalogue now."""
        trusted = self._trusted()
        if trusted is not None and trusted != bundle and await self._is_newer(trusted, bundle):
            # The state was lost and came back from an older copy: what nodes believe already is not made twice.
            return trusted
        issuer, candidate = self._issuer(), await self._candidate(bundle)
        if candidate is not None:
            signatures = [kept.signature for kept in self._signatures.all().values()]
            made = await asyncio.to_thread(
                self._maker.complete, bundle, candidate, signatures, issuer.signer, self._now()
            )
            if made is not None:
                logger.info("the catalogue has changed as its curators decided")
                return made
        return await asyncio.to_thread(self._maker.renewed, bundle, issuer.signer, self._now())

    async def _is_newer(self, one: Bundle, other: Bundle) -> bool:
        versions = [
            (await asyncio.to_thread(self._maker.approvals, bundle)).timestamp_version for bundle in (one, other)
        ]
        return versions[0] > versions[1]

    async def _candidate(self, bundle: Bundle) -> Candidate | None:
        issuer, decisions = self._issuer(), [kept.signed for kept in self._decisions.all().values()]
        return await asyncio.to_thread(self._maker.candidate, bundle, decisions, issuer.key, issuer.since)

    async def _approvals(self) -> Approvals:
        return await asyncio.to_thread(self._maker.approvals, self._bundle())

    async def _keep(self, place: Callable[[], str | None], value: bytes) -> None:
        """Write `value` where `place` says, which is asked again at the very revision that the write follows."""
        for _ in range(_TRIES):
            key = place()
            if key is None:
                return

            def put(_: bytes | None, key: str = key) -> bytes:
                if place() != key:
                    raise _Moved
                return value

            with contextlib.suppress(_Moved):
                await self._state.change(key, put)
                return
        raise FelloeError("overloaded", "too many hubs write the state at once", retry_after=1.0)

    def _bundle(self) -> Bundle:
        value = self._state.get(CATALOG)
        if value is None:
            raise FelloeError("not_found", "this network has no catalogue: an older version of felloe founded it")
        return Bundle.decode(value)

    def _find(self, content: str) -> KeptPublication | None:
        kept = self._publications.all().values()
        return next((one for one in kept if one.publication.listing.content == content), None)

    def _is_member(self, kept: KeptPublication) -> bool:
        member = self._members.find(kept.publication.listing.made_by)
        return member is not None and not member.revoked_at

    def _is_settled(self, kept: KeptDecision) -> bool:
        return not self._maker.counts(self._bundle(), kept.signed)

    async def _on_publish(self, question: PublishQuestion) -> PublishAnswer:
        return PublishAnswer(await self.publish(question.envelope))

    async def _on_decide(self, question: DecideQuestion) -> CatalogAnswer:
        return _answer(await self.decide(question.decision))

    async def _on_sign(self, question: SignQuestion) -> CatalogAnswer:
        return _answer(await self.sign(question.signature))

    async def _on_look(self, question: LookQuestion) -> LookAnswer:
        return self.look(question.after)

    async def _on_envelope(self, question: EnvelopeQuestion) -> EnvelopeAnswer:
        return EnvelopeAnswer(self.envelope(question.content))


def _answer(approvals: Approvals) -> CatalogAnswer:
    return CatalogAnswer(approvals.root_version, approvals.targets_version)
