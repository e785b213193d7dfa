"""Real message servers for tests, on ports that the system chooses."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.host.processes import end, spawn
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.credentials import Credential
from felloe.mesh.nats_server import NatsServer, Place
from felloe.mesh.server_config import MessageSettings, Routes, TlsFiles, render_message_config


def message_settings(
    authority: NetworkAuthority, key: Ed25519PrivateKey, credential: Credential, folder: Path, name: str = "hub"
) -> MessageSettings:
    """A hub's settings, and its keys in files of `folder`."""
    files = TlsFiles(certificate=folder / "hub.pem", key=folder / "hub.key", authorities=folder / "authorities.pem")
    files.certificate.write_text(credential.certificate)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.authorities.write_text(authority.issuer)
    return MessageSettings(
        name=name,
        host="127.0.0.1",
        directory=folder / "nats",
        log=folder / "nats.log",
        tls=files,
        operator=authority.operator_token,
        system_account=authority.system_account,
    )


def message_server(
    authority: NetworkAuthority,
    settings: MessageSettings,
    *,
    port: int = 0,
    revoked: Mapping[bytes, float] | None = None,
    routes: Callable[[], Routes | None] = lambda: None,
    now: Callable[[], float] = time.time,
) -> NatsServer:
    """A server that is not started yet."""

    def render(listening: int) -> str:
        accounts = authority.account_tokens(now(), revoked or {})
        return render_message_config(settings, listening, accounts, routes())

    place = Place(host=settings.host, port=port, directory=settings.directory, log=settings.log)
    return NatsServer(place, render, spawn=spawn, end=end)
