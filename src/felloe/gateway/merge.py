"""Several choices answered at once and delivered as one answer, in the order in which they arrive."""

import asyncio

from felloe.domain.ports import Answers, Deliver
from felloe.domain.requests import Done, InferenceRequest, Usage
from felloe.gateway.rules import Call, total_usage


async def answer_call(answers: Answers, call: Call, at_once: int, deliver: Deliver) -> Done:
    """Deliver all pieces of a call; returns the usage of the whole.

    At most `at_once` choices are asked for at a time. The first failure ends the answer and cancels the other choices.
    """
    if len(call.requests) == 1:
        return await answers.answer(call.requests[0], deliver)
    gate = asyncio.Semaphore(at_once)

    async def choose(request: InferenceRequest) -> Usage:
        async with gate:
            return (await answers.answer(request, deliver)).usage

    tasks = [asyncio.create_task(choose(request)) for request in call.requests]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        usages = [task.result() for task in sorted(tasks, key=_is_undecided)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Done(usage=total_usage(usages, call.choices), finish_reason="")


def _is_undecided(task: "asyncio.Task[Usage]") -> bool:
    """Puts what has failed before what is still running, whose result cannot be asked for."""
    return not task.done()
