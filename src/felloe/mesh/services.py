"""Questions to the hubs: `hub.<service>`, typed on both sides, bounded in size, time and number."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from felloe.domain.errors import CATALOGUE, FelloeError
from felloe.mesh.connection import Connection
from felloe.mesh.permissions import hub_service
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

MAX_QUESTION_BYTES = 512 * 1024
MAX_ANSWER_BYTES = 1024 * 1024 - 4096
MAX_AT_WORK = 64
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
        data = msgspec.msgpack.encode(question)
        if len(data) > MAX_QUESTION_BYTES:
            raise FelloeError("body_too_large", f"the question to {service} is too large")
        reply = await self._connection.request(hub_service(service), data, timeout=timeout)
        try:
            envelope = _ENVELOPE.decode(reply)
            if isinstance(envelope, _Success):
                return msgspec.msgpack.decode(envelope.body, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FelloeError("internal", f"the hub's answer to {service} cannot be read") from error
        code = envelope.code if envelope.code in CATALOGUE else "internal"
        raise FelloeError(code, envelope.detail[:300], retry_after=envelope.retry_after)


class HubServices:
    """A hub's side: one handler a service, at most 64 questions at work; more are refused as `overloaded`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subscriptions: list[Subscription] = []
        self._at_work: set[asyncio.Task[None]] = set()

    async def serve(
        self, service: str, question: type[Question], handler: Callable[[Question], Awaitable[msgspec.Struct]]
    ) -> None:
        """Answer `service` with `handler`, which gets a checked `question` and has 10 seconds."""
        decoder = msgspec.msgpack.Decoder(question)

        def on_message(message: Message) -> None:
            if not message.reply:
                return
            if len(self._at_work) >= MAX_AT_WORK:
                refusal = _Failure("overloaded", "the hub has too many questions", 1.0)
                self._spawn(self._reply(message.reply, msgspec.msgpack.encode(refusal)))
            else:
                self._spawn(self._answer(service, decoder, handler, message))

        subscription = await self._connection.subscribe(
            hub_service(service), on_message, queue=HUBS, pending_messages=MAX_AT_WORK * 16
        )
        self._subscriptions.append(subscription)

    async def close(self) -> None:
        """Stop answering."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        for task in list(self._at_work):
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work, name="hub-service")
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _answer(
        self,
        service: str,
        decoder: msgspec.msgpack.Decoder[Any],
        handler: Callable[[Any], Awaitable[msgspec.Struct]],
        message: Message,
    ) -> None:
        answer = msgspec.msgpack.encode(await _work(service, decoder, handler, message.data))
        if len(answer) > MAX_ANSWER_BYTES:
            logger.error("the answer of hub.%s is too large: %d bytes", service, len(answer))
            answer = msgspec.msgpack.encode(_Failure("internal", "the hub's answer is too large"))
        await self._reply(message.reply, answer)

    async def _reply(self, subject: str, answer: bytes) -> None:
        with contextlib.suppress(FelloeError):
            await self._connection.publish(subject, answer)


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
        return _Failure("invalid_value", f"hub.{service} does not take such a question")
    try:
        async with asyncio.timeout(HANDLER_SECONDS):
            return _Success(msgspec.Raw(msgspec.msgpack.encode(await handler(question))))
    except FelloeError as error:
        return _Failure(error.code, error.detail, error.retry_after)
    except TimeoutError:
        return _Failure("deadline_exceeded", f"hub.{service} took too long")
    except Exception:
        logger.exception("hub.%s failed", service)
        return _Failure("internal", f"hub.{service} failed")
