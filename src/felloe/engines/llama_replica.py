"""One model file in one supervised llama.cpp child, as a replica."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.models import Model
from felloe.domain.plan import KvType
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Replica, ReplicaState
from felloe.engines import llama_api
from felloe.engines.crashes import CrashHistory
from felloe.engines.defaults import completed, usable_defaults
from felloe.engines.http_client import HttpClient, HttpError
from felloe.engines.llama import RunningEngine, llama_answer
from felloe.engines.llama_api import Properties
from felloe.engines.memory_log import environment_for, layers_on_gpus, real_parts, shortage, visible
from felloe.engines.options import DEFAULT_CONTEXT_LIMIT, ChildOptions, EngineOptions
from felloe.engines.rules import RestartPolicy
from felloe.engines.supervisor import Supervisor
from felloe.engines.suspects import Suspects

_MAGIC = b"GGUF"
_PROPERTIES_SECONDS = 30.0
_WAIT_SECONDS = 15.0
_SUSPICIOUS_CRASHES = 2
_STATES: dict[str, ReplicaState] = {
    "starting": "starting",
    "ready": "ready",
    "draining": "draining",
    "failed": "failed",
    "stopped": "failed",
}


class LlamaReplica:
    """Answers requests with one model; `start` before, `stop` after. `idle` is set while it answers none."""

    def __init__(
        self,
        model: Model,
        path: Path,
        options: EngineOptions,
        *,
        socket_path: Path,
        log_path: Path,
        clock: Callable[[], float],
        policy: RestartPolicy,
        history: CrashHistory,
        idle: asyncio.Event,
        on_change: Callable[[], None],
    ) -> None:
        embedding = options.embedding or "embedding" in model.capabilities
        if embedding and "embedding" not in model.capabilities:
            model = msgspec.structs.replace(model, capabilities=(*model.capabilities, "embedding"))
        self._model = model
        self._path = path
        self._slots = max(1, options.slots)
        self._context = options.context or min(model.context or DEFAULT_CONTEXT_LIMIT, DEFAULT_CONTEXT_LIMIT)
        self._defaults = usable_defaults(options.defaults, self._context)
        self._properties: Properties | None = None
        self._planned = options.parts
        self._parts = options.parts or options.promised
        self._kv_type: KvType = options.kv_type
        self._catching_up = asyncio.Lock()
        self._crashes = history.record(model.digest or model.name)
        self._suspects = Suspects(policy.crash_window, clock)
        split = layers_on_gpus(options.parts)
        child = ChildOptions(
            model=str(path),
            context=self._context * self._slots,
            slots=self._slots,
            threads=options.threads,
            gpu_layers=sum(split) if options.parts else options.gpu_layers,
            kv_type=options.kv_type,
            embedding=embedding,
            alias=model.name,
            template=options.template,
            split=split,
            devices=visible(options.parts, options.devices) if options.parts else options.devices,
            environment=environment_for(options.parts, options.devices),
        )
        self.supervisor = Supervisor(
            model.name,
            child,
            self,
            socket_path=socket_path,
            log_path=log_path,
            clock=clock,
            stamp=history.stamp,
            policy=policy,
            crashes=self._crashes,
            idle=idle,
            memory_limit=options.memory_limit,
            on_change=on_change,
        )

    async def prepare(self, client: HttpClient) -> None:
        """Read what a new child says about itself."""
        self._properties = await llama_api.properties(client, _PROPERTIES_SECONDS)
        self._parts = real_parts(self._planned, self.supervisor.memory_log, self.supervisor.memory())

    def buried(self, *, blame_requests: bool) -> None:
        """A child is gone; with `blame_requests` one of those that it had may be why."""
        self._suspects.engine_buried(blame=blame_requests)

    async def start(self, *, forgive: bool) -> None:
        """Raises `bad_model_file`, `out_of_memory` or `engine_start_failed`, naming the file.

        With `forgive` earlier crashes count no more; without it a model in quarantine stays there and is not started.
        """
        if forgive:
            await self._crashes.forgive()
        elif self._crashes.quarantine:
            self.supervisor.stay_down(self._crashes.quarantine)
            return
        _check_magic(self._path)
        await self.supervisor.start()

    async def stop(self) -> None:
        await self.supervisor.stop()

    async def forgive(self) -> None:
        """The owner takes the model away: its crashes count no more."""
        await self._crashes.forgive()

    @property
    def problem(self) -> str:
        return self.supervisor.problem

    @property
    def process_id(self) -> int | None:
        """The engine's process, while there is one."""
        return self.supervisor.process_id

    def short(self) -> dict[str, int]:
        """After `out_of_memory`: bytes more than planned that it wanted, by device, where that is known."""
        return shortage(self._planned, self.supervisor.memory_log.buffers())

    @property
    def replica(self) -> Replica:
        running = self._properties
        return Replica(
            model=self._model,
            engine="llama.cpp",
            state=_STATES[self.supervisor.state],
            slots=running.total_slots if running is not None else self._slots,
            context=running.default_generation_settings.n_ctx if running is not None else self._context,
            parts=self._parts,
            kv_type=self._kv_type,
        )

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Answer on the running child; what it breaks off is `replica_lost` and may go on elsewhere.

        A request that its child never got, because it was gone before, waits a little for the next one. A request that
        a child did get is not tried on the next: it may be what ended the first.
        """
        ends_at = monotonic() + request.deadline
        request = completed(request, self._defaults)
        self._refuse_suspect(request)
        begun = False

        def begin(piece: Piece) -> Awaitable[None] | None:
            nonlocal begun
            begun = True
            return deliver(piece)

        client = await self._client(ends_at)
        try:
            return await self._answer_with(client, request, begin, ends_at)
        except FelloeError as error:
            kind = error.__cause__.kind if isinstance(error.__cause__, HttpError) else None
            if kind in ("broken", "timeout") and not begun:
                self._suspects.broken_off(request)
            if kind != "connect" or begun or not await self.supervisor.replaced(client):
                raise
        client = await self._client(ends_at)
        return await self._answer_with(client, request, deliver, ends_at)

    def _refuse_suspect(self, request: InferenceRequest) -> None:
        crashes = self._suspects.crashes(request)
        if crashes >= _SUSPICIOUS_CRASHES:
            detail = f"the engine of {self._model.name} crashed {crashes} times while it answered this very request"
            raise FelloeError("engine_failed", detail)

    async def _client(self, ends_at: float) -> HttpClient:
        return await self.supervisor.client(min(_WAIT_SECONDS, max(0.001, ends_at - monotonic())))

    async def _answer_with(
        self, client: HttpClient, request: InferenceRequest, deliver: Deliver, ends_at: float
    ) -> Done:
        if self._properties is None:
            raise FelloeError("engine_failed", f"the engine of {self._model.name} is not ready")
        seconds = max(0.001, ends_at - monotonic())
        engine = RunningEngine(client, self._properties, self._catching_up)
        return await llama_answer(engine, request, deliver, seconds)


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise FelloeError("bad_model_file", f"{path.name}: cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        found = "is empty" if not magic else "is not a GGUF file"
        raise FelloeError("bad_model_file", f"{path.name}: {found}")
