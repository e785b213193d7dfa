"""What strangers send: each is refused with a clear error, and the gateway goes on serving."""

import asyncio
import contextlib
import gzip
import json
import ssl
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from gateway_house import House, role_frame, say_words, text_frame

from felloe.domain.requests import InferenceRequest, Part, Piece
from felloe.gateway import Limits

CHAT = {"model": "tiny-python", "messages": [{"role": "user", "content": "hi"}]}
SHORT = Limits(header_seconds=0.2, body_seconds=0.2, linger_seconds=0.2)


class Client:
    """A raw connection. `answer` reads one response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if line)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        status, headers = await self.head()
        body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, json.loads(body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def dial(house: House, context: ssl.SSLContext | None = None) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", house.port, ssl=context, limit=2**20))


def request(body: bytes, *headers: str, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    """A POST; `headers` come after the usual ones."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body) if length is None else length}"]
    if not any(header.startswith("content-type") for header in headers):
        lines.append("content-type: application/json")
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + body


async def ask(house: House, data: bytes) -> tuple[int, dict[str, str], Any]:
    client = await dial(house)
    try:
        await client.send(data)
        return await asyncio.wait_for(client.answer(), 10)
    finally:
        await client.close()


async def still_serves(house: House) -> None:
    status, _, answer = await ask(house, request(json.dumps(CHAT).encode()))
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "stop"


def chat(**changes: Any) -> bytes:
    return json.dumps(CHAT | changes).encode()


DEEP = b"[" * 100_000
SECRET = "the user's secret"
BAD_BODIES: dict[str, tuple[bytes, str, str | None]] = {
    "empty": (b"", "invalid_json", None),
    "no JSON": (b"model=tiny", "invalid_json", None),
    "two values": (chat() + b"{}", "invalid_json", None),
    "not an object": (b"[1]", "invalid_type", None),
    "NaN": (chat(seed=0).replace(b'"seed": 0', b'"seed": NaN'), "invalid_json", None),
    "deep list": (DEEP + b"]" * 100_000, "invalid_value", None),
    "deep unknown field": (b'{"x":' + DEEP + b"]" * 100_000 + b"}", "invalid_value", None),
    "deep free-form field": (b'{"chat_template_kwargs":{"x":' + DEEP + b"]" * 100_000 + b"}}", "invalid_value", None),
    "100 levels deep": (
        chat(chat_template_kwargs=json.loads('{"x":' * 100 + "1" + "}" * 100)),
        "invalid_value",
        "chat_template_kwargs",
    ),
    "deep and cut off": (b'{"chat_template_kwargs":{"x":' + DEEP, "invalid_value", None),
    "a million lists": (b'{"chat_template_kwargs":{"x":[' + b"[]," * 1_000_000 + b"[]]}}", "invalid_value", None),
    "invalid UTF-8": (chat().replace(b"hi", b"\xff\xfe"), "invalid_json", None),
    "lone surrogate": (chat().replace(b"hi", b"\\ud800"), "invalid_json", None),
    "surrogate in a key": (chat().replace(b'"role"', b'"\\udfff"'), "invalid_json", None),
    "no model": (b'{"messages":[{"role":"user","content":"x"}]}', "invalid_value", "model"),
    "no messages": (b'{"model":"m"}', "invalid_value", "messages"),
    "messages as text": (chat(messages=SECRET), "invalid_type", "messages"),
    "content as number": (chat(messages=[{"role": "user", "content": 5}]), "invalid_type", "messages[0].content"),
    "unknown role": (chat(messages=[{"role": SECRET, "content": "x"}]), "invalid_value", "messages[0].role"),
    "an image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]),
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    "4097 messages": (chat(messages=[{"role": "user", "content": "x"}] * 4097), "invalid_value", "messages"),
    "257 tools": (
        chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(257)]),
        "invalid_value",
        "tools",
    ),
    "n is a million": (chat(n=1_000_000), "invalid_value", "n"),
    "n is text": (chat(n="3"), "invalid_type", "n"),
    "n is true": (chat(n=True), "invalid_type", "n"),
    "n is zero": (chat(n=0), "invalid_value", "n"),
    "100,000 stop strings": (chat(stop=["x"] * 100_000), "invalid_value", "stop"),
    "a long stop string": (chat(stop="x" * 513), "invalid_value", "stop"),
    "top_logprobs 21": (chat(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
    "max_tokens 0": (chat(max_tokens=0), "invalid_value", "max_tokens"),
    "temperature 2.1": (chat(temperature=2.1), "invalid_value", "temperature"),
    "temperature 1e999": (
        chat(temperature=0).replace(b'"temperature": 0', b'"temperature": 1e999'),
        "invalid_value",
        "temperature",
    ),
    "huge seed": (chat(seed=10**300), "invalid_value", "seed"),
    "seed of 8,000 digits": (chat(seed=0).replace(b'"seed": 0', b'"seed": ' + b"1" * 8000), "invalid_value", "seed"),
    "unknown parameter": (chat(grammar=SECRET), "unknown_parameter", "grammar"),
    "a secret as key": (json.dumps(CHAT | {SECRET: 1}).encode(), "unknown_parameter", None),
    "functions": (chat(functions=[{"name": SECRET}]), "unsupported_parameter", "functions"),
    "store": (chat(store=True), "unsupported_parameter", "store"),
    "a tool that is not there": (
        chat(tool_choice={"type": "function", "function": {"name": "f"}}),
        "invalid_value",
        "tool_choice",
    ),
    "a path as model": (chat(model="../../etc/passwd"), "model_not_found", "model"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_refused_by_name_and_never_repeated(house: House, name: str) -> None:
    body, code, param = BAD_BODIES[name]
    status, headers, answer = await ask(house, request(body))
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
    assert status == (404 if code == "model_not_found" else 400)
    assert SECRET not in json.dumps(answer)
    assert len(json.dumps(answer)) < 500
    assert headers["x-request-id"].startswith("req_")
    assert house.answers.requests == []


async def test_too_many_prompts_times_n_is_refused(house: House) -> None:
    for body in ({"prompt": ["x"] * 65}, {"prompt": ["x"] * 33, "n": 2}, {"prompt": [[]]}, {"prompt": ["x", 1]}):
        data = json.dumps({"model": "tiny-python"} | body).encode()
        status, _, answer = await ask(house, request(data, path="/v1/completions"))
        assert status == 400, body
        assert answer["error"]["param"] in ("prompt", "n")


async def test_a_50_mb_body_is_refused_at_once_and_read_away(house: House) -> None:
    client = await dial(house)
    await client.send(request(b"", length=50 * 2**20))
    status, _, answer = await asyncio.wait_for(client.answer(), 10)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    for _ in range(50):
        await client.send(b" " * 2**20)
    await client.send(request(chat()))
    status, _, _ = await asyncio.wait_for(client.answer(), 10)
    assert status == 200
    await client.close()


async def test_a_chunked_body_that_grows_too_large_is_refused(house: House) -> None:
    client = await dial(house)
    await client.send(
        b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    for _ in range(9):
        await client.send(b"100000\r\n" + b" " * 2**20 + b"\r\n")
    status, _, answer = await asyncio.wait_for(client.answer(), 10)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    await client.close()


async def test_an_endless_body_is_cut(start_gateway: Any) -> None:
    house = await start_gateway(limits=Limits(body_bytes=1000, discarded_bytes=2**20))
    client = await dial(house)
    with pytest.raises(OSError):
        await client.send(request(b"", length=10**15))
        while True:
            await client.send(b" " * 2**20)
    await client.close()
    await still_serves(house)


async def test_a_gzip_bomb_is_not_unpacked(house: House) -> None:
    bomb = gzip.compress(b" " * 10**7)
    status, _, answer = await ask(house, request(bomb, "content-encoding: gzip"))
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json-seq", ""]
)
async def test_only_json_is_read(house: House, content_type: str) -> None:
    status, _, answer = await ask(house, request(chat(), f"content-type: {content_type}"))
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


async def test_json_with_a_charset_is_read(house: House) -> None:
    status, _, _ = await ask(house, request(chat(), "content-type: application/json; charset=utf-8"))
    assert status == 200


BAD_AUTHORIZATION = {
    "SQL": ["authorization: Bearer ' OR 1=1; DROP TABLE keys; --"],
    "template": ["authorization: Bearer {{7*7}}"],
    "basic": ["authorization: Basic dXNlcjpwYXNz"],
    "nothing": ["authorization: "],
    "no token": ["authorization: Bearer "],
    "a key that does not exist": ["authorization: Bearer fk-" + "A" * 43],
    "twice the same": ["authorization: Bearer x", "authorization: Bearer x"],
    "Latin-1": ["authorization: Bearer \xe9"],
    "600 characters": ["authorization: Bearer " + "x" * 600],
}


@pytest.mark.parametrize("name", BAD_AUTHORIZATION)
@pytest.mark.parametrize("require_key", [False, True])
async def test_a_bad_authorization_header_is_refused(start_gateway: Any, name: str, require_key: bool) -> None:
    house = await start_gateway(require_key=require_key)
    status, headers, answer = await ask(house, request(chat(), *BAD_AUTHORIZATION[name]))
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"] == "bearer"
    assert house.answers.requests == []


async def test_nul_in_a_header_is_not_http(house: House) -> None:
    status, _, answer = await ask(house, request(chat(), "authorization: Bearer a\0b"))
    assert (status, answer["error"]["code"]) == (400, "invalid_http")
    await still_serves(house)


@pytest.mark.parametrize("where", ["one header", "many headers", "path", "no end"])
async def test_a_megabyte_of_headers_is_refused(start_gateway: Any, where: str) -> None:
    house = await start_gateway(limits=Limits(linger_seconds=0.5))
    long = b"x" * 2**20
    data = {
        "one header": b"GET /healthz HTTP/1.1\r\nauthorization: Bearer " + long + b"\r\n\r\n",
        "many headers": b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 2**17 + b"\r\n",
        "path": b"GET /" + long + b" HTTP/1.1\r\n\r\n",
        "no end": b"GET /healthz HTTP/1.1\r\na: " + long,
    }[where]
    status, headers, answer = await ask(house, data)
    assert (status, answer["error"]["code"]) == (431, "headers_too_large")
    assert headers["connection"] == "close"
    await still_serves(house)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_one_answer_and_is_cut(start_gateway: Any, data: bytes) -> None:
    house = await start_gateway(limits=Limits(linger_seconds=0.2))
    client = await dial(house)
    await client.send(data)
    status, headers, answer = await asyncio.wait_for(client.answer(), 10)
    assert 400 <= status < 500
    assert answer["error"]["type"] == "invalid_request_error"
    assert headers["x-request-id"]
    assert await asyncio.wait_for(client.reader.read(), 10) == b""
    await client.close()
    await still_serves(house)


async def test_a_slow_head_times_out(start_gateway: Any) -> None:
    house = await start_gateway(limits=SHORT)
    client = await dial(house)
    await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
    status, _, answer = await asyncio.wait_for(client.answer(), 10)
    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    assert await asyncio.wait_for(client.reader.read(), 10) == b""
    await client.close()


async def test_a_head_that_drips_does_not_win_time(start_gateway: Any) -> None:
    house = await start_gateway(limits=SHORT)
    client = await dial(house)
    await client.send(b"GET /healthz HTTP/1.1\r\n")
    answer = asyncio.create_task(client.answer())
    while not answer.done():
        await client.send(b"a: b\r\n")
        await asyncio.wait([answer], timeout=0.02)
    assert answer.result()[0] == 408
    await client.close()


async def test_a_slow_body_times_out(start_gateway: Any) -> None:
    house = await start_gateway(limits=SHORT)
    client = await dial(house)
    await client.send(request(b'{"model', length=1000))
    status, _, answer = await asyncio.wait_for(client.answer(), 10)
    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    await client.close()
    assert house.metrics.active == 0


async def test_a_silent_connection_is_cut(start_gateway: Any) -> None:
    house = await start_gateway(limits=SHORT)
    client = await dial(house)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(client.reader.read(), 10) == b""
    await client.close()


async def test_connections_beyond_the_limit_are_turned_away(start_gateway: Any) -> None:
    house = await start_gateway(limits=Limits(connections=3, linger_seconds=0.2))
    clients = [await dial(house) for _ in range(3)]
    for client in clients:
        await client.send(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await client.answer())[0] == 200
    late = await dial(house)
    status, headers, answer = await asyncio.wait_for(late.answer(), 10)
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
    for client in [*clients, late]:
        await client.close()


async def forever(request: InferenceRequest) -> AsyncGenerator[Part, None]:
    """One word, then silence until somebody closes the answer."""
    yield Piece(1, (), role_frame(request) + text_frame(request, "word"))
    await asyncio.Event().wait()


async def never(_: InferenceRequest) -> AsyncGenerator[Part, None]:
    """Silence from the start."""
    await asyncio.Event().wait()
    yield Piece(1, (), b"")


@pytest.mark.parametrize("script", [forever, never])
@pytest.mark.parametrize("changes", [{"stream": True}, {"stream": True, "n": 3}, {"stream": False}, {"n": 3}])
@pytest.mark.parametrize("way", ["close", "reset", "half-close"])
async def test_a_client_that_goes_away_frees_its_slots_within_100_ms(
    start_gateway: Any, script: Any, changes: dict[str, Any], way: str
) -> None:
    house = await start_gateway(script)
    client = await dial(house)
    await client.send(request(chat(**changes)))
    await asyncio.wait_for(house.answers.began.wait(), 10)
    if script is forever and changes.get("stream"):
        await client.head()
    if way == "close":
        client.writer.close()
    elif way == "reset":
        client.writer.transport.abort()
    else:
        client.writer.write_eof()
    await asyncio.wait_for(house.answers.closed.wait(), 0.1)
    assert house.answers.open == 0
    await client.close()


async def test_pipelined_requests_do_not_pile_up_nor_hide_a_disconnect(start_gateway: Any) -> None:
    house = await start_gateway(forever)
    client = await dial(house)
    await client.send(request(chat(stream=True)) * 2000)
    await client.head()
    assert len(house.answers.requests) == 1
    await client.close()
    await asyncio.wait_for(house.answers.closed.wait(), 0.1)


async def test_an_upgrade_is_not_taken(house: House) -> None:
    status, _, _ = await ask(
        house,
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    assert status == 200
    await still_serves(house)


async def test_a_slow_reader_pauses_its_own_stream_only(start_gateway: Any) -> None:
    produced = 0
    filler = "x" * 2**16

    async def flood(asked: InferenceRequest) -> AsyncGenerator[Part, None]:
        nonlocal produced
        if asked.model == "quick":
            async for part in say_words(asked):
                yield part
            return
        big = text_frame(asked, filler)
        while True:
            produced += 1
            yield Piece(produced, (), big)

    house = await start_gateway(flood)
    slow = await dial(house)
    await slow.send(request(chat(stream=True)))
    await asyncio.wait_for(house.answers.began.wait(), 10)
    status, _, _ = await ask(house, request(chat(model="quick")))
    assert status == 200
    before = produced
    status, _, _ = await ask(house, request(chat(model="quick")))
    assert status == 200
    assert produced == before
    assert produced * 2**16 < 64 * 2**20
    await slow.close()
    await asyncio.wait_for(house.answers.closed.wait(), 1)


async def test_a_reader_that_never_reads_is_cut(start_gateway: Any) -> None:
    filler = "x" * 2**16

    async def flood(asked: InferenceRequest) -> AsyncGenerator[Part, None]:
        big = text_frame(asked, filler)
        while True:
            yield Piece(1, (), big)

    house = await start_gateway(flood, limits=Limits(stalled_seconds=0.2))
    client = await dial(house)
    await client.send(request(chat(stream=True)))
    await asyncio.wait_for(house.answers.closed.wait(), 10)
    await client.close()
