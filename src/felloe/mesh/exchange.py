"""Request streams between nodes: one sealed request to another node, and its answer message by message.

The exchange owns every stream that this node asks for or answers. A stream fails rather than hangs. It fails with
`replica_lost` when the node died or fell silent, and with `line_lost` when only the way to it broke: on a gap, when
nobody listens, when the node's line or this node's own was cut and something was lost by it. Whether something was, is
asked at once: an answerer tells for each credit at which number it is, or that it knows no such stream. See
docs/protocol-mesh.md for the bytes.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.answering import Answering
from felloe.mesh.connection import Connection
from felloe.mesh.incoming import Incoming
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.permissions import flow, inbox, infer
from felloe.mesh.posts import Posts
from felloe.mesh.session import Message, Subscription, says_nobody_listens
from felloe.mesh.stream_rules import (
    MAX_REQUEST_BYTES,
    PART_BYTES,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Fate,
    fate,
    missed_seconds,
    split,
)
from felloe.mesh.stream_wire import Kind, Opening, encode, encode_flow, encode_open, reply_subject

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LEAVE_SECONDS = 0.15
GRACE_SECONDS = 2.0
MAX_ASKED = 4096
MAX_ANSWERS = 512

_REPLICA_LOST = "replica_lost"
_LINE_LOST = "line_lost"

Handler = Callable[[bytes, Outgoing], Awaitable[None]]
"""Answers one request; cancelled at once when the asker goes away."""


class Exchange:
    """All request streams of this node, asked and answered.

    `clock` is monotonic, in seconds. `grace_seconds` is how long a stream waits for this node's line to come back.
    """

    def __init__(
        self,
        connection: Connection,
        this: NodeId,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_answers: int = MAX_ANSWERS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._connection = connection
        self._this = this
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._asked: dict[str, Incoming] = {}
        self._posts = Posts(connection)
        self._answering = Answering(connection.publish, self._posts.post, clock=clock, max_answers=max_answers)
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._inbox_prefix_length = len(inbox(this)) + 1
        self._banned: frozenset[NodeId] = frozenset()
        self._down_since: float | None = None
        self._downs = 0
        self._leaving: asyncio.TimerHandle | None = None
        connection.on_up(self._line_up)
        connection.on_down(self._line_down)
        connection.keep_while(lambda: bool(self._asked or self._answering.count))

    @property
    def asked(self) -> int:
        """How many answers are coming in."""
        return len(self._asked)

    @property
    def answered(self) -> int:
        """How many answers are going out."""
        return self._answering.count

    async def start(self) -> None:
        """Listen for answers and requests, in this session of the connection and the following ones."""
        # One subscription for requests, credits and cancels, because order holds only within a subscription.
        for subject, handler in (
            (f"{inbox(self._this)}.*", self._on_answer),
            (f"node.{self._this}.*", self._on_node_message),
        ):
            self._subscriptions.append(await self._connection.subscribe(subject, handler))
        self._tasks = [
            asyncio.create_task(self._posts.run(), name="exchange-posts"),
            asyncio.create_task(self._tend_for_ever(), name="exchange-tend"),
        ]

    def serve(self, handler: Handler) -> None:
        """Answer requests with `handler` from now on."""
        self._answering.handler = handler

    def ban(self, nodes: frozenset[NodeId]) -> None:
        """Have no stream with these nodes from now on, in either direction; others than these may have one again."""
        self._banned = nodes
        for node in nodes:
            self._fail_all(node, FelloeError(_REPLICA_LOST, "the answering node was expelled"))
        self._answering.ban(nodes)

    async def open(
        self,
        node: NodeId,
        request: bytes,
        *,
        silence_seconds: float = 5.0,
        can_leave: Callable[[], bool] | None = None,
    ) -> Incoming:
        """Send `request` (at most 8 MiB) to `node` and return its answer, which begins to come in.

        While this node's line is down, the stream fails at once if `can_leave` says that somebody here can go on.
        `network_unreachable` when no hub is connected and none becomes so within a short grace, `line_lost` when the
        line breaks under it, `replica_lost` for a banned node, `overloaded` beyond 4,096 open streams,
        `body_too_large`.
        """
        if len(request) > MAX_REQUEST_BYTES:
            raise FelloeError("body_too_large", "the request is too large to travel")
        if node in self._banned:
            raise FelloeError(_REPLICA_LOST, "the node was expelled")
        if len(self._asked) >= MAX_ASKED:
            raise FelloeError("overloaded", "too many streams are open", retry_after=1.0)
        if not await self._connection.wait_up(self._grace_seconds):
            raise FelloeError("network_unreachable", "no hub is connected")
        incoming = Incoming(
            node,
            secrets.token_hex(16),
            silence_seconds=silence_seconds,
            can_leave=can_leave,
            now=self._clock(),
            grant=self._grant,
            forget=self._forget,
        )
        self._asked[incoming.stream] = incoming
        try:
            await self._send_request(incoming, request)
        except FelloeError as error:
            self._asked.pop(incoming.stream, None)
            raise FelloeError(_LINE_LOST, "the request did not leave this node") from error
        except BaseException:
            await incoming.close()
            raise
        return incoming

    def node_lost(self, node: NodeId) -> None:
        """Fail every answer that comes from `node`, and stop every answer that goes to it."""
        self._fail_all(node, FelloeError(_REPLICA_LOST, "the answering node died"))
        self._answering.cancel_for(node)

    def node_moved(self, node: NodeId) -> None:
        """Fail every answer that comes from `node`: its line was cut, and with it what it was sending."""
        self._fail_all(node, FelloeError(_LINE_LOST, "the answering node's line was cut"))

    async def close(self) -> None:
        """End all streams and stop listening; bounded in time."""
        for incoming in list(self._asked.values()):
            await incoming.close()
        await self._answering.close()
        for subscription in self._subscriptions:
            await subscription.close()
        await self._posts.sent(1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._subscriptions, self._tasks = [], []
        self._stay()

    async def _send_request(self, incoming: Incoming, request: bytes) -> None:
        downs = self._downs
        subject = infer(incoming.node)
        reply = reply_subject(self._this, incoming.stream)
        opening = Opening(WINDOW_MESSAGES, WINDOW_BYTES, len(request))
        for number, part in enumerate(split(request, PART_BYTES)):
            message = encode_open(opening, part) if number == 0 else encode(Kind.MORE, number, part)
            await self._connection.publish(subject, message, reply)
        if downs != self._downs:
            raise FelloeError(_LINE_LOST, "the line broke while the request was sent")
        incoming.asked = True
        incoming.heard = self._clock()

    def _on_answer(self, message: Message) -> None:
        incoming = self._asked.get(message.subject[self._inbox_prefix_length :])
        if incoming is None:
            return
        if message.headers and says_nobody_listens(message):
            incoming.fail(FelloeError(_LINE_LOST, "nobody answers for the node"), tell=False)
            return
        incoming.accept(message.data, self._clock())

    def _on_node_message(self, message: Message) -> None:
        if message.subject.endswith(".infer"):
            self._answering.on_request(message.data, message.reply)
        elif message.subject.endswith(".flow"):
            self._answering.on_flow(message.data, message.reply)

    def _grant(self, incoming: Incoming) -> None:
        """A reader has used up half a window: grant a whole one beyond what it used."""
        incoming.ledger.renew()
        self._send_credit(incoming, self._clock())

    def _send_credit(self, incoming: Incoming, now: float) -> None:
        incoming.credited = now
        ledger = incoming.ledger
        data = encode_flow(Kind.CREDIT, incoming.stream, ledger.granted_messages, ledger.granted_bytes)
        # The reply subject comes along because it renews the answerer's right to publish there.
        self._posts.post(flow(incoming.node), data, reply_subject(self._this, incoming.stream))

    def _forget(self, incoming: Incoming, tell: bool) -> None:
        """A stream has ended here; `tell` its answerer, who may be at work still."""
        if self._asked.pop(incoming.stream, None) is not None and tell:
            self._posts.post(flow(incoming.node), encode_flow(Kind.CANCEL, incoming.stream, 0, 0))

    def _fail_all(self, node: NodeId, failure: FelloeError) -> None:
        for incoming in [i for i in self._asked.values() if i.node == node]:
            incoming.fail(failure)

    async def _tend_for_ever(self) -> None:
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            missed = missed_seconds(now - last, TICK_SECONDS)
            last = now
            try:
                self._tend(now, missed)
            except Exception:
                logger.exception("tending the streams failed")

    def _tend(self, now: float, missed: float) -> None:
        down_for = None if self._down_since is None else now - self._down_since
        hub_silent_for = self._connection.silent_seconds
        for incoming in list(self._asked.values()):
            incoming.heard += missed
            if down_for is not None:
                if down_for > self._grace_seconds:
                    incoming.fail(FelloeError(_LINE_LOST, "this node has lost its hub"))
            elif incoming.asked:
                self._tend_one(incoming, now, hub_silent_for)
        self._answering.tend(now, missed)

    def _tend_one(self, incoming: Incoming, now: float, hub_silent_for: float) -> None:
        silent_for, untold_for = now - incoming.heard, now - incoming.credited
        decided = fate(silent_for, untold_for, hub_silent_for, incoming.silence_seconds)
        if decided is Fate.FAIL:
            incoming.fail(FelloeError(_REPLICA_LOST, "the answering node fell silent"))
        elif decided is Fate.ASK:
            self._send_credit(incoming, now)

    def _line_up(self) -> None:
        self._down_since = None
        self._stay()
        now = self._clock()
        for incoming in self._asked.values():
            incoming.heard = now
            if incoming.asked:
                self._send_credit(incoming, now)

    def _line_down(self) -> None:
        self._down_since = self._clock()
        self._downs += 1
        self._answering.cancel_all()
        self._stay()
        # Another hub mostly answers sooner, and then nothing need be computed twice.
        self._leaving = asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._leave)

    def _stay(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _leave(self) -> None:
        """Give up the answers that somebody here can go on with."""
        for incoming in list(self._asked.values()):
            if incoming.can_leave is not None and incoming.can_leave():
                incoming.fail(FelloeError(_LINE_LOST, "this node has lost its hub"))
