"""Which models this node serves: loaded at start and by command, remembered over restarts.

Nothing is loaded unless `gate` lets it pass, and what passes no more is unloaded. What is to be loaded at each start
and was refused is loaded once it may be. Servers of the owner's own are not in the store, and pass no gate.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from felloe.catalog.sources.reference import is_reference
from felloe.catalog.store import ModelStore
from felloe.console.messages import LoadRequest
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.manifest import Manifest
from felloe.domain.models import Model
from felloe.domain.plan import Part
from felloe.domain.roster import Replica
from felloe.engines.options import EngineDevice, EngineOptions
from felloe.engines.service import Engines
from felloe.host.files import write_atomic
from felloe.node.config import EngineConfig

logger = logging.getLogger(__name__)

_REFUSALS = ("not_approved", "model_withdrawn", "catalog_expired")
_ENDINGS = ("not_approved", "model_withdrawn")
"""What ends a model that is loaded; approvals that were not renewed in time keep only new ones from being loaded."""

_LATER = (*_REFUSALS, "model_not_found", "no_holder")
"""What a model to load at each start is tried again after: it may be approved, or come from a node that starts."""

_DRAIN_SECONDS, _AGAIN_SECONDS = 30.0, 30.0


class KeptModel(msgspec.Struct, frozen=True):
    """A model to load at each start, with what the owner chose for it; 0 takes the configured default."""

    name: str
    context: int = 0
    slots: int = 0


Promise = Callable[[Model, Path, EngineOptions], Awaitable[tuple[Part, ...]]]


async def _no_promise(_model: Model, _path: Path, _options: EngineOptions) -> tuple[Part, ...]:
    return ()


class Planned(Protocol):
    """What the network's plan has on this node."""

    def placed(self) -> Collection[ModelName]:
        """The names under which it is loaded here, or about to be."""
        ...

    def adopt(self, model: ModelName) -> None:
        """The owner wants this replica, whatever the plan says from now on."""
        ...


class Loading:
    """Owns `state/loaded.json`: the models to load at each start.

    `gate` raises for a manifest that may not be loaded now. What `planned` has here becomes the owner's when it is
    loaded by hand as well, and cannot be unloaded by hand. `devices` are the machine's, as engines call them; `promise`
    tells beforehand what a load will probably take up.
    """

    def __init__(
        self,
        path: Path,
        store: ModelStore,
        engines: Engines,
        config: EngineConfig,
        pull: Callable[[str], Awaitable[Model]],
        gate: Callable[[Manifest], None],
        planned: Planned | None = None,
        devices: Callable[[], tuple[EngineDevice, ...]] = tuple,
        promise: Promise = _no_promise,
    ) -> None:
        self._path = path
        self._store = store
        self._engines = engines
        self._config = config
        self._pull = pull
        self._gate = gate
        self._planned = planned
        self._devices = devices
        self._promise = promise
        self._kept = _read(path)
        self._configured: frozenset[str] = frozenset()
        self._running: dict[str, Manifest] = {}
        self._refused: dict[str, FelloeError] = {}
        self._must_end, self._may_begin = asyncio.Event(), asyncio.Event()

    async def load_all(self, configured: tuple[str, ...]) -> None:
        """Load what the configuration names and what was kept, one after the other; failures are logged."""
        self._configured = frozenset(configured)
        for model in self._at_start().values():
            await self._try(model)

    async def take_and_load_all(self, models: Sequence[str], say: Callable[[str], None]) -> None:
        """As `take_and_load`, one after the other; failures are logged, and told by `say`."""
        for model in models:
            try:
                await self.take_and_load(model)
            except FelloeError as error:
                say(f"{model} was not loaded: {error}")
                logger.error("a model was not loaded: %s", error)

    async def take_and_load(self, what: str) -> None:
        """Load a model of the store by name, or pull what a reference names first.

        One that is refused because it is not approved is loaded once it is, and at each start.
        """
        name = (await self._pull(what)).name if is_reference(what) else what
        try:
            await self.load(LoadRequest(name))
        except FelloeError as error:
            if error.code in _REFUSALS:
                self._keep([other for other in self._kept if other.name != name] + [KeptModel(name)])
                self._refused[name] = error
                self._may_begin.set()
            raise

    def approvals_changed(self) -> None:
        """Another model may be loaded now, or one no more: `run` sees to it."""
        self._must_end.set()
        self._may_begin.set()

    async def run(self) -> None:
        """Do what follows from changed approvals, for ever. A model that loads long keeps no other from its end."""
        await asyncio.gather(self._end_for_ever(), self._begin_for_ever())

    async def _end_for_ever(self) -> NoReturn:
        while True:
            await self._must_end.wait()
            self._must_end.clear()
            await asyncio.gather(*(self._end(name, manifest) for name, manifest in list(self._running.items())))

    async def _begin_for_ever(self) -> NoReturn:
        while True:
            lacks_holder = any(error.code == "no_holder" for error in self._refused.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS if lacks_holder else None):
                    await self._may_begin.wait()
            self._may_begin.clear()
            for name, model in self._at_start().items():
                if name in self._refused and name not in self.loaded():
                    await self._try(model)

    def problems(self) -> dict[str, str]:
        """Models that should be loaded here and may not be, with the reason."""
        return {name: error.detail for name, error in self._refused.items()}

    async def load(self, request: LoadRequest) -> Replica:
        """Load a model of the store; with `keep`, also at each start."""
        model = KeptModel(request.name, request.context, request.slots)
        replica = self._engines.find((await self._usable(request.name)).name)
        if replica is None:
            replica = await self._start(model)
        elif request.context or request.slots:
            raise FelloeError("invalid_value", f"{request.name} is loaded; unload it to change how")
        elif self._planned is not None:
            self._planned.adopt(replica.model.name)
        if request.keep:
            self._keep([other for other in self._kept if other.name != request.name] + [model])
        return replica

    async def unload(self, name: str, drain_seconds: float) -> None:
        """Stop serving a model, also at the next start. Raises `invalid_value` for one that the plan has here."""
        if self._planned is not None and name in self._planned.placed():
            raise FelloeError(
                "invalid_value", f"{name} is here by the network's plan; `felloe retire {name}` ends that"
            )
        was_refused = self._refused.pop(name, None) is not None
        self._keep([model for model in self._kept if model.name != name])
        if was_refused and name not in self.loaded():
            return
        await self._engines.unload(ModelName(name), drain_seconds)
        self._running.pop(name, None)

    async def _try(self, model: KeptModel) -> None:
        """Load what is loaded at each start; a failure is logged."""
        try:
            await self._start(model, forgive=False)
        except FelloeError as error:
            logger.error("%s was not loaded: %s", model.name, error)

    async def _end(self, name: str, manifest: Manifest) -> None:
        """Unload a model that may not be loaded any more; what is loaded at each start comes back when it may."""
        try:
            self._gate(manifest)
        except FelloeError as error:
            if error.code not in _ENDINGS:
                return
            logger.warning("%s is unloaded: %s", name, error)
            if name in self._at_start():
                self._refused[name] = error
            with contextlib.suppress(FelloeError):  # somebody else has unloaded it meanwhile
                await self._engines.unload(ModelName(name), _DRAIN_SECONDS)
            self._running.pop(name, None)

    async def _start(self, wanted: KeptModel, *, forgive: bool = True) -> Replica:
        try:
            replica = await self._pass_and_start(wanted, forgive)
        except FelloeError as error:
            if error.code in _LATER and wanted.name in self._at_start():
                self._refused[wanted.name] = error
            raise
        self._refused.pop(wanted.name, None)
        return replica

    async def _pass_and_start(self, wanted: KeptModel, forgive: bool) -> Replica:
        model = await self._usable(wanted.name)
        manifest = self._store.manifest_of(model.name)
        self._gate(manifest)
        options = EngineOptions(
            context=wanted.context or self._config.context,
            slots=wanted.slots or self._config.slots,
            threads=self._config.threads,
            gpu_layers=self._config.gpu_layers,
            embedding=True,
            devices=self._devices(),
            defaults=manifest.defaults,
            template=manifest.template or "",
        )
        async with self._store.in_use(model.name) as path:
            await self._store.assure(model.name)
            options = msgspec.structs.replace(options, promised=await self._promise(model, path, options))
            replica = await self._engines.load(model, path, options, forgive=forgive)
        self._running[model.name] = manifest
        # It may have been withdrawn while it was being loaded.
        self._must_end.set()
        return replica

    async def _usable(self, name: str) -> Model:
        """The model in the store. An approved one that is not here, or damaged, comes from other nodes first."""
        try:
            return self._store.usable(name)
        except FelloeError as error:
            if error.code not in ("model_not_found", "bad_model_file"):
                raise
            missing = error
        try:
            return await self._pull(name)
        except FelloeError as error:
            if error.code == "model_not_found" and missing.code == "bad_model_file":
                raise missing from error
            raise

    def loaded(self) -> frozenset[str]:
        """The names of the models that are loaded here, in whatever state."""
        return frozenset(str(replica.model.name) for replica in self._engines.replicas())

    def wanted(self) -> frozenset[str]:
        """Those, and the ones that are loaded at each start: clean-up keeps off them."""
        return self.loaded() | {model.name for model in self._kept} | self._configured

    def _at_start(self) -> dict[str, KeptModel]:
        """What is loaded at each start, by name."""
        wanted = {model.name: model for model in self._kept}
        return {name: KeptModel(name) for name in self._configured} | wanted

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
