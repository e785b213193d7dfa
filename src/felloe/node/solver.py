"""The solver as the leader uses it: a process of its own for each question, which never keeps a request waiting."""

import asyncio
import logging
import sys

import msgspec

from felloe.domain.errors import FelloeError
from felloe.domain.plan import Plan
from felloe.host.processes import end, spawn
from felloe.placement.planner_child import REFUSED, Task
from felloe.placement.problem import Problem

logger = logging.getLogger(__name__)

SEARCH_SECONDS = 5.0
_LIMIT_SECONDS = 60.0
_END_SECONDS = 1.0
_MOST_SHOWN = 500


async def solve(problem: Problem) -> Plan:
    """The best plan that is found within five seconds. Raises `invalid_value` for a problem that means nothing,
    `internal` when the process fails or takes a minute.
    """
    pipe = asyncio.subprocess.PIPE
    child = [sys.executable, "-m", "felloe.placement.planner_child"]
    process = await spawn(child, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            told, said = await process.communicate(msgspec.msgpack.encode(Task(problem, SEARCH_SECONDS)))
        if process.returncode == REFUSED:
            raise FelloeError("invalid_value", said.decode(errors="replace")[:_MOST_SHOWN])
        if process.returncode:
            logger.error("the search for a plan failed: %s", said.decode(errors="replace")[-_MOST_SHOWN:])
        return msgspec.msgpack.decode(told, type=Plan)
    except (TimeoutError, msgspec.MsgspecError) as error:
        raise FelloeError("internal", "the search for a plan failed; it is tried again") from error
    finally:
        await end(process, _END_SECONDS)
