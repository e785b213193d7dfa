"""The asking side of a request to another node: seal, send, open, check."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, Failure, InferenceRequest, Piece, TokenResume
from felloe.domain.roster import NodeRecord
from felloe.routing.rules import follows
from felloe.routing.wire import PartReader, encode_request, error_of

SILENCE_SECONDS = 2.0


class Opener(Protocol):
    """Opens the messages of one answer, in order; `finished` after the last one."""

    finished: bool

    def open(self, message: bytes, /) -> bytes: ...


class Incoming(Protocol):
    """The stream from the answering node."""

    async def pump(self, consume: Callable[[bytes], Awaitable[None] | None], /) -> None:
        """Call `consume` for each message as it comes in; ends as `consume` or the stream does.

        An awaitable from `consume` holds the next message back. Raises what `consume` raises, `replica_lost` on
        silence, `line_lost` when only the way to the node broke, or what the node refused with.
        """
        ...

    def complete(self) -> None:
        """The reader has everything: `pump` ends well, and the answering node is told nothing."""
        ...

    async def close(self) -> None:
        """Tell the answering node to stop, if it has not ended; returns at once."""
        ...


class OpensStreams(Protocol):
    """The way to the other nodes. The stream fails at once when that way breaks and `can_leave` says yes."""

    async def open(
        self, node: NodeId, sealed: bytes, /, *, silence_seconds: float, can_leave: Callable[[], bool] | None
    ) -> Incoming: ...


Seal = Callable[[bytes, bytes], tuple[bytes, Opener]]
"""Seals a request (second) to a key configuration (first)."""


class RemoteAnswers:
    """Asks one given node. Fails with `replica_lost` when the answer stops, cannot be read or has a gap."""

    def __init__(self, exchange: OpensStreams, seal: Seal, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._exchange = exchange
        self._seal = seal
        self._silence_seconds = silence_seconds

    async def answer(
        self,
        record: NodeRecord,
        request: InferenceRequest,
        deliver: Deliver,
        can_leave: Callable[[], bool] | None = None,
    ) -> Done:
        """Deliver what the node of `record` answers; cancelling closes the stream.

        `can_leave` is asked while no hub is connected: whether somebody on this node could go on.
        """
        sealed, opener = self._seal(record.sealing_config, encode_request(request))
        incoming = await self._exchange.open(
            record.id, sealed, silence_seconds=self._silence_seconds, can_leave=can_leave
        )
        reception = _Reception(incoming, opener, request, deliver)
        try:
            await incoming.pump(reception.take)
        finally:
            await incoming.close()
        return reception.result()


class _Reception:
    """Turns the messages of one stream into pieces that follow each other."""

    __slots__ = ("_deliver", "_end", "_incoming", "_number", "_opener", "_reader")

    def __init__(self, incoming: Incoming, opener: Opener, request: InferenceRequest, deliver: Deliver) -> None:
        self._incoming = incoming
        self._opener = opener
        self._deliver = deliver
        self._reader = PartReader()
        self._number = len(request.resume.ids) if isinstance(request.resume, TokenResume) else 0
        self._end: Done | Failure | None = None

    def take(self, message: bytes) -> Awaitable[None] | None:
        """Open one message and deliver the pieces in it as one."""
        parts = self._reader.feed(self._opener.open(message))
        if self._opener.finished:
            self._incoming.complete()
        pieces: list[Piece] = []
        for part in parts:
            if self._end is not None:
                break
            if not isinstance(part, Piece):
                self._end = part
            elif follows(self._number, part):
                self._number = part.number
                pieces.append(part)
            else:
                raise FelloeError("replica_lost", "tokens are missing from another node's answer")
        if not pieces:
            return None
        return self._deliver(pieces[0] if len(pieces) == 1 else _joined(pieces))

    def result(self) -> Done:
        """The accounts, after the stream has ended."""
        if isinstance(self._end, Done):
            return self._end
        if isinstance(self._end, Failure):
            raise error_of(self._end)
        raise FelloeError("replica_lost", "another node's answer ended before it was complete")


def _joined(pieces: list[Piece]) -> Piece:
    """Several pieces as one. When the ids of some are unknown, those of all are fewer than its number tells."""
    ids = [token for piece in pieces for token in piece.ids]
    return Piece(pieces[-1].number, tuple(ids), b"".join([piece.frames for piece in pieces]))
