"""What an owner may choose for an engine, and the upstream servers that an owner may name."""

from pathlib import Path

from msgspec import Struct

from felloe.domain.fleet import DeviceKind
from felloe.domain.manifest import Parameter
from felloe.domain.plan import KvType, Part

DEFAULT_CONTEXT_LIMIT = 8192
"""Tokens of one slot when the owner names no context; many models are made for more than a machine can hold."""


class EngineDevice(Struct, frozen=True):
    """A device of this machine; `visible` is what the driver calls it in its environment variable: a number or UUID."""

    id: str
    kind: DeviceKind
    visible: str = ""


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How to load a model file.

    `context` is what ONE slot holds, in tokens; 0 means the model's own, at most 8,192. `slots` requests are answered
    at once. `threads` 0 means every core that this process may use. `gpu_layers` -1 means as many as fit.
    `embedding` makes the engine answer embeddings too, beside chat and completions. `memory_limit` is how many bytes
    the engine's process may hold, without the model file, before it is started anew; 0 derives it from its start.
    `parts`, where they are given, say how many layers lie on which device, in the order of the layers; the engine then
    sees no other device, and `gpu_layers` means nothing. Without them, `promised` is what it will probably take up.
    `devices` are those of the machine, for naming them. `defaults` are for requests that say nothing, and `template` is
    the chat template that counts, both as a manifest tells them; without one the file's own counts.
    """

    context: int = 0
    slots: int = 2
    threads: int = 0
    gpu_layers: int = -1
    kv_type: KvType = "f16"
    embedding: bool = False
    memory_limit: int = 0
    parts: tuple[Part, ...] = ()
    promised: tuple[Part, ...] = ()
    devices: tuple[EngineDevice, ...] = ()
    defaults: dict[str, Parameter] = {}
    template: str = ""


class Upstream(Struct, frozen=True, kw_only=True):
    """A server that speaks the OpenAI API, named by the node's owner; never taken from a request.

    `base_url` includes the version part, for example `http://127.0.0.1:11434/v1`. The API key comes from the
    environment variable `key_variable` or from the file `key_file` (mode 0600). An empty `models` serves all that
    the server lists. `slots` bounds how many requests are sent to it at once, for each model.
    """

    name: str
    base_url: str
    key_variable: str = ""
    key_file: Path | None = None
    models: tuple[str, ...] = ()
    slots: int = 4
    refresh_seconds: float = 30.0
    silence_seconds: float = 300.0


class ChildOptions(Struct, frozen=True, kw_only=True):
    """The one line of JSON that an engine child reads on its standard input.

    `context` is the total of all slots; `alias` is the name that the child itself shows for the model. A `template`
    replaces the file's own chat template. With a `socket` path the child listens there, else on a free port of
    127.0.0.1, where `api_key` guards it. `split` is how many layers lie on each of the GPUs `devices` that it sees;
    `environment` is what it gets beside its parent's.
    """

    model: str
    context: int
    slots: int
    threads: int
    gpu_layers: int
    kv_type: KvType
    embedding: bool
    alias: str = "model"
    template: str = ""
    socket: str = ""
    api_key: str = ""
    split: tuple[int, ...] = ()
    devices: tuple[EngineDevice, ...] = ()
    environment: dict[str, str] = {}


class ChildReply(Struct, frozen=True, kw_only=True):
    """The one line of JSON that an engine child prints: where it listens, or that it could not start.

    `tells_memory`: its log says what it takes up on each device.
    """

    address: str = ""
    tells_memory: bool = False
    error: str = ""
