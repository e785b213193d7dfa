"""From bodies to inference requests."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Usage
from felloe.gateway.decode import decode_body
from felloe.gateway.requests import ChatBody, CompletionBody, EmbeddingBody
from felloe.gateway.rules import (
    CARRIED_OUT_HERE,
    NO_EFFECT,
    Call,
    Terms,
    chat_call,
    check_media,
    chosen_reach,
    completion_call,
    embedding_call,
    total_usage,
)

TERMS = Terms(token="0" * 32, created=1_700_000_000, deadline=60.0, reach="network")
USER = [{"role": "user", "content": "hi"}]


def chat(**body: Any) -> Call:
    data = json.dumps({"model": "m", "messages": USER} | body).encode()
    return chat_call(decode_body(data, ChatBody), TERMS)


def completion(**body: Any) -> Call:
    return completion_call(decode_body(json.dumps({"model": "m"} | body).encode(), CompletionBody), TERMS)


def embedding(**body: Any) -> Call:
    return embedding_call(decode_body(json.dumps({"model": "m"} | body).encode(), EmbeddingBody), TERMS)


def refusal(make: Any, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(FelloeError) as caught:
        make(**body)
    return caught.value.code, caught.value.param


def test_a_plain_call_becomes_one_request() -> None:
    call = chat()
    request = call.requests[0]
    assert request.id == "chatcmpl-" + "0" * 32
    assert (request.kind, request.model, request.index, request.reach) == ("chat", "m", 0, "network")
    assert (request.created, request.deadline, request.resume) == (1_700_000_000, 60.0, None)
    assert request.body == {"messages": USER}
    assert not call.stream


PASSED_ON: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "frequency_penalty": -2,
    "presence_penalty": 2,
    "max_tokens": 5,
    "logit_bias": {"15": -100},
    "logprobs": True,
    "top_logprobs": 20,
    "parallel_tool_calls": True,
    "response_format": {"type": "json_object"},
    "chat_template_kwargs": {"enable_thinking": False},
    "top_k": 40,
    "min_p": 0.05,
    "typical_p": 1,
    "repeat_penalty": 1.1,
    "repeat_last_n": -1,
    "mirostat": 2,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n"],
    "xtc_probability": 0.1,
    "xtc_threshold": 0.1,
    "cache_prompt": False,
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_the_engine_carries_out_is_passed_on(name: str) -> None:
    assert chat(**{name: PASSED_ON[name]} | ({"logprobs": True} if name == "top_logprobs" else {})).requests[0].body[
        name
    ] == pytest.approx(PASSED_ON[name])


NOTHING: dict[str, Any] = {
    "user": "somebody",
    "metadata": {"a": "b"},
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "service_tier": "auto",
    "store": False,
    "modalities": ["text"],
}


def test_what_has_no_effect_is_taken_and_not_passed_on() -> None:
    assert set(NOTHING) == NO_EFFECT
    assert chat(**NOTHING).requests[0].body == {"messages": USER}


@pytest.mark.parametrize(
    "name",
    [
        "audio",
        "function_call",
        "functions",
        "prediction",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
    ],
)
def test_what_is_not_supported_is_refused_unless_null(name: str) -> None:
    assert refusal(chat, **{name: "x"}) == ("unsupported_parameter", name)
    assert chat(**{name: None}).requests[0].body == {"messages": USER}


def test_null_means_not_given() -> None:
    names = [field for field in ChatBody.__struct_fields__ if field not in ("model", "messages")]
    assert chat(**dict.fromkeys(names)).requests[0].body == {"messages": USER}


def test_every_parameter_is_passed_on_carried_out_or_refused() -> None:
    refused = {name for name in ChatBody.__struct_fields__ if _is_refused(name)}
    passed = set(PASSED_ON) | {"messages", "seed", "stop", "tools", "tool_choice"}
    assert passed | CARRIED_OUT_HERE | NO_EFFECT | refused == set(ChatBody.__struct_fields__)


def _is_refused(name: str) -> bool:
    try:
        chat(**{name: ["anything"]})
    except FelloeError as error:
        return error.code == "unsupported_parameter"
    return False


def test_n_fans_out_with_stable_indexes_and_own_seeds() -> None:
    call = chat(n=16, seed=2**63 - 1)
    assert [request.index for request in call.requests] == list(range(16))
    assert len({request.body["seed"] for request in call.requests}) == 16
    assert all(0 <= request.body["seed"] < 2**32 - 1 for request in call.requests)
    assert len({request.id for request in call.requests}) == 1
    assert [request.body["seed"] for request in chat(n=2, seed=7).requests] == [7, 8]
    assert "seed" not in chat(n=2).requests[0].body


def test_prompts_and_n_fan_out_prompt_by_prompt() -> None:
    call = completion(prompt=[[1, 2], [3]], n=2)
    assert [(request.index, request.body["prompt"]) for request in call.requests] == [
        (0, [1, 2]),
        (1, [1, 2]),
        (2, [3]),
        (3, [3]),
    ]
    assert call.choices == 2


def test_a_prompt_may_be_text_or_tokens() -> None:
    assert completion(prompt="x").requests[0].body["prompt"] == "x"
    assert completion(prompt=[1, 2, 3]).requests[0].body["prompt"] == [1, 2, 3]
    assert refusal(completion, prompt=[1, "x"]) == ("invalid_type", "prompt")
    assert refusal(completion, prompt=[]) == ("invalid_value", "prompt")
    assert refusal(completion, prompt=[[1], []]) == ("invalid_value", "prompt")
    assert refusal(completion, prompt=[-1]) == ("invalid_value", "prompt[0]")
    assert refusal(completion, prompt=["x"] * 65) == ("invalid_value", "prompt")
    assert refusal(completion, prompt=["x"] * 5, n=13) == ("invalid_value", "n")
    assert len(completion(prompt=["x"] * 4, n=16).requests) == 64


def test_a_completion_has_openais_default_length() -> None:
    assert completion(prompt="x").requests[0].body["max_tokens"] == 16
    assert completion(prompt="x", max_tokens=3).requests[0].body["max_tokens"] == 3


@pytest.mark.parametrize("name", ["suffix", "best_of"])
def test_old_completion_parameters_are_refused(name: str) -> None:
    assert refusal(completion, prompt="x", **{name: 2}) == ("unsupported_parameter", name)


def test_echo_may_only_be_false() -> None:
    assert "echo" not in completion(prompt="x", echo=None).requests[0].body
    assert refusal(completion, prompt="x", echo=True) == ("unsupported_parameter", "echo")


def test_embeddings_are_asked_for_as_a_list() -> None:
    assert embedding(input="x").requests[0].body == {"input": ["x"]}
    assert embedding(input=[1, 2]).requests[0].body == {"input": [[1, 2]]}
    assert embedding(input=["a", "b"], encoding_format="base64").base64
    assert refusal(embedding, input="") == ("invalid_value", "input")
    assert refusal(embedding, input=["x"] * 2049) == ("invalid_value", "input")
    assert refusal(embedding, input="x", dimensions=3) == ("unsupported_parameter", "dimensions")
    assert refusal(embedding, input="x", encoding_format="int8") == ("invalid_value", "encoding_format")


def test_stop_becomes_a_list() -> None:
    assert chat(stop="a").requests[0].body["stop"] == ["a"]
    assert chat(stop=["a"] * 16).requests[0].body["stop"] == ["a"] * 16
    assert refusal(chat, stop=["a"] * 17) == ("invalid_value", "stop")
    assert refusal(chat, stop=[""]) == ("invalid_value", "stop[0]")


def test_a_developer_speaks_as_the_system() -> None:
    body = chat(messages=[{"role": "developer", "content": "x", "name": "boss"}]).requests[0].body
    assert body["messages"] == [{"role": "system", "content": "x", "name": "boss"}]


def test_the_newer_token_limit_means_the_same() -> None:
    assert chat(max_completion_tokens=5).requests[0].body["max_tokens"] == 5
    assert chat(max_completion_tokens=5, max_tokens=5).requests[0].body["max_tokens"] == 5
    assert refusal(chat, max_completion_tokens=5, max_tokens=6) == ("invalid_value", "max_completion_tokens")


def test_options_of_a_stream_need_a_stream() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True, stream_options={}).include_usage
    assert refusal(chat, stream_options={"include_usage": True}) == ("invalid_value", "stream_options")
    assert refusal(chat, stream=True, stream_options={"include_obfuscation": True})[0] == "unsupported_parameter"
    assert refusal(chat, stream=True, stream_options={"x": 1}) == ("unknown_parameter", "stream_options.x")


def test_tools_and_choices_fit_together() -> None:
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "f"}}
    body = chat(tools=[tool], tool_choice=choice).requests[0].body
    assert (body["tools"], body["tool_choice"]) == ([tool], choice)
    assert refusal(chat, tool_choice="required") == ("invalid_value", "tool_choice")
    assert refusal(chat, tools=[tool], tool_choice={"type": "function", "function": {"name": "g"}})[1] == "tool_choice"
    assert refusal(chat, tools=[{"type": "web_search"}]) == ("unsupported_parameter", "tools[0].type")
    assert refusal(chat, top_logprobs=1) == ("invalid_value", "top_logprobs")


def test_a_history_with_tool_calls_is_passed_on_without_the_sdks_additions() -> None:
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    sent = json.loads(json.dumps(called))
    sent["index"] = 0
    sent["function"]["parsed_arguments"] = {"a": 1}
    answer = {"role": "assistant", "content": None, "tool_calls": [sent], "parsed": {"x": 1}, "refusal": None}
    tool = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "42"}]}
    messages = chat(messages=[*USER, answer, tool]).requests[0].body["messages"]
    assert messages[1:] == [{"role": "assistant", "tool_calls": [called]}, tool]


@pytest.mark.parametrize("depth", [60, 70, 500])
def test_free_form_json_is_bounded_in_depth(depth: int) -> None:
    deep = json.loads('{"x":' * depth + "1" + "}" * depth)
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": deep}}
    for body in ({"tools": [tool]}, {"response_format": schema}, {"chat_template_kwargs": deep}):
        if depth == 60:
            chat(**body)
        else:
            assert refusal(chat, **body)[0] == "invalid_value"


def test_brackets_inside_strings_do_not_count() -> None:
    code = "[{" * 100_000 + '"\\"'
    assert chat(messages=[{"role": "user", "content": code}]).requests[0].body["messages"][0]["content"] == code


@given(st.text(max_size=200), st.binary(max_size=200))
def test_any_text_is_kept_and_any_bytes_are_decoded_or_refused(text: str, data: bytes) -> None:
    assert chat(messages=[{"role": "user", "content": text}]).requests[0].body["messages"][0]["content"] == text
    try:
        decode_body(data, ChatBody)
    except FelloeError as error:
        assert error.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(ChatBody.__struct_fields__)), JSON)
def test_a_wrong_value_is_refused_without_being_repeated(name: str, value: Any) -> None:
    try:
        chat(**{name: value})
    except FelloeError as error:
        assert error.status in (400, 404)
        if isinstance(value, str) and len(value) > 3:
            assert repr(value) not in error.detail


def test_a_request_may_only_ask_for_less_reach() -> None:
    assert chosen_reach([], "network") == "network"
    assert chosen_reach([b"device"], "market") == "device"
    for values, code in (([b"market"], "forbidden"), ([b"x"], "invalid_value"), ([b"device"] * 2, "invalid_value")):
        with pytest.raises(FelloeError) as caught:
            chosen_reach(values, "network")
        assert caught.value.code == code


def test_only_plain_json_bodies_are_read() -> None:
    check_media([b"Application/JSON ; charset=utf-8"], [b"identity"])
    for types, encodings in (
        ([], []),
        ([b"text/json"], []),
        ([b"application/json", b"application/json"], []),
        ([b"application/json"], [b"gzip"]),
        ([b"application/json"], [b"identity, br"]),
    ):
        with pytest.raises(FelloeError) as caught:
            check_media(types, encodings)
        assert caught.value.status == 415


def test_a_prompt_counts_once_for_all_its_choices() -> None:
    usages = [Usage(5, 1, 2), Usage(5, 2, 5), Usage(7, 3, 0), Usage(7, 4, 7)]
    assert total_usage(usages, 2) == Usage(12, 10, 2)
