"""The message server of a hub: which hubs it meets, whom it lets in, and who has lost that right."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from felloe.domain.errors import FelloeError
from felloe.host.processes import end, spawn
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.connection import Connection
from felloe.mesh.nats_server import NatsServer, Place
from felloe.mesh.permissions import account_update
from felloe.mesh.server_config import MessageSettings, Routes, TlsFiles, render_message_config
from felloe.node.home import Home

logger = logging.getLogger(__name__)

_PUSH_SECONDS = 2.0
_RETRY_SECONDS = 0.2
_SKIPPED = b'"jwt update skipped"'


class MessageServer:
    """Owns the server's process and what was pushed to it last; a reload revokes nothing.

    `authority`, `routes` and `revoked` (raw node keys and when they were removed, in Unix seconds) are asked whenever
    the server is told anew.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        host: str,
        port: int,
        tls: TlsFiles,
        *,
        authority: Callable[[], NetworkAuthority],
        routes: Callable[[], Routes],
        revoked: Callable[[], dict[bytes, float]],
    ) -> None:
        self._authority = authority
        self._routes = routes
        self._revoked = revoked
        self._told: dict[bytes, float] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        directory = home.state / "messages"
        log = home.logs / "message-server.log"

        def render(listening: int) -> str:
            keys = authority()
            settings = MessageSettings(
                name=name,
                host=host,
                directory=directory,
                log=log,
                tls=tls,
                operator=keys.operator_token,
                system_account=keys.system_account,
            )
            tokens = keys.account_tokens(time.time(), revoked())
            return render_message_config(settings, listening, tokens, routes())

        self._server = NatsServer(
            Place(host=host, port=port, directory=directory, log=log), render, spawn=spawn, end=end
        )

    async def start(self) -> None:
        """Carry messages when this returns. Raises `port_taken`, `broker_failed`."""
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._server.run(), name="message-server"))

    def watch(self, system: Connection) -> None:
        """Tell the server over `system` (a connection in its system account) who was removed, whenever that changes."""
        self._tasks.append(asyncio.create_task(self._push_for_ever(system), name="revocations"))

    def members_changed(self) -> None:
        """Somebody may have been removed."""
        self._wake.set()

    async def reload(self) -> None:
        """Take up new certificates and routes."""
        await self._server.reload()

    async def restart(self) -> None:
        """Begin anew with new operator keys, or without a hub that was removed: every connection is dropped."""
        await self._server.restart()

    async def stop(self) -> None:
        """End the server."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()

    async def _push_for_ever(self, system: Connection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_seconds_until(self._authority().next_end(time.time()))):
                    await self._wake.wait()
            told_already = self._wake.is_set() and self._revoked() == self._told
            self._wake.clear()
            if told_already:
                continue
            try:
                await self._push(system)
            except FelloeError as error:
                logger.warning("the message server was not told of a removal yet: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._wake.set()

    async def _push(self, system: Connection) -> None:
        revoked, skipped = self._revoked(), False
        for account, token in self._authority().account_tokens(time.time(), revoked).items():
            reply = await system.request(account_update(account), token.encode(), timeout=_PUSH_SECONDS)
            if b'"error"' in reply:
                raise FelloeError("broker_failed", "the message server refused a token of this network")
            skipped = skipped or _SKIPPED in reply
        if skipped:
            # Nobody has used the account yet, so it would be used as it was when the server began.
            await self._server.restart()
        self._told = revoked


def _seconds_until(end: int | None) -> float | None:
    """When earlier signing keys cease to be believed, the server must be told."""
    return None if end is None else max(1.0, end - time.time() + 1.0)
