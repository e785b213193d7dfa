"""The answerer's side of one stream: what a handler sends to the asker's inbox."""

import asyncio
from collections.abc import Awaitable, Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.incoming import REFUSALS
from felloe.mesh.stream_rules import MAX_MESSAGE_BYTES, PART_BYTES, Allowance, split
from felloe.mesh.stream_wire import HEADER, VERSION, Kind, Opening, Refusal, encode, encode_refusal

_DATA = int(Kind.DATA)
_PART = int(Kind.PART)


class Outgoing:
    """One answer under way: messages, then `finish` or `refuse`. One task sends at a time."""

    def __init__(
        self,
        asker: NodeId,
        reply: str,
        opening: Opening,
        *,
        now: float,
        publish: Callable[[str, bytes], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self.asker = asker
        self.heard = now
        self.sent = now
        self._reply = reply
        self._allowance = Allowance(opening.messages, opening.bytes)
        self._publish = publish
        self._clock = clock
        self._sender: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether `finish` or `refuse` was called."""
        return self._ended

    async def send(self, data: bytes) -> None:
        """Send one message of at most 8 MiB; waits until the asker has room. Nothing is sent after the end."""
        if len(data) > PART_BYTES:
            await self._send_long(data)
        else:
            await self._send_part(_DATA, data)

    async def finish(self, data: bytes = b"") -> None:
        """Send `data`, when there is any, and the clean end."""
        if data:
            await self.send(data)
        self._check_open()
        self._ended = True
        await self._publish(self._reply, encode(Kind.END, self._allowance.sent_messages))

    async def refuse(self, code: str, retry_after: float | None = None) -> None:
        """End the stream with a code that the asker may see outside the seal; any other becomes `internal`."""
        self._check_open()
        self._ended = True
        refusal = Refusal(code if code in REFUSALS else "internal", retry_after)
        await self._publish(self._reply, encode_refusal(refusal))

    def grant(self, messages: int, size: int, now: float) -> None:
        """Take a credit from the asker."""
        self.heard = now
        self._allowance.grant(messages, size)
        sender = self._sender
        if sender is not None and not sender.done() and self._allowance.may_send():
            sender.set_result(None)

    def keepalive(self) -> bytes:
        """The message that says: still alive, and this number comes next."""
        return encode(Kind.KEEPALIVE, self._allowance.sent_messages)

    async def _send_long(self, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_BYTES:
            raise FelloeError("internal", f"a message of {len(data)} bytes is too large for a stream")
        parts = list(split(data, PART_BYTES))
        for part in parts[:-1]:
            await self._send_part(_PART, part)
        await self._send_part(_DATA, parts[-1])

    async def _send_part(self, kind: int, data: bytes) -> None:
        self._check_open()
        allowance = self._allowance
        while not allowance.may_send():
            self._sender = asyncio.get_running_loop().create_future()
            try:
                await self._sender
            finally:
                self._sender = None
        self.sent = self._clock()
        await self._publish(self._reply, HEADER.pack(VERSION, kind, allowance.spend(len(data))) + data)

    def _check_open(self) -> None:
        if self._ended:
            raise FelloeError("internal", "the stream has ended already")
