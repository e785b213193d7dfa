"""What an owner sees and does about approvals and curators, carried out on the parts of a running node."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from felloe.catalog.approval.curator_key import read_curator
from felloe.catalog.manifests import content_id, open_signed
from felloe.console.catalog_messages import (
    CatalogEntry,
    CatalogRow,
    CatalogView,
    CuratorKey,
    CuratorRequest,
    CuratorRow,
    CuratorsView,
    Decided,
    DecideRequest,
    DecisionRow,
    FileRow,
)
from felloe.console.messages import NameRequest
from felloe.domain.approval import Approvals, Curator, Decision, Listing, is_curator_name
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId
from felloe.node.catalog_reader import Book
from felloe.node.catalog_rows import Words, catalog_rows, curator_name, decision_rows, waiting_changes

if TYPE_CHECKING:
    from felloe.node.node import Node

_EFFECT_SECONDS = 20.0
_SHOWN_DIGITS = 12


class CatalogOperations:
    """Implements the console's `CatalogOperations` for one node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def view(self) -> CatalogView:
        """Everything, as far as this node knows; what waits is left out while no hub answers."""
        known, notes = await self._node.curating.known(), list[str]()
        try:
            book = await self._node.curating.reader.look()
        except FelloeError as error:
            book = Book()
            notes.append(f"what waits for approval is not shown: {error.detail}")
        else:
            notes += await self._unsigned(known, book)
        if self._node.approvals.problem:
            notes.append(self._node.approvals.problem)
        return CatalogView(
            rows=await self._rows(known, book),
            threshold=known.threshold,
            expires_at=known.expires_at,
            notes=tuple(notes),
        )

    async def log(self) -> list[DecisionRow]:
        """What was decided, as far as hubs keep it. Raises `network_unreachable`."""
        known = await self._node.curating.known()
        return decision_rows(known, (await self._node.curating.reader.look()).decisions)

    async def show(self, request: NameRequest) -> CatalogEntry:
        """A published model in full. Raises `not_found`, `bad_manifest`."""
        known = await self._node.curating.known()
        book = await self._node.curating.reader.look()
        row = self._one(request.name, [row for row in await self._rows(known, book) if _is(row, request.name)])
        envelope = await self._node.curating.reader.envelope(ContentId(row.content))
        manifest, _ = await asyncio.to_thread(open_signed, envelope)
        if content_id(manifest) != row.content:
            raise FelloeError("bad_manifest", f"what a hub hands out as {row.name} is another model's manifest")
        return CatalogEntry(
            row=row,
            files=tuple(FileRow(file.path, file.size, file.digest, file.role) for file in manifest.files),
            source=manifest.source,
            revision=manifest.revision,
            licence=manifest.licence,
            template=manifest.template or "",
            context=manifest.context,
            parameters=manifest.parameters,
            capabilities=tuple(manifest.capabilities),
            made_at=manifest.created_at,
        )

    async def publish(self, request: NameRequest) -> CatalogRow:
        """Offer a model of this node's store for approval; one that was offered already stays as it is."""
        known, manifest = await self._node.curating.known(), self._node.store.manifest_of(request.name)
        content = content_id(manifest)
        if known.standing(content) != "approved":
            await self._node.curating.publish(request.name)
        rows = await self._rows(known, await self._node.curating.reader.look())
        return self._one(request.name, [row for row in rows if row.content == content])

    async def decide(self, request: DecideRequest) -> Decided:
        """Decide with this node's curator key. Raises `not_curator`, `not_found`, `invalid_value`."""
        curating, known = self._node.curating, await self._node.curating.known()
        if request.verdict == "withdraw":
            entry = known.find(request.name)
            if entry is None:
                raise FelloeError("not_found", f"{request.name} is not approved, so there is nothing to withdraw")
            listing = entry.listing
            made = await curating.decide("withdraw", content=listing.content, name=listing.name, reason=request.reason)
            return await self._outcome(
                made, lambda now: listing.content not in now.approved, f"{listing.name} is withdrawn"
            )
        entry = known.find(request.name)
        if entry is not None and request.verdict == "approve":
            names = ", ".join(entry.approved_by)
            return Decided(sentence=f"{entry.listing.name} is approved already, by {names}", done=True)
        listing = await self._published(known, request)
        if request.verdict == "approve":
            made = await curating.approve(listing, request.reason)
            sentence = f"{listing.name} is approved: every node may load it"
            return await self._outcome(made, lambda now: listing.content in now.approved, sentence)
        await curating.decide("reject", content=listing.content, name=listing.name, reason=request.reason)
        return Decided(sentence=f"{listing.name} is rejected by this curator", done=True)

    async def curators(self) -> CuratorsView:
        """Who decides, and what is to change about that."""
        known, curating = await self._node.curating.known(), self._node.curating
        own = b"" if curating.key is None else curating.key.public_key
        words: Words = {}
        with contextlib.suppress(FelloeError):  # who decides is known without the hubs
            words = await curating.reader.words(await curating.reader.look())
        return CuratorsView(
            curators=tuple(
                CuratorRow(name=one.name, key=one.key.hex(), this=one.key == own)
                for one in sorted(known.curators, key=lambda one: one.name)
            ),
            threshold=known.threshold,
            waiting=waiting_changes(known, words),
        )

    async def curator_key(self, request: NameRequest) -> CuratorKey:
        """This node's curator key, made the first time. Raises `invalid_value` for a name that nobody can have."""
        name = request.name or self._node.membership.name
        if not is_curator_name(name):
            raise FelloeError("invalid_value", "a curator's name is 1 to 64 printable characters without a colon")
        return CuratorKey(self._node.curating.make_key(name))

    async def change_curators(self, request: CuratorRequest) -> Decided:
        """Have somebody come or go, or another number agree. Raises `not_curator`, `not_found`, `invalid_value`."""
        known = await self._node.curating.known()
        if request.verdict == "add_curator":
            return await self._add(known, *read_curator(request.curator), request.reason)
        if request.verdict == "remove_curator":
            return await self._remove(known, _find_curator(known, request.curator), request.reason)
        wanted = request.threshold
        if not 1 <= wanted <= len(known.curators):
            raise FelloeError(
                "invalid_value", f"there are {len(known.curators)} curators, so 1 to {len(known.curators)} can agree"
            )
        made = await self._node.curating.decide("set_threshold", threshold=wanted, reason=request.reason)
        sentence = f"{wanted} of {len(known.curators)} curators must agree from now on"
        return await self._outcome(made, lambda now: now.threshold == wanted, sentence)

    async def _add(self, known: Approvals, name: str, key: bytes, reason: str) -> Decided:
        present = known.curator(key)
        if present is not None:
            return Decided(sentence=f"{present.name} is a curator already", done=True)
        if any(one.name == name for one in known.curators):
            detail = f"another curator is called {name}; `felloe curators key --name NAME` there gives another name"
            raise FelloeError("invalid_value", detail)
        made = await self._node.curating.decide("add_curator", curator=key, name=name, reason=reason)
        return await self._outcome(made, lambda now: now.curator(key) is not None, f"{name} is a curator now")

    async def _remove(self, known: Approvals, curator: Curator, reason: str) -> Decided:
        if len(known.curators) <= known.threshold:
            detail = f"{known.threshold} curators must agree, and no more are there; lower the threshold first"
            raise FelloeError("invalid_value", detail)
        made = await self._node.curating.decide("remove_curator", curator=curator.key, name=curator.name, reason=reason)
        sentence = f"{curator.name} is no curator any more"
        return await self._outcome(made, lambda now: now.curator(curator.key) is None, sentence)

    async def _outcome(self, made: Decision, holds: Callable[[Approvals], bool], sentence: str) -> Decided:
        """Whether a decision holds now, or who is waited for."""
        known, curating = await self._node.curating.known(), self._node.curating
        if holds(known):
            return Decided(sentence=sentence, done=True)
        words = await curating.reader.words(await curating.reader.look(), made)
        said = [
            key
            for spoken in words.values()
            if made in spoken.values()
            for key, word in spoken.items()
            if word.verdict == made.verdict
        ]
        if len(said) < known.threshold:
            missing = [one.name for one in known.curators if one.key not in said]
            who = f"{len(said)} of {known.threshold}; waits for {', '.join(missing)}"
            return Decided(sentence=f"noted, {who}", done=False)
        approvals = self._node.approvals
        if await approvals.until(lambda: approvals.known is not None and holds(approvals.known), _EFFECT_SECONDS):
            return Decided(sentence=sentence, done=True)
        notes = await self._unsigned(known, await curating.reader.look())
        return Decided(sentence="; ".join(("decided, but not in force yet", *notes)), done=False)

    async def _unsigned(self, known: Approvals, book: Book) -> list[str]:
        """Whose nodes have to sign what enough curators have decided."""
        names = sorted(curator_name(known, key) for key in await self._node.curating.reader.unsigned(book))
        return (
            [f"decided, and in force once nodes of these curators have signed it: {', '.join(names)}"] if names else []
        )

    async def _published(self, known: Approvals, request: DecideRequest) -> Listing:
        """What to approve or to reject; a model of this node's own store is published first."""
        curating, store = self._node.curating, self._node.store
        found = (await curating.reader.look()).published(request.name)
        if not found and request.verdict == "approve" and store.find(request.name) is not None:
            found = [await curating.publish(request.name)]
        fresh = [one.listing for one in found if known.standing(one.listing.content) == "unknown"]
        waiting = fresh or [one.listing for one in found if known.standing(one.listing.content) == "withdrawn"]
        if len(waiting) > 1:
            ids = ", ".join(f"{one.content[:_SHOWN_DIGITS]} ({one.size} bytes)" for one in waiting)
            raise FelloeError("invalid_value", f"several models were published as {request.name}; name one: {ids}")
        if not waiting:
            raise FelloeError(
                "not_found", f"nobody has published {request.name}; `felloe publish` does, where the model is"
            )
        other = known.named(waiting[0].name)
        if other is not None and request.verdict == "approve":
            raise FelloeError(
                "invalid_value",
                f"another model ({other.listing.content[:_SHOWN_DIGITS]}) is approved as {waiting[0].name}: withdraw "
                "that one first, or pull this one under another name",
            )
        return waiting[0]

    async def glance(self) -> tuple[CatalogRow, ...]:
        """What is known without waiting for hubs, for lists that are asked for often."""
        known = self._node.approvals.known
        if known is None:
            return ()
        book, words = await self._node.curating.reader.recent()
        return catalog_rows(known, words, book.publications, time.time(), self._name_of)

    async def _rows(self, known: Approvals, book: Book) -> tuple[CatalogRow, ...]:
        words = await self._node.curating.reader.words(book)
        return catalog_rows(known, words, book.publications, time.time(), self._name_of)

    def _name_of(self, node: NodeId) -> str:
        member = self._node.roster.snapshot().members.get(node)
        return node if member is None else member.record.name

    def _one(self, asked: str, rows: list[CatalogRow]) -> CatalogRow:
        if len(rows) > 1:
            ids = ", ".join(f"{row.content[:_SHOWN_DIGITS]} ({row.standing})" for row in rows)
            raise FelloeError("invalid_value", f"several models were published as {asked}; name one: {ids}")
        if not rows:
            raise FelloeError("not_found", f"nobody has published {asked}")
        return rows[0]


def _is(row: CatalogRow, asked: str) -> bool:
    return row.name == asked or (len(asked) >= 8 and row.content.startswith(asked))


def _find_curator(known: Approvals, asked: str) -> Curator:
    """The curator meant by a name, a line as `felloe curators key` prints it, or the beginning of a key."""
    wanted = asked.rpartition(":")[2]
    found = [one for one in known.curators if one.name == asked]
    found = found or [one for one in known.curators if len(wanted) >= 8 and one.key.hex().startswith(wanted)]
    if len(found) != 1:
        names = ", ".join(one.name for one in known.curators)
        raise FelloeError("not_found", f"{asked[:80]!r} is no curator; there are {names}")
    return found[0]
