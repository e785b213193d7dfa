"""Configuration: `config.toml` in the home folder, then `FELLOE_*` from the environment, checked as a whole.

A wrong key, type or value is an error that names the setting; nothing is ignored.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from felloe.catalog.sources.credentials import REGISTRIES_VARIABLE
from felloe.catalog.sources.settings import SourceSettings
from felloe.domain.errors import FelloeError
from felloe.domain.ids import is_model_name
from felloe.domain.sizes import parse_size
from felloe.host.budget import EVERY_GPU, MemoryLimits

DEFAULT_HOME = "~/.felloe"
CONFIG_NAME = "config.toml"


class ApiConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The OpenAI-compatible edge. Off loopback, `tls_certificate` and `tls_key` (PEM files) are required.

    `load_wait_seconds` is how long a request that says nothing of it waits for a model that is being loaded.
    """

    host: str = "127.0.0.1"
    port: int = 8470
    tls_certificate: str = ""
    tls_key: str = ""
    require_key: bool = False
    names: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    request_seconds: float = 600.0
    load_wait_seconds: float = 60.0


class PeerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node offers to other nodes. `advertise` lists the host names or addresses they dial.

    All nodes let members fetch models at `transfer_port`; the other ports are a hub's. `hub` says whether this node may
    become one; `state_port` and the port after it are both used.
    """

    host: str = "0.0.0.0"  # noqa: S104 - TLS and a credential guard it; spokes must be able to reach a hub
    port: int = 8471
    mesh_port: int = 8472
    route_port: int = 8473
    state_port: int = 8474
    transfer_port: int = 8476
    advertise: tuple[str, ...] = ()
    hub: bool = True


class EngineConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Defaults for each model that is loaded here. 0 means: choose by the machine or the model."""

    context: int = 0
    slots: int = 4
    threads: int = 0
    gpu_layers: int = -1
    queue: int = 64


class HardwareConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What models may take up of this machine, such as "10GB"; empty: as much as is there.

    `gpu_memory_limit` is for each GPU, or names them: "gpu0=10GB, gpu1=0", where `*` is every other one. 0: none of it.
    """

    gpu_memory_limit: str = ""
    ram_limit: str = ""

    def limits(self) -> MemoryLimits:
        """In bytes. Raises `bad_config` naming the setting."""
        gpu = {name: self._size("gpu_memory_limit", text) for name, text in self._named().items()}
        return MemoryLimits(gpu=gpu, ram=self._size("ram_limit", self.ram_limit) if self.ram_limit else None)

    def _named(self) -> dict[str, str]:
        parts = [part.strip() for part in self.gpu_memory_limit.split(",") if part.strip()]
        pairs = [(name.strip(), size) for name, sign, size in (part.rpartition("=") for part in parts) if sign]
        if not pairs and len(parts) <= 1:
            return dict.fromkeys((EVERY_GPU,) if parts else (), self.gpu_memory_limit.strip())
        if len(pairs) != len(parts) or len(dict(pairs)) != len(pairs) or not all(dict(pairs)):
            detail = "hardware.gpu_memory_limit is one size, or a list such as 'gpu0=10GB, gpu1=0' with each GPU once"
            raise FelloeError("bad_config", detail)
        return dict(pairs)

    def _size(self, setting: str, text: str) -> int:
        try:
            return parse_size(text)
        except ValueError as error:
            raise FelloeError("bad_config", f"hardware.{setting}: {error}") from error


class StoreConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model store. `quota` in bytes: what pulled models may take up; 0: as much as the disk has.

    `spare_copies` is how many nodes are to hold each model that the network serves; 1: this node fetches no spare copy.
    """

    quota: int = 0
    spare_copies: int = 2


class TransferConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How fast models go to and come from other nodes, in bytes a second; 0: as fast as the line is.

    Both give way while this node answers requests, whatever the rates.
    """

    upload_rate: int = 0
    download_rate: int = 0


class CatalogConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Approvals. `approve_pulls`: what is pulled here is approved by this node's curator, who alone decides."""

    approve_pulls: bool = True


class UpstreamConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server of the owner's own that speaks the OpenAI API. `key_env` names the variable that holds its key."""

    url: str
    key_env: str = ""
    models: tuple[str, ...] = ()
    slots: int = 4


class NodeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a node can be told. `models` are loaded at start, by name.

    `hubs` is how many hubs a network that this node founds keeps: "auto", "1", "3" or "5".
    """

    name: str = ""
    models: tuple[str, ...] = ()
    log_level: str = "info"
    hubs: str = "auto"
    api: ApiConfig = field(default_factory=ApiConfig)
    peer: PeerConfig = field(default_factory=PeerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sources: SourceSettings = field(default_factory=SourceSettings)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    upstreams: dict[str, UpstreamConfig] = field(default_factory=dict[str, UpstreamConfig])


HUB_COUNTS = {"auto": 0, "1": 1, "3": 3, "5": 5}
_SECTIONS = ("api", "peer", "engine", "hardware", "store", "sources", "catalog", "transfer")
_PORTS = ("api.port", *(f"peer.{name}" for name in ("port", "mesh_port", "route_port", "state_port", "transfer_port")))
# Read elsewhere, and therefore no overrides of a setting.
_OTHER_VARIABLES = frozenset({"FELLOE_HOME", "FELLOE_API_KEY", "FELLOE_LOG_LEVEL", REGISTRIES_VARIABLE})


def home_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`$FELLOE_HOME`, or `~/.felloe`."""
    return Path(environment.get("FELLOE_HOME") or DEFAULT_HOME).expanduser().absolute()


def load_config(home: Path, environment: Mapping[str, str] = os.environ) -> NodeConfig:
    """Read, override, check. Raises `bad_config` naming the file or variable, and the setting."""
    path = home / CONFIG_NAME
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        settings = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FelloeError("bad_config", f"{path} is not TOML: {error}") from error
    sources = [str(path), *apply_environment(settings, environment)]
    try:
        config = msgspec.convert(settings, NodeConfig)
    except msgspec.ValidationError as error:
        raise FelloeError("bad_config", f"{' and '.join(sources)}: {_named(str(error))}") from error
    check_config(config)
    return config


def apply_environment(settings: dict[str, Any], environment: Mapping[str, str]) -> list[str]:
    """Write `FELLOE_API_PORT=9000` into `settings["api"]["port"]`, and so on; returns the variables used."""
    used: list[str] = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith("FELLOE_") or variable in _OTHER_VARIABLES - {"FELLOE_LOG_LEVEL"}:
            continue
        section, key = _setting_of(variable.removeprefix("FELLOE_").lower())
        target: dict[str, Any] = settings.setdefault(section, {}) if section else settings
        target[key] = _value_of(variable, key, section, text)
        used.append(variable)
    return used


def _setting_of(name: str) -> tuple[str, str]:
    for section in _SECTIONS:
        if name.startswith(f"{section}_"):
            return section, name.removeprefix(f"{section}_")
    return "", name


def _value_of(variable: str, key: str, section: str, text: str) -> object:
    owner = {
        "api": ApiConfig,
        "peer": PeerConfig,
        "engine": EngineConfig,
        "hardware": HardwareConfig,
        "store": StoreConfig,
        "catalog": CatalogConfig,
        "sources": SourceSettings,
        "transfer": TransferConfig,
    }.get(section, NodeConfig)
    known = {item.name: item for item in msgspec.structs.fields(owner)}
    if key not in known or key in (*_SECTIONS, "upstreams"):
        raise FelloeError("bad_config", f"the environment variable {variable} names no setting")
    if known[key].type == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.convert(text, known[key].type, strict=False)
    except msgspec.ValidationError as error:
        raise FelloeError("bad_config", f"the environment variable {variable}: {error}") from error


def _named(message: str) -> str:
    """msgspec says "... - at `$.api.port`"; people know the setting as `api.port`."""
    return message.replace("`$.", "`").replace(" - at ", ", at ")


def _source_urls(sources: SourceSettings) -> list[tuple[str, str]]:
    urls = [("huggingface", sources.huggingface), ("ollama", sources.ollama)]
    return urls + [("oci", url) for url in sources.oci.values()] + [("allow", url) for url in sources.allow]


def check_config(config: NodeConfig) -> None:
    """What types cannot say. Raises `bad_config` naming the setting."""

    def refuse(setting: str, why: str) -> None:
        raise FelloeError("bad_config", f"{setting} {why}")

    for setting in _PORTS:
        section, key = setting.split(".")
        if not 0 <= getattr(getattr(config, section), key) <= 65535:
            refuse(setting, "is no port (0 to 65535; 0 lets the system choose)")
    if config.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", config.name):
        refuse("name", "may hold letters, digits, dots, dashes and underscores, at most 63")
    if config.log_level not in ("debug", "info", "warning", "error"):
        refuse("log_level", "is one of debug, info, warning, error")
    if config.hubs not in HUB_COUNTS:
        refuse("hubs", "is one of " + ", ".join(HUB_COUNTS))
    if config.peer.state_port > 65534:
        refuse("peer.state_port", "has no port after it")
    if bool(config.api.tls_certificate) != bool(config.api.tls_key):
        refuse("api.tls_certificate and api.tls_key", "belong together")
    if not 1 <= config.engine.slots <= 256:
        refuse("engine.slots", "is between 1 and 256")
    if not 0 <= config.engine.queue <= 10_000:
        refuse("engine.queue", "is between 0 and 10000")
    if config.engine.context < 0 or config.engine.threads < 0:
        refuse("engine.context and engine.threads", "are 0 (choose) or more")
    config.hardware.limits()
    if config.store.quota < 0:
        refuse("store.quota", "is 0 (as much as the disk has) or a number of bytes")
    if not 1 <= config.store.spare_copies <= 16:
        refuse("store.spare_copies", "is between 1 (this node fetches none) and 16")
    if config.transfer.upload_rate < 0 or config.transfer.download_rate < 0:
        refuse("transfer.upload_rate and transfer.download_rate", "are 0 (no limit) or a number of bytes a second")
    if not 1 <= config.api.request_seconds <= 86_400:
        refuse("api.request_seconds", "is between 1 and 86400")
    if not 0 <= config.api.load_wait_seconds <= config.api.request_seconds:
        refuse("api.load_wait_seconds", "is between 0 (do not wait) and api.request_seconds")
    for model in config.models:
        if not is_model_name(model):
            refuse("models", f"holds {model!r}, which cannot name a model")
    for setting, url in _source_urls(config.sources):
        if not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s?#]*)?", url):
            refuse(f"sources.{setting}", "holds URLs that start with https:// or http://")
    for name, upstream in config.upstreams.items():
        if not re.match(r"https?://[^/\s]+", upstream.url):
            refuse(f"upstreams.{name}.url", "starts with http:// or https://")
        if not 1 <= upstream.slots <= 1024:
            refuse(f"upstreams.{name}.slots", "is between 1 and 1024")
