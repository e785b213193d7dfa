"""Asks servers over HTTP: bounded in size and time, redirects by our own rules, secrets only where they belong."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

import httpx

from felloe.catalog.sources.address_rules import Address, AddressRules, parse_url, shown
from felloe.catalog.sources.retry_rules import Interrupted, is_passing, pause, retry_after
from felloe.catalog.sources.settings import Limits
from felloe.domain.errors import FelloeError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REQUESTS = 16
_MOST_LOCATION_CHARACTERS = 16_384
_MOST_ADDRESSES = 8
Resolve = Callable[[str, int], Awaitable[tuple[Address, ...]]]


class Credentials(Protocol):
    """Who this node is to one source."""

    def headers(self, url: httpx.URL) -> Mapping[str, str]:
        """What to send to `url`: nothing, unless the secret is for its host."""
        ...

    async def renew(self, web: "Web", refusal: httpx.Response) -> bool:
        """Answer a 401; whether another try makes sense."""
        ...

    def advice(self, status: int) -> str:
        """What the user can do about a 401 or 403."""
        ...


class Anonymous:
    """No secret at all."""

    def headers(self, url: httpx.URL) -> Mapping[str, str]:
        del url
        return {}

    async def renew(self, web: "Web", refusal: httpx.Response) -> bool:
        del web, refusal
        return False

    def advice(self, status: int) -> str:
        del status
        return "it wants a login, which cannot be given here"


class Document(NamedTuple):
    """A small answer, read whole."""

    content: bytes
    headers: httpx.Headers


class Patience:
    """Counts failures in a row and waits between them; `told` hears why."""

    def __init__(self, limits: Limits, told: Callable[[str], None]) -> None:
        self._limits = limits
        self._told = told
        self._failures = 0

    def progressed(self) -> None:
        self._failures = 0

    async def bear(self, failure: Interrupted) -> None:
        """Wait as long as the failure calls for; raise what it has become when patience is at its end."""
        self._failures += 1
        seconds = pause(self._failures, failure.retry_after, self._limits)
        if seconds is None:
            raise FelloeError(failure.code, failure.reason, retry_after=failure.retry_after) from failure
        self._told(f"{failure.reason}; next try in {seconds:.0f} s")
        await asyncio.sleep(seconds)


async def resolve(host: str, port: int) -> tuple[Address, ...]:
    """The addresses of a host; raises `source_failed` when it has none, `Interrupted` when nobody can tell now."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise FelloeError("source_failed", f"there is no host {host}") from error
        raise Interrupted(f"{host} cannot be looked up: {error.strerror}") from error
    except UnicodeError as error:
        raise FelloeError("source_failed", "the host's name is no name") from error
    return tuple(dict.fromkeys(ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found))


class Web:
    """An HTTP client for sources. Connections are not kept, for one address may serve hosts of several owners."""

    def __init__(
        self,
        rules: AddressRules,
        limits: Limits,
        *,
        agent: str,
        tls: ssl.SSLContext,
        look_up: Resolve = resolve,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`told` hears why something is tried again."""
        self._rules = rules
        self._limits = limits
        self._look_up = look_up
        self._told = told
        self._headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
        self._tls = tls
        self._direct = self._client(None)
        self._proxied: dict[str, httpx.AsyncClient] = {}

    async def close(self) -> None:
        for client in (self._direct, *self._proxied.values()):
            await client.aclose()

    def _client(self, proxy: str | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=self._tls,
            proxy=proxy,
            trust_env=False,
            timeout=httpx.Timeout(self._limits.stall_seconds, connect=self._limits.connect_seconds),
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def _through(self, proxy: str) -> httpx.AsyncClient:
        """A client that asks this proxy alone, so that nothing goes out whose address nobody checked."""
        if proxy not in self._proxied:
            try:
                self._proxied[proxy] = self._client(proxy)
            except (ValueError, ImportError, httpx.InvalidURL) as error:
                raise FelloeError("bad_config", "the proxy that the environment names is no HTTP proxy") from error
        return self._proxied[proxy]

    def patience(self) -> Patience:
        """A fresh count of failures."""
        return Patience(self._limits, self._told)

    async def read(self, url: str, credentials: Credentials, *, most_bytes: int, accept: str = "*/*") -> Document:
        """A small document, whole. Raises `source_failed` beyond `most_bytes`, else as `open` does.

        Failures that may pass are borne for a while.
        """
        patience = self.patience()
        while True:
            try:
                return await self._read_once(url, credentials, most_bytes, accept)
            except Interrupted as failure:
                await patience.bear(failure)

    async def _read_once(self, url: str, credentials: Credentials, most_bytes: int, accept: str) -> Document:
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self._limits.document_seconds),
                self.open(url, credentials, {"Accept": accept}) as answer,
            ):
                async for piece in pieces(answer):
                    content += piece
                    if len(content) > most_bytes:
                        where = shown(httpx.URL(url))
                        raise FelloeError("source_failed", f"{where} answers with more than {most_bytes} bytes")
        except TimeoutError as error:
            raise Interrupted(f"{httpx.URL(url).host} does not answer in time") from error
        return Document(bytes(content), answer.headers)

    @contextlib.asynccontextmanager
    async def open(
        self, url: str, credentials: Credentials, headers: Mapping[str, str]
    ) -> AsyncGenerator[httpx.Response]:
        """One GET, its redirects followed: an answer of status 200, 206 or 416 whose body is still to come.

        Raises `Interrupted` for what may pass; `address_refused`, `source_refused`, `source_not_found`,
        `source_failed` for what will not.
        """
        first = here = parse_url(url)
        before: httpx.URL | None = None
        renewed = False
        for _ in range(_MOST_REQUESTS):
            self._rules.check_url(here, before)
            answer = await self._send(here, {**headers, **credentials.headers(here)})
            try:
                if answer.status_code in _REDIRECTS:
                    before, here = here, _target(answer, here)
                elif answer.status_code == 401 and not renewed and await credentials.renew(self, answer):
                    before, here, renewed = None, first, True
                else:
                    _check_status(answer, here, credentials)
                    yield answer
                    return
            finally:
                await answer.aclose()
        raise FelloeError("source_failed", f"{shown(first)} redirects without end")

    async def _send(self, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        if proxy := _proxy_for(url):
            self._rules.check_name(url)
            return await self._ask(self._through(proxy), url, headers, {})
        # The form in which DNS and certificates have a name with other letters.
        host = url.raw_host.decode("ascii")
        addresses = (await self._look_up(host, url.port or 443))[:_MOST_ADDRESSES]
        self._rules.check_addresses(url, addresses)
        for last, address in enumerate(addresses, 1 - len(addresses)):
            # The checked address itself is dialled, so that no second look at the name can give another one.
            at_address = url.copy_with(host=str(address))
            named = {**headers, "Host": url.netloc.decode("ascii")}
            try:
                return await self._ask(self._direct, at_address, named, {"sni_hostname": host})
            except Interrupted:
                if last == 0:
                    raise
        raise Interrupted(f"{url.host} has no address")

    async def _ask(
        self, client: httpx.AsyncClient, url: httpx.URL, headers: Mapping[str, str], extensions: dict[str, str]
    ) -> httpx.Response:
        host = extensions.get("sni_hostname", url.host)
        # Dialled by address, hosts would share their cookies.
        client.cookies.clear()
        request = client.build_request("GET", url, headers={**self._headers, **headers})
        request.extensions = {**request.extensions, **extensions}
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise FelloeError("source_failed", f"{host} shows a certificate that cannot be trusted") from error
            raise Interrupted(f"{host} cannot be reached ({type(error).__name__})") from error
        except UnicodeError as error:
            # httpx looks where a redirect leads before we do.
            raise FelloeError("source_failed", f"{host} redirects to an address that is none") from error


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `Interrupted` when the line breaks, `source_failed` for an encoded body."""
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise FelloeError("source_failed", "the source answers with a compressed body, which was not asked for")
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.TimeoutException as error:
        raise Interrupted("the transfer stalled") from error
    except (httpx.TransportError, httpx.StreamError) as error:
        raise Interrupted(f"the transfer was cut ({type(error).__name__})") from error


def _target(answer: httpx.Response, here: httpx.URL) -> httpx.URL:
    location = answer.headers.get("Location", "")
    if not location or len(location) > _MOST_LOCATION_CHARACTERS:
        raise FelloeError("source_failed", f"{shown(here)} redirects to nowhere")
    try:
        return parse_url(str(here.join(location)))
    except (FelloeError, httpx.InvalidURL, ValueError, TypeError) as error:
        raise FelloeError("source_failed", f"{shown(here)} redirects to an address that is none") from error


def _check_status(answer: httpx.Response, here: httpx.URL, credentials: Credentials) -> None:
    status, where = answer.status_code, shown(here)
    if status in (200, 206, 416):
        return
    if status in (401, 403):
        raise FelloeError("source_refused", f"{where} refuses ({status}): {credentials.advice(status)}")
    if status in (404, 410):
        raise FelloeError("source_not_found", f"{where} does not exist ({status})")
    if is_passing(status):
        code = "rate_limited" if status == 429 else "source_failed"
        asked = retry_after(answer.headers.get("Retry-After", ""), time.time())
        raise Interrupted(f"{here.host} answers {status}", code=code, retry_after=asked)
    raise FelloeError("source_failed", f"{where} answers with status {status}")


def _proxy_for(url: httpx.URL) -> str:
    """The proxy that the environment (`HTTPS_PROXY`, `NO_PROXY`, ...) names for this URL; empty without one."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(url.host):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"
