"""Requests that say nothing get what the model's maker chose, as far as it means something here."""

from typing import Any

import pytest

from felloe.domain.requests import InferenceRequest
from felloe.engines.defaults import completed, usable_defaults
from routing_fakes import make_request

OLLAMA = {"temperature": 0.6, "top_k": 20, "stop": ("<|im_end|>", "</s>"), "num_predict": 128, "num_ctx": 4096}


def asked(kind: Any = "chat", **body: Any) -> InferenceRequest:
    return make_request(kind=kind, body={"messages": [{"role": "user", "content": "x"}], **body})


def test_what_a_request_could_name_is_taken_over() -> None:
    assert usable_defaults(OLLAMA, 4096) == {
        "temperature": 0.6,
        "top_k": 20,
        "stop": ["<|im_end|>", "</s>"],
        "max_tokens": 128,
    }


@pytest.mark.parametrize(
    "found",
    [{"temperature": -1.0}, {"temperature": "hot"}, {"num_predict": -1}, {"mirostat": 7}, {"system": 3}, {"x": 1}],
)
def test_what_means_nothing_is_left_out(found: dict[str, Any]) -> None:
    assert usable_defaults(found, 4096) == {}


def test_an_answer_longer_than_the_context_is_no_default() -> None:
    assert usable_defaults({"num_predict": 128}, 100) == {}


def test_only_what_is_left_open_is_completed() -> None:
    defaults = usable_defaults(OLLAMA, 4096)
    body = completed(asked(temperature=0, top_k=None, max_completion_tokens=9), defaults).body
    assert (body["temperature"], body["top_k"], body["stop"]) == (0, 20, ["<|im_end|>", "</s>"])
    assert "max_tokens" not in body, "its other name is in the request"


def test_a_system_message_comes_first_unless_there_is_one() -> None:
    defaults = usable_defaults({"system": "Be brief."}, 4096)
    roles = [message["role"] for message in completed(asked(), defaults).body["messages"]]
    assert roles == ["system", "user"]
    own = asked(messages=[{"role": "developer", "content": "Be long."}])
    assert completed(own, defaults).body == own.body
    odd = asked(messages="x")
    assert completed(odd, defaults).body == odd.body


def test_text_completions_get_no_system_message_and_embeddings_nothing() -> None:
    defaults = usable_defaults({"system": "Be brief.", "temperature": 0.5}, 4096)
    text = completed(make_request(kind="completion", body={"prompt": "x"}), defaults)
    assert text.body == {"prompt": "x", "temperature": 0.5}
    embedding = make_request(kind="embedding", body={"input": "x"})
    assert completed(embedding, defaults) is embedding
