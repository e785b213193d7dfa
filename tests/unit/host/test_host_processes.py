import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest

from felloe.host.processes import end, spawn

STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
)
GENTLE = "import sys; print('up', flush=True); sys.stdin.read()"
PARENT = """
import asyncio, sys
from felloe.host.processes import spawn

async def main():
    child = await spawn([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""


async def started(program: str) -> asyncio.subprocess.Process:
    child = await spawn([sys.executable, "-c", program], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"up\n"
    return child


async def test_a_child_that_listens_is_terminated() -> None:
    child = await started(GENTLE)
    assert await end(child, grace_seconds=10) == -signal.SIGTERM


async def test_a_child_that_does_not_listen_is_killed_after_the_grace() -> None:
    child = await started(STUBBORN)
    assert await end(child, grace_seconds=0.05) == -signal.SIGKILL


async def test_ending_a_child_that_has_ended_gives_its_code() -> None:
    child = await spawn([sys.executable, "-c", "raise SystemExit(7)"])
    await child.wait()
    assert await end(child, grace_seconds=10) == 7


async def test_a_child_has_a_process_group_of_its_own() -> None:
    child = await started(GENTLE)
    try:
        assert os.getpgid(child.pid) == child.pid
    finally:
        await end(child, grace_seconds=10)


async def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await spawn(["/absent/program"])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_child_dies_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        child = int(next(line for line in lines if line != b"up"))
        ended = select.poll()
        watch = os.pidfd_open(child)
        ended.register(watch, select.POLLIN)
        assert ended.poll(0) == []
        parent.send_signal(signal.SIGKILL)
    try:
        ((descriptor, event),) = ended.poll(10_000)
        assert descriptor == watch
        assert event & select.POLLIN  # with POLLHUP besides, once its new parent has reaped it
    finally:
        os.close(watch)
