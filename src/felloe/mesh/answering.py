"""The answers that this node gives: requests put together, handlers started, watched and cancelled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.incoming import REFUSALS
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.stream_rules import Assembly
from felloe.mesh.stream_wire import (
    HEADER,
    BadMessage,
    Kind,
    Opening,
    Refusal,
    encode_refusal,
    parse_flow,
    parse_header,
    parse_open,
    parse_reply_subject,
)

logger = logging.getLogger(__name__)

KEEPALIVE_SECONDS = 1.0
ASKER_SILENCE_SECONDS = 20.0
PARTIAL_SECONDS = 10.0
MAX_PARTIAL = 16
MAX_REQUESTS_BYTES = 256 * 1024 * 1024
RETRY_AFTER_SECONDS = 1.0


class _Partial:
    """A request of which parts are still to come."""

    def __init__(self, asker: NodeId, reply: str, opening: Opening, first: bytes, deadline: float) -> None:
        self.asker = asker
        self.reply = reply
        self.opening = opening
        self.assembly = Assembly(opening, first)
        self.deadline = deadline


class _Answer:
    """A handler at work."""

    def __init__(self, outgoing: Outgoing, reply: str, size: int) -> None:
        self.outgoing = outgoing
        self.reply = reply
        self.size = size
        self.task: asyncio.Task[None] | None = None


class Answering:
    """All answers under way, at most `max_answers`, and all requests that are not complete yet, at most 16.

    One asker may have half of either, and all requests together 256 MiB, so that none who floods starves the others.
    Nothing is answered for the `banned`. `publish` waits for the socket; `post` queues a small message.
    """

    def __init__(
        self,
        publish: Callable[[str, bytes], Awaitable[None]],
        post: Callable[[str, bytes], None],
        *,
        clock: Callable[[], float],
        max_answers: int,
    ) -> None:
        self.handler: Callable[[bytes, Outgoing], Awaitable[None]] | None = None
        self.banned: frozenset[NodeId] = frozenset()
        self._publish = publish
        self._post = post
        self._clock = clock
        self._max_answers = max_answers
        self._partial: dict[str, _Partial] = {}
        self._answers: dict[str, _Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many handlers are at work."""
        return len(self._answers)

    def on_request(self, message: bytes, reply: str) -> None:
        """Take one message from `node.<this>.infer`."""
        try:
            asker, stream = parse_reply_subject(reply)
        except BadMessage:
            logger.warning("a request without a proper reply subject was dropped")
            return
        if asker in self.banned:
            return
        try:
            kind, sequence = parse_header(message)
            if kind == Kind.OPEN:
                self._open(asker, stream, reply, message)
            elif kind == Kind.MORE:
                self._go_on(stream, sequence, message[HEADER.size :])
        except BadMessage:
            # No code of `REFUSALS`: the asker takes it as a lost replica and may find one that understands it.
            self._refuse(reply, "replica_lost")

    def on_flow(self, message: bytes, reply: str) -> None:
        """Take one message from `node.<this>.flow`; whoever knows the stream's id may steer it.

        A credit is also a question whether the answer goes on, and at which number. It is answered at once.
        """
        try:
            kind, messages = parse_header(message)
            stream, size = parse_flow(message)
        except BadMessage:
            return
        if kind == Kind.CANCEL:
            self._partial.pop(stream, None)
            self._cancel(stream)
        elif kind == Kind.CREDIT:
            self._on_credit(stream, messages, size, reply)

    def _on_credit(self, stream: str, messages: int, size: int, reply: str) -> None:
        answer = self._answers.get(stream)
        if answer is None:
            self._deny(stream, reply)
            return
        outgoing, now = answer.outgoing, self._clock()
        outgoing.grant(messages, size, now)
        if not outgoing.ended:
            outgoing.sent = now
            self._post(answer.reply, outgoing.keepalive())

    def _deny(self, stream: str, reply: str) -> None:
        """Tell the asker of a stream that is unknown here; of a request, too, whose parts did not all arrive."""
        self._partial.pop(stream, None)
        try:
            asker, named = parse_reply_subject(reply)
        except BadMessage:
            return
        if named == stream and asker not in self.banned:
            self._refuse(reply, "line_lost")

    def tend(self, now: float, missed: float) -> None:
        """Say that silent answers live, stop answers whose asker fell silent, drop requests that never got complete.

        `missed` seconds nobody could have been heard.
        """
        for stream, answer in list(self._answers.items()):
            outgoing = answer.outgoing
            outgoing.heard += missed
            if now - outgoing.heard > ASKER_SILENCE_SECONDS:
                self._abandon(stream, answer)
            elif now - outgoing.sent >= KEEPALIVE_SECONDS and not outgoing.ended:
                outgoing.sent = now
                self._post(answer.reply, outgoing.keepalive())
        for stream in [s for s, partial in self._partial.items() if now > partial.deadline]:
            del self._partial[stream]

    def cancel_for(self, node: NodeId) -> None:
        """Stop every answer that goes to `node`."""
        for stream, answer in list(self._answers.items()):
            if answer.outgoing.asker == node:
                self._abandon(stream, answer)
        for stream in [s for s, partial in self._partial.items() if partial.asker == node]:
            del self._partial[stream]

    def ban(self, nodes: frozenset[NodeId]) -> None:
        """Stop every answer that goes to one of `nodes`, and take nothing from them any more."""
        self.banned = nodes
        for node in nodes:
            self.cancel_for(node)

    def cancel_all(self) -> None:
        """Stop every answer; they cannot arrive whole any more."""
        self._partial.clear()
        for stream in list(self._answers):
            self._cancel(stream)

    async def close(self) -> None:
        """Stop every answer, tell the askers, and wait for the handlers to end."""
        self.handler = None
        for answer in self._answers.values():
            if not answer.outgoing.ended:
                self._refuse(answer.reply, "draining")
        self.cancel_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    def _open(self, asker: NodeId, stream: str, reply: str, message: bytes) -> None:
        opening, first = parse_open(message)
        if stream in self._answers or stream in self._partial:
            return
        if not Assembly.accepts(opening, first):
            raise BadMessage("opening")
        if self.handler is None:
            self._refuse(reply, "draining")
        elif not self._has_room(asker, opening.total):
            self._refuse(reply, "overloaded", RETRY_AFTER_SECONDS)
        elif len(first) == opening.total:
            self._answer(stream, _Partial(asker, reply, opening, first, 0.0))
        elif not _has_share((partial.asker for partial in self._partial.values()), asker, MAX_PARTIAL):
            self._refuse(reply, "overloaded", RETRY_AFTER_SECONDS)
        else:
            self._partial[stream] = _Partial(asker, reply, opening, first, self._clock() + PARTIAL_SECONDS)

    def _go_on(self, stream: str, sequence: int, part: bytes) -> None:
        partial = self._partial.get(stream)
        if partial is None:
            return
        if not partial.assembly.add(sequence, part):
            del self._partial[stream]
            raise BadMessage("part")
        if partial.assembly.complete:
            del self._partial[stream]
            if self._has_room(partial.asker, partial.opening.total):
                self._answer(stream, partial)
            else:
                self._refuse(partial.reply, "overloaded", RETRY_AFTER_SECONDS)

    def _has_room(self, asker: NodeId, size: int) -> bool:
        held = sum(answer.size for answer in self._answers.values())
        held += sum(partial.opening.total for partial in self._partial.values())
        askers = (answer.outgoing.asker for answer in self._answers.values())
        return held + size <= MAX_REQUESTS_BYTES and _has_share(askers, asker, self._max_answers)

    def _answer(self, stream: str, request: _Partial) -> None:
        outgoing = Outgoing(
            request.asker,
            request.reply,
            request.opening,
            now=self._clock(),
            publish=self._publish,
            clock=self._clock,
        )
        answer = _Answer(outgoing, request.reply, request.opening.total)
        self._answers[stream] = answer
        answer.task = asyncio.create_task(self._run(stream, answer, request.assembly.whole()), name="exchange-answer")
        self._tasks.add(answer.task)
        answer.task.add_done_callback(self._tasks.discard)

    async def _run(self, stream: str, answer: _Answer, request: bytes) -> None:
        outgoing = answer.outgoing
        try:
            if self.handler is not None:
                await self.handler(request, outgoing)
            if not outgoing.ended:
                await outgoing.refuse("internal" if self.handler else "draining")
        except FelloeError as error:
            if not outgoing.ended:
                self._refuse(answer.reply, error.code if error.code in REFUSALS else "internal", error.retry_after)
        except Exception as error:
            # The exception's text may hold what a handler worked on, so only its type and place are told.
            logger.error("an answer failed: %s at %s", type(error).__name__, _place(error))
            if not outgoing.ended:
                self._refuse(answer.reply, "internal")
        finally:
            if self._answers.get(stream) is answer:
                del self._answers[stream]

    def _cancel(self, stream: str) -> None:
        answer = self._answers.pop(stream, None)
        if answer is not None and answer.task is not None:
            answer.task.cancel()

    def _abandon(self, stream: str, answer: _Answer) -> None:
        """Stop an answer whose asker seems dead, and tell it, in case it lives."""
        self._cancel(stream)
        if not answer.outgoing.ended and answer.outgoing.asker not in self.banned:
            self._refuse(answer.reply, "line_lost")

    def _refuse(self, reply: str, code: str, retry_after: float | None = None) -> None:
        self._post(reply, encode_refusal(Refusal(code, retry_after)))


def _has_share(askers: Iterable[NodeId], asker: NodeId, most: int) -> bool:
    """Whether one more of `asker` has a place among at most `most`, of which it may hold half."""
    count = own = 0
    for other in askers:
        count += 1
        own += other == asker
    return count < most and own < max(1, most // 2)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "an unknown place"
