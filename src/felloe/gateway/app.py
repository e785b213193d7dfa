"""What every answer has in common: request id, entrance check, CORS, errors in OpenAI's shape.

To add an endpoint: write it in `endpoints.py`, name it in its `routes`, describe it in `openapi.py` and docs/api.md.
"""

from starlette.exceptions import HTTPException
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from felloe.domain.errors import FelloeError
from felloe.gateway.access import Shown, bearer_token, check_visitor, is_our_key, key_required
from felloe.gateway.config import GatewayConfig
from felloe.gateway.endpoints import INFERENCE, OPEN_PATHS, Endpoints, needed_right
from felloe.gateway.errors import RawHeaders, error_body, error_headers
from felloe.gateway.exchange import ClientGone, Exchange, new_request_id
from felloe.gateway.inference import log_bug
from felloe.gateway.keys import ApiKeys, KeyRecord

_PREFLIGHT_HEADERS: RawHeaders = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"*, authorization, content-type"),
    (b"access-control-max-age", b"600"),
]


class Front:
    """The ASGI application of one listener. `secure` and `loopback` say what kind of listener it is."""

    def __init__(
        self, config: GatewayConfig, endpoints: Endpoints, keys: ApiKeys, *, secure: bool, loopback: bool
    ) -> None:
        self._config = config
        self._keys = keys
        self._secure = secure
        self._key_required = key_required(loopback=loopback, require_key=config.require_key)
        self._endpoints = endpoints
        self._router = Router(endpoints.routes(), redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        extra: RawHeaders = [(b"x-request-id", new_request_id().encode())]
        exchange = Exchange(scope, receive, send, extra)
        try:
            await self._enter(exchange, receive, send)
        except ClientGone:
            pass
        except HTTPException as error:
            await _reply_refusal(exchange, error)
        except FelloeError as error:
            await exchange.reply_error(error)
        except Exception as error:
            log_bug(error)
            if exchange.started:
                raise ConnectionAbortedError("the answer could not be completed") from None
            await exchange.reply_error(FelloeError("internal", "this request met a bug"))

    async def _enter(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        scope = exchange.scope
        origin = self._allowed_origin(exchange)
        if origin is not None:
            exchange.extra_headers += _cors_headers(origin)
            if scope["method"] == "OPTIONS" and exchange.header_values(b"access-control-request-method"):
                await exchange.reply(204, b"", _PREFLIGHT_HEADERS)
                return
        if scope["path"] not in OPEN_PATHS:
            self._check_entrance(exchange)
        if scope["method"] == "POST" and scope["path"] in INFERENCE:
            # Past the router and response objects: streams are plain ASGI.
            await self._endpoints.infer(INFERENCE[scope["path"]], exchange)
            return
        scope["app"] = self

        async def send_with_extras(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.started = True
                message["headers"] = [*message["headers"], *exchange.extra_headers]
            await send(message)

        await self._router(scope, receive, send_with_extras)

    def _check_entrance(self, exchange: Exchange) -> None:
        record = self._key_shown(exchange)
        if record is None:
            if self._key_required:
                raise FelloeError("invalid_api_key", "this address needs an API key")
            shown = Shown(
                secure=self._secure,
                hosts=exchange.header_values(b"host"),
                origins=exchange.header_values(b"origin"),
                fetch_sites=exchange.header_values(b"sec-fetch-site"),
            )
            check_visitor(shown, names=self._config.host_names, origins=self._config.origins)
        elif needed_right(exchange.scope["path"]) not in (None, *record.rights):
            raise FelloeError("forbidden", "this key does not have the right to do this")

    def _key_shown(self, exchange: Exchange) -> KeyRecord | None:
        token = bearer_token(exchange.header_values(b"authorization"))
        if token is None:
            return None
        record = self._keys.find(token)
        if record is None and (self._key_required or is_our_key(token)):
            raise FelloeError("invalid_api_key", "this API key is unknown, revoked or expired")
        return record

    def _allowed_origin(self, exchange: Exchange) -> bytes | None:
        origins = exchange.header_values(b"origin")
        if len(origins) == 1 and origins[0].decode("latin-1") in self._config.origins:
            return origins[0]
        return None


async def _reply_refusal(exchange: Exchange, refusal: HTTPException) -> None:
    """The router's own refusals, in OpenAI's shape."""
    if refusal.status_code == 405:
        error = FelloeError("method_not_allowed", "this path does not take this method")
    else:
        error = FelloeError("not_found", "there is no such path")
    allow: RawHeaders = [
        (b"allow", value.encode()) for name, value in (refusal.headers or {}).items() if name == "Allow"
    ]
    await exchange.reply(error.status, error_body(error), error_headers(error) + allow)


def _cors_headers(origin: bytes) -> RawHeaders:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]
