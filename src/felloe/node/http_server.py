"""Runs an ASGI application on a socket inside the node's event loop; the node keeps its signal handlers."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvicorn

from felloe.domain.errors import FelloeError

logger = logging.getLogger(__name__)
_MOST_CONNECTIONS = 256


class _QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class HttpServer:
    """One listener of the operator or the peer API."""

    def __init__(self, app: Any, listener: socket.socket, *, certificate: Path | None = None, key: Path | None = None):
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=2,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._config = config
        self._certificate, self._key = certificate, key
        self._server = _QuietServer(config)
        self._listener = listener
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns when requests are taken."""
        self._config.load()
        context = self._config.ssl
        if context is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._run = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http-server")
        while not self._server.started:
            if self._run.done():
                self._run.result()
                raise FelloeError("internal", "the server ended before it started")
            await asyncio.sleep(0.005)

    def renew_certificate(self) -> None:
        """Use what the certificate file holds now for new connections."""
        if self._config.ssl is not None and self._certificate is not None:
            self._config.ssl.load_cert_chain(self._certificate, self._key)

    async def stop(self) -> None:
        """Finish running requests for at most 2 s, then close."""
        self._server.should_exit = True
        if self._run is not None:
            await self._run


def listen_on_port(host: str, port: int, purpose: str) -> socket.socket:
    """A listening TCP socket; `port_taken` names the address and what it was for."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise FelloeError("port_taken", f"{host}:{port} ({purpose}) is taken by another program") from error
        raise FelloeError("bad_config", f"cannot listen on {host}:{port} ({purpose}): {error.strerror}") from error
    return listener


def listen_on_path(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can connect to; replaces what a crash left behind."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener
