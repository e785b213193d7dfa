"""Several choices answered at once and delivered as one answer, in the order in which they arrive."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from felloe.domain.errors import FelloeError
from felloe.domain.ports import Answers
from felloe.domain.requests import Done, InferenceRequest, Part, Piece, Usage
from felloe.gateway.rules import Call, total_usage

_PIECES_HELD = 16


def answer_call(answers: Answers, call: Call, at_once: int) -> AsyncGenerator[Part, None]:
    """All pieces of a call, then one `Done` with the usage of the whole.

    At most `at_once` choices are asked for at a time. The first failure ends the answer and cancels the other choices.
    """
    if len(call.requests) == 1:
        return answers.answer(call.requests[0])
    return _merged(answers, call.requests, call.choices, at_once)


async def _merged(
    answers: Answers, requests: Sequence[InferenceRequest], choices: int, at_once: int
) -> AsyncGenerator[Part, None]:
    # Bounded, so that a client which stops reading pauses every choice.
    arrived: asyncio.Queue[Piece | Usage | Exception] = asyncio.Queue(_PIECES_HELD)
    usages: list[Usage] = [Usage(prompt=0)] * len(requests)
    gate = asyncio.Semaphore(at_once)

    async def pump(position: int, request: InferenceRequest) -> None:
        try:
            async with gate, aclosing(answers.answer(request)) as parts:
                usages[position] = await _forward(parts, arrived)
                await arrived.put(usages[position])
        except Exception as error:
            await arrived.put(error)

    tasks = [asyncio.create_task(pump(position, request)) for position, request in enumerate(requests)]
    try:
        running = len(requests)
        while running:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Usage):
                running -= 1
            else:
                yield item
        yield Done(usage=total_usage(usages, choices), finish_reason="")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(parts: AsyncGenerator[Part, None], arrived: "asyncio.Queue[Piece | Usage | Exception]") -> Usage:
    async for part in parts:
        if isinstance(part, Done):
            return part.usage
        await arrived.put(part)
    raise FelloeError("engine_failed", "the answer ended before it was complete")
