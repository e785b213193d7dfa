"""What the configurations of a hub's two nats-servers say. The user never sees them.

The message server carries what nodes say to each other: TLS only, one operator, no storage, no monitoring port. The
state server keeps what the hubs must not lose: JetStream, clients on loopback alone, one user with a password that is
new at each start. Both meet their like on other hubs over mutual TLS that knows the hubs' very keys.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from felloe.domain.errors import FelloeError
from felloe.mesh.permissions import MAXIMUM_PAYLOAD

STATE_USER = "hub"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files: the hub's certificate with its issuer's, its key, and the issuers that it trusts."""

    certificate: Path
    key: Path
    authorities: Path


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """How a server meets its like. `peers` are `host:port`; `keys` the raw public keys that may connect.

    The server's own key is among `keys`: it dials with it.
    """

    name: str
    host: str
    port: int
    peers: tuple[str, ...]
    keys: tuple[bytes, ...]


class MessageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a message server needs beside its accounts and routes. `directory` belongs to the server alone."""

    name: str
    host: str
    directory: Path
    log: Path
    tls: TlsFiles
    operator: str
    system_account: str
    maximum_connections: int = 4096


class StateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a state server needs beside its routes. Sizes in bytes."""

    name: str
    directory: Path
    log: Path
    tls: TlsFiles
    password: str
    maximum_memory: int = 64 << 20
    maximum_disk: int = 2 << 30


def render_message_config(
    settings: MessageSettings, port: int, accounts: Mapping[str, str], routes: Routes | None
) -> str:
    """The message server's configuration file. `accounts` maps an account's public nkey to its token.

    Raises `bad_config` when a path holds control characters, which the server's format cannot spell.
    """
    config = _base(settings.name, settings.host, port, settings.directory, settings.log)
    config |= {
        "tls": _tls(settings.tls)
        # Without it the server's first line, with the nonce that a client signs, would travel in the clear.
        | {"handshake_first": True},
        "operator": settings.operator,
        "system_account": settings.system_account,
        # A resolver on disk would store a token that another operator signed, and prefer it after a restart.
        "resolver": "MEMORY",
        "resolver_preload": dict(accounts),
        "max_connections": settings.maximum_connections,
    }
    if routes is not None:
        config["cluster"] = _cluster(routes, settings.tls)
    return _write(config)


def render_state_config(settings: StateSettings, port: int, routes: Routes | None) -> str:
    """The state server's configuration file; without `routes` it keeps the state alone. Raises `bad_config`."""
    config = _base(settings.name, "127.0.0.1", port, settings.directory, settings.log)
    config |= {
        "accounts": {
            "STATE": {"jetstream": "enabled", "users": [{"user": STATE_USER, "password": settings.password}]},
            "SYSTEM": {"users": []},
        },
        "system_account": "SYSTEM",
        "jetstream": {
            "store_dir": str(settings.directory / "jetstream"),
            "max_memory_store": settings.maximum_memory,
            "max_file_store": settings.maximum_disk,
            # What was acknowledged must survive a power cut, too.
            "sync_interval": "always",
        },
        "max_connections": 64,
    }
    if routes is not None:
        config["cluster"] = _cluster(routes, settings.tls)
    return _write(config)


def key_pin(public_key: bytes) -> str:
    """How nats-server names a raw Ed25519 key: SHA-256 of its public key info, in hexadecimal."""
    key = Ed25519PublicKey.from_public_bytes(public_key)
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _base(name: str, host: str, port: int, directory: Path, log: Path) -> dict[str, Any]:
    return {
        "server_name": name,
        "host": host,
        "port": port or -1,
        "ports_file_dir": str(directory),
        # A frozen client is noticed within three intervals.
        "ping_interval": "2s",
        "ping_max": 2,
        "write_deadline": "5s",
        "max_payload": MAXIMUM_PAYLOAD,
        "max_pending": 32 << 20,
        "max_control_line": 2048,
        "max_subscriptions": 1024,
        "debug": False,
        "trace": False,
        "logfile": str(log),
        "logfile_size_limit": 4 << 20,
        "logfile_max_num": 3,
    }


def _tls(files: TlsFiles) -> dict[str, Any]:
    return {
        "cert_file": str(files.certificate),
        "key_file": str(files.key),
        "min_version": "1.3",
        "timeout": 5,
    }


def _cluster(routes: Routes, files: TlsFiles) -> dict[str, Any]:
    return {
        "name": routes.name,
        "host": routes.host,
        "port": routes.port or -1,
        "routes": [f"tls://{peer}" for peer in routes.peers],
        # Every hub is told where the others are; what a server gossips is not needed.
        "no_advertise": True,
        # One route a server. With a pool of them, servers that dialled each other at once and were then reloaded have
        # been seen to forget who listens on the other side.
        "pool_size": -1,
        "ping_interval": "2s",
        "tls": _tls(files) | {"ca_file": str(files.authorities), "verify": True, "pinned_certs": _pins(routes.keys)},
    }


def _pins(keys: Sequence[bytes]) -> list[str]:
    return sorted(key_pin(key) for key in keys)


def _write(config: dict[str, Any]) -> str:
    """JSON, which the server's own format contains."""
    text = msgspec.json.format(msgspec.json.encode(config), indent=2).decode()
    if "\\u" in text or "\\b" in text or "\\f" in text:
        raise FelloeError("bad_config", "a path for the message server holds control characters")
    return text + "\n"
