"""A trial before a node becomes a hub: can it be dialled from here, at every port that a hub needs?

The candidate opens its ports for some seconds and answers each connection with a tag that only it and the asking hub
can make; so a port that something else answers, or that a router sends elsewhere, does not count. The prober sends
nothing.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable

from msgspec import Struct, field

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints

_LOG = logging.getLogger(__name__)

TRIAL_SECONDS = 20.0
DIAL_SECONDS = 4.0
SECRET_BYTES = 32
TAG_BYTES = 32
MOST_HOSTS = 8
MOST_CONNECTIONS = 128
_LONGEST_HOST = 253


class TrialRequest(Struct, frozen=True, kw_only=True):
    """Open the ports and answer with tags of `secret`; with `over`, close them again. `secret` has 32 bytes."""

    secret: bytes
    over: bool = False


class TrialAnswer(Struct, frozen=True, kw_only=True):
    """What became of it: port number to reason, for each port that could not be opened; empty when all are open."""

    failures: dict[int, str] = field(default_factory=dict[int, str])


class Reached(Struct, frozen=True, kw_only=True):
    """The first host at which every port answered rightly; None when there is none.

    `failures` says why not, by the address tried (`host:port`, or `port 8473 there` for one that it could not open).
    """

    host: str | None
    failures: dict[str, str]


Ask = Callable[[NodeId, TrialRequest], Awaitable[TrialAnswer]]
"""Sends a request to a node over the mesh; raises `FelloeError` when it does not answer."""


def ports_of(endpoints: Endpoints) -> tuple[int, ...]:
    """Every port that others must be able to dial on a hub."""
    return tuple(dict.fromkeys((endpoints.peer, endpoints.mesh, endpoints.route, endpoints.state, endpoints.state + 1)))


def tag(secret: bytes, port: int) -> bytes:
    """What a port answers: HMAC-SHA256 of the port number (2 bytes, big endian) under the trial's secret."""
    return hmac.digest(secret, port.to_bytes(2, "big"), hashlib.sha256)


class TrialListener:
    """The candidate's side. `host` is the address to listen on; one trial at a time, of at most 20 seconds."""

    def __init__(self, host: str, endpoints: Endpoints, *, seconds: float = TRIAL_SECONDS) -> None:
        self._host = host
        self._endpoints = endpoints
        self._seconds = seconds
        self._secret: bytes | None = None
        self._servers: list[asyncio.Server] = []
        self._answered = 0
        self._closer: asyncio.TimerHandle | None = None

    async def on_request(self, request: TrialRequest) -> TrialAnswer:
        """Carry out what a hub asks. Raises `overloaded` during another hub's trial, `invalid_value`."""
        if len(request.secret) != SECRET_BYTES:
            raise FelloeError("invalid_value", f"the secret of a trial has {SECRET_BYTES} bytes")
        if request.over:
            if self._secret is not None and hmac.compare_digest(request.secret, self._secret):
                self.close()
            return TrialAnswer()
        if self._secret is not None:
            raise FelloeError("overloaded", "another hub tries the ports now", retry_after=self._seconds)
        self._secret = request.secret
        self._answered = 0
        self._closer = asyncio.get_running_loop().call_later(self._seconds, self.close)
        return TrialAnswer(failures=await self._open(request.secret))

    def close(self) -> None:
        """Close the ports at once."""
        if self._closer is not None:
            self._closer.cancel()
        servers, self._servers, self._secret, self._closer = self._servers, [], None, None
        for server in servers:
            server.close()

    async def _open(self, secret: bytes) -> dict[int, str]:
        failures: dict[int, str] = {}
        for port in ports_of(self._endpoints):
            if not 0 < port < 65536:
                failures[port] = "no port has this number"
                continue
            try:
                server = await asyncio.start_server(self._answerer(tag(secret, port)), self._host, port)
            except OSError as error:
                failures[port] = error.strerror or type(error).__name__
                continue
            if self._secret is not secret:
                server.close()
                raise FelloeError("overloaded", "the trial was ended before its ports were open")
            self._servers.append(server)
        return failures

    def _answerer(self, answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._answered += 1
            with contextlib.suppress(OSError, TimeoutError):
                if self._answered <= MOST_CONNECTIONS:
                    writer.write(answer)
                async with asyncio.timeout(DIAL_SECONDS):
                    writer.close()
                    await writer.wait_closed()

        return respond


async def try_node(node: NodeId, endpoints: Endpoints, ask: Ask) -> Reached:
    """The whole trial of a node. Raises what `ask` raises."""
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        answer = await ask(node, TrialRequest(secret=secret))
        if answer.failures:
            told = list(answer.failures.items())[:MOST_HOSTS]
            return Reached(host=None, failures={f"port {port} there": str(reason)[:100] for port, reason in told})
        return await probe(endpoints, secret)
    finally:
        with contextlib.suppress(FelloeError):
            await ask(node, TrialRequest(secret=secret, over=True))


async def probe(endpoints: Endpoints, secret: bytes, *, seconds: float = DIAL_SECONDS) -> Reached:
    """Dial every port at each of at most 8 hosts, all at once; one host where all answer rightly is enough."""
    hosts = tuple(dict.fromkeys(endpoints.hosts))[:MOST_HOSTS]
    ports = ports_of(endpoints)
    failures: dict[str, str] = {} if hosts else {"no address": "the node names none"}
    for host, problems in zip(
        hosts, await asyncio.gather(*(_dial_all(host, ports, secret, seconds) for host in hosts)), strict=True
    ):
        if not problems:
            return Reached(host=host, failures=failures)
        failures |= problems
    return Reached(host=None, failures=failures)


async def _dial_all(host: str, ports: tuple[int, ...], secret: bytes, seconds: float) -> dict[str, str]:
    problems = await asyncio.gather(*(_dial(host, port, secret, seconds) for port in ports))
    shown = host[:_LONGEST_HOST]
    return {f"{shown}:{port}": problem for port, problem in zip(ports, problems, strict=True) if problem}


async def _dial(host: str, port: int, secret: bytes, seconds: float) -> str:
    """Why the port does not count; empty when it answered rightly."""
    # An empty host would be this machine.
    if not 0 < len(host) <= _LONGEST_HOST or not 0 < port < 65536:
        return "no such address"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, limit=4 * TAG_BYTES)
            answer = await reader.readexactly(TAG_BYTES)
    except TimeoutError:
        return "no answer"
    except asyncio.IncompleteReadError:
        return "another program answers"
    except (OSError, ValueError, OverflowError) as error:
        return getattr(error, "strerror", None) or type(error).__name__
    finally:
        if writer is not None:
            writer.transport.abort()
    return "" if hmac.compare_digest(answer, tag(secret, port)) else "another program answers"
