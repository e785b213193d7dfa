"""The answering side of a request from another node: open, admit, answer, seal."""

import asyncio
import logging
from typing import Protocol

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.requests import Failure
from felloe.routing.admission import Admission
from felloe.routing.deadline import answered_within
from felloe.routing.outbox import Outbox
from felloe.routing.wire import WirePart, decode_request, encode_parts, failure_of

logger = logging.getLogger(__name__)


class Sealer(Protocol):
    """Seals the parts of one answer, in order."""

    def seal(self, part: bytes, /) -> bytes: ...

    def finish(self, part: bytes = b"", /) -> bytes: ...


class OpensRequests(Protocol):
    """This node's sealing keys."""

    def open(self, sealed: bytes, /) -> tuple[bytes, Sealer]:
        """The request and what seals its answer; raises `unsealed` or `replayed`."""
        ...


class Outgoing(Protocol):
    """The stream back to the asker. Sending waits while the asker grants no credit."""

    asker: NodeId

    async def send(self, message: bytes, /) -> None: ...

    async def finish(self, message: bytes = b"", /) -> None: ...

    async def refuse(self, code: str, /) -> None: ...


class AnsweringService:
    """Handles what arrives for this node. The exchange cancels `handle` when the asker is gone.

    Every failure of a request that could be opened travels sealed. One that could not be opened is refused with its
    code only, for there is no key to say more under.
    """

    def __init__(self, keys: OpensRequests, admission: Admission) -> None:
        self._keys = keys
        self._admission = admission

    async def handle(self, sealed: bytes, outgoing: Outgoing) -> None:
        """Answer one sealed request."""
        try:
            data, sealer = self._keys.open(sealed)
        except FelloeError as error:
            await outgoing.refuse(error.code)
            return
        outbox = Outbox()
        answering = asyncio.create_task(self._answer(data, outgoing.asker, outbox))
        try:
            await _send_all(outbox, sealer, outgoing)
        finally:
            if not answering.done():
                answering.cancel()
                await asyncio.wait((answering,))

    async def _answer(self, data: bytes, asker: NodeId, outbox: Outbox) -> None:
        """Put a whole answer, or what became of it, into `outbox`."""
        try:
            request = decode_request(data)
            answer = self._admission.answer(request, outbox.put, asker)
            outbox.end(await answered_within(request.deadline, answer))
        except FelloeError as error:
            outbox.end(failure_of(error))
        except Exception as error:
            # Its text may quote the request, so only its kind is told.
            logger.error("answering failed with %s", type(error).__qualname__)
            outbox.end(Failure("internal", "the answering node failed unexpectedly"))


async def _send_all(outbox: Outbox, sealer: Sealer, outgoing: Outgoing) -> None:
    while True:
        parts: list[WirePart] = await outbox.take()
        messages = encode_parts(parts)
        for message in messages[:-1]:
            await outgoing.send(sealer.seal(message))
        if outbox.complete:
            await outgoing.finish(sealer.finish(messages[-1]))
            return
        await outgoing.send(sealer.seal(messages[-1]))
