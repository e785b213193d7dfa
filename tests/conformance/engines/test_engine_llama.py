"""What only the llama.cpp adapter promises: parameters by name, forced tool calls, unknown fields refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine_house import MODEL_FILE, Subject, tiny_model
from felloe.domain.errors import FelloeError
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "$defs": {"place": {"type": "string", "maxLength": 8}},
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/place"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def _calls(answer: Any) -> list[dict[str, Any]]:
    """Tool calls put together as the OpenAI SDK does."""
    calls: dict[int, dict[str, Any]] = {}
    for choice in answer.choices:
        for part in choice["delta"].get("tool_calls") or ():
            call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += part.get("id") or ""
            call["name"] += part["function"].get("name") or ""
            call["arguments"] += part["function"].get("arguments") or ""
    return list(calls.values())


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_forced_tool_call_has_valid_arguments(llama: Any, choice: Any) -> None:
    answer = await llama.ask(tools=[WEATHER], tool_choice=choice, max_tokens=400)
    (call,) = _calls(answer)
    assert call["name"] == "get_weather"
    assert call["id"].startswith("call_")
    assert set(json.loads(call["arguments"])) == {"city"}
    assert answer.finish_reason == "tool_calls"
    assert answer.text == ""


async def test_one_of_several_tools_is_called(llama: Any) -> None:
    answer = await llama.ask(tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=400, temperature=1, seed=3)
    (call,) = _calls(answer)
    assert call["name"] in ("get_weather", "clock")
    assert isinstance(json.loads(call["arguments"]), dict)


async def test_a_forced_tool_call_replays_to_the_byte(llama: Any) -> None:
    body = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 400, "temperature": 1.0}
    assert (await llama.ask(**body)).frames == (await llama.ask(**body)).frames


async def test_a_forced_tool_call_that_is_cut_short_says_length(llama: Any) -> None:
    answer = await llama.ask(tools=[WEATHER], tool_choice="required", max_tokens=3)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"no_such_parameter": 1}, "unknown_parameter", "no_such_parameter"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"temperature": "x"}, "invalid_type", "temperature"),
        ({"temperature": -1}, "invalid_type", "temperature"),
        ({"stop": ["x"] * 17}, "invalid_type", "stop"),
        ({"max_tokens": 0}, "invalid_type", "max_tokens"),
        ({"max_tokens": 5000}, "context_length_exceeded", "max_tokens"),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "invalid_value", None),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_type", "tools"),
        ({"messages": []}, "invalid_type", "messages"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(llama: Any, body: Any, code: str, param: str | None) -> None:
    with pytest.raises(FelloeError) as caught:
        await llama.ask(**body)
    assert caught.value.code == code
    assert param is None or caught.value.param == param


async def test_a_picture_is_refused(llama: Any) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(FelloeError) as caught:
        await llama.ask(messages=[{"role": "user", "content": [picture]}])
    assert caught.value.code in ("unsupported_capability", "invalid_value")


async def test_an_unusable_schema_is_refused(llama: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(FelloeError) as caught:
        await llama.ask(response_format=wanted)
    assert caught.value.code == "invalid_value"


async def test_vectors_of_another_length_are_refused(llama: Any) -> None:
    with pytest.raises(FelloeError) as caught:
        await llama.ask("embedding", input="x", dimensions=8)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize("value", ["text", ["text"], [320, 355], [[320], [355, 379]]])
async def test_every_shape_of_embedding_input_is_read(llama: Any, value: Any) -> None:
    answer = await llama.ask("embedding", input=value)
    expected = 2 if value == [[320], [355, 379]] else 1
    assert len(json.loads(answer.frames)["data"]) == expected


@pytest.mark.parametrize("value", [[], [[]], [1.5], ["a", 1], {"a": 1}, None])
async def test_no_other_embedding_input_is_read(llama: Any, value: Any) -> None:
    with pytest.raises(FelloeError) as caught:
        await llama.ask("embedding", input=value)
    assert caught.value.code == "invalid_type"


async def test_legacy_logprobs_have_offsets_into_the_text(llama: Any) -> None:
    answer = await llama.ask("completion", prompt="import os\n", max_tokens=8, logprobs=2)
    logprobs = [choice["logprobs"] for choice in answer.choices if choice["logprobs"]]
    tokens = [token for each in logprobs for token in each["tokens"]]
    offsets = [offset for each in logprobs for offset in each["text_offset"]]
    assert [answer.text[at : at + len(token)] for at, token in zip(offsets, tokens, strict=True)] == tokens


@pytest.mark.parametrize("slots", [3, 5])
async def test_any_number_of_slots_embeds(tmp_path: Path, slots: int) -> None:
    engines = Engines(state_folder=tmp_path / "state", log_folder=tmp_path / "logs", clock=time.monotonic)
    try:
        options = EngineOptions(context=1024, slots=slots, threads=1, embedding=True)
        await engines.load(tiny_model(), MODEL_FILE, options)
        answer = await Subject(engines, tells_ids=True).ask("embedding", input=["x = 1"] * slots)
        assert len(json.loads(answer.frames)["data"]) == slots
    finally:
        await engines.close()
