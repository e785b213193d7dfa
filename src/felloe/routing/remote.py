"""The asking side of a request to another node: seal, send, open, check."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.requests import Done, Failure, InferenceRequest, Part, Piece, TokenResume
from felloe.domain.roster import NodeRecord
from felloe.routing.rules import follows
from felloe.routing.wire import PartReader, encode_request, error_of

SILENCE_SECONDS = 3.0


class Opener(Protocol):
    """Opens the messages of one answer, in order; `finished` after the last one."""

    finished: bool

    def open(self, message: bytes, /) -> bytes: ...


class Incoming(Protocol):
    """The stream from the answering node."""

    async def receive(self) -> bytes | None:
        """The next message, None at the end; raises `replica_lost` on silence, or what the node refused with."""
        ...

    async def close(self) -> None:
        """Tell the answering node to stop, if it has not ended; returns at once."""
        ...


class OpensStreams(Protocol):
    """The way to the other nodes."""

    async def open(self, node: NodeId, sealed: bytes, /, *, silence_seconds: float) -> Incoming: ...


Seal = Callable[[bytes, bytes], tuple[bytes, Opener]]
"""Seals a request (second) to a key configuration (first)."""


class RemoteAnswers:
    """Asks one given node. Fails with `replica_lost` when the answer stops, cannot be read or has a gap."""

    def __init__(self, exchange: OpensStreams, seal: Seal, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._exchange = exchange
        self._seal = seal
        self._silence_seconds = silence_seconds

    async def answer(self, record: NodeRecord, request: InferenceRequest) -> AsyncGenerator[Part, None]:
        """Yield what the node of `record` answers; closing the generator closes the stream."""
        sealed, opener = self._seal(record.sealing_config, encode_request(request))
        incoming = await self._exchange.open(record.id, sealed, silence_seconds=self._silence_seconds)
        number = len(request.resume.ids) if isinstance(request.resume, TokenResume) else 0
        try:
            async with aclosing(_parts(incoming, opener)) as parts:
                async for part in parts:
                    if isinstance(part, Piece):
                        if not follows(number, part):
                            raise FelloeError("replica_lost", "tokens are missing from another node's answer")
                        number = part.number
                    yield part
        finally:
            await incoming.close()


async def _parts(incoming: Incoming, opener: Opener) -> AsyncGenerator[Part, None]:
    reader = PartReader()
    while True:
        message = await incoming.receive()
        if message is None:
            raise FelloeError("replica_lost", "another node's answer ended before it was complete")
        for part in reader.feed(opener.open(message)):
            if isinstance(part, Failure):
                raise error_of(part)
            yield part
            if isinstance(part, Done):
                return
        if opener.finished:
            raise FelloeError("replica_lost", "another node's answer ended before it was complete")
