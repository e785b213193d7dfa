"""Questions to the hubs (`hub.<service>`) and the hubs' commands to a node (`node.<id>.command.<name>`).

Typed on both sides, bounded in size, time and number.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import command, hub_service, inbox_owner
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

MAX_QUESTION_BYTES = 512 * 1024
MAX_ANSWER_BYTES = 1024 * 1024 - 4096
MAX_AT_WORK = 64
MAX_PER_ASKER = 16
MAX_REFUSALS = 256
RETRY_AFTER_SECONDS = 1.0
HANDLER_SECONDS = 10.0
HUBS = "hubs"

Question = TypeVar("Question", bound=msgspec.Struct)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class _Failure(msgspec.Struct, tag="f", array_like=True, frozen=True):
    code: str
    detail: str
    retry_after: float | None = None


class _Success(msgspec.Struct, tag="s", array_like=True, frozen=True):
    body: msgspec.Raw


_ENVELOPE = msgspec.msgpack.Decoder(_Failure | _Success)


class HubClient:
    """Asks the hubs; any hub may answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ask(
        self, service: str, question: msgspec.Struct, answer: type[Answer], *, timeout: float = 5.0
    ) -> Answer:
        """Ask `service`.

        Raises what the hub answered with, `network_unreachable` when no hub is there, `deadline_exceeded` after
        `timeout` seconds, `body_too_large`, or `internal` when the answer is not an `answer`.
        """
        return await ask_subject(self._connection, hub_service(service), question, answer, timeout)


class NodeClient:
    """A hub tells single nodes what to do; the message server lets nobody else."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def tell(
        self, node: NodeId, name: str, question: msgspec.Struct, answer: type[Answer], *, timeout: float = 5.0
    ) -> Answer:
        """Give `node` the command `name`; raises as `HubClient.ask`, with what the node answered."""
        return await ask_subject(self._connection, command(node, name), question, answer, timeout)


async def ask_subject(
    connection: Connection, subject: str, question: msgspec.Struct, answer: type[Answer], timeout: float
) -> Answer:
    """Ask whoever serves `subject`; raises as `HubClient.ask`."""
    data = msgspec.msgpack.encode(question)
    if len(data) > MAX_QUESTION_BYTES:
        raise FelloeError("body_too_large", f"the question to {subject} is too large")
    reply = await connection.request(subject, data, timeout=timeout)
    try:
        envelope = _ENVELOPE.decode(reply)
        if isinstance(envelope, _Success):
            return msgspec.msgpack.decode(envelope.body, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("internal", f"the answer from {subject} cannot be read") from error
    code = envelope.code if envelope.code in CATALOGUE else "internal"
    raise FelloeError(code, envelope.detail[:300], retry_after=envelope.retry_after)


class Services:
    """Who answers: one handler a service; where nothing else is said, 64 questions at work, 16 of them for one asker.

    More are refused as `overloaded`, and beyond 256 refusals under way dropped. Who asks is known by the inbox that is
    to get the answer. Nobody is authenticated by that: whoever names another's inbox uses up the other's share.
    """

    def __init__(
        self,
        connection: Connection,
        subject: Callable[[str], str],
        queue: str = "",
        *,
        most_at_work: int = MAX_AT_WORK,
        most_per_asker: int = MAX_PER_ASKER,
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._queue = queue
        self._most_at_work = most_at_work
        self._most_per_asker = most_per_asker
        self._subscriptions: list[Subscription] = []
        self._at_work: dict[asyncio.Task[None], NodeId] = {}
        self._refusals: set[asyncio.Task[None]] = set()

    async def serve(
        self, service: str, question: type[Question], handler: Callable[[Question], Awaitable[msgspec.Struct]]
    ) -> None:
        """Answer `service` with `handler`, which gets a checked `question` and has 10 seconds."""
        decoder = msgspec.msgpack.Decoder(question)

        def on_message(message: Message) -> None:
            asker = inbox_owner(message.reply)
            if asker is None:
                return
            if self._has_room(asker):
                task = asyncio.create_task(self._answer(service, decoder, handler, message), name="hub-service")
                self._at_work[task] = asker
                task.add_done_callback(self._at_work.pop)
            else:
                self._refuse(message.reply)

        subscription = await self._connection.subscribe(
            self._subject(service), on_message, queue=self._queue, pending_messages=self._most_at_work * 16
        )
        self._subscriptions.append(subscription)

    async def close(self) -> None:
        """Stop answering."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        tasks = [*self._at_work, *self._refusals]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self, asker: NodeId) -> bool:
        own = sum(other == asker for other in self._at_work.values())
        return len(self._at_work) < self._most_at_work and own < self._most_per_asker

    def _refuse(self, reply: str) -> None:
        if len(self._refusals) >= MAX_REFUSALS:
            return
        refusal = _Failure("overloaded", "there are too many questions", RETRY_AFTER_SECONDS)
        task = asyncio.create_task(self._reply(reply, msgspec.msgpack.encode(refusal)), name="hub-refusal")
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _answer(
        self,
        service: str,
        decoder: msgspec.msgpack.Decoder[Any],
        handler: Callable[[Any], Awaitable[msgspec.Struct]],
        message: Message,
    ) -> None:
        answer = msgspec.msgpack.encode(await _work(service, decoder, handler, message.data))
        if len(answer) > MAX_ANSWER_BYTES:
            logger.error("the answer of %s is too large: %d bytes", service, len(answer))
            answer = msgspec.msgpack.encode(_Failure("internal", "the answer is too large"))
        await self._reply(message.reply, answer)

    async def _reply(self, subject: str, answer: bytes) -> None:
        with contextlib.suppress(FelloeError):
            await self._connection.publish(subject, answer)


class HubServices(Services):
    """A hub's side: of all hubs one answers each question."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, hub_service, HUBS)


class NodeCommands(Services):
    """A node's side: it carries out what hubs tell it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, partial(command, connection.node))


async def _work(
    service: str,
    decoder: msgspec.msgpack.Decoder[Any],
    handler: Callable[[Any], Awaitable[msgspec.Struct]],
    data: bytes,
) -> _Failure | _Success:
    if len(data) > MAX_QUESTION_BYTES:
        return _Failure("body_too_large", "the question is too large")
    try:
        question = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Failure("invalid_value", f"{service} does not take such a question")
    try:
        async with asyncio.timeout(HANDLER_SECONDS):
            return _Success(msgspec.Raw(msgspec.msgpack.encode(await handler(question))))
    except FelloeError as error:
        return _Failure(error.code, error.detail, error.retry_after)
    except TimeoutError:
        return _Failure("deadline_exceeded", f"{service} took too long")
    except Exception:
        logger.exception("the service %s failed", service)
        return _Failure("internal", f"{service} failed")
