"""Listeners that only a node has: the operator API on a unix socket, a hub's peer API with its certificate."""

import errno
import socket
import ssl
from pathlib import Path
from typing import Any

from felloe.domain.errors import FelloeError
from felloe.gateway.config import Limits
from felloe.gateway.http_server import HttpServer

_STOP_SECONDS = 2.0
_MOST_CONNECTIONS = 256
_LIMITS = Limits(connections=_MOST_CONNECTIONS, header_bytes=16 * 1024, idle_seconds=10.0)


class NodeServer:
    """An application on one of the node's own sockets; with a certificate, in TLS 1.3."""

    def __init__(self, app: Any, listener: socket.socket, certificate: tuple[Path, Path] | None = None) -> None:
        self._certificate = certificate
        self._context = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._context is not None:
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
            self.renew_certificate()
        self._server = HttpServer(app, listener, self._context, _LIMITS)

    async def start(self) -> None:
        """Take requests when this returns."""
        await self._server.start()

    def renew_certificate(self) -> None:
        """Use what the certificate file holds now for new connections."""
        if self._context is not None and self._certificate is not None:
            self._context.load_cert_chain(*self._certificate)

    async def stop(self) -> None:
        """Finish running requests for at most 2 s, then close."""
        await self._server.stop(_STOP_SECONDS)


def listen_on_port(host: str, port: int, purpose: str) -> socket.socket:
    """A listening TCP socket; `port_taken` names the address and what it was for."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
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
    listener.setblocking(False)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener
