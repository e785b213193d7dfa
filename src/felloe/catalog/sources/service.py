"""Pulls a model: asks the source what a reference stands for, fetches what is missing, hands the whole to the store."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import partial

import httpx

from felloe.catalog.incoming import Incoming
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.sources.download import Download, Told
from felloe.catalog.sources.file import copy_file
from felloe.catalog.sources.plan import Plan, RemoteFile
from felloe.catalog.sources.planning import address_rules, plan_reference
from felloe.catalog.sources.progress import Meter, PullProgress
from felloe.catalog.sources.reference import parse_reference
from felloe.catalog.sources.settings import Limits, SourceSettings
from felloe.catalog.sources.web import Credentials, Web
from felloe.catalog.store import ModelStore
from felloe.domain.models import Model

Report = Callable[[PullProgress], None]


class Sources:
    """All the sources that this node can pull from. Keeps nothing between pulls."""

    def __init__(
        self,
        settings: SourceSettings,
        store: ModelStore,
        *,
        agent: str,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`agent` is the User-Agent that servers see; `tls` replaces the system's trust, for servers of one's own."""
        self._settings = settings
        self._store = store
        self._agent = agent
        self._limits = limits or Limits()
        self._tls = tls
        self._rules = address_rules(settings)

    async def pull(self, text: str, *, name: str | None, environment: Mapping[str, str], report: Report) -> Model:
        """Bring the model that the reference `text` names into the store and return it.

        `environment` holds the secrets. Cancelled or failed, it keeps what came, and the next pull goes on there.
        Raises `invalid_value` for a reference that cannot be read, and what sources and the store raise.
        """
        reference = parse_reference(text)
        meter = Meter()
        if self._tls is None:
            # Reading the system's certificates takes a while, so not in the event loop, and once.
            self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        web = Web(
            self._rules,
            self._limits,
            agent=self._agent,
            tls=self._tls,
            told=lambda note: report(meter.waiting(note)),
        )
        try:
            plan, credentials = await plan_reference(reference, web, self._settings, environment)
            meter.expect({file.path: file.size or 0 for file in plan.files})
            taken = await self._fetch(plan, web, credentials, lambda file: _told(meter, file, report))
        finally:
            await web.close()
        return await self._store.accept(name, taken, _facts(plan))

    async def _fetch(
        self, plan: Plan, web: Web, credentials: Credentials, told: Callable[[RemoteFile], Told]
    ) -> list[TakenFile]:
        blobs = self._store.blobs
        later = sum(file.size or 0 for file in plan.files)
        taken: list[TakenFile] = []
        for file in plan.files:
            later -= file.size or 0
            room = partial(self._make_room, later)
            if file.local:
                blob = await copy_file(file, blobs, told(file), room)
            else:
                blob = await Download(file, web, credentials, blobs, self._limits, told(file), room).run()
            taken.append(TakenFile(file.path, file.role, blob))
        return taken

    async def _make_room(self, later: int, size: int, incoming: Incoming) -> None:
        """Room for a file and for those that come after it, so that a pull that cannot end does not begin."""
        await self._store.make_room(size + later, incoming)


def _facts(plan: Plan) -> Facts:
    return Facts(
        template=plan.template,
        parameters=plan.parameters,
        licence=plan.licence,
        source=plan.source,
        revision=plan.revision,
    )


def _told(meter: Meter, file: RemoteFile, report: Report) -> Told:
    clock = asyncio.get_running_loop().time

    def told(done: int, size: int) -> None:
        due = meter.length(file.path, done, size, clock())
        if due is not None:
            report(due)

    return told
