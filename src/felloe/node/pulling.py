"""Pulls models for the owner and for the start of the node, with the secrets of whoever asks."""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping

from felloe.catalog.sources.credentials import SECRET_VARIABLES
from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.sources.service import Sources
from felloe.catalog.store import ModelStore
from felloe.console.messages import Progress, PullRequest
from felloe.domain.models import Model


class Pulling:
    """Tells how far a pull has come. When nobody listens any more it ends, and the store keeps what came."""

    def __init__(self, sources: Sources, store: ModelStore, environment: Mapping[str, str] = os.environ) -> None:
        self._sources = sources
        self._store = store
        self._environment = environment

    async def steps(self, request: PullRequest) -> AsyncGenerator[Progress, None]:
        """The steps of one pull; the last has the model. Raises what `Sources.pull` raises."""
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        work = asyncio.create_task(self._pull(request, steps))
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
            model = await work
            yield Progress(model.size, model.size, model)
        finally:
            work.cancel()

    async def take(self, reference: str) -> Model:
        """Pull without telling anybody how far it is."""
        secrets = self._secrets({})
        return await self._sources.pull(reference, name=None, environment=secrets, report=lambda _: None)

    async def _pull(self, request: PullRequest, steps: asyncio.Queue[Progress | None]) -> Model:
        model = await self._sources.pull(
            request.reference,
            name=request.name or None,
            environment=self._secrets(request.secrets),
            report=lambda step: steps.put_nowait(_step(step)),
        )
        if request.pin:
            await self._store.set_pinned(model.name, True)
        return model

    def _secrets(self, given: Mapping[str, str]) -> dict[str, str]:
        """The user's own before the node's."""
        both = {**self._environment, **given}
        return {variable: both[variable] for variable in SECRET_VARIABLES if both.get(variable)}


def _step(step: PullProgress) -> Progress:
    return Progress(step.done, step.total, file=step.file, rate=step.rate, eta=step.eta, note=step.note)
