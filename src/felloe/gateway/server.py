"""The API on its listening sockets."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Answers
from felloe.gateway.access import is_loopback, start_refusal
from felloe.gateway.app import Front
from felloe.gateway.config import GatewayConfig, ListedModel, Listener, NodeStatus
from felloe.gateway.endpoints import Endpoints
from felloe.gateway.http_server import HttpServer
from felloe.gateway.inference import Inference
from felloe.gateway.keys import ApiKeys
from felloe.gateway.metrics import Metrics

_log = logging.getLogger(__name__)
_BACKLOG = 2048
_LAST_WORDS_SECONDS = 2.0


class Gateway:
    """The OpenAI-compatible API on one or several addresses.

    `models` and `status` are read for each request that shows them; `answers` gets the inference requests.
    """

    def __init__(
        self,
        config: GatewayConfig,
        answers: Answers,
        models: Callable[[], Sequence[ListedModel]],
        keys: ApiKeys,
        status: Callable[[], NodeStatus],
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._keys = keys
        self._inference = Inference(config, answers, metrics)
        self._endpoints = Endpoints(self._inference, models, status, metrics)
        self._servers: list[HttpServer] = []
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
            self._servers.append(HttpServer(front, opened, context, self._config.limits))
        for server in self._servers:
            await server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take no new requests, let running ones end for `grace_seconds`, then fail the rest with `draining`."""
        for server in self._servers:
            server.close()
        await self._inference.drain(grace_seconds)
        await asyncio.gather(*(server.stop(_LAST_WORDS_SECONDS) for server in self._servers))
        self._servers, self._addresses = [], []

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
