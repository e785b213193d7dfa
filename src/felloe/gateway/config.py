"""What the gateway can be told: where to listen, whom to trust, and how much one client may use."""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from felloe.domain.models import Capability
from felloe.domain.requests import Reach


class Listener(Struct, frozen=True, kw_only=True):
    """One address to listen on; `host` is an IP address or `localhost`, port 0 takes a free one.

    `certificate` (chain) and `private_key` are PEM files; both or neither. Any address but loopback needs them.
    """

    host: str = "127.0.0.1"
    port: int = 8470
    certificate: Path | None = None
    private_key: Path | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on what one client or connection may use, and all together; sizes in bytes, times in seconds.

    `all_bodies_bytes` bounds the bodies of all requests that are being read or answered.
    `connections_per_certificate` bounds those of clients that show the same certificate; 0: by `connections` alone.
    """

    body_bytes: int = 8 * 1024 * 1024
    all_bodies_bytes: int = 512 * 1024 * 1024
    header_bytes: int = 32 * 1024
    discarded_bytes: int = 64 * 1024 * 1024
    answer_bytes: int = 32 * 1024 * 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 60.0
    stalled_seconds: float = 60.0
    linger_seconds: float = 2.0
    handshake_seconds: float = 10.0
    deadline_seconds: float = 600.0
    connections: int = 2048
    connections_per_certificate: int = 0
    choices_at_once: int = 16


class GatewayConfig(Struct, frozen=True, kw_only=True):
    """How the gateway behaves on all its listeners.

    `require_key` demands a key on loopback too (elsewhere one is always demanded). `origins` are the web origins that
    may use the API from a browser (CORS), such as `https://app.example`. `host_names` are further names that clients
    on this machine use for it. `reach` is the farthest that a request may travel.
    """

    listeners: tuple[Listener, ...] = (Listener(),)
    require_key: bool = False
    origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    reach: Reach = "network"
    limits: Limits = Limits()


class ListedModel(Struct, frozen=True, kw_only=True):
    """A model that may be asked for. `ready`: some node serves it; `loading`: one is about to; `cold`: on request.

    `created` is in Unix seconds, `context` in tokens; both 0, and no `capabilities`, where only a running model tells.
    """

    name: str
    state: Literal["ready", "loading", "cold"] = "ready"
    created: int = 0
    context: int = 0
    capabilities: tuple[Capability, ...] = ()


class NodeStatus(Struct, frozen=True):
    """Whether this node can answer now; `reason` says in a few words why not."""

    ready: bool
    reason: str = ""
