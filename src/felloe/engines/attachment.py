"""One attached upstream server: keeps the models that it lists among the served ones."""

import asyncio
import logging
import time
from collections.abc import Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest
from felloe.domain.roster import Replica, ReplicaState
from felloe.engines.options import Upstream
from felloe.engines.served import Served
from felloe.engines.upstream import ListedModel, UpstreamServer, as_model

_log = logging.getLogger(__name__)


class _UpstreamModel:
    """One model of an upstream server."""

    def __init__(self, server: UpstreamServer, upstream: Upstream, listed: ListedModel) -> None:
        self._server = server
        self._upstream = upstream
        self._model = as_model(listed, int(time.time()))
        self.state: ReplicaState = "ready"
        self.problem = ""

    @property
    def replica(self) -> Replica:
        return Replica(
            model=self._model,
            engine=f"upstream:{self._upstream.name}",
            state=self.state,
            slots=self._upstream.slots,
            context=self._model.context,
        )

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        return await self._server.answer(request, deliver)

    async def stop(self) -> None:
        """The server is not ours to stop."""


class Attached:
    """One upstream server: keeps what it lists among the served models."""

    def __init__(self, upstream: Upstream, served: dict[ModelName, Served], changed: Callable[[], None]) -> None:
        self._upstream = upstream
        self._server = UpstreamServer(upstream)
        self._served = served
        self._changed = changed
        self._mine: dict[ModelName, _UpstreamModel] = {}
        self._refresher: asyncio.Task[None] | None = None

    def replicas(self) -> tuple[Replica, ...]:
        return tuple(each.replica for each in self._mine.values())

    def keep_refreshing(self) -> None:
        self._refresher = asyncio.create_task(self._refresh_forever(), name=f"upstream {self._upstream.name}")

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(self._upstream.refresh_seconds)
            await self.refresh()

    async def refresh(self) -> None:
        before = self.replicas()
        try:
            listed = await self._server.models()
        except FelloeError as error:
            if not before or any(each.state == "ready" for each in before):
                _log.warning("%s", error.detail)
            for model in self._mine.values():
                model.state = "failed"
                model.problem = error.detail
        else:
            self._take_over(listed)
        if self.replicas() != before:
            self._changed()

    def _take_over(self, listed: list[ListedModel]) -> None:
        wanted = {
            ModelName(each.id): each for each in listed if not self._upstream.models or each.id in self._upstream.models
        }
        for name in [name for name in self._mine if name not in wanted]:
            del self._mine[name], self._served[name]
        for name, model in wanted.items():
            if name in self._mine:
                self._mine[name].state = "ready"
                self._mine[name].problem = ""
            elif name in self._served:
                _log.info("the upstream %s lists %s, which is served here already", self._upstream.name, name)
            else:
                self._mine[name] = _UpstreamModel(self._server, self._upstream, model)
                self._served[name] = Served(self._mine[name])

    async def close(self) -> None:
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        for name in self._mine:
            self._served.pop(name, None)
        self._mine.clear()
        await self._server.close()
        self._changed()
