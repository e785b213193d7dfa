"""One model file in one supervised llama.cpp child, as a replica."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.models import Model
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Replica, ReplicaState
from felloe.engines import llama_api
from felloe.engines.http_client import HttpClient
from felloe.engines.llama import RunningEngine, llama_answer
from felloe.engines.llama_api import Properties
from felloe.engines.options import DEFAULT_CONTEXT_LIMIT, ChildOptions, EngineOptions
from felloe.engines.rules import RestartPolicy
from felloe.engines.supervisor import Supervisor

_MAGIC = b"GGUF"
_PROPERTIES_SECONDS = 30.0
_STATES: dict[str, ReplicaState] = {"starting": "starting", "ready": "ready", "failed": "failed", "stopped": "failed"}


class LlamaReplica:
    """Answers requests with one model; `start` before, `stop` after."""

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
        on_change: Callable[[], None],
    ) -> None:
        embedding = options.embedding or "embedding" in model.capabilities
        if embedding and "embedding" not in model.capabilities:
            model = msgspec.structs.replace(model, capabilities=(*model.capabilities, "embedding"))
        self._model = model
        self._path = path
        self._slots = max(1, options.slots)
        self._context = options.context or min(model.context or DEFAULT_CONTEXT_LIMIT, DEFAULT_CONTEXT_LIMIT)
        self._properties: Properties | None = None
        self._catching_up = asyncio.Lock()
        child = ChildOptions(
            model=str(path),
            context=self._context * self._slots,
            slots=self._slots,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            kv_type=options.kv_type,
            embedding=embedding,
            alias=model.name,
        )
        self.supervisor = Supervisor(
            model.name,
            child,
            socket_path=socket_path,
            log_path=log_path,
            clock=clock,
            policy=policy,
            prepare=self._read_properties,
            on_change=on_change,
        )

    async def _read_properties(self, client: HttpClient) -> None:
        self._properties = await llama_api.properties(client, _PROPERTIES_SECONDS)

    async def start(self) -> None:
        """Raises `bad_model_file` or `engine_start_failed`, naming the file."""
        _check_magic(self._path)
        await self.supervisor.start()

    async def stop(self) -> None:
        await self.supervisor.stop()

    @property
    def replica(self) -> Replica:
        running = self._properties
        return Replica(
            model=self._model,
            engine="llama.cpp",
            state=_STATES[self.supervisor.state],
            slots=running.total_slots if running is not None else self._slots,
            context=running.default_generation_settings.n_ctx if running is not None else self._context,
        )

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Waits for the engine while it starts again, within the request's deadline.

        An engine that was gone before it began to answer is waited for once; later the answer is `replica_lost`.
        """
        ends_at = monotonic() + request.deadline
        begun = False

        def begin(piece: Piece) -> Awaitable[None] | None:
            nonlocal begun
            begun = True
            return deliver(piece)

        client = await self.supervisor.client(max(0.001, ends_at - monotonic()))
        try:
            return await self._answer_with(client, request, begin, ends_at)
        except FelloeError as error:
            if error.code != "replica_lost" or begun or not await self.supervisor.replaced(client):
                raise
        client = await self.supervisor.client(max(0.001, ends_at - monotonic()))
        return await self._answer_with(client, request, deliver, ends_at)

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
