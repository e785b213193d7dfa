"""What every engine adapter must do, whatever serves behind it."""

import base64
import json
import struct
import time
from typing import Any

import msgspec
import pytest

from engine_house import Answering, collect
from felloe.domain.errors import FelloeError

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


async def test_a_chat_answer_is_framed_for_its_request(subject: Any) -> None:
    answer = await subject.ask(max_tokens=12, index=0)
    events = answer.events
    assert {event["id"] for event in events} == {"chatcmpl-" + "1" * 32}
    assert {event["created"] for event in events} == {1_700_000_000}
    assert {event["model"] for event in events} == {"tiny-python"}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert sum("role" in choice["delta"] for choice in answer.choices) == 1
    reasons = [choice["finish_reason"] for choice in answer.choices]
    assert reasons[-1] == answer.finish_reason
    assert set(reasons[:-1]) == {None}
    assert answer.text


async def test_every_frame_carries_the_index_of_its_choice(subject: Any) -> None:
    answer = await subject.ask(max_tokens=5, index=3)
    assert {choice["index"] for choice in answer.choices} == {3}


async def test_a_completion_answers_a_text_prompt(subject: Any) -> None:
    answer = await subject.ask("completion", prompt="def add(a, b):\n", max_tokens=10)
    assert {event["object"] for event in answer.events} == {"text_completion"}
    assert answer.text


async def test_token_ids_and_their_text_are_the_same_prompt(subject: Any) -> None:
    first = await subject.ask("completion", prompt=[320, 355, 379], max_tokens=10)
    second = await subject.ask("completion", prompt=[320, 355, 379], max_tokens=10)
    assert first.text == second.text != ""
    assert first.usage.prompt == 3


async def test_max_tokens_ends_with_length(subject: Any) -> None:
    answer = await subject.ask("completion", prompt="import os\n", max_tokens=7, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert answer.usage.completion == 7


async def test_numbers_grow_and_count_all_tokens(subject: Any) -> None:
    answer = await subject.ask("completion", prompt="import os\n", max_tokens=9, ignore_eos=True)
    numbers = [piece.number for piece in answer.pieces]
    assert numbers == sorted(numbers)
    if subject.tells_ids:
        assert numbers[-1] == 9
        assert len(answer.ids) == 9
    else:
        assert answer.ids == ()


async def test_a_stop_string_ends_the_answer_and_is_left_out(subject: Any) -> None:
    plain = await subject.ask("completion", prompt="import os\n", max_tokens=40)
    stop = plain.text[8:12]
    answer = await subject.ask("completion", prompt="import os\n", max_tokens=40, stop=["never seen", stop])
    assert answer.finish_reason == "stop"
    assert answer.text == plain.text[: plain.text.index(stop)]


async def test_a_seed_makes_sampling_repeatable_and_another_seed_changes_it(subject: Any) -> None:
    sampled = {"prompt": "def ", "max_tokens": 24, "temperature": 1.5}
    first = await subject.ask("completion", seed=7, **sampled)
    again = await subject.ask("completion", seed=7, **sampled)
    other = await subject.ask("completion", seed=8, **sampled)
    assert first.text == again.text
    assert first.text != other.text


async def test_chat_logprobs_name_every_token_and_the_candidates(subject: Any) -> None:
    answer = await subject.ask(max_tokens=6, logprobs=True, top_logprobs=3)
    entries = [entry for choice in answer.choices for entry in (choice.get("logprobs") or {}).get("content") or []]
    assert "".join(entry["token"] for entry in entries) == answer.text
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3 for entry in entries)


async def test_usage_counts_prompt_and_answer(subject: Any) -> None:
    answer = await subject.ask("completion", prompt=[320, 355, 379, 68], max_tokens=5, ignore_eos=True)
    assert (answer.usage.prompt, answer.usage.completion) == (4, 5)
    again = await subject.ask("completion", prompt=[320, 355, 379, 68], max_tokens=5, ignore_eos=True)
    assert again.usage.cached <= 4


async def test_any_text_of_any_language_is_accepted(subject: Any) -> None:
    messages = [{"role": "user", "content": 'héllo 😀 日本 \u0000 "quoted" \\ \u2028'}]
    answer = await subject.ask(messages=messages, max_tokens=4)
    assert answer.finish_reason in ("length", "stop")


async def test_a_grammar_of_emoji_comes_out_whole(subject: Any) -> None:
    wanted = "é😀日本"
    schema = {"name": "word", "schema": {"const": wanted}}
    answer = await subject.ask(max_tokens=80, response_format={"type": "json_schema", "json_schema": schema})
    assert json.loads(answer.text) == wanted


async def test_a_json_schema_is_obeyed(subject: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
    answer = await subject.ask(max_tokens=400, response_format=wanted)
    value = json.loads(answer.text)
    assert set(value) == {"city", "warm"}
    assert isinstance(value["city"], str)
    assert isinstance(value["warm"], bool)
    assert answer.finish_reason == "stop"


async def test_tools_may_be_offered(subject: Any) -> None:
    answer = await subject.ask(max_tokens=8, tools=[WEATHER])
    assert answer.finish_reason in ("length", "stop", "tool_calls")


async def test_a_prompt_beyond_the_context_is_refused_before_it_is_answered(subject: Any) -> None:
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt=[320] * 5000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"


async def test_wrong_values_are_refused_as_the_callers_fault(subject: Any) -> None:
    with pytest.raises(FelloeError) as caught:
        await subject.ask(max_tokens=4, temperature="warm")
    assert caught.value.status == 400


async def test_embeddings_come_as_numbers_and_as_base64(subject: Any) -> None:
    numbers = await subject.ask("embedding", input=["alpha", "beta"], encoding_format="float")
    packed = await subject.ask("embedding", input=["alpha", "beta"], encoding_format="base64")
    plain, coded = json.loads(numbers.frames), json.loads(packed.frames)
    assert [each["index"] for each in plain["data"]] == [0, 1]
    assert plain["model"] == "tiny-python"
    assert plain["usage"]["prompt_tokens"] == numbers.usage.prompt > 0
    raw = base64.b64decode(coded["data"][0]["embedding"])
    vector = plain["data"][0]["embedding"]
    assert struct.unpack(f"<{len(vector)}f", raw) == pytest.approx(vector, rel=1e-4)


async def test_an_answer_ends_by_its_deadline(subject: Any) -> None:
    began = time.monotonic()
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt="a", max_tokens=1000, ignore_eos=True, deadline=0.05)
    assert caught.value.code == "deadline_exceeded"
    assert time.monotonic() - began < 2


async def test_the_answer_can_be_closed_at_any_piece_and_the_next_one_comes(subject: Any) -> None:
    long = subject.request("completion", prompt="a", max_tokens=900, ignore_eos=True)
    for wanted in (1, 2, 3):
        answering = Answering(subject.engines, long)
        await answering.until_pieces(wanted)
        await answering.cancel()
    assert (await subject.ask("completion", prompt="a", max_tokens=3, ignore_eos=True)).finish_reason == "length"


async def test_an_unknown_model_is_refused(subject: Any) -> None:
    request = subject.request(max_tokens=1)
    with pytest.raises(FelloeError) as caught:
        await collect(subject.engines, _renamed(request))
    assert caught.value.code == "model_not_found"


def _renamed(request: Any) -> Any:
    return msgspec.structs.replace(request, model="no-such-model")
