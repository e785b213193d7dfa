"""Child processes that end with their parent."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1

Pipe = int | IO[bytes] | None


async def spawn(
    arguments: Sequence[str],
    *,
    stdin: Pipe = None,
    stdout: Pipe = None,
    stderr: Pipe = None,
    environment: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Start a child in a process group of its own, so that Ctrl-C reaches only the parent, which ends it in order.

    On Linux the kernel kills the child when this process dies, also by SIGKILL. Elsewhere the child must notice
    by itself, as engine children do when their standard input closes.
    """
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=None if environment is None else dict(environment),
        start_new_session=True,
        preexec_fn=_death_signal(),
    )


def _death_signal() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    # Loaded before the fork: between fork and exec nothing may allocate or take locks.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


async def end(process: asyncio.subprocess.Process, grace_seconds: float) -> int:
    """Terminate, wait up to `grace_seconds`, then kill; returns the exit code."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return await process.wait()
