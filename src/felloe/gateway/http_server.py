"""An ASGI application on a listening socket: uvicorn in the caller's event loop, bounded, without signal handlers."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any

import uvicorn

from felloe.gateway.config import Limits
from felloe.gateway.protocol import protocol_factory

_BACKLOG = 2048
_POLL_SECONDS = 0.01


class HttpServer:
    """One listener from `start` to `stop`. The API, the peer API of hubs and the operator API each have their own."""

    def __init__(self, app: Any, listener: socket.socket, context: ssl.SSLContext | None, limits: Limits) -> None:
        self._server = _Server(_uvicorn_config(app, limits), listener, context, limits)
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take requests when this returns."""
        self._run = asyncio.create_task(self._server.serve(), name="http server")
        await _either(self._server.opened, self._run)

    def close(self) -> None:
        """Stop listening; requests that run go on."""
        self._server.close()

    async def stop(self, grace_seconds: float) -> None:
        """Stop listening, wait for what runs, then cut what is left."""
        self._server.close()
        if self._run is None:
            return
        await asyncio.wait((self._run,), timeout=grace_seconds)
        self._server.abort_connections()
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)
        self._run = None


class _Server(uvicorn.Server):
    """One listener. Stops when told and leaves signals to the program."""

    def __init__(
        self, config: uvicorn.Config, opened: socket.socket, context: ssl.SSLContext | None, limits: Limits
    ) -> None:
        super().__init__(config)
        self.opened = asyncio.Event()
        self._socket = opened
        self._context = context
        self._limits = limits
        self._closing = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        server = await asyncio.get_running_loop().create_server(
            protocol_factory(self.config, self.server_state, self._limits),
            sock=self._socket,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.handshake_seconds if self._context is not None else None,
            backlog=_BACKLOG,
        )
        self.servers = [server]
        self.started = True
        self.opened.set()

    async def main_loop(self) -> None:
        """Keep the Date header fresh until `close`; uvicorn's own loop wakes ten times a second."""
        while not self._closing.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the idle connections at once and the others as they end; uvicorn's own sleeps in between."""
        for server in self.servers:
            server.close()
        while not self.force_exit:
            for connection in list(self.server_state.connections):
                connection.shutdown()
            # Also gives a connection that was being accepted the time to appear.
            await asyncio.sleep(_POLL_SECONDS)
            if not self.server_state.connections and not self.server_state.tasks:
                break

    def close(self) -> None:
        """Stop listening; `serve` returns once the connections are gone."""
        self.should_exit = True
        self._closing.set()

    def abort_connections(self) -> None:
        """Cut what is left, without waiting for clients."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _uvicorn_config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.idle_seconds),
    )


async def _either(event: asyncio.Event, run: "asyncio.Task[None]") -> None:
    """Wait for the event; if the task ends first, raise what ended it."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((waiting, run), return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            run.result()
    finally:
        waiting.cancel()
