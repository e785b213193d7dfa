"""On a hub: hears from the server who disconnects, and tells everybody at once which node is gone.

A node is gone when the last of its connections in the application account has closed. Which node a connection belongs
to follows from the key it logged in with, not from any name it gave itself.
"""

import asyncio
import logging
from typing import NamedTuple

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh.connection import Connection
from felloe.mesh.nats_jwt import raw_public_key
from felloe.mesh.permissions import account_connected, account_connections, account_disconnected, roster_gone
from felloe.mesh.session import Message, Subscription

logger = logging.getLogger(__name__)

COUNT_SECONDS = 2.0
MAX_GONE = 10_000


class _Client(msgspec.Struct):
    id: int = 0
    user: str = ""
    nkey: str = ""


class _Server(msgspec.Struct):
    id: str = ""


class _Event(msgspec.Struct):
    client: _Client
    server: _Server


class _Line(msgspec.Struct):
    cid: int
    authorized_user: str = ""


class _Lines(msgspec.Struct):
    connections: list[_Line] = []


class _Count(msgspec.Struct):
    server: _Server
    data: _Lines


class Line(NamedTuple):
    """One connection: the server's id and its number there."""

    server: str
    number: int


class Lines:
    """Which connections each node has, as far as they were seen."""

    def __init__(self) -> None:
        self._lines: dict[NodeId, set[Line]] = {}

    def opened(self, node: NodeId, line: Line) -> None:
        """A connection was made."""
        self._lines.setdefault(node, set()).add(line)

    def closed(self, node: NodeId, line: Line) -> bool:
        """A connection ended; whether the node has none left."""
        left = self._lines.get(node)
        if left is None:
            return True
        left.discard(line)
        if left:
            return False
        del self._lines[node]
        return True

    def clear(self) -> None:
        """Forget all; the server was lost and will be asked again."""
        self._lines.clear()


class HubEvents:
    """Turns the server's events into `roster.gone.<id>`.

    `system` is a connection in the system account, `connection` the hub's own in the application account, whose
    public nkey is `account`.
    """

    def __init__(self, system: Connection, connection: Connection, account: str) -> None:
        self._system = system
        self._connection = connection
        self._account = account
        self._lines = Lines()
        self._gone: asyncio.Queue[NodeId] = asyncio.Queue(MAX_GONE)
        self._recount = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen from now on."""
        self._system.on_up(self._recount.set)
        self._system.on_down(self._lines.clear)
        for subject, handler in (
            (account_connected(self._account), self._on_connect),
            (account_disconnected(self._account), self._on_disconnect),
        ):
            self._subscriptions.append(await self._system.subscribe(subject, handler))
        self._recount.set()
        self._tasks = [asyncio.create_task(self._tell_for_ever()), asyncio.create_task(self._count_for_ever())]

    async def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _on_connect(self, message: Message) -> None:
        if (seen := _read_event(message.data)) is not None:
            self._lines.opened(*seen)

    def _on_disconnect(self, message: Message) -> None:
        seen = _read_event(message.data)
        if seen is None or not self._lines.closed(*seen):
            return
        logger.info("node %s is gone", seen[0])
        try:
            self._gone.put_nowait(seen[0])
        except asyncio.QueueFull:
            logger.warning("too many nodes left at once; their silence will tell")

    async def _tell_for_ever(self) -> None:
        while True:
            node = await self._gone.get()
            try:
                await self._connection.publish(roster_gone(node), b"")
            except FelloeError as error:
                logger.warning("could not tell that node %s is gone: %s", node, error.code)

    async def _count_for_ever(self) -> None:
        """Learn the connections that were made before this hub listened."""
        while True:
            await self._recount.wait()
            self._recount.clear()
            try:
                options = msgspec.json.encode({"auth": True, "limit": 65_536})
                reply = await self._system.request(account_connections(self._account), options, timeout=COUNT_SECONDS)
                self._take_count(reply)
            except FelloeError as error:
                logger.info("the server did not count its connections: %s", error.code)

    def _take_count(self, reply: bytes) -> None:
        try:
            count = msgspec.json.decode(reply, type=_Count)
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.warning("the server's count of connections cannot be read")
            return
        for line in count.data.connections:
            if (node := _node_of(line.authorized_user)) is not None:
                self._lines.opened(node, Line(count.server.id, line.cid))


def _read_event(data: bytes) -> tuple[NodeId, Line] | None:
    try:
        event = msgspec.json.decode(data, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        logger.warning("an event of the server cannot be read")
        return None
    node = _node_of(event.client.nkey or event.client.user)
    return None if node is None else (node, Line(event.server.id, event.client.id))


def _node_of(user: str) -> NodeId | None:
    """The node whose key the public nkey `user` is."""
    try:
        return NodeId(id_from_public_key(raw_public_key("user", user)))
    except (FelloeError, ValueError):
        return None
