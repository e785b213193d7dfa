"""The official OpenAI SDK, unmodified, against the gateway."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import openai
import pytest
from gateway_house import WORDS, House, failing, frame, last_frame, role_frame, say_words, text_frame
from openai import AsyncOpenAI
from pydantic import BaseModel

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Done, InferenceRequest, Part, Piece, Usage

TEXT = "".join(WORDS)
USER: list[Any] = [{"role": "user", "content": "Say hello."}]
Connect = Callable[[House], AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[AsyncOpenAI] = []

    def make(house: House) -> AsyncOpenAI:
        clients.append(AsyncOpenAI(base_url=house.gateway.base_url, api_key="placeholder", max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def client(house: House, connect: Connect) -> AsyncOpenAI:
    return connect(house)


async def test_a_chat_answer_arrives_whole(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny-python", messages=USER)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


async def test_a_chat_answer_streams(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny-python", messages=USER, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all("usage" not in (chunk.model_extra or {}) and chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_when_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny-python", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_three_choices_arrive_whole_with_their_own_seeds(house: House, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny-python", messages=USER, n=3, seed=40)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.message.content == TEXT for choice in answer.choices)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 12)
    assert sorted(request.body["seed"] for request in house.answers.requests) == [40, 41, 42]


async def test_three_choices_stream_as_one_answer(client: AsyncOpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    finished: list[int] = []
    async for chunk in await client.chat.completions.create(model="tiny-python", messages=USER, n=3, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        finished += [choice.index] if choice.finish_reason else []
    assert texts == {0: TEXT, 1: TEXT, 2: TEXT}
    assert sorted(finished) == [0, 1, 2]


async def test_completions_take_several_prompts(house: House, client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny-python", prompt=["def a", "def b"], n=2, stop=["\n\n", "#"])
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(choice.text == TEXT for choice in answer.choices)
    asked = sorted((request.index, request.body["prompt"]) for request in house.answers.requests)
    assert asked == [(0, "def a"), (1, "def a"), (2, "def b"), (3, "def b")]
    assert house.answers.requests[0].body["stop"] == ["\n\n", "#"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 16)


async def test_a_completion_streams(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model="tiny-python", prompt="def a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_embeddings_come_in_the_format_asked_for(client: AsyncOpenAI, encoding: str | None) -> None:
    more: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    answer = await client.embeddings.create(model="org/embedder:v1", input=["one", "two"], **more)
    assert [entry.index for entry in answer.data] == [0, 1]
    if encoding == "base64":
        assert [entry.embedding for entry in answer.data] == ["AAAAPwAAAAA=", "AAAAPwAAgD8="]
    else:
        assert [entry.embedding for entry in answer.data] == [[0.5, 0.0], [0.5, 1.0]]
    assert answer.usage.prompt_tokens == 6
    assert answer.model == "org/embedder:v1"


async def test_models_are_listed_and_shown(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny-python", "org/embedder:v1", "large-and-asleep"]
    assert (await client.models.retrieve("org/embedder:v1")).id == "org/embedder:v1"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("nobody/nothing")
    assert caught.value.code == "model_not_found"


async def call_a_tool(request: InferenceRequest) -> AsyncGenerator[Part, None]:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    yield Piece(1, (), role_frame(request) + frame(request, {"delta": {"tool_calls": [call]}}))
    for part in ('{"city"', ': "Oslo"}'):
        delta = {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}
        yield Piece(2, (), frame(request, {"delta": delta}))
    yield Piece(3, (), last_frame(request, "tool_calls"))
    yield Done(Usage(prompt=1, completion=3), "tool_calls")


WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def test_a_tool_is_called(start_gateway: Any, connect: Connect) -> None:
    house = await start_gateway(call_a_tool)
    answer = await connect(house).chat.completions.create(
        model="tiny-python",
        messages=USER,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.id, call.type, call.function.name) == ("call_1", "function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert house.answers.requests[0].body["tools"] == [WEATHER]


async def test_a_tool_call_streams_and_its_answer_is_sent_back(start_gateway: Any, connect: Connect) -> None:
    house = await start_gateway(call_a_tool)
    client = connect(house)
    async with client.chat.completions.stream(model="tiny-python", messages=USER, tools=[WEATHER]) as stream:
        final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
    house.answers.script = say_words
    tool_answer = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    history: list[Any] = [*USER, message, tool_answer]
    answer = await client.chat.completions.create(model="tiny-python", messages=history)
    assert answer.choices[0].message.content == TEXT


async def test_a_json_schema_is_parsed(start_gateway: Any, connect: Connect) -> None:
    class City(BaseModel):
        name: str
        people: int

    async def script(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        yield Piece(1, (), role_frame(request) + text_frame(request, '{"name": "Oslo", '))
        yield Piece(2, (), text_frame(request, '"people": 717710}') + last_frame(request))
        yield Done(Usage(prompt=1, completion=2), "stop")

    house = await start_gateway(script)
    answer = await connect(house).chat.completions.parse(model="tiny-python", messages=USER, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo", people=717710)
    sent = house.answers.requests[0].body["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"]["required"] == ["name", "people"]


async def test_log_probabilities_are_put_together(start_gateway: Any, connect: Connect) -> None:
    async def script(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        for number, word in enumerate(("a", "b"), start=1):
            entry = {"token": word, "logprob": -0.5, "bytes": [97], "top_logprobs": []}
            logprobs = {"content": [entry], "refusal": None}
            yield Piece(number, (), frame(request, {"delta": {"content": word}, "logprobs": logprobs}))
        yield Piece(2, (), last_frame(request, "length"))
        yield Done(Usage(prompt=1, completion=2), "length")

    house = await start_gateway(script)
    answer = await connect(house).chat.completions.create(
        model="tiny-python", messages=USER, logprobs=True, top_logprobs=3, max_completion_tokens=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["a", "b"]
    body = house.answers.requests[0].body
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 3, 2)


async def test_a_failure_before_the_first_byte_is_an_http_error(start_gateway: Any, connect: Connect) -> None:
    for error, expected in (
        (FelloeError("model_not_found", "no such model", param="model"), openai.NotFoundError),
        (FelloeError("context_length_exceeded", "the prompt has 9 of 8 tokens"), openai.BadRequestError),
        (FelloeError("overloaded", "the queue is full", retry_after=2.2), openai.InternalServerError),
    ):
        client = connect(await start_gateway(failing(error)))
        for stream in (False, True):
            with pytest.raises(expected) as caught:
                await client.chat.completions.create(model="tiny-python", messages=USER, stream=stream)
            assert caught.value.code == error.code
            assert caught.value.param == error.param
            assert caught.value.response.status_code == error.status
            assert caught.value.request_id is not None
            assert caught.value.response.headers.get("retry-after") == ("3" if error.retry_after else None)


async def test_a_failure_in_mid_stream_raises_after_the_words_so_far(start_gateway: Any, connect: Connect) -> None:
    house = await start_gateway(failing(FelloeError("replica_lost", "the node went away"), after=2))
    stream = await connect(house).chat.completions.create(model="tiny-python", messages=USER, stream=True)
    words: list[str | None] = []
    with pytest.raises(openai.APIError) as caught:
        words.extend([(await anext(stream)).choices[0].delta.content, (await anext(stream)).choices[0].delta.content])
        await anext(stream)
    assert words == list(WORDS[:2])
    assert caught.value.code == "replica_lost"
    assert "the node went away" in caught.value.message


async def test_a_failure_of_one_choice_fails_the_answer(start_gateway: Any, connect: Connect) -> None:
    async def script(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        if request.index == 1:
            raise FelloeError("engine_failed", "it broke")
        async for part in say_words(request):
            yield part

    house = await start_gateway(script)
    with pytest.raises(openai.InternalServerError) as caught:
        await connect(house).chat.completions.create(model="tiny-python", messages=USER, n=3)
    assert caught.value.code == "engine_failed"
    assert house.answers.open == 0


async def test_an_answer_that_breaks_off_is_an_error(start_gateway: Any, connect: Connect) -> None:
    async def script(request: InferenceRequest) -> AsyncGenerator[Part, None]:
        yield Piece(1, (), text_frame(request, "half"))

    client = connect(await start_gateway(script))
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="tiny-python", messages=USER)
    assert caught.value.code == "engine_failed"
    stream = await client.chat.completions.create(model="tiny-python", messages=USER, stream=True)
    with pytest.raises(openai.APIError):
        _ = [chunk async for chunk in stream]


async def test_the_sdk_learns_which_parameter_is_wrong(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny-python", messages=USER, temperature=7)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny-python", messages=USER, extra_body={"guided_regex": "x"})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "guided_regex")


async def test_a_wrong_key_is_refused(start_gateway: Any, connect: Connect) -> None:
    house = await start_gateway(require_key=True)
    record, plaintext = house.keys.create("laptop")
    with pytest.raises(openai.AuthenticationError) as caught:
        await connect(house).models.list()
    assert caught.value.code == "invalid_api_key"
    client = AsyncOpenAI(base_url=house.gateway.base_url, api_key=plaintext, max_retries=0)
    async with client:
        assert (await client.models.list()).data
        house.keys.revoke(record.id)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
