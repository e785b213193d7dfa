"""The asker's side of one stream: an answer that comes in over this node's inbox."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.stream_rules import MAX_MESSAGE_BYTES, Ledger, Receipt, Verdict
from felloe.mesh.stream_wire import HEADER, BadMessage, Kind, parse_header, parse_refusal

REFUSALS = frozenset({"unsealed", "overloaded", "draining", "replayed", "internal", "line_lost"})
"""The codes that an answerer may end a stream with; any other means `replica_lost`."""


_DATA, _REFUSE = int(Kind.DATA), int(Kind.REFUSE)

Consume = Callable[[bytes], Awaitable[None] | None]
"""Takes the next message, in the very turn of the loop in which it came; an awaitable holds the following ones back."""


class Incoming:
    """One answer: its messages in order, then its end or a `FelloeError`. Whoever opened it closes it.

    `can_leave` is asked while this node's own line is down: whether somebody here could go on with the answer.
    """

    def __init__(
        self,
        node: NodeId,
        stream: str,
        *,
        silence_seconds: float,
        can_leave: Callable[[], bool] | None,
        now: float,
        grant: Callable[["Incoming"], None],
        forget: Callable[["Incoming", bool], None],
    ) -> None:
        self.node = node
        self.stream = stream
        self.silence_seconds = silence_seconds
        self.can_leave = can_leave
        self.asked = False
        self.heard = now
        self.credited = now
        self.ledger = Ledger()
        self._receipt = Receipt()
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._consume: Consume | None = None
        self._behind: Awaitable[None] | None = None
        self._error: BaseException | None = None
        self._pumping: asyncio.Future[None] | None = None
        self._finished = False
        self._failure: FelloeError | None = None
        self._grant = grant
        self._forget = forget

    async def pump(self, consume: Consume) -> None:
        """Hand each message to `consume` as it comes in, in order; returns at the clean end.

        `replica_lost` when the answer cannot be completed, `line_lost` when only the way to the node broke, or the code
        with which the answerer refused; what came in order before a failure is consumed first. What `consume` raises
        ends the pump. While it waits for an awaitable from `consume`, or nobody pumps, messages are held and not
        credited.
        """
        self._consume = consume
        try:
            self._hand_over()
            while not self._is_over():
                if self._behind is None:
                    self._pumping = asyncio.get_running_loop().create_future()
                    await self._pumping
                    continue
                try:
                    await self._behind
                finally:
                    self._behind = None
                self._hand_over()
        finally:
            self._consume = self._pumping = None

    def complete(self) -> None:
        """End the stream well: its reader knows that it has everything. The answerer is told nothing."""
        if not self._finished and self._failure is None:
            self._forget(self, False)
        self._finished, self._failure = True, None
        self._waiting.clear()
        self._begun.clear()
        self._wake()

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
            if kind == _REFUSE:
                self.fail(_refused(message[HEADER.size :]), tell=False)
                return
        except BadMessage:
            self.fail(_strange())
            return
        verdict = self._receipt.judge(kind, sequence)
        if verdict is Verdict.TAKE:
            body = message[HEADER.size :]
            if not self.ledger.hold(len(body)):
                self.fail(FelloeError("replica_lost", "the answerer sent more than it may"))
                return
            self._waiting.append((body, kind == _DATA))
            self._hand_over()
        elif verdict is Verdict.END:
            self._finished = True
            self._forget(self, False)
            self._wake()
        elif verdict is Verdict.BROKEN:
            self.fail(FelloeError("line_lost", "a part of the answer was lost on the way"))
        elif verdict is Verdict.STRANGE:
            self.fail(_strange())

    def fail(self, failure: FelloeError, *, tell: bool = True) -> None:
        """End the stream, unless it has ended already; what waits is still delivered. `tell` the answerer to stop."""
        if self._finished or self._failure is not None:
            return
        self._failure = failure
        self._forget(self, tell)
        self._wake()

    def _hand_over(self) -> None:
        """Let the reader consume what waits, as far as there is one and it keeps up."""
        consume = self._consume
        if consume is None:
            return
        waiting = self._waiting
        try:
            while waiting and self._behind is None:
                part, whole = waiting.popleft()
                if self.ledger.use(len(part)) and not self._finished and self._failure is None:
                    self._grant(self)
                message = part if whole and not self._begun else self._join(part, whole)
                if message is not None:
                    self._behind = consume(message)
        except BaseException as error:
            # Raised by `pump`: whoever brought the message here is not to blame.
            self._error = error
            self._consume = None
        if self._behind is not None or self._error is not None:
            self._wake()

    def _join(self, part: bytes, whole: bool) -> bytes | None:
        self._begun.append(part)
        self._begun_bytes += len(part)
        if self._begun_bytes > MAX_MESSAGE_BYTES:
            self.fail(FelloeError("replica_lost", "the answer holds too large a message"))
            raise FelloeError("replica_lost", "the answer holds too large a message")
        if not whole:
            return None
        message, self._begun, self._begun_bytes = b"".join(self._begun), [], 0
        return message

    def _is_over(self) -> bool:
        """Whether everything up to the clean end has been consumed. Raises how else it ended."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._waiting or self._behind is not None:
            return False
        if self._finished and self._begun:
            raise FelloeError("replica_lost", "the answer ended inside a message")
        if self._failure is not None:
            raise self._failure
        return self._finished

    def _wake(self) -> None:
        pumping = self._pumping
        if pumping is not None and not pumping.done():
            pumping.set_result(None)


def _strange() -> FelloeError:
    return FelloeError("replica_lost", "the answerer does not speak this protocol")


def _refused(body: bytes) -> FelloeError:
    refusal = parse_refusal(body)
    if refusal.code not in REFUSALS:
        return FelloeError("replica_lost", "the answerer ended the stream")
    return FelloeError(refusal.code, "the answering node refused", retry_after=refusal.retry_after)
