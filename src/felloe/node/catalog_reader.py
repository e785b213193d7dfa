"""What waits at the hubs for curators, as this node reads it: what a hub says is not taken without its signature."""

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from felloe.catalog.approval.decisions import opened
from felloe.catalog.approval.metadata import candidate, pin_of
from felloe.catalog.approval.rules import newest
from felloe.catalog.approval.tuf_files import verified
from felloe.domain.approval import (
    ENVELOPE,
    LOOK,
    Bundle,
    Candidate,
    CandidateSignature,
    Decision,
    EnvelopeAnswer,
    EnvelopeQuestion,
    LookAnswer,
    LookQuestion,
    Publication,
    SignedDecision,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId
from felloe.mesh.trust import Trust
from felloe.node.approvals import NodeApprovals
from felloe.node.catalog_rows import Words

_RETRY_SECONDS = 5.0
_GLANCE_SECONDS = 2.0
_MOST_PAGES = 4096

Answer = TypeVar("Answer", bound=msgspec.Struct)


class Hubs(Protocol):
    """Asks the hubs: `mesh.services.HubClient`."""

    async def ask(
        self, service: str, question: msgspec.Struct, answer: type[Answer], *, timeout: float = 5.0
    ) -> Answer: ...


class Book(NamedTuple):
    """What waits at the hubs. `decisions` are the `signed` ones whose signatures fit."""

    signed: tuple[SignedDecision, ...] = ()
    decisions: tuple[Decision, ...] = ()
    publications: tuple[Publication, ...] = ()
    signatures: tuple[CandidateSignature, ...] = ()

    def published(self, asked: str) -> list[Publication]:
        """The publications meant by a model's name, or by the beginning of a content id of 8 digits or more."""
        named = [one for one in self.publications if one.listing.name == asked]
        if named or len(asked) < 8:
            return named
        return [one for one in self.publications if one.listing.content.startswith(asked)]


class BookReader:
    """Reads publications, decisions and signatures from any hub, and remembers what it read last."""

    def __init__(self, hubs: Hubs, approvals: NodeApprovals, trust: Callable[[], Trust]) -> None:
        self._hubs = hubs
        self._approvals = approvals
        self._trust = trust
        self._recent = Book()
        self._recent_is_old = True
        self._recent_words: tuple[Bundle | None, Book, Words] = (None, self._recent, {})

    def forget_recent(self) -> None:
        """What was read last is old: hubs have told news."""
        self._recent_is_old = True

    async def look(self) -> Book:
        """What waits at the hubs now; what was not signed by who is named is left out. Raises as `HubClient.ask`."""
        pages, after = list[LookAnswer](), 0
        while len(pages) < _MOST_PAGES:
            page = await self._hubs.ask(LOOK, LookQuestion(after), LookAnswer)
            pages.append(page)
            if page.next <= after:
                break
            after = page.next
        self._recent, self._recent_is_old = await asyncio.to_thread(_book, pages), False
        return self._recent

    async def recent(self) -> tuple[Book, Words]:
        """What waited when this node looked last, and what curators said then; asks hubs only after news from them."""
        if self._recent_is_old and self._approvals.known is not None:
            self._recent_is_old = False  # whoever asks next shall not wait for a hub that does not answer
            try:
                async with asyncio.timeout(_GLANCE_SECONDS):
                    await self.look()
            except (FelloeError, TimeoutError):
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.forget_recent)
        bundle, book = self._approvals.catalog.bundle, self._recent
        if self._recent_words[:2] != (bundle, book):
            self._recent_words = (bundle, book, await self.words(book))
        return book, self._recent_words[2]

    async def words(self, book: Book, *more: Decision) -> Words:
        """What curators say now, as far as it counts: what waits in the book, and `more`."""
        bundle = self._approvals.catalog.bundle
        return {} if bundle is None else await asyncio.to_thread(_words, bundle, (*book.decisions, *more))

    async def unsigned(self, book: Book) -> frozenset[bytes]:
        """The keys of curators whose nodes have not signed what was decided; none when nothing is to be signed."""
        bundle = self._approvals.catalog.bundle
        wanted = None if bundle is None else await asyncio.to_thread(self.candidate_of, bundle, book.signed)
        if wanted is None:
            return frozenset()
        signed = {one.key for one in book.signatures if one.digest == wanted.digest}
        return frozenset(wanted.signers) - signed

    def candidate_of(self, bundle: Bundle, decisions: tuple[SignedDecision, ...]) -> Candidate | None:
        """What curators are to sign next; blocking."""
        trust = self._trust()
        return candidate(bundle, decisions, trust.issuer_key, trust.list.issued_at)

    async def envelope(self, content: ContentId) -> bytes:
        """The signed manifest that was published for a content. Raises as `HubClient.ask`."""
        return (await self._hubs.ask(ENVELOPE, EnvelopeQuestion(content), EnvelopeAnswer)).envelope


def _words(bundle: Bundle, decisions: Iterable[Decision]) -> Words:
    return newest(verified(bundle, pin_of(bundle)).catalogue, decisions)


def _book(pages: list[LookAnswer]) -> Book:
    signed = tuple(dict.fromkeys(one for page in pages for one in page.decisions))
    publications = {one.listing.content: one for page in pages for one in page.publications}
    signatures = tuple(one for page in pages for one in page.signatures)
    return Book(signed, tuple(opened(signed)), tuple(publications.values()), signatures)
