"""The asker's side of one stream: an answer that comes in over this node's inbox."""

import asyncio
from collections import deque
from collections.abc import Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.stream_rules import MAX_MESSAGE_BYTES, Ledger, Receipt, Verdict
from felloe.mesh.stream_wire import HEADER, BadMessage, Kind, parse_header, parse_refusal

REFUSALS = frozenset({"unsealed", "overloaded", "draining", "replayed", "internal"})
"""The codes that an answerer may end a stream with; any other means `replica_lost`."""


class Incoming:
    """One answer: its messages in order, then None, or a `FelloeError`. Whoever opened it closes it."""

    def __init__(
        self,
        node: NodeId,
        stream: str,
        *,
        silence_seconds: float,
        now: float,
        grant: Callable[["Incoming"], None],
        forget: Callable[["Incoming", bool], None],
    ) -> None:
        self.node = node
        self.stream = stream
        self.silence_seconds = silence_seconds
        self.heard = now
        self.credited = now
        self.ledger = Ledger()
        self._receipt = Receipt()
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._finished = False
        self._failure: FelloeError | None = None
        self._grant = grant
        self._forget = forget

    async def receive(self) -> bytes | None:
        """The next message; None at the clean end.

        `replica_lost` when the answer cannot be completed, or the code with which the answerer refused. What
        came in order before a failure is delivered first.
        """
        part, whole = await self._next_part()
        if whole and not self._begun:
            return part
        # The parts are kept on the stream, so that a reader who is cancelled loses nothing.
        while part is not None:
            self._begun.append(part)
            self._begun_bytes += len(part)
            if self._begun_bytes > MAX_MESSAGE_BYTES:
                self.fail(FelloeError("replica_lost", "the answer holds too large a message"))
                raise FelloeError("replica_lost", "the answer holds too large a message")
            if whole:
                message, self._begun, self._begun_bytes = b"".join(self._begun), [], 0
                return message
            part, whole = await self._next_part()
        if self._begun:
            raise FelloeError("replica_lost", "the answer ended inside a message")
        return None

    async def close(self) -> None:
        """Take no more; tells the answerer to stop when it has not finished."""
        self.fail(FelloeError("replica_lost", "the stream was closed"))
        self._waiting.clear()

    def accept(self, message: bytes, now: float) -> None:
        """Take one message from the inbox; called in order by the exchange."""
        if self._finished or self._failure is not None:
            return
        self.heard = now
        try:
            kind, sequence = parse_header(message)
            if kind == Kind.REFUSE:
                self.fail(_refused(message[HEADER.size :]), tell=False)
                return
        except BadMessage:
            self.fail(FelloeError("replica_lost", "the answerer does not speak this protocol"))
            return
        verdict = self._receipt.judge(kind, sequence)
        if verdict is Verdict.TAKE:
            body = message[HEADER.size :]
            if not self.ledger.hold(len(body)):
                self.fail(FelloeError("replica_lost", "the answerer sent more than it may"))
                return
            self._waiting.append((body, kind == Kind.DATA))
            self._wake()
        elif verdict is Verdict.END:
            self._finished = True
            self._forget(self, False)
            self._wake()
        elif verdict is Verdict.BROKEN:
            self.fail(FelloeError("replica_lost", "a part of the answer was lost on the way"))

    def fail(self, failure: FelloeError, *, tell: bool = True) -> None:
        """End the stream, unless it has ended already; what waits is still delivered. `tell` the answerer to stop."""
        if self._finished or self._failure is not None:
            return
        self._failure = failure
        self._forget(self, tell)
        self._wake()

    async def _next_part(self) -> tuple[bytes | None, bool]:
        while not self._waiting:
            if self._finished:
                return None, False
            if self._failure is not None:
                raise self._failure
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        part, whole = self._waiting.popleft()
        if self.ledger.use(len(part)) and not self._finished and self._failure is None:
            self._grant(self)
        return part, whole

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)


def _refused(body: bytes) -> FelloeError:
    refusal = parse_refusal(body)
    if refusal.code not in REFUSALS:
        return FelloeError("replica_lost", "the answerer ended the stream")
    return FelloeError(refusal.code, "the answering node refused", retry_after=refusal.retry_after)
