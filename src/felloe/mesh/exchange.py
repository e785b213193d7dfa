"""Request streams between nodes: one sealed request to another node, and its answer message by message.

The exchange owns every stream that this node asks for or answers. A stream fails rather than hangs: on a gap, on
silence, when nobody listens, when the roster says that the node died, when this node's own line is down for longer
than a grace. See docs/protocol-mesh.md for the bytes.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.answering import Answering
from felloe.mesh.connection import Connection
from felloe.mesh.incoming import Incoming
from felloe.mesh.outgoing import Outgoing
from felloe.mesh.permissions import flow, inbox, infer
from felloe.mesh.rules import DEAF_AFTER_SECONDS
from felloe.mesh.session import Message, Subscription, says_nobody_listens
from felloe.mesh.stream_rules import MAX_REQUEST_BYTES, PART_BYTES, WINDOW_BYTES, WINDOW_MESSAGES, split
from felloe.mesh.stream_wire import Kind, Opening, encode, encode_flow, encode_open, reply_subject

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
CREDIT_SECONDS = 5.0
GRACE_SECONDS = 2.0
MAX_ASKED = 4096
MAX_POSTS = 8192

_REPLICA_LOST = "replica_lost"

Handler = Callable[[bytes, Outgoing], Awaitable[None]]
"""Answers one request; cancelled at once when the asker goes away."""


class _Post(NamedTuple):
    subject: str
    data: bytes
    reply: str


class Exchange:
    """All request streams of this node, asked and answered.

    `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        this: NodeId,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_answers: int = 256,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._connection = connection
        self._this = this
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._asked: dict[str, Incoming] = {}
        self._answering = Answering(connection.publish, self._post, clock=clock, max_answers=max_answers)
        self._posts: asyncio.Queue[_Post] = asyncio.Queue(MAX_POSTS)
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._inbox_prefix_length = len(inbox(this)) + 1
        self._down_since: float | None = None
        connection.on_up(self._line_up)
        connection.on_down(self._line_down)

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
            asyncio.create_task(self._send_posts(), name="exchange-posts"),
            asyncio.create_task(self._tend_for_ever(), name="exchange-tend"),
        ]

    def serve(self, handler: Handler) -> None:
        """Answer requests with `handler` from now on."""
        self._answering.handler = handler

    async def open(self, node: NodeId, request: bytes, *, silence_seconds: float = 5.0) -> Incoming:
        """Send `request` (at most 8 MiB) to `node` and return its answer, which begins to come in.

        `replica_lost` when no hub is connected and none becomes so within a short grace, `overloaded` beyond 4,096
        open streams, `body_too_large`.
        """
        if len(request) > MAX_REQUEST_BYTES:
            raise FelloeError("body_too_large", "the request is too large to travel")
        if len(self._asked) >= MAX_ASKED:
            raise FelloeError("overloaded", "too many streams are open", retry_after=1.0)
        if not await self._connection.wait_up(self._grace_seconds):
            raise FelloeError(_REPLICA_LOST, "no hub is connected")
        incoming = Incoming(
            node,
            secrets.token_hex(16),
            silence_seconds=silence_seconds,
            now=self._clock(),
            grant=self._grant,
            forget=self._forget,
        )
        self._asked[incoming.stream] = incoming
        try:
            await self._send_request(incoming, request)
        except FelloeError as error:
            self._asked.pop(incoming.stream, None)
            raise FelloeError(_REPLICA_LOST, "the request did not leave this node") from error
        except BaseException:
            await incoming.close()
            raise
        return incoming

    def node_lost(self, node: NodeId) -> None:
        """Fail every answer that comes from `node`, and stop every answer that goes to it."""
        for incoming in [i for i in self._asked.values() if i.node == node]:
            incoming.fail(FelloeError(_REPLICA_LOST, "the answering node died"))
        self._answering.cancel_for(node)

    async def close(self) -> None:
        """End all streams and stop listening; bounded in time."""
        for incoming in list(self._asked.values()):
            await incoming.close()
        await self._answering.close()
        for subscription in self._subscriptions:
            await subscription.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._posts.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._subscriptions, self._tasks = [], []

    async def _send_request(self, incoming: Incoming, request: bytes) -> None:
        publish = self._connection.publish
        subject = infer(incoming.node)
        reply = reply_subject(self._this, incoming.stream)
        opening = Opening(WINDOW_MESSAGES, WINDOW_BYTES, len(request))
        for number, part in enumerate(split(request, PART_BYTES)):
            message = encode_open(opening, part) if number == 0 else encode(Kind.MORE, number, part)
            await publish(subject, message, reply)

    def _on_answer(self, message: Message) -> None:
        incoming = self._asked.get(message.subject[self._inbox_prefix_length :])
        if incoming is None:
            return
        if message.headers and says_nobody_listens(message):
            incoming.fail(FelloeError(_REPLICA_LOST, "nobody answers for the node"))
            return
        incoming.accept(message.data, self._clock())

    def _on_node_message(self, message: Message) -> None:
        if message.subject.endswith(".infer"):
            self._answering.on_request(message.data, message.reply)
        elif message.subject.endswith(".flow"):
            self._answering.on_flow(message.data)

    def _grant(self, incoming: Incoming) -> None:
        """A reader has used up half a window: grant a whole one beyond what it used."""
        incoming.ledger.renew()
        self._send_credit(incoming, self._clock())

    def _send_credit(self, incoming: Incoming, now: float) -> None:
        incoming.credited = now
        ledger = incoming.ledger
        data = encode_flow(Kind.CREDIT, incoming.stream, ledger.granted_messages, ledger.granted_bytes)
        # The reply subject comes along because it renews the answerer's right to publish there.
        self._post(flow(incoming.node), data, reply_subject(self._this, incoming.stream))

    def _forget(self, incoming: Incoming, tell: bool) -> None:
        """A stream has ended here; `tell` its answerer, who may be at work still."""
        if self._asked.pop(incoming.stream, None) is not None and tell:
            self._post(flow(incoming.node), encode_flow(Kind.CANCEL, incoming.stream, 0, 0))

    def _post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send a small message soon, without waiting; it is dropped when far too many are under way."""
        try:
            self._posts.put_nowait(_Post(subject, data, reply))
        except asyncio.QueueFull:
            logger.warning("too many control messages wait for the hub; one was dropped")

    async def _send_posts(self) -> None:
        while True:
            post = await self._posts.get()
            with contextlib.suppress(FelloeError):
                await self._connection.publish(*post)
            self._posts.task_done()

    async def _tend_for_ever(self) -> None:
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            # Whoever was suspended has heard nobody; that is not the others' silence.
            deaf = now - last > DEAF_AFTER_SECONDS
            last = now
            try:
                self._tend(now, deaf)
            except Exception:
                logger.exception("tending the streams failed")

    def _tend(self, now: float, deaf: bool) -> None:
        line_lost = self._down_since is not None and now - self._down_since > self._grace_seconds
        for incoming in list(self._asked.values()):
            if deaf:
                incoming.heard = now
            if line_lost:
                incoming.fail(FelloeError(_REPLICA_LOST, "this node has lost its hub"))
            elif now - incoming.heard > incoming.silence_seconds:
                incoming.fail(FelloeError(_REPLICA_LOST, "the answering node fell silent"))
            elif now - incoming.credited > CREDIT_SECONDS:
                self._send_credit(incoming, now)
        self._answering.tend(now, deaf)

    def _line_up(self) -> None:
        self._down_since = None

    def _line_down(self) -> None:
        self._down_since = self._clock()
        self._answering.cancel_all()
