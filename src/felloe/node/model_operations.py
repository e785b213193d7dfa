"""What an owner sees and does about the models in this node's store, carried out on the parts of a running node."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from felloe.catalog.manifests import content_id
from felloe.catalog.rules import model_of
from felloe.catalog.sources.front import layout_of_file
from felloe.catalog.store import Verified
from felloe.console.catalog_messages import CatalogRow
from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import CleanedRow, DamagedRow, ModelRow, VerifiedRow, VerifyStep
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.models import Model
from felloe.domain.roster import HELD_DIGITS
from felloe.node.catalog_operations import CatalogOperations
from felloe.placement.shape import Shape, shape_of

if TYPE_CHECKING:
    from felloe.node.node import Node

_SHAPE_TRIES, _SHAPE_PAUSE_SECONDS = 200, 0.1


class ModelOperations:
    """Implements the console's `ModelOperations` for one node."""

    def __init__(self, node: "Node", catalog: CatalogOperations) -> None:
        self._node = node
        self._catalog = catalog

    async def list(self) -> "list[ModelRow]":
        """Models of the store and of every living node."""
        approvals = await self._catalog.glance()
        by_content = {row.content: row for row in approvals}
        by_name = {row.name: row for row in approvals if row.standing in ("approved", "expired")}
        rows = {
            kept.entry.name: ModelRow(
                model=model_of(kept.manifest),
                stored=True,
                replicas={},
                held_by=self._holders(content := content_id(kept.manifest)),
                pinned=kept.entry.pinned,
                problem=kept.problem,
                approval=by_content.get(content),
            )
            for kept in self._node.store.kept()
        }
        for member in self._node.roster.snapshot().members.values():
            for replica in member.record.replicas if member.alive else ():
                model = replica.model
                # What only an upstream server knows needs no approval.
                row = rows.setdefault(
                    model.name, self._elsewhere(model, by_name.get(model.name) if model.digest else None)
                )
                row.replicas[member.record.name] = replica.state
        for row in by_name.values():
            if row.name not in rows and self._holders(row.content):
                rows[ModelName(row.name)] = self._elsewhere(_listed(row), row)
        return [rows[name] for name in sorted(rows)]

    def _elsewhere(self, model: Model, approval: CatalogRow | None) -> ModelRow:
        held_by = () if approval is None else self._holders(approval.content)
        return ModelRow(model=model, stored=False, replicas={}, held_by=held_by, approval=approval)

    def _holders(self, content: str) -> tuple[str, ...]:
        """The other living nodes that say that they have this content, by name."""
        roster = self._node.roster.snapshot()
        return tuple(
            sorted(
                member.record.name
                for node, member in roster.members.items()
                if member.alive and node != roster.this and content[:HELD_DIGITS] in member.record.holds
            )
        )

    async def remove(self, request: NameRequest) -> Nothing:
        """Delete a model from the store; one that is loaded is refused."""
        if request.name in self._node.loading.loaded():
            raise FelloeError("invalid_value", f"{request.name} is loaded; `felloe unload {request.name}` first")
        await self._node.store.remove(request.name)
        return Nothing()

    async def pin(self, request: NameRequest) -> Nothing:
        """Have clean-up keep a model."""
        await self._node.store.set_pinned(request.name, True)
        return Nothing()

    async def unpin(self, request: NameRequest) -> Nothing:
        """Let clean-up delete it when room is needed."""
        await self._node.store.set_pinned(request.name, False)
        return Nothing()

    async def clean(self, request: Nothing) -> CleanedRow:
        """Delete leftovers, then models until the quota is kept."""
        cleaned = await self._node.store.clean()
        return CleanedRow(tuple(cleaned.models), cleaned.freed)

    async def shape(self, request: NameRequest) -> Shape:
        """What a stored or approved model weighs by layer; the front of one that is elsewhere comes from its holders.

        Raises `model_not_found`, and `no_holder` when nobody gives the front in time.
        """
        if self._node.store.find(request.name) is not None:
            return shape_of(await layout_of_file(self._node.store.path_of(request.name)))
        known = self._node.approvals.known
        approved = None if known is None else known.named(request.name)
        if approved is None:
            raise FelloeError("model_not_found", f"no model {request.name} is stored here or approved")
        content, shapes = approved.listing.content, self._node.placing.shapes
        for _ in range(_SHAPE_TRIES):
            if (shape := shapes.find(content)) is not None:
                return shape
            await asyncio.sleep(_SHAPE_PAUSE_SECONDS)
        why = shapes.problem(content) or "its front did not come in time"
        raise FelloeError("no_holder", f"{request.name}: {why}")

    async def verify(self, request: NameRequest) -> AsyncGenerator[VerifyStep, None]:
        """Read every byte of one model, or of all, and repair what other nodes have; ends with what was found."""
        steps: asyncio.Queue[VerifyStep] = asyncio.Queue()
        work = asyncio.ensure_future(
            self._verified(
                request.name or None, lambda done, total: steps.put_nowait(VerifyStep(done=done, total=total))
            )
        )
        work.add_done_callback(lambda _: steps.put_nowait(VerifyStep()))
        try:
            while not work.done() or not steps.empty():
                step = await steps.get()
                if step.total:
                    yield step
            yield VerifyStep(models=await work)
        finally:
            work.cancel()

    async def _verified(self, name: str | None, told: Callable[[int, int], None]) -> tuple[VerifiedRow, ...]:
        rows = [self._row(verified) for verified in await self._node.store.verify(name, told)]
        for place, row in enumerate(rows):
            if row.damaged:
                rows[place] = replace(row, repaired=await self._node.transfer.repair(row.name, told))
        return tuple(rows)

    def _row(self, verified: Verified) -> VerifiedRow:
        damaged = tuple(DamagedRow(file.path, file.bad_chunks) for file in verified.damaged)
        loaded = verified.name in self._node.loading.loaded()
        return VerifiedRow(name=verified.name, damaged=damaged, source=verified.source, loaded=loaded)


def _listed(row: CatalogRow) -> Model:
    """What a catalogue says of a model that is on other nodes only."""
    return Model(
        name=ModelName(row.name),
        digest="",
        size=row.size,
        architecture=row.architecture,
        quantisation=row.quantisation,
        context=0,
        capabilities=(),
    )
