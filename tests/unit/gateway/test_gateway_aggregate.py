"""Streams put together, embeddings re-encoded, choices merged."""

import asyncio
import base64
import json
import struct
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, RequestId
from felloe.domain.ports import Deliver
from felloe.domain.requests import Done, InferenceRequest, Kind, Piece, Usage
from felloe.gateway.aggregate import Aggregate, with_null_usage
from felloe.gateway.embedding import render_embeddings
from felloe.gateway.merge import answer_call
from felloe.gateway.rules import Call


def call(kind: Kind = "chat", choices: int = 1, **more: Any) -> Call:
    body: dict[str, Any] = {"input": ["a", "b"]} if kind == "embedding" else {}
    requests = tuple(
        InferenceRequest(
            id=RequestId("x"), kind=kind, model=ModelName("m"), body=body, created=1, deadline=1.0, index=index
        )
        for index in range(choices)
    )
    return Call(kind=kind, requests=requests, choices=choices, **more)


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0} | choice]}, ensure_ascii=False).encode() + b"\n\n"


@given(st.lists(st.text(max_size=20), max_size=10), st.integers(1, 5))
def test_the_whole_is_the_sum_of_its_parts_however_they_are_grouped(texts: list[str], group: int) -> None:
    frames = [event(delta={"content": text}) for text in texts]
    aggregate = Aggregate(call(), 2**20)
    for start in range(0, len(frames), group):
        aggregate.add(b"".join(frames[start : start + group]))
    aggregate.add(event(delta={}, finish_reason="stop"))
    answer = json.loads(aggregate.render(Usage(1, 2)))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "".join(texts), "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_reasoning_and_refusal_are_kept() -> None:
    aggregate = Aggregate(call(), 2**20)
    for delta in ({"reasoning_content": "hm"}, {"reasoning_content": "m"}, {"refusal": "no"}, {"refusal": "pe"}):
        aggregate.add(event(delta=delta))
    message = json.loads(aggregate.render(Usage(1)))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "reasoning_content": "hmm", "refusal": "nope"}


def test_two_tool_calls_are_kept_apart() -> None:
    aggregate = Aggregate(call(), 2**20)
    for index, part in ((0, {"name": "a", "arguments": "{"}), (1, {"name": "b"}), (0, {"arguments": "}"})):
        aggregate.add(event(delta={"tool_calls": [{"index": index, "id": f"c{index}", "function": part}]}))
    calls = json.loads(aggregate.render(Usage(1)))["choices"][0]["message"]["tool_calls"]
    assert calls == [
        {"id": "c0", "type": "function", "function": {"name": "a", "arguments": "{}"}},
        {"id": "c1", "type": "function", "function": {"name": "b", "arguments": ""}},
    ]


def test_old_log_probabilities_are_joined_list_by_list() -> None:
    aggregate = Aggregate(call("completion"), 2**20)
    for word in ("a", "b"):
        aggregate.add(event(text=word, logprobs={"tokens": [word], "token_logprobs": [-1.0], "top_logprobs": None}))
    logprobs = json.loads(aggregate.render(Usage(1)))["choices"][0]["logprobs"]
    assert logprobs == {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0], "top_logprobs": None}


@pytest.mark.parametrize(
    "frames",
    [
        b"data: {\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices":[{"index":9,"text":"x"}]}\n\n',
        b'data: {"choices":[{"index":0,"text":"\xff"}]}\n\n',
        b'data: {"choices":[{"logprobs":{"x":' + b"[" * 100_000 + b"\n\n",
    ],
)
def test_frames_that_cannot_be_read_are_an_upstream_failure(frames: bytes) -> None:
    with pytest.raises(FelloeError) as caught:
        Aggregate(call(), 2**20).add(frames)
    assert caught.value.code == "upstream_failed"


def test_an_endless_answer_is_cut() -> None:
    aggregate = Aggregate(call(), 1000)
    with pytest.raises(FelloeError, match="larger"):
        for _ in range(1000):
            aggregate.add(event(delta={"content": "x" * 50}))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_null_usage_is_added_to_each_event_and_to_nothing_else(texts: list[str]) -> None:
    frames = b"".join(event(delta={"content": text}) for text in texts)
    events = with_null_usage(frames).split(b"\n\n")[:-1]
    assert [json.loads(each[6:])["choices"][0]["delta"]["content"] for each in events] == texts
    assert all(json.loads(each[6:])["usage"] is None for each in events)


def vectors(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"data": list(entries)}).encode()


def test_embeddings_come_in_order_and_in_either_encoding() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.5)).decode()
    plain = {"index": 1, "embedding": [0.5, -1.5]}
    for entry in (plain, {"index": 1, "embedding": packed}):
        body = vectors(entry, {"index": 0, "embedding": [1.0]})
        floats = json.loads(render_embeddings(call("embedding"), body, Usage(4)))
        assert [each["embedding"] for each in floats["data"]] == [[1.0], [0.5, -1.5]]
        encoded = json.loads(render_embeddings(call("embedding", base64=True), body, Usage(4)))
        assert encoded["data"][1]["embedding"] == packed
    assert floats["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        vectors({"index": 0, "embedding": [1.0]}),
        vectors({"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}),
        vectors({"index": 0, "embedding": "%"}, {"index": 1, "embedding": "abc="}),
        vectors({"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}),
        vectors({"index": 0, "embedding": [None]}, {"index": 1, "embedding": []}),
    ],
)
def test_embeddings_that_do_not_fit_are_an_upstream_failure(body: bytes) -> None:
    with pytest.raises(FelloeError) as caught:
        render_embeddings(call("embedding"), body, Usage(1))
    assert caught.value.code == "upstream_failed"


class Choices:
    """Answers whose first piece is withheld until `go`; counts how many are open and how much was taken."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.open = 0
        self.most_open = 0
        self.taken = 0
        self.go = asyncio.Event()

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.go.wait()
            for number in range(self.pieces):
                self.taken += 1
                waiting = deliver(Piece(number, (), b"%d" % request.index))
                if waiting is not None:
                    await waiting
            return Done(Usage(prompt=10, completion=self.pieces), "stop")
        finally:
            self.open -= 1


async def test_merged_choices_end_with_one_sum() -> None:
    answers = Choices(3)
    received: list[Piece] = []
    asking = asyncio.create_task(answer_call(answers, call(choices=4), 2, received.append))
    while answers.open < 2:
        await asyncio.sleep(0)
    answers.go.set()
    assert await asking == Done(Usage(prompt=10, completion=12), "")
    assert sorted(piece.frames for piece in received) == sorted([b"0", b"1", b"2", b"3"] * 3)
    assert answers.most_open == 2


async def test_a_reader_that_pauses_pauses_all_choices() -> None:
    answers = Choices(10_000)
    answers.go.set()
    asking = asyncio.create_task(answer_call(answers, call(choices=4), 4, lambda _: asyncio.Event().wait()))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert answers.taken == 4
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert answers.open == 0


async def test_the_first_failure_cancels_the_other_choices() -> None:
    answers = Choices(3)
    answers.go.set()

    def refuse_one(piece: Piece) -> Awaitable[object] | None:
        if piece.frames == b"2":
            raise FelloeError("upstream_failed", "no")
        return asyncio.Event().wait()

    with pytest.raises(FelloeError, match="no"):
        await answer_call(answers, call(choices=4), 4, refuse_one)
    assert answers.open == 0


async def test_closing_before_the_first_piece_closes_every_choice() -> None:
    answers = Choices(1)
    asking = asyncio.create_task(answer_call(answers, call(choices=8), 4, lambda _: None))
    while answers.open < 4:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert answers.open == 0
