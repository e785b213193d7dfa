"""Clients of one node: a child process in the node's place that asks with the official SDK and notes each request.

`python -m chaos.load`: the first line of standard input is the `Order`, standard output gets one
`Request` a line. It ends when its rounds are done, or, after the running requests, when its input ends.
"""

import asyncio
import hashlib
import random
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import openai
from msgspec import Struct

from chaos.records import Outcome, Prompt, Request

END_OF_TEXT = "1"
REFUSED_PAUSE = 0.5
DIAL_SECONDS = 5.0


class Order(Struct, frozen=True, kw_only=True):
    """What to ask: `clients` at a time, each again and again, with a pause between.

    `rounds` 0 means until the input ends; else each client asks each prompt so often. `patience` is how long a client
    waits for an answer's end; `key` is an API key.
    """

    node: str
    base_url: str
    model: str
    prompts: list[Prompt]
    clients: int
    seed: int
    patience: float
    shortest_pause: float = 0.0
    longest_pause: float = 0.0
    rounds: int = 0
    key: str = "none"


class Answer:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.first: float | None = None
        self.silence = 0.0
        self.text = ""
        self.finish = ""
        self.tokens = 0
        self._last = self.begin

    def token(self, text: str) -> None:
        """Note a piece of text and the silence before it."""
        now = time.monotonic()
        if self.first is None:
            self.first = now
        else:
            self.silence = max(self.silence, now - self._last)
        self._last = now
        self.text += text

    def noted(self, order: Order, prompt: Prompt, outcome: Outcome, **more: Any) -> Request:
        """The record; a silence that lasts until the end counts."""
        end = time.monotonic()
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return Request(
            node=order.node,
            prompt=prompt.name,
            stream=prompt.stream,
            begin=self.begin,
            end=end,
            outcome=outcome,
            first=self.first,
            silence=max(self.silence, end - self._last) if self.first is not None else 0.0,
            digest=digest,
            text="" if digest == prompt.digest else self.text,
            tokens=self.tokens,
            **more,
        )


async def ask(client: openai.AsyncOpenAI, order: Order, prompt: Prompt) -> Request:
    """One question to its end, whatever that is."""
    answer = Answer()
    note = partial(answer.noted, order, prompt)
    try:
        async with asyncio.timeout(order.patience):
            await (_stream if prompt.stream else _whole)(client, order.model, prompt, answer)
        if answer.finish:
            return note("answered")
        return note("broken", code="no_end", detail="the stream ended without a finish reason")
    except TimeoutError:
        return note("hung", code="no_answer", detail=f"nothing ended it in {order.patience:.0f} s")
    except openai.APIConnectionError as error:
        return note("broken", code="no_connection", detail=_words(error.__cause__ or error))
    except openai.APIStatusError as error:
        return note(
            "refused" if error.code else "broken",
            status=error.status_code,
            code=error.code or "no_code",
            detail=_words(error),
        )
    except openai.APIError as error:
        return note("failed" if error.code else "broken", code=error.code or "no_code", detail=_words(error))
    except Exception as error:  # the SDK lets through what its HTTP library raises; whatever it is, the record says so
        return note("broken", code="cut", detail=_words(error))


async def _stream(client: openai.AsyncOpenAI, model: str, prompt: Prompt, answer: Answer) -> None:
    chunks = await client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **_question(model, prompt)
    )
    async with chunks:
        async for chunk in chunks:
            if chunk.usage is not None:
                answer.tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                if choice.delta.content:
                    answer.token(choice.delta.content)
                answer.finish = choice.finish_reason or answer.finish


async def _whole(client: openai.AsyncOpenAI, model: str, prompt: Prompt, answer: Answer) -> None:
    said = await client.chat.completions.create(**_question(model, prompt))
    answer.token(said.choices[0].message.content or "")
    answer.finish = said.choices[0].finish_reason or ""
    answer.tokens = said.usage.completion_tokens if said.usage else 0


def _question(model: str, prompt: Prompt) -> dict[str, Any]:
    """Greedy, and of a fixed length: the token that ends a text is forbidden."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt.content}],
        "max_tokens": prompt.tokens,
        "temperature": 0,
        "extra_body": {"logit_bias": {END_OF_TEXT: -100}},
    }


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


async def run_client(client: openai.AsyncOpenAI, order: Order, number: int, ending: asyncio.Event) -> None:
    """One client's loop."""
    draw = random.Random(f"{order.seed} {order.node} {number}")
    async for prompt in _questions(order, draw, ending):
        noted = await ask(client, order, prompt)
        sys.stdout.buffer.write(msgspec.json.encode(noted) + b"\n")
        sys.stdout.buffer.flush()
        answered = noted.outcome == "answered"
        pause = draw.uniform(order.shortest_pause, order.longest_pause) if answered else REFUSED_PAUSE
        try:
            await asyncio.wait_for(ending.wait(), pause)
        except TimeoutError:
            continue


async def _questions(order: Order, draw: random.Random, ending: asyncio.Event) -> AsyncIterator[Prompt]:
    if order.rounds:
        for _ in range(order.rounds):
            for prompt in draw.sample(order.prompts, len(order.prompts)):
                yield prompt
        return
    while not ending.is_set():
        yield draw.choice(order.prompts)


async def serve() -> None:
    """Read the order, ask, end."""
    lines = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(partial(asyncio.StreamReaderProtocol, lines), sys.stdin)
    order = msgspec.json.decode(await lines.readline(), type=Order)
    ending = asyncio.Event()

    async def watch_input() -> None:
        await lines.read()
        ending.set()

    watching = asyncio.create_task(watch_input())
    timeout = openai.Timeout(order.patience, connect=DIAL_SECONDS)
    async with openai.AsyncOpenAI(base_url=order.base_url, api_key=order.key, max_retries=0, timeout=timeout) as client:
        await asyncio.gather(*(run_client(client, order, number, ending) for number in range(order.clients)))
    watching.cancel()


if __name__ == "__main__":
    asyncio.run(serve())
