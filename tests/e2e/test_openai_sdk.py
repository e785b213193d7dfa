"""The official SDK gets the same answers from the hub, from a spoke that serves and from one that does not."""

import json

import openai
import pytest

from networks import Network, NodeProcess

MODEL = "tiny-python"
QUESTION = [{"role": "user", "content": "Write a function that reads a file"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
SCHEMA = {
    "name": "person",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "adult": {"type": "boolean"}},
        "required": ["age", "adult"],
        "additionalProperties": False,
    },
}


@pytest.fixture(params=["hub", "serving-a", "empty"])
def node(request: pytest.FixtureRequest, network: Network) -> NodeProcess:
    return next(node for node in network.nodes if node.name == request.param)


def test_a_chat_is_answered_the_same_streamed_or_not(node: NodeProcess) -> None:
    client = node.client()
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=40)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert whole.usage.completion_tokens == 40
    assert whole.choices[0].finish_reason == "length"


def test_every_node_gives_the_same_greedy_text(network: Network) -> None:
    answers = {
        node.client()
        .chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=60)
        .choices[0]
        .message.content
        for node in network.nodes
    }
    assert len(answers) == 1


def test_completions_with_several_prompts_and_choices(node: NodeProcess) -> None:
    answer = node.client().completions.create(
        model=MODEL, prompt=["def add(a, b):", "import os"], n=2, temperature=0, max_tokens=8
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_embeddings(node: NodeProcess) -> None:
    answer = node.client().embeddings.create(model=MODEL, input=["open a file", "close a socket"])
    assert [len(one.embedding) for one in answer.data] == [256, 256]
    assert answer.data[0].embedding != answer.data[1].embedding


def test_models_are_listed_and_found(node: NodeProcess) -> None:
    client = node.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_tool_call(node: NodeProcess) -> None:
    answer = node.client().chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "read_file"}},
        temperature=0,
        max_tokens=200,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "read_file"
    assert "path" in json.loads(calls[0].function.arguments)


def test_a_json_schema(node: NodeProcess) -> None:
    answer = node.client().chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": SCHEMA},
        temperature=0,
        max_tokens=100,
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"age", "adult"}
    assert isinstance(person["adult"], bool)


def test_errors_name_what_is_wrong(node: NodeProcess) -> None:
    client = node.client()
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x y " * 9000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"magic": 1})
    assert unknown.value.code == "unknown_parameter"
