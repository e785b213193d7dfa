"""Everything around the answers: paths, methods, who may enter, browsers, TLS, start and stop."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateway_house import House, role_frame, say_words, text_frame

from felloe.domain.errors import FelloeError
from felloe.domain.requests import InferenceRequest, Part, Piece
from felloe.gateway import ApiKeys, Listener, NodeStatus

CHAT: dict[str, Any] = {"model": "tiny-python", "messages": [{"role": "user", "content": "hi"}]}
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
GETS = ("/v1/models", "/v1/models/tiny-python", "/healthz", "/readyz", "/metrics", "/openapi.json")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as client:
        yield client


async def test_every_answer_has_its_own_request_id(house: House, http: httpx.AsyncClient) -> None:
    ids = [(await http.get(house.root + path)).headers["x-request-id"] for path in (*GETS, "/nothing")]
    ids.append((await http.post(house.root + POSTS[0], json=CHAT)).headers["x-request-id"])
    ids.append((await http.post(house.root + POSTS[0], json=CHAT | {"stream": True})).headers["x-request-id"])
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_a_wrong_method_is_405_and_names_the_right_one(
    house: House, http: httpx.AsyncClient, method: str
) -> None:
    for path in POSTS if method in ("GET", "HEAD") else (*POSTS, *GETS):
        answer = await http.request(method, house.root + path)
        assert answer.status_code == 405
        allowed = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed == ({"POST"} if path in POSTS else {"GET", "HEAD"})
        assert method == "HEAD" or answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", GETS)
async def test_head_answers_as_get_without_the_body(house: House, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.head(house.root + path)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/docs", "/v1/chat/completions/", "/../etc/passwd", "/v1/%00"]
)
async def test_another_path_is_404_in_openai_shape(house: House, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(house.root + path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_readiness_follows_the_node(house: House, http: httpx.AsyncClient) -> None:
    assert (await http.get(house.root + "/readyz")).json() == {"status": "ready"}
    house.status = NodeStatus(ready=False, reason="no hub can be dialled")
    answer = await http.get(house.root + "/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "no hub can be dialled")
    assert (await http.get(house.root + "/healthz")).status_code == 200


async def test_metrics_count_requests_and_tokens_but_hold_no_text(house: House, http: httpx.AsyncClient) -> None:
    secret = "a word of the user"
    body = CHAT | {"messages": [{"role": "user", "content": secret}]}
    await http.post(house.root + POSTS[0], json=body)
    await http.post(house.root + POSTS[0], json=body | {"stream": True})
    await http.post(house.root + POSTS[0], json=body | {"model": secret})
    text = (await http.get(house.root + "/metrics")).text
    assert 'felloe_requests_total{kind="chat",code="ok"} 2' in text
    assert 'felloe_requests_total{kind="chat",code="model_not_found"} 1' in text
    assert 'felloe_tokens_total{kind="chat",direction="completion"} 8' in text
    assert 'felloe_time_to_first_token_seconds_count{kind="chat"} 2' in text
    assert "felloe_active_streams 0" in text
    assert secret not in text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8470"}, 200),
        ({"host": "[::1]:8470"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "attic.lan:8470"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "192.168.0.10"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"host": "localhost:8470", "origin": "http://localhost:8470"}, 200),
        ({"host": "localhost:8470", "origin": "https://localhost:8470"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://app.example"}, 200),
    ],
)
async def test_without_a_key_only_this_machine_and_chosen_pages_may_enter(
    start_gateway: Any, http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    house = await start_gateway(host_names=("attic.lan",), origins=("https://app.example",))
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        assert (await http.get(house.root + path, headers=headers)).status_code == status
    assert (await http.post(house.root + POSTS[0], json=CHAT, headers=headers)).status_code == status
    assert (await http.get(house.root + "/healthz", headers=headers)).status_code == 200


async def test_two_hosts_or_none_are_refused_without_a_key(house: House) -> None:
    for hosts in (b"", b"host: localhost\r\nhost: evil.example\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n" + hosts + b"\r\n")
        assert (await reader.read()).split()[1] == b"403"
        writer.close()
        await writer.wait_closed()


async def test_a_key_opens_the_door_for_any_page(house: House, http: httpx.AsyncClient) -> None:
    _, plaintext = house.keys.create("browser app")
    headers = {"authorization": f"Bearer {plaintext}", "origin": "https://evil.example", "host": "evil.example"}
    assert (await http.get(house.root + "/v1/models", headers=headers)).status_code == 200


async def test_cors_is_off_unless_configured(start_gateway: Any, http: httpx.AsyncClient) -> None:
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    house = await start_gateway()
    answer = await http.options(house.root + POSTS[0], headers=preflight)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    open_house = await start_gateway(origins=("https://app.example",), require_key=True)
    answer = await http.options(open_house.root + POSTS[0], headers=preflight)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    answer = await http.post(open_house.root + POSTS[0], json=CHAT, headers={"origin": "https://app.example"})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    answer = await http.options(open_house.root + POSTS[0], headers=preflight | {"origin": "https://evil.example"})
    assert answer.status_code == 401


async def test_rights_limit_what_a_key_opens(start_gateway: Any, http: httpx.AsyncClient) -> None:
    house = await start_gateway(require_key=True)
    _, scraper = house.keys.create("scraper", rights=("metrics",))
    _, app = house.keys.create("app")
    for key, path, status in (
        (scraper, "/metrics", 200),
        (scraper, "/v1/models", 403),
        (app, "/metrics", 200),
        (app, "/v1/models", 200),
        ("", "/metrics", 401),
        ("", "/openapi.json", 401),
        ("", "/nothing", 401),
        ("", "/healthz", 200),
    ):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        assert (await http.get(house.root + path, headers=headers)).status_code == status


async def test_a_request_may_ask_for_less_reach_but_not_for_more(start_gateway: Any, http: httpx.AsyncClient) -> None:
    house = await start_gateway(reach="network")
    for asked, status in ((None, 200), ("device", 200), ("network", 200), ("market", 403), ("moon", 400)):
        headers = {} if asked is None else {"x-felloe-reach": asked}
        assert (await http.post(house.root + POSTS[0], json=CHAT, headers=headers)).status_code == status
    assert [request.reach for request in house.answers.requests] == ["network", "device", "network"]


async def test_a_bug_becomes_an_error_that_tells_nothing(
    start_gateway: Any, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "what the user wrote"

    async def broken(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        if request.body.get("seed"):
            yield Piece(1, (), text_frame(request, "word"))
        raise ValueError(secret)

    house = await start_gateway(broken)
    answer = await http.post(house.root + POSTS[0], json=CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    stream = await http.post(house.root + POSTS[0], json=CHAT | {"stream": True, "seed": 1})
    assert stream.text.rstrip().split("\n")[-1].startswith('data: {"error":')
    assert "ValueError" in caplog.text
    assert secret not in answer.text + stream.text + caplog.text


async def test_an_answer_that_cannot_be_read_is_the_upstreams_fault(
    start_gateway: Any, http: httpx.AsyncClient
) -> None:
    async def garbled(_: InferenceRequest) -> AsyncGenerator[Part, None]:
        yield Piece(1, (), b"data: {oops}\n\n")

    house = await start_gateway(garbled)
    for path, body in ((POSTS[0], CHAT), (POSTS[1], {"model": "m", "prompt": "x"})):
        answer = await http.post(house.root + path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")


# --- start and stop -------------------------------------------------------------------------------------------------


async def test_a_taken_port_is_named(start_gateway: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FelloeError) as caught:
            await start_gateway(listeners=(Listener(port=0), Listener(port=port)))
    assert caught.value.code == "port_taken"
    assert f"127.0.0.1:{port}" in caught.value.detail


@pytest.mark.parametrize(
    "listener",
    [
        Listener(host="0.0.0.0", port=0),
        Listener(host="::", port=0),
        Listener(host="192.0.2.1", port=0),
        Listener(host="example.com", port=0),
        Listener(host="203.0.113.9", port=0, certificate=Path("/nowhere.pem"), private_key=Path("/nowhere.key")),
        Listener(port=0, certificate=Path("/nowhere.pem")),
        Listener(port=0, certificate=Path("/nowhere.pem"), private_key=Path("/nowhere.key")),
        Listener(port=70000),
    ],
)
async def test_an_unsafe_or_impossible_address_is_not_opened(start_gateway: Any, listener: Listener) -> None:
    with pytest.raises(FelloeError) as caught:
        await start_gateway(listeners=(listener,))
    assert caught.value.code == "bad_config"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "felloe test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = tmp_path / "chain.pem", tmp_path / "private.pem"
    chain.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


async def test_an_address_for_others_needs_a_key_as_well_as_tls(
    start_gateway: Any, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    wide = Listener(host="0.0.0.0", port=0, certificate=certificate[0], private_key=certificate[1])
    with pytest.raises(FelloeError) as caught:
        await start_gateway(listeners=(wide,))
    assert caught.value.code == "bad_config"
    keys = ApiKeys(tmp_path / "keys.json")
    _, plaintext = keys.create("laptop")
    house = await start_gateway(listeners=(Listener(port=0), wide), keys=keys)
    loopback, others = house.gateway.base_urls
    assert loopback.startswith("http://127.0.0.1:")
    url = others.replace("0.0.0.0", "127.0.0.1")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(loopback + "/models")).status_code == 200
        assert (await client.get(url + "/models")).status_code == 401
        answer = await client.post(
            url + "/chat/completions", json=CHAT | {"stream": True}, headers={"authorization": f"Bearer {plaintext}"}
        )
        assert answer.text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.HTTPError):
            await client.get(url.replace("https", "http") + "/models")


async def test_stopping_lets_a_stream_end_in_the_grace_time(start_gateway: Any, http: httpx.AsyncClient) -> None:
    finish = asyncio.Event()

    async def waits(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        yield Piece(1, (), role_frame(request))
        await finish.wait()
        async for part in say_words(request):
            yield part

    house = await start_gateway(waits)
    async with http.stream("POST", house.root + POSTS[0], json=CHAT | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        port = house.port
        stopping = asyncio.create_task(house.gateway.stop(30))
        with pytest.raises(ConnectionRefusedError):
            while True:
                _, late = await asyncio.open_connection("127.0.0.1", port)
                late.close()
                with contextlib.suppress(OSError):
                    await late.wait_closed()
        finish.set()
        rest = [line async for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    await asyncio.wait_for(stopping, 10)


async def test_stopping_fails_what_outlives_the_grace_time_with_an_error(
    start_gateway: Any, http: httpx.AsyncClient
) -> None:
    async def forever(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        if request.body.get("seed") is None:
            yield Piece(1, (), role_frame(request))
        await asyncio.Event().wait()

    house = await start_gateway(forever)
    whole = asyncio.create_task(http.post(house.root + POSTS[0], json=CHAT | {"seed": 1}))
    async with http.stream("POST", house.root + POSTS[0], json=CHAT | {"stream": True}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        while house.answers.open < 2:
            await asyncio.sleep(0)
        await asyncio.wait_for(house.gateway.stop(0), 10)
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "draining"
    refused = await whole
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"
    assert house.answers.open == 0


async def test_stopping_does_not_wait_for_idle_or_deaf_clients(start_gateway: Any) -> None:
    async def flood(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        big = text_frame(request, "x" * 2**16)
        while True:
            yield Piece(1, (), big)

    house = await start_gateway(flood)
    _, idle = await asyncio.open_connection("127.0.0.1", house.port)
    _, deaf = await asyncio.open_connection("127.0.0.1", house.port)
    body = json.dumps(CHAT | {"stream": True}).encode()
    deaf.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body) + body
    )
    await asyncio.wait_for(house.answers.began.wait(), 10)
    await asyncio.wait_for(house.gateway.stop(0), 10)
    assert house.answers.open == 0
    for writer in (idle, deaf):
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_stopping_twice_is_harmless(start_gateway: Any) -> None:
    house = await start_gateway()
    await house.gateway.stop(0)
    await house.gateway.stop(0)
    with pytest.raises(FelloeError) as caught:
        _ = house.gateway.base_url
    assert caught.value.code == "not_running"
