"""The engines of this node: loads models, attaches upstream servers, answers requests. The one owner of both."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, is_model_name
from felloe.domain.models import Model
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest
from felloe.domain.roster import Replica
from felloe.engines.attachment import Attached
from felloe.engines.crashes import CrashHistory
from felloe.engines.llama_replica import LlamaReplica
from felloe.engines.options import EngineOptions, Upstream
from felloe.engines.rules import RestartPolicy
from felloe.engines.served import Served
from felloe.host.files import make_private_directory


class Engines:
    """Implements `domain.ports.Replicas`. `clock` counts seconds and never goes back; `cores` 0 means all usable.

    `crashes_path` is the file that remembers which models killed their engines; without it, it lies in `state_folder`.
    """

    def __init__(
        self,
        *,
        state_folder: Path,
        log_folder: Path,
        clock: Callable[[], float],
        cores: int = 0,
        policy: RestartPolicy | None = None,
        crashes_path: Path | None = None,
    ) -> None:
        self._state_folder = state_folder
        self._log_folder = log_folder
        self._clock = clock
        self._cores = cores
        self._policy = policy or RestartPolicy()
        crashes_path = crashes_path or state_folder / "engine-crashes.json"
        self._history = CrashHistory(crashes_path, self._policy.crash_window, clock=clock)
        self._served: dict[ModelName, Served] = {}
        self._attached: dict[str, Attached] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._closed = False

    # what is here

    def replicas(self) -> tuple[Replica, ...]:
        """What is loaded or attached here now, whatever its state."""
        return tuple(served.replica for served in self._served.values())

    def find(self, model: ModelName) -> Replica | None:
        """The ready replica for `model`, if there is one."""
        served = self._served.get(model)
        if served is None or served.draining:
            return None
        replica = served.replica
        return replica if replica.state == "ready" else None

    def problems(self) -> dict[ModelName, str]:
        """Why models are not ready that should be: crashed, in quarantine, an upstream that does not answer."""
        found = {name: served.engine.problem for name, served in self._served.items()}
        return {name: problem for name, problem in found.items() if problem}

    def process_ids(self) -> tuple[int, ...]:
        """The processes of the engines that run here now."""
        engines = [served.engine for served in self._served.values()]
        found = [engine.process_id for engine in engines if isinstance(engine, LlamaReplica)]
        return tuple(number for number in found if number is not None)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop whenever a replica comes, goes or changes its state."""
        self._callbacks.append(callback)

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()

    # answering

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Deliver the pieces, return the accounts; raises `FelloeError`. Cancelling ends the engine's work at once."""
        served = self._served.get(request.model)
        if served is None:
            raise FelloeError("model_not_found", f"no engine here serves {request.model!r}", param="model")
        replica = served.replica
        if replica.state == "draining":
            raise FelloeError("draining", f"{request.model!r} is being unloaded or started anew here", retry_after=1.0)
        if request.kind not in replica.model.capabilities:
            detail = f"{request.model!r} does not answer {request.kind} requests here"
            raise FelloeError("unsupported_capability", detail, param="model")
        served.begin()
        try:
            return await served.engine.answer(request, deliver)
        finally:
            served.end()

    # model files

    async def load(
        self,
        model: Model,
        path: Path,
        options: EngineOptions,
        *,
        forgive: bool = True,
        short: Callable[[dict[str, int]], None] = lambda _: None,
    ) -> Replica:
        """Start an engine for the file at `path` and wait until it is ready.

        Raises `already_loaded`, `bad_model_file`, `out_of_memory` or `engine_start_failed`; nothing is left behind
        then. After `out_of_memory` it told `short` how many bytes more than planned the engine wanted by device, as far
        as its log says. A replica that was given up is replaced. `forgive` says that the owner asks for it now, so that
        earlier crashes count no more; without it, a model in quarantine is not started: its replica is `failed` at
        once and `problems` tells why.
        """
        given_up = self._check_free(model.name)
        folder = make_private_directory(self._state_folder / "engines")
        make_private_directory(self._log_folder)
        label = hashlib.sha256(model.name.encode()).hexdigest()[:12]
        idle = asyncio.Event()
        engine = LlamaReplica(
            model,
            path,
            msgspec.structs.replace(options, threads=options.threads or self._cores),
            socket_path=folder / f"{label}.sock",
            log_path=self._log_folder / f"engine-{_file_label(model.name)}-{label[:6]}.log",
            clock=self._clock,
            policy=self._policy,
            history=self._history,
            idle=idle,
            on_change=self._changed,
        )
        served = self._served[model.name] = Served(engine, idle)
        try:
            if given_up is not None:
                await given_up.stop()
            await engine.start(forgive=forgive)
        except BaseException as error:
            if isinstance(error, FelloeError) and error.code == "out_of_memory":
                short(engine.short())
            if self._served.get(model.name) is served:
                del self._served[model.name]
            self._changed()
            raise
        return engine.replica

    def _check_free(self, name: ModelName) -> LlamaReplica | None:
        """Raise when `name` cannot be served anew; returns what was given up and may be replaced."""
        if self._closed:
            raise FelloeError("draining", "the engines are closed")
        if not is_model_name(name):
            raise FelloeError("invalid_value", "this cannot be a model's name", param="model")
        served = self._served.get(name)
        if served is None:
            return None
        engine = served.engine
        if isinstance(engine, LlamaReplica) and engine.replica.state == "failed" and not served.draining:
            return engine
        raise FelloeError("already_loaded", f"{name!r} is served here already", param="model")

    async def unload(self, name: ModelName, drain_seconds: float, *, forgive: bool = True) -> None:
        """Take no new request, let those under way finish for `drain_seconds`, then end the engine.

        What is still being answered then fails with `replica_lost`, so that it can go on elsewhere. With `forgive` its
        crashes count no more.
        """
        served = self._served.get(name)
        if served is None or not isinstance(served.engine, LlamaReplica):
            raise FelloeError("model_not_found", f"no model file is loaded as {name!r}", param="model")
        served.draining = True
        self._changed()
        await _drain(served, drain_seconds)
        await served.engine.stop()
        if forgive:
            await served.engine.forgive()
        if self._served.get(name) is served:
            del self._served[name]
        self._changed()

    # upstream servers

    async def attach(self, upstream: Upstream) -> tuple[Replica, ...]:
        """Serve an upstream's models from now on; they come and go as its list does.

        Raises `bad_config` or `already_loaded`. A server that does not answer now is asked again and again.
        """
        if self._closed:
            raise FelloeError("draining", "the engines are closed")
        if upstream.name in self._attached:
            raise FelloeError("already_loaded", f"the upstream {upstream.name!r} is attached already", param="name")
        attached = Attached(upstream, self._served, self._changed)
        self._attached[upstream.name] = attached
        await attached.refresh()
        attached.keep_refreshing()
        return attached.replicas()

    async def detach(self, name: str) -> None:
        """Serve this upstream's models no more; answers under way fail with `replica_lost`."""
        attached = self._attached.pop(name, None)
        if attached is None:
            raise FelloeError("not_found", f"no upstream is attached as {name!r}", param="name")
        await attached.close()

    async def close(self) -> None:
        """End every engine and forget every upstream, at once."""
        self._closed = True
        for name in list(self._attached):
            await self.detach(name)
        loaded = list(self._served.values())
        for served in loaded:
            served.draining = True
        await asyncio.gather(*(served.engine.stop() for served in loaded))
        self._served.clear()
        self._changed()


async def _drain(served: Served, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await served.idle.wait()


def _file_label(name: str) -> str:
    return "".join(character if character.isalnum() or character in "._-" else "-" for character in name)[:60]
