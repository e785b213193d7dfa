"""One plan in a process of its own: `python -m felloe.placement.planner_child`.

Reads one `Task` on standard input to its end, prints the plan, and ends; both are MessagePack. The search takes a
processor for seconds and its libraries take 50 MB, neither of which a node that answers requests can spare for long.
A question that means nothing is answered with the reason in words and exit code 3.
"""

import os
import sys
import time

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.placement.plan import make_plan
from felloe.placement.problem import Problem

REFUSED = 3
_LOWER_PRIORITY = 5


class Task(Struct, frozen=True):
    """A problem, and how many seconds may be spent on the search."""

    problem: Problem
    seconds: float


def main() -> None:
    """Answer the one task."""
    if sys.platform != "win32":
        os.nice(_LOWER_PRIORITY)
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Task)
    problem = task.problem
    try:
        plan = make_plan(
            problem.fleet,
            problem.desired,
            problem.models,
            current=problem.current,
            barred=problem.barred,
            corrections=problem.corrections,
            seconds=task.seconds,
            now=time.monotonic,
        )
    except FelloeError as error:
        sys.stderr.write(error.detail)
        sys.exit(REFUSED)
    sys.stdout.buffer.write(msgspec.msgpack.encode(plan))


if __name__ == "__main__":
    main()
