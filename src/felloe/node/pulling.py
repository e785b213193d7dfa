"""Pulls models for the owner and for the start of the node, with the secrets of whoever asks."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping

from felloe.catalog.sources.credentials import SECRET_VARIABLES
from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.sources.reference import FileReference, is_reference, parse_reference
from felloe.catalog.sources.service import Sources
from felloe.catalog.store import ModelStore
from felloe.console.messages import Progress, PullRequest, PullRow
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName
from felloe.domain.models import Model

Report = Callable[[PullProgress], None]


class Pulling:
    """Tells how far a pull has come. When nobody listens any more it ends, and the store keeps what came.

    `arrived` is told of each model that came from a source, and answers in a sentence what the network says to it.
    `from_peers` brings what is approved by its name, or by the beginning of its content id.
    """

    def __init__(
        self,
        sources: Sources,
        store: ModelStore,
        arrived: Callable[[ModelName], Awaitable[str]],
        from_peers: Callable[[str, Report], Awaitable[Model]],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._sources = sources
        self._store = store
        self._arrived = arrived
        self._from_peers = from_peers
        self._environment = environment
        self._running: dict[object, PullRow] = {}

    def running(self) -> tuple[PullRow, ...]:
        """What is on its way now, the oldest first."""
        return tuple(self._running.values())

    @contextlib.contextmanager
    def shown(self, what: str) -> Generator[Report]:
        """Show `what` among the running pulls; its progress goes to the function that this gives."""
        mark = object()

        def report(step: PullProgress) -> None:
            self._running[mark] = PullRow(
                reference=what,
                file=step.file,
                done=step.done,
                total=step.total,
                rate=step.rate,
                eta=step.eta,
                note=step.note,
            )

        report(PullProgress())
        try:
            yield report
        finally:
            del self._running[mark]

    async def steps(self, request: PullRequest) -> AsyncGenerator[Progress, None]:
        """The steps of one pull; the last has the model. Raises what `Sources.pull` raises."""
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        work = asyncio.create_task(self._pull(request, steps))
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
            model = await work
            approval = await self._arrived(model.name) if is_reference(request.reference) else ""
            yield Progress(model.size, model.size, model, approval=approval)
        finally:
            work.cancel()

    async def take(self, reference: str) -> Model:
        """Pull without telling anybody how far it is."""
        model = await self._take(reference, None, {}, lambda _: None)
        if is_reference(reference):
            await self._arrived(model.name)
        return model

    async def bring(self, content: ContentId, report: Report) -> Model:
        """Bring an approved model here by its content id; `report` hears how far it is."""
        return await self._take(content, None, {}, report)

    async def _pull(self, request: PullRequest, steps: asyncio.Queue[Progress | None]) -> Model:
        model = await self._take(
            request.reference,
            request.name or None,
            request.secrets,
            lambda step: steps.put_nowait(_step(step)),
        )
        if request.pin:
            await self._store.set_pinned(model.name, True)
        return model

    async def _take(self, reference: str, name: str | None, secrets: Mapping[str, str], report: Report) -> Model:
        with self.shown(_named(reference)) as show:

            def told(step: PullProgress) -> None:
                show(step)
                report(step)

            if not is_reference(reference):
                if name is not None:
                    raise FelloeError("invalid_value", "a model keeps the name that it is approved by", param="name")
                return await self._from_peers(reference, told)
            return await self._sources.pull(reference, name=name, environment=self._secrets(secrets), report=told)

    def _secrets(self, given: Mapping[str, str]) -> dict[str, str]:
        """The user's own before the node's."""
        both = {**self._environment, **given}
        return {variable: both[variable] for variable in SECRET_VARIABLES if both.get(variable)}


def _named(reference: str) -> str:
    """What is pulled, without what may be secret in it."""
    parsed = parse_reference(reference)
    return parsed.path if isinstance(parsed, FileReference) else parsed.text


def _step(step: PullProgress) -> Progress:
    return Progress(step.done, step.total, file=step.file, rate=step.rate, eta=step.eta, note=step.note)
