"""What an owner sees and does about the models in this node's store, carried out on the parts of a running node."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from felloe.catalog.rules import model_of
from felloe.catalog.store import Verified
from felloe.console.messages import NameRequest, Nothing
from felloe.console.model_messages import CleanedRow, DamagedRow, ModelRow, VerifiedRow, VerifyStep
from felloe.domain.errors import FelloeError

if TYPE_CHECKING:
    from felloe.node.node import Node


class ModelOperations:
    """Implements the console's `ModelOperations` for one node."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    async def list(self) -> "list[ModelRow]":
        """Models of the store and of every living node."""
        rows = {
            kept.entry.name: ModelRow(
                model=model_of(kept.manifest),
                stored=True,
                replicas={},
                pinned=kept.entry.pinned,
                problem=kept.problem,
            )
            for kept in self._node.store.kept()
        }
        for member in self._node.roster.snapshot().members.values():
            for replica in member.record.replicas if member.alive else ():
                row = rows.setdefault(replica.model.name, ModelRow(model=replica.model, stored=False, replicas={}))
                row.replicas[member.record.name] = replica.state
        return [rows[name] for name in sorted(rows)]

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

    async def verify(self, request: NameRequest) -> AsyncGenerator[VerifyStep, None]:
        """Read every byte of one model, or of all; ends with what was found."""
        steps: asyncio.Queue[VerifyStep] = asyncio.Queue()
        work = asyncio.ensure_future(
            self._node.store.verify(
                request.name or None, lambda done, total: steps.put_nowait(VerifyStep(done=done, total=total))
            )
        )
        work.add_done_callback(lambda _: steps.put_nowait(VerifyStep()))
        try:
            while not work.done() or not steps.empty():
                step = await steps.get()
                if step.total:
                    yield step
            yield VerifyStep(models=tuple(self._row(verified) for verified in await work))
        finally:
            work.cancel()

    def _row(self, verified: Verified) -> VerifiedRow:
        damaged = tuple(DamagedRow(file.path, file.bad_chunks) for file in verified.damaged)
        loaded = verified.name in self._node.loading.loaded()
        return VerifiedRow(name=verified.name, damaged=damaged, source=verified.source, loaded=loaded)
