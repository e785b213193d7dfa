"""This node's line to the network's hubs, kept up for ever.

It dials one hub after the other until one answers, gives each new session all subscriptions, pings it, and dials again
when it ends: other hubs first, with back-off, jitter, and the newest credentials. The hubs may change at any time.
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
from felloe.mesh.dial_rules import dial_order, redial_delay
from felloe.mesh.dialling import first_to_answer
from felloe.mesh.session import (
    FLUSH_SECONDS,
    Handler,
    Login,
    PasswordLogin,
    Session,
    Subscription,
    describe,
    is_refusal,
)

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
STEADY_SECONDS = 5.0
MOVE_SECONDS = 60.0
DEFAULT_MAX_PAYLOAD = 1024 * 1024


class Connection:
    """Publish, subscribe and request over whichever hub answers.

    `urls` are `tls://host:port` (or `nats://` in tests without TLS); `nearest` is the one to prefer. With `tls`, the
    handshake comes before any byte of NATS, so that nobody between can talk us out of it. `login`, and `tls` where it
    is a function, are called at each dial.
    """

    def __init__(
        self,
        urls: Sequence[str],
        node: NodeId,
        *,
        nearest: str | None = None,
        login: Callable[[], Login | PasswordLogin] | None = None,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        server_name: str | None = None,
        random: Random | None = None,
    ) -> None:
        if not urls:
            raise ValueError("a connection needs at least one hub")
        self._urls = tuple(urls)
        self._nearest = nearest
        self._node = node
        self._login = login
        self._tls = tls
        self._server_name = server_name
        self._random = random or Random()  # noqa: S311  only spreads redials
        self._session: Session | None = None
        self._url: str | None = None
        self._lost: str | None = None
        self._leaving = False
        self._wants_to_move = False
        self._wanted_since: float | None = None
        self._uses: list[Callable[[], bool]] = []
        self._subscriptions: list[Subscription] = []
        self._up_callbacks: list[Callable[[], None]] = []
        self._down_callbacks: list[Callable[[], None]] = []
        self._refusal_callbacks: list[Callable[[], None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._farewells: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self._hubs_changed = asyncio.Event()
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
    def url(self) -> str | None:
        """The hub that is connected now."""
        return self._url

    @property
    def silent_seconds(self) -> float:
        """How long the connected hub has said nothing, not even to a ping; 0 when none is connected."""
        return self._session.silent_seconds if self._session else 0.0

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

    def on_refusal(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop each time a hub does not let this node in."""
        self._refusal_callbacks.append(callback)

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

    def set_urls(self, urls: Sequence[str], *, nearest: str | None = None) -> None:
        """Dial these hubs from now on; no hub at all is not believed, and the former ones stay.

        The session goes on while its hub is among them; else it moves in a quiet moment.
        """
        if not urls:
            logger.warning("an empty list of hubs was not taken")
            return
        if set(urls) != set(self._urls):
            self._hubs_changed.set()
        self._urls, self._nearest = tuple(urls), nearest

    def keep_while(self, in_use: Callable[[], bool]) -> None:
        """A moment is quiet when no such `in_use` says yes."""
        self._uses.append(in_use)

    def move_when_quiet(self) -> None:
        """Dial again with the newest credentials in a quiet moment, within a minute at the latest."""
        self._wants_to_move = True

    def redial(self, *, elsewhere: bool = False) -> None:
        """Drop the session and dial again with the newest credentials; requests in flight fail.

        `elsewhere` tries the other hubs first.
        """
        if self._session is not None:
            self._leaving = not elsewhere
            self._session.end()

    async def begin_anew(self, seconds: float) -> bool:
        """Redial and wait for the new session; whether there is one in time."""
        stands = asyncio.Event()
        self._up_callbacks.append(stands.set)
        self.redial()
        try:
            async with asyncio.timeout(seconds):
                return await stands.wait()
        except TimeoutError:
            return False
        finally:
            self._up_callbacks.remove(stands.set)

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
        clock = asyncio.get_running_loop().time
        fruitless = 0
        while True:
            self._hubs_changed.clear()
            order = dial_order(self._urls, self._random.random, nearest=self._nearest, lost=self._lost)
            found = await first_to_answer(order, self._dial, self._part)
            fruitless += 1
            if found is not None:
                began = clock()
                await self._use(*found)
                if clock() - began >= STEADY_SECONDS:
                    fruitless = 0
            if fruitless:
                await self._pause(redial_delay(fruitless, self._random.random()))

    async def _pause(self, seconds: float) -> None:
        """Wait before the next round; other hubs are tried sooner."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hubs_changed.wait()

    async def _dial(self, url: str) -> Session | None:
        session: Session | None = None
        try:
            login = self._login() if self._login is not None else None
            tls = self._tls() if callable(self._tls) else self._tls
            session = Session(self._node, login=login, tls=tls, server_name=self._server_name)
            await session.dial(url)
        except BaseException as error:
            if session is not None:
                self._part(session)
            if not isinstance(error, Exception):
                raise
            self._note_failure(url, error)
            return None
        return session

    async def _use(self, url: str, session: Session) -> None:
        """Give the session all subscriptions and hold it as long as it lasts."""
        try:
            await session.take_over(self._subscriptions)
            await self._hold(url, session)
        except Exception as error:
            self._lost = url
            self._note_failure(url, error)
        finally:
            self._drop(session)

    def _note_failure(self, url: str, error: Exception) -> None:
        self._last_failure = describe(error)
        logger.info("no connection to %s: %s", url, self._last_failure)
        if is_refusal(error):
            _call_all(self._refusal_callbacks)

    async def _hold(self, url: str, session: Session) -> None:
        """Announce the session, then ping until it ends, falls silent, or is left for another one."""
        logger.info("connected to %s", url)
        self._session, self._url, self._lost = session, url, url
        self._leaving = self._wants_to_move = False
        self._up.set()
        _call_all(self._up_callbacks)
        while await session.beat():
            if self._should_move():
                self._leaving = True
                break
        if self._leaving:
            logger.info("leaving %s", url)
            self._lost = None

    def _should_move(self) -> bool:
        if not self._wants_to_move and self._url in self._urls:
            self._wanted_since = None
            return False
        now = asyncio.get_running_loop().time()
        if self._wanted_since is None:
            self._wanted_since = now
        if now - self._wanted_since < MOVE_SECONDS and any(in_use() for in_use in self._uses):
            return False
        self._wanted_since = None
        return True

    def _drop(self, session: Session) -> None:
        self._part(session)
        if self._session is session:
            self._session = self._url = None
            self._up.clear()
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
