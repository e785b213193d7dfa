"""What the swarm needs of another node. How the bytes travel is not known here."""

from collections.abc import Callable
from typing import Protocol

from felloe.domain.ids import ContentId, ModelDigest, NodeId

Came = Callable[[int], None]
"""Hears the bytes of each piece as it arrives. May raise `Lied`, which has to pass through."""


class Lied(Exception):
    """A peer sent what no honest one sends. Says what."""


class Peer(Protocol):
    """Another node that may have files, or parts of them.

    All raise `FelloeError`: `not_found` when the peer has not got it, anything else when it failed; and `Lied` when it
    sends more than was asked for. Cancelling a call ends it at once.
    """

    @property
    def node(self) -> NodeId:
        """Whose node it is."""
        ...

    async def have(self, digest: ModelDigest, count: int) -> bytes:
        """Which of the `count` chunks the peer has: bit n of byte n // 8, the lowest first, stands for chunk n."""
        ...

    async def chunks(self, digest: ModelDigest, count: int) -> bytes:
        """The raw BLAKE3 of each of the `count` chunks, in order."""
        ...

    async def read(self, digest: ModelDigest, chunk: int, length: int, came: Came) -> bytes:
        """The `length` bytes of one 4 MiB chunk."""
        ...

    async def manifest(self, content: ContentId) -> bytes:
        """The signed manifest of a content, at most `MOST_ENVELOPE_BYTES` long."""
        ...

    async def bundle(self) -> bytes:
        """The catalogue that the peer has, encoded."""
        ...
