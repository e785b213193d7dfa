"""What the engines of this installation can compute on: asked once, of a process of its own, as GPUs' drivers demand.

`python -m felloe.engines.backends` prints the names of llama.cpp's devices as one line of JSON.
"""

import asyncio
import importlib
import logging
import os
import sys
from typing import Any

import msgspec

from felloe.domain.fleet import DeviceKind
from felloe.engines.memory_log import kind_of_buffer
from felloe.host.processes import end, spawn

_log = logging.getLogger(__name__)

ONLY_CPU: frozenset[DeviceKind] = frozenset(("cpu",))
_LIMIT_SECONDS = 60.0
_END_SECONDS = 2.0
_MOST_NAME = 128


async def backends() -> frozenset[DeviceKind]:
    """The kinds of devices that engines see here; only the processor when they cannot be asked."""
    pipe = asyncio.subprocess.PIPE
    quiet = asyncio.subprocess.DEVNULL
    process = await spawn(
        [sys.executable, "-m", "felloe.engines.backends"],
        stdin=quiet,
        stdout=pipe,
        stderr=quiet,
        environment=dict(os.environ),
    )
    try:
        async with asyncio.timeout(_LIMIT_SECONDS):
            line = await process.stdout.readline() if process.stdout is not None else b""
        names = msgspec.json.decode(line, type=list[str])
    except (TimeoutError, ValueError, msgspec.MsgspecError) as error:
        _log.warning("the engines' devices are not known, so none but the processor is used: %s", type(error).__name__)
        return ONLY_CPU
    finally:
        await end(process, _END_SECONDS)
    return ONLY_CPU.union(kind for name in names if (kind := kind_of_buffer(name[:_MOST_NAME])) is not None)


def main() -> None:
    """Print what llama.cpp sees."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    descriptor = os.dup(1)
    os.dup2(2, 1)
    names = [str(device["name"]) for device in xllamacpp.get_device_info()]
    os.write(descriptor, msgspec.json.encode(names) + b"\n")


if __name__ == "__main__":
    main()
