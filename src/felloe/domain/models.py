"""What a model is, as far as placement, routing and the API need to know."""

from typing import Literal

from msgspec import Struct

from felloe.domain.ids import ModelDigest, ModelName

Capability = Literal["chat", "completion", "embedding", "tools", "json_schema"]


class Model(Struct, frozen=True, kw_only=True):
    """A model file on this node, or a model that an upstream server offers.

    `size` is in bytes, `context` in tokens (what it was made for), `created` in Unix seconds. `digest` is empty when
    only an upstream server knows the file.
    """

    name: ModelName
    digest: ModelDigest | Literal[""]
    size: int
    architecture: str
    quantisation: str
    context: int
    parameters: int = 0
    capabilities: tuple[Capability, ...] = ("completion",)
    created: int = 0
