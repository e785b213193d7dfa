"""Which models this node serves: loaded at start and by command, remembered over restarts."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from felloe.catalog.sources.reference import is_reference
from felloe.catalog.store import ModelStore
from felloe.console.messages import LoadRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.models import Model
from felloe.domain.roster import Replica
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines
from felloe.host.files import write_atomic
from felloe.node.config import EngineConfig

logger = logging.getLogger(__name__)


class KeptModel(msgspec.Struct, frozen=True):
    """A model to load at each start, with what the owner chose for it; 0 takes the configured default."""

    name: str
    context: int = 0
    slots: int = 0


class Loading:
    """Owns `state/loaded.json`: the models to load at each start."""

    def __init__(
        self,
        path: Path,
        store: ModelStore,
        engines: Engines,
        config: EngineConfig,
        pull: Callable[[str], Awaitable[Model]],
    ) -> None:
        self._path = path
        self._store = store
        self._engines = engines
        self._config = config
        self._pull = pull
        self._kept = _read(path)
        self._configured: frozenset[str] = frozenset()

    async def load_all(self, configured: tuple[str, ...]) -> None:
        """Load what the configuration names and what was kept, one after the other; failures are logged."""
        self._configured = frozenset(configured)
        wanted = {model.name: model for model in self._kept}
        for name in configured:
            wanted.setdefault(name, KeptModel(name))
        for model in wanted.values():
            try:
                await self._start(model, forgive=False)
            except FelloeError as error:
                logger.error("%s was not loaded: %s", model.name, error)

    async def take_and_load(self, what: str) -> None:
        """Load a model of the store by name, or pull what a reference names first."""
        name = (await self._pull(what)).name if is_reference(what) else what
        await self.load(LoadRequest(name))

    async def load(self, request: LoadRequest) -> Replica:
        """Load a model of the store; with `keep`, also at each start."""
        model = KeptModel(request.name, request.context, request.slots)
        replica = self._engines.find(self._store.usable(request.name).name)
        if replica is None:
            replica = await self._start(model)
        elif request.context or request.slots:
            raise FelloeError("invalid_value", f"{request.name} is loaded; unload it to change how")
        if request.keep:
            self._keep([other for other in self._kept if other.name != request.name] + [model])
        return replica

    async def unload(self, name: str, drain_seconds: float) -> None:
        """Stop serving a model, also at the next start."""
        self._keep([model for model in self._kept if model.name != name])
        await self._engines.unload(ModelName(name), drain_seconds)

    async def _start(self, wanted: KeptModel, *, forgive: bool = True) -> Replica:
        model = self._store.usable(wanted.name)
        options = EngineOptions(
            context=wanted.context or self._config.context,
            slots=wanted.slots or self._config.slots,
            threads=self._config.threads,
            gpu_layers=self._config.gpu_layers,
            embedding=True,
        )
        async with self._store.in_use(model.name) as path:
            return await self._engines.load(model, path, options, forgive=forgive)

    def loaded(self) -> frozenset[str]:
        """The names of the models that are loaded here, in whatever state."""
        return frozenset(str(replica.model.name) for replica in self._engines.replicas())

    def wanted(self) -> frozenset[str]:
        """Those, and the ones that are loaded at each start: clean-up keeps off them."""
        return self.loaded() | {model.name for model in self._kept} | self._configured

    def _keep(self, models: list[KeptModel]) -> None:
        if models != self._kept:
            write_atomic(self._path, msgspec.json.encode(models))
            self._kept = models


def _read(path: Path) -> list[KeptModel]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[KeptModel])
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", f"{path} is damaged") from error
