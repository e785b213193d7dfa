"""What the owner of a node says about sources, and the bounds that hold for all of them."""

from msgspec import Struct


class SourceSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `[sources]` section: base URLs that stand for the public servers, and further servers of the owner's own.

    `oci` maps a registry's host, as references name it, to the base URL that is asked instead. `allow` lists origins
    (`https://files.example:8443`) that may lie at private addresses or speak plain HTTP; the mirrors above always may.
    """

    huggingface: str = "https://huggingface.co"
    ollama: str = "https://registry.ollama.ai"
    oci: dict[str, str] = {}
    allow: tuple[str, ...] = ()


class Limits(Struct, frozen=True, kw_only=True):
    """How patient this side is. A transfer that brings fewer than `least_bytes` in `stall_seconds` counts as stalled.

    A source is given up after `tries` failures with less than `progress_bytes` between them. A server that asks for a
    longer wait than `longest_wait_seconds` ends the pull.
    """

    connect_seconds: float = 15.0
    stall_seconds: float = 30.0
    least_bytes: int = 4096
    document_seconds: float = 60.0
    tries: int = 6
    progress_bytes: int = 2**20
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0
    longest_wait_seconds: float = 300.0
