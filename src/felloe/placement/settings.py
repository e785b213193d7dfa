"""How a model is loaded, as far as its memory depends on it."""

from msgspec import Struct

from felloe.domain.plan import KvType


class Settings(Struct, frozen=True, kw_only=True):
    """`context` is what one slot holds, in tokens; `slots` requests are answered at once."""

    context: int
    slots: int = 4
    kv_type: KvType = "f16"
    embedding: bool = False
