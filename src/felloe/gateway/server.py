"""The listening sockets and their life: uvicorn inside the caller's event loop, without its signal handlers."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Generator, Sequence

import uvicorn

from felloe.domain.errors import FelloeError
from felloe.domain.models import Model
from felloe.domain.ports import Answers
from felloe.gateway.access import is_loopback, start_refusal
from felloe.gateway.app import Front
from felloe.gateway.config import GatewayConfig, Limits, Listener, NodeStatus
from felloe.gateway.endpoints import Endpoints
from felloe.gateway.inference import Inference
from felloe.gateway.keys import ApiKeys
from felloe.gateway.metrics import Metrics
from felloe.gateway.protocol import protocol_factory

_log = logging.getLogger(__name__)
_BACKLOG = 2048
_LAST_WORDS_SECONDS = 2.0
_POLL_SECONDS = 0.01


class Gateway:
    """The OpenAI-compatible API on one or several addresses.

    `models` and `status` are read for each request that shows them; `answers` gets the inference requests.
    """

    def __init__(
        self,
        config: GatewayConfig,
        answers: Answers,
        models: Callable[[], Sequence[Model]],
        keys: ApiKeys,
        status: Callable[[], NodeStatus],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._keys = keys
        self._inference = Inference(config, answers, metrics)
        self._endpoints = Endpoints(self._inference, models, status, metrics)
        self._servers: list[_Server] = []
        self._runs: list[asyncio.Task[None]] = []
        self._addresses: list[str] = []

    async def start(self) -> None:
        """Open every listener, or none.

        Raises `port_taken` naming host and port, and `bad_config` for an address without TLS or keys that needs them.
        """
        prepared: list[tuple[Listener, socket.socket, ssl.SSLContext | None]] = []
        try:
            for listener in self._config.listeners:
                refusal = start_refusal(listener, any_key=self._keys.any())
                if refusal is not None:
                    raise FelloeError("bad_config", refusal)
                context = _tls_context(listener)
                prepared.append((listener, _bind(listener), context))
        except BaseException:
            for _, opened, _ in prepared:
                opened.close()
            raise
        for listener, opened, context in prepared:
            self._addresses.append(_url(listener, opened, secure=context is not None))
            secure, loopback = context is not None, is_loopback(listener.host)
            front = Front(self._config, self._endpoints, self._keys, secure=secure, loopback=loopback)
            server = _Server(_uvicorn_config(front, self._config.limits), opened, context, self._config.limits)
            self._servers.append(server)
            self._runs.append(asyncio.create_task(server.serve(), name="gateway listener"))
        for server, run in zip(self._servers, self._runs, strict=True):
            await _either(server.opened, run)

    async def stop(self, grace_seconds: float) -> None:
        """Take no new requests, let running ones end for `grace_seconds`, then fail the rest with `draining`."""
        for server in self._servers:
            server.close()
        await self._inference.drain(grace_seconds)
        if self._runs:
            _, late = await asyncio.wait(self._runs, timeout=_LAST_WORDS_SECONDS)
            for server in self._servers:
                server.abort_connections()
            for run in late:
                run.cancel()
            await asyncio.gather(*self._runs, return_exceptions=True)
        self._servers, self._runs, self._addresses = [], [], []

    @property
    def base_urls(self) -> tuple[str, ...]:
        """What to give an OpenAI client as base URL, one for each listener, ending in `/v1`."""
        return tuple(self._addresses)

    @property
    def base_url(self) -> str:
        """The first listener's base URL. Raises `not_running` before `start`."""
        if not self._addresses:
            raise FelloeError("not_running", "the gateway is not listening")
        return self._addresses[0]


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


def _uvicorn_config(front: Front, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        front,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(limits.idle_seconds),
    )


def _bind(listener: Listener) -> socket.socket:
    host = "127.0.0.1" if listener.host == "localhost" else listener.host
    where = f"{listener.host}:{listener.port}"
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setblocking(False)
        opened.bind((host, listener.port))
        opened.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        opened.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise FelloeError("port_taken", f"another program listens on {where}") from error
        raise FelloeError("bad_config", f"cannot listen on {where}: {error}") from error
    return opened


def _tls_context(listener: Listener) -> ssl.SSLContext | None:
    if listener.certificate is None or listener.private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An encrypted key must not make the program ask on the terminal.
        context.load_cert_chain(listener.certificate, listener.private_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        names = f"{listener.certificate} and {listener.private_key}"
        raise FelloeError("bad_config", f"cannot use {names} for TLS: {error}") from error
    return context


def _url(listener: Listener, opened: socket.socket, *, secure: bool) -> str:
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    return f"{'https' if secure else 'http'}://{host}:{opened.getsockname()[1]}/v1"


async def _either(event: asyncio.Event, run: "asyncio.Task[None]") -> None:
    """Wait for the event; if the task ends first, raise what ended it."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((waiting, run), return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            run.result()
    finally:
        waiting.cancel()
