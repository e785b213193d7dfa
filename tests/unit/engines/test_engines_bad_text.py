"""Bytes that are no UTF-8 from an engine or an upstream server are its failure, not a bug of ours."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, RequestId
from felloe.domain.requests import InferenceRequest
from felloe.engines.options import Upstream
from felloe.engines.upstream import UpstreamServer

BAD = b'{"id":"\xff\xfe","choices":[{"index":0,"delta":{"content":"\xff"},"finish_reason":null}],"model":"\xc0"}'
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer_badly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    event = b"data: " + BAD + b"\n\n"
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(event), event)
    )
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("what", ["models", "answer"])
async def test_bytes_that_are_no_text_are_an_upstream_failure(what: str) -> None:
    listener = await asyncio.start_server(answer_badly, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = UpstreamServer(Upstream(name="bad", base_url=f"http://127.0.0.1:{port}/v1"))
    request = InferenceRequest(
        id=RequestId("chatcmpl-1"), kind="chat", model=ModelName("m"), body={"messages": []}, created=1, deadline=10.0
    )
    delivered: list[Any] = []
    try:
        with pytest.raises(FelloeError) as failed:
            await (server.models() if what == "models" else server.answer(request, delivered.append))
    finally:
        await server.close()
        listener.close()
        await listener.wait_closed()
    assert failed.value.code == "upstream_failed"
    assert "\ufffd" not in failed.value.detail
