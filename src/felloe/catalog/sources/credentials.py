"""The secrets of a pull: from the environment only, sent to nobody but the host that each is for.

Sources: the Hugging Face hub's `HF_TOKEN`; the token authentication of the CNCF distribution registry
(distribution.github.io/distribution/spec/auth/token).
"""

import base64
import re
from collections.abc import Mapping
from urllib.parse import urlencode

import httpx
import msgspec

from felloe.catalog.sources.address_rules import origin_of, parse_url
from felloe.catalog.sources.web import Anonymous, Web
from felloe.domain.errors import FelloeError

HUGGING_FACE_VARIABLE = "HF_TOKEN"
REGISTRIES_VARIABLE = "FELLOE_REGISTRY_CREDENTIALS"
SECRET_VARIABLES = (HUGGING_FACE_VARIABLE, REGISTRIES_VARIABLE)
_MOST_TOKEN_BYTES = 64 * 1024
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_CHALLENGE_FIELD = re.compile(r'([A-Za-z_]{1,32})="([^"]{0,2048})"')


class _TokenReply(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class HubToken:
    """`HF_TOKEN`, for the hub alone; never for the content servers that it redirects to."""

    def __init__(self, base_url: str, token: str, page: str) -> None:
        if token and not _HEADER_SAFE.fullmatch(token):
            raise FelloeError("invalid_value", f"{HUGGING_FACE_VARIABLE} holds something that is no token")
        self._origin = origin_of(parse_url(base_url))
        self._token = token
        self._page = page

    def headers(self, url: httpx.URL) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token and origin_of(url) == self._origin else {}

    async def renew(self, web: Web, refusal: httpx.Response) -> bool:
        del web, refusal
        return False

    def advice(self, status: int) -> str:
        if not self._token:
            return (
                f"it is gated, private or not there; accept its terms at {self._page} and set {HUGGING_FACE_VARIABLE}"
            )
        if status == 401:
            return f"the token in {HUGGING_FACE_VARIABLE} is wrong or expired, or the repository is not there"
        return f"accept its terms at {self._page}, with the account whose token is in {HUGGING_FACE_VARIABLE}"


class RegistryLogin:
    """A user and password for one registry, and the short-lived token that it gives for one repository."""

    def __init__(self, base_url: str, repository: str, login: tuple[str, str] | None) -> None:
        self._base = parse_url(base_url)
        self._repository = repository
        self._login = login
        self._authorization = ""

    def headers(self, url: httpx.URL) -> Mapping[str, str]:
        same = origin_of(url) == origin_of(self._base)
        return {"Authorization": self._authorization} if self._authorization and same else {}

    async def renew(self, web: Web, refusal: httpx.Response) -> bool:
        """Answer the registry's challenge; a challenge from any other host is not ours to answer."""
        if refusal.request.headers.get("Host", "") != self._base.netloc.decode("ascii"):
            return False
        challenge = refusal.headers.get("WWW-Authenticate", "")
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "bearer":
            self._authorization = f"Bearer {await self._ask_token(web, challenge)}"
            return True
        if scheme == "basic" and self._login is not None and not self._authorization:
            self._authorization = _basic(self._login)
            return True
        return False

    def advice(self, status: int) -> str:
        del status
        if self._login is None:
            return f"it is private or not there; set {REGISTRIES_VARIABLE} to {self._base.host}=user:password"
        return f"the login for {self._base.host} in {REGISTRIES_VARIABLE} is wrong, expired or may not read this"

    async def _ask_token(self, web: Web, challenge: str) -> str:
        fields = dict(_CHALLENGE_FIELD.findall(challenge))
        realm = parse_url(fields.get("realm", ""))
        if realm.scheme not in ("https", "http"):
            raise FelloeError("source_failed", f"{self._base.host} asks for a token and does not say from where")
        # We ask for what we need, whatever scope the challenge names.
        asked = urlencode({"service": fields.get("service", ""), "scope": f"repository:{self._repository}:pull"})
        url = f"{realm}{'&' if '?' in str(realm) else '?'}{asked}"
        document = await web.read(url, _TokenServerLogin(self._base, realm, self._login), most_bytes=_MOST_TOKEN_BYTES)
        try:
            reply = msgspec.json.decode(document.content, type=_TokenReply)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FelloeError("source_failed", f"{realm.host} answers with something that is no token") from error
        token = reply.token or reply.access_token
        if not _HEADER_SAFE.fullmatch(token):
            raise FelloeError("source_failed", f"{realm.host} gives no token")
        return token


class _TokenServerLogin(Anonymous):
    """The login as the token server needs it, which is often another host of the registry's owner."""

    def __init__(self, registry: httpx.URL, realm: httpx.URL, login: tuple[str, str] | None) -> None:
        self._origin = origin_of(realm)
        self._login = login if _same_owner(registry, realm) else None

    def headers(self, url: httpx.URL) -> Mapping[str, str]:
        return {"Authorization": _basic(self._login)} if self._login and origin_of(url) == self._origin else {}

    def advice(self, status: int) -> str:
        del status
        if self._login is None:
            return f"it gives no token without a login; see {REGISTRIES_VARIABLE} in docs/pull.md"
        return f"the login in {REGISTRIES_VARIABLE} is wrong or expired"


def registry_logins(text: str) -> dict[str, tuple[str, str]]:
    """`host=user:password`, separated by blanks. Raises `invalid_value` without repeating what it holds."""
    logins: dict[str, tuple[str, str]] = {}
    for entry in text.split():
        host, equals, login = entry.partition("=")
        user, colon, password = login.partition(":")
        if not (host and equals and user and colon):
            detail = f"{REGISTRIES_VARIABLE} holds entries of the form host=user:password, separated by blanks"
            raise FelloeError("invalid_value", detail)
        logins[host.lower()] = (user, password)
    return logins


def _basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(login).encode()).decode("ascii")


def _same_owner(registry: httpx.URL, realm: httpx.URL) -> bool:
    """`auth.docker.io` speaks for `registry-1.docker.io`: the last two names agree, and it is asked over HTTPS."""
    if origin_of(registry) == origin_of(realm):
        return True
    ours, theirs = (origin_of(url).host.split(".") for url in (registry, realm))
    named = len(ours) >= 2 and not ours[-1].isdigit()
    return realm.scheme == "https" and (ours == theirs or (named and ours[-2:] == theirs[-2:]))
