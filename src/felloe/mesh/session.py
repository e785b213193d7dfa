"""One session with one hub: the only place that touches nats-py's client.

nats-py's traps end here: it would talk in the clear to whoever says that TLS is not needed, its reader dies of a pong
that nobody waits for any more, its requests outlive the socket, it gives up for good on an expired credential, and
closing waits half a minute for a frozen peer. So a session is dialled once, never reconnects, and is cut when it ends.
"""

import asyncio
import base64
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol, cast

import nats.errors
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.mesh.dial_rules import MOST_PATIENCE_SECONDS, pong_patience
from felloe.mesh.permissions import inbox

logger = logging.getLogger(__name__)

DIAL_SECONDS = 4.0
FLUSH_SECONDS = 5.0
FAREWELL_SECONDS = 0.5
PING_SECONDS = 0.5
SLICE_SECONDS = 0.125
LOG_SECONDS = 1.0
ROUND_TRIPS = 64
MAX_PENDING_BYTES = 4 * 1024 * 1024
MAX_WAITING_BYTES = 32 * 1024 * 1024


class Message(Protocol):
    """One message as a handler sees it. `headers` holds `Status` 503 when nobody listens to what was asked."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


Handler = Callable[[Message], None]
"""Called in the event loop for each message, in order; it must not block."""


class Login(NamedTuple):
    """Who this node is: a user token (JWT), and what signs a server's nonce with the key that the token names."""

    token: str
    sign: Callable[[bytes], bytes]


class PasswordLogin(NamedTuple):
    """How a hub logs in to its own state server on loopback."""

    user: str
    password: str


def says_nobody_listens(message: Message) -> bool:
    """Whether the server says that the subject of a request has no subscriber."""
    return message.headers is not None and not message.data and message.headers.get("Status") == "503"


class Subscription:
    """A subject that is subscribed to in every session until `close`."""

    def __init__(
        self,
        subject: str,
        queue: str,
        handler: Handler,
        pending_messages: int,
        forget: Callable[["Subscription"], None],
    ) -> None:
        self._subject = subject
        self._queue = queue
        self._handler = handler
        self._pending_messages = pending_messages
        self._forget = forget
        self._live: Any = None
        self._closed = False

    async def attach(self, client: Any) -> None:
        """Subscribe in a new session's nats-py client."""
        handler = self._handler

        async def deliver(message: Any) -> None:
            handler(message)

        live = await client.subscribe(
            self._subject,
            queue=self._queue,
            cb=deliver,
            pending_msgs_limit=self._pending_messages,
            pending_bytes_limit=MAX_WAITING_BYTES,
        )
        if self._closed:
            await live.unsubscribe()
        else:
            self._live = live

    async def close(self) -> None:
        """Take no more messages."""
        self._closed = True
        self._forget(self)
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(nats.errors.Error):
                await live.unsubscribe()


class Session:
    """One nats-py client, from its dial to its end. `ended` is done as soon as the session is of no more use."""

    def __init__(
        self, node: NodeId, *, login: Login | PasswordLogin | None, tls: ssl.SSLContext | None, server_name: str | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._client = Client()
        self._pings: set[asyncio.Task[float]] = set()
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._heard = self._loop.time()
        self._logged = 0.0
        self._unlogged = 0
        self._options: dict[str, Any] = {
            "name": node,
            "inbox_prefix": inbox(node),
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": DIAL_SECONDS,
            "ping_interval": 3600,
            "flush_timeout": FLUSH_SECONDS,
            "pending_size": MAX_PENDING_BYTES,
            "error_cb": self._on_error,
            "closed_cb": self._on_closed,
        }
        if tls is not None:
            self._options |= {"tls": tls, "tls_handshake_first": True, "tls_hostname": server_name}
        if isinstance(login, PasswordLogin):
            self._options |= {"user": login.user, "password": login.password}
        elif login is not None:

            def sign(nonce: str) -> bytes:
                return base64.b64encode(login.sign(nonce.encode()))

            self._options |= {"user_jwt_cb": login.token.encode, "signature_cb": sign}

    @property
    def max_payload(self) -> int:
        """The largest message, in bytes, that the hub takes."""
        return self._client.max_payload

    @property
    def silent_seconds(self) -> float:
        """How long nothing has been heard from the hub; up to about half a second says nothing."""
        return self._loop.time() - self._heard

    async def dial(self, url: str) -> None:
        """Connect and log in; the hub has answered when this returns. Raises what went wrong."""
        async with asyncio.timeout(2 * DIAL_SECONDS):
            await self._client.connect([url], **self._options)

    async def take_over(self, subscriptions: Collection[Subscription]) -> None:
        """Subscribe to all, also to those that come meanwhile; the hub has taken them when this returns.

        Raises what went wrong.
        """
        taken: set[Subscription] = set()
        async with asyncio.timeout(DIAL_SECONDS):
            while missing := [subscription for subscription in subscriptions if subscription not in taken]:
                for subscription in missing:
                    await subscription.attach(self._client)
                    taken.add(subscription)
                if not await self.ping(DIAL_SECONDS):
                    raise ConnectionResetError("the hub was lost while it was told the subscriptions")

    async def subscribe(self, subscription: Subscription) -> None:
        """Add a subscription; when it fails, the next session will have it."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.attach(self._client)

    async def publish(self, subject: str, data: bytes, reply: str) -> None:
        """Send one message; `network_unreachable` when the session has ended."""
        try:
            await self._client.publish(subject, data, reply)
        except (nats.errors.Error, OSError) as error:
            if not self._client.is_connected:
                # nats-py says so itself only after its farewell to a server that is gone.
                self.end()
            raise FelloeError("network_unreachable", f"the hub took no message: {type(error).__name__}") from error

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """Ask and wait for one answer; see `Connection.request`."""
        asking = asyncio.ensure_future(self._client.request(subject, data, timeout))
        try:
            await asyncio.wait({asking, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise FelloeError("network_unreachable", "the hub was lost while it was asked")
            return asking.result().data
        except nats.errors.NoRespondersError:
            raise FelloeError("network_unreachable", f"nobody answers {subject}") from None
        except TimeoutError:
            raise FelloeError("deadline_exceeded", f"no answer from {subject} in {timeout:g} s") from None
        except (nats.errors.Error, OSError) as error:
            raise FelloeError("network_unreachable", f"the hub took no request: {type(error).__name__}") from error
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def ping(self, seconds: float) -> bool:
        """Whether the hub answers in time; then it has also seen everything sent before."""
        if self.ended.done():
            return False
        pong = self._ask_pong()
        await asyncio.wait({pong, self.ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return _succeeded(pong)

    async def beat(self) -> bool:
        """Wait half a second, then ping; whether the session goes on. False when it ended or the hub fell silent."""
        await asyncio.wait({self.ended}, timeout=PING_SECONDS)
        if self.ended.done():
            return False
        began = self._loop.time()
        if not await self._hears_pong():
            return False
        self._heard = self._loop.time()
        self._round_trips.append(self._heard - began)
        return True

    async def _hears_pong(self) -> bool:
        """Ping, and wait as long as something comes in or the line's patience lasts."""
        patience = pong_patience(max(self._round_trips, default=0.0))
        pong = self._ask_pong()
        silent = waited = 0.0
        while silent < patience and waited < MOST_PATIENCE_SECONDS:
            came = self._client.stats["in_msgs"]
            await asyncio.wait({pong, self.ended}, timeout=SLICE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if pong.done() or self.ended.done():
                return _succeeded(pong)
            # Counted in slices, not by the clock: after a stall of this process what came meanwhile is still unread.
            waited += SLICE_SECONDS
            silent += SLICE_SECONDS
            if self._client.stats["in_msgs"] != came:
                silent = 0.0
                self._heard = self._loop.time()
        logger.warning("the hub does not answer")
        return False

    def _ask_pong(self) -> "asyncio.Task[float]":
        # Not cancelled before the session ends: nats-py's reader dies of a pong that nobody waits for any more.
        task = asyncio.create_task(self._client.rtt(timeout=3600), name="mesh-ping")
        self._pings.add(task)
        task.add_done_callback(self._pings.discard)
        return task

    def jetstream(self, timeout: float) -> JetStreamContext:
        """nats-py's JetStream interface over this session."""
        return cast(Any, self._client).jetstream(timeout=timeout)

    def end(self) -> None:
        """Wake whoever waits for this session's end."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def part(self) -> None:
        """Close, and cut the socket when the hub is too slow to say goodbye."""
        self.end()
        closing = asyncio.ensure_future(self._client.close())
        await asyncio.wait({closing}, timeout=FAREWELL_SECONDS)
        if not closing.done():
            _abort(self._client)
            await asyncio.wait({closing}, timeout=FAREWELL_SECONDS)
        leftovers: list[asyncio.Future[Any]] = [closing, *self._pings]
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)

    async def _on_closed(self) -> None:
        self.end()

    async def _on_error(self, error: Exception) -> None:
        """Log what nats-py met, but not line after line when a flood makes it drop messages."""
        now = self._loop.time()
        if now - self._logged < LOG_SECONDS:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        logger.info("hub connection: %s%s", describe(error), more)
        self._logged, self._unlogged = now, 0


def describe(error: BaseException) -> str:
    """What went wrong, without anything that a message carried."""
    if isinstance(error, nats.errors.Error | OSError):
        return f"{type(error).__name__}: {error}"[:300]
    return type(error).__name__


def is_refusal(error: BaseException) -> bool:
    """Whether the hub was there and did not let this node in: its credential or its trust may be out of date."""
    return isinstance(error, nats.errors.AuthorizationError | ssl.SSLCertVerificationError) or (
        isinstance(error, nats.errors.Error) and "authorization" in str(error).lower()
    )


def _abort(client: Client) -> None:
    """Cut the socket: nats-py has no public way."""
    writer: Any = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def _succeeded(pong: "asyncio.Task[float]") -> bool:
    return pong.done() and not pong.cancelled() and pong.exception() is None
