"""This node's line to the network's hubs, kept up for ever.

It dials one hub after the other until one answers, gives each new session all subscriptions, pings it, and dials again
when it ends: with back-off, jitter, and the newest credentials.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Sequence
from random import Random

from nats.js.client import JetStreamContext

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.rules import redial_delay
from felloe.mesh.session import FLUSH_SECONDS, Handler, Login, Session, Subscription, describe

logger = logging.getLogger(__name__)

PING_SECONDS = 2.0
PONG_SECONDS = 3.0
CLOSE_SECONDS = 2.0
DEFAULT_MAX_PAYLOAD = 1024 * 1024


class Connection:
    """Publish, subscribe and request over whichever hub answers.

    `urls` are `tls://host:port` (or `nats://` in tests without TLS). With `tls`, the handshake comes before any byte of
    NATS, so that nobody between can talk us out of it. `login` is called at each dial.
    """

    def __init__(
        self,
        urls: Sequence[str],
        node: NodeId,
        *,
        login: Callable[[], Login] | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        random: Random | None = None,
    ) -> None:
        if not urls:
            raise ValueError("a connection needs at least one hub")
        self._urls = list(urls)
        self._node = node
        self._login = login
        self._tls = tls
        self._server_name = server_name
        self._random = random or Random()  # noqa: S311  only spreads redials
        self._session: Session | None = None
        self._subscriptions: list[Subscription] = []
        self._up_callbacks: list[Callable[[], None]] = []
        self._down_callbacks: list[Callable[[], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._farewells: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self._last_failure = "none has been dialled yet"

    @property
    def node(self) -> NodeId:
        """The node whose line this is."""
        return self._node

    @property
    def is_up(self) -> bool:
        """Whether a hub is connected now."""
        return self._session is not None

    @property
    def max_payload(self) -> int:
        """The largest message, in bytes, that the connected hub takes."""
        return self._session.max_payload if self._session else DEFAULT_MAX_PAYLOAD

    def on_up(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop each time a hub is connected and all subscriptions stand."""
        self._up_callbacks.append(callback)

    def on_down(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop each time the connected hub is lost."""
        self._down_callbacks.append(callback)

    async def start(self, *, wait_seconds: float | None = 10.0) -> None:
        """Dial until a hub answers; None returns at once and goes on behind.

        Raises `network_unreachable` when no hub answers in time; the connection is then closed.
        """
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_up(), name="mesh-connection")
        if wait_seconds is None or await self.wait_up(wait_seconds):
            return
        await self.close()
        raise FelloeError("network_unreachable", f"no hub answered: {self._last_failure}")

    async def wait_up(self, seconds: float) -> bool:
        """Wait for a connected hub; whether there is one."""
        if self._session is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._up.wait()
        return self._session is not None

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = "", pending_messages: int = 65_536
    ) -> Subscription:
        """Give every message on `subject` to `handler`, in this session and the following ones."""
        subscription = Subscription(subject, queue, handler, pending_messages, self._forget)
        self._subscriptions.append(subscription)
        if self._session is not None:
            await self._session.subscribe(subscription)
        return subscription

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send one message; waits while the socket is full. `network_unreachable` when no hub is connected."""
        session = self._session
        if session is None:
            raise FelloeError("network_unreachable", "no hub is connected")
        await session.publish(subject, data, reply)

    async def request(self, subject: str, data: bytes, *, timeout: float) -> bytes:
        """Send one message and wait for one answer.

        `network_unreachable` when no hub is connected, the hub is lost meanwhile, or nobody listens;
        `deadline_exceeded` after `timeout` seconds.
        """
        session = self._session
        if session is None:
            raise FelloeError("network_unreachable", "no hub is connected")
        return await session.request(subject, data, timeout)

    async def flush(self, timeout: float = FLUSH_SECONDS) -> None:
        """Wait until the hub has seen everything sent so far; `network_unreachable` when it does not say so in time."""
        session = self._session
        if session is None or not await session.ping(timeout):
            raise FelloeError("network_unreachable", "the hub does not answer")

    def jetstream(self, timeout: float = 5.0) -> JetStreamContext:
        """nats-py's JetStream interface for the present session; ask again after each `on_up`."""
        if self._session is None:
            raise FelloeError("network_unreachable", "no hub is connected")
        return self._session.jetstream(timeout)

    def redial(self) -> None:
        """Drop the session and dial again with the newest credentials; requests in flight fail."""
        if self._session is not None:
            self._session.end()

    async def close(self) -> None:
        """Send what is pending, say goodbye, stop dialling. Bounded in time whatever the hub does."""
        keeper, self._keeper = self._keeper, None
        if self._session is not None:
            await self._session.ping(CLOSE_SECONDS / 2)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=CLOSE_SECONDS)

    def _forget(self, subscription: Subscription) -> None:
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    async def _keep_up(self) -> None:
        attempt = 0
        self._random.shuffle(self._urls)
        while True:
            session = await self._dial(self._urls[attempt % len(self._urls)])
            attempt += 1
            if session is not None:
                attempt = 0
                try:
                    await self._hold(session)
                finally:
                    self._drop(session)
            await asyncio.sleep(redial_delay(attempt // len(self._urls), self._random.random()))

    async def _dial(self, url: str) -> Session | None:
        session: Session | None = None
        try:
            login = self._login() if self._login is not None else None
            session = Session(self._node, login=login, tls=self._tls, server_name=self._server_name)
            await session.dial(url, list(self._subscriptions))
        except BaseException as error:
            if session is not None:
                self._part(session)
            if not isinstance(error, Exception):
                raise
            self._last_failure = describe(error)
            logger.info("no connection to %s: %s", url, self._last_failure)
            return None
        logger.info("connected to %s", url)
        return session

    async def _hold(self, session: Session) -> None:
        """Announce the session, then ping until it ends or falls silent."""
        self._session = session
        self._up.set()
        _call_all(self._up_callbacks)
        while not session.ended.done():
            await asyncio.wait({session.ended}, timeout=PING_SECONDS)
            if not session.ended.done() and not await session.ping(PONG_SECONDS):
                logger.warning("the hub does not answer; dialling again")
                return

    def _drop(self, session: Session) -> None:
        self._session = None
        self._up.clear()
        self._part(session)
        _call_all(self._down_callbacks)

    def _part(self, session: Session) -> None:
        """Close a session behind, so that a frozen hub delays nobody."""
        session.end()
        farewell = asyncio.create_task(session.part(), name="mesh-farewell")
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for callback in list(callbacks):
        try:
            callback()
        except Exception:
            logger.exception("a connection callback failed")
