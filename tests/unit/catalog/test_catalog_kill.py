"""A process that fills and empties a store is killed again and again, and the store stays whole."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from catalog_house import CHUNK, content, digest_of, opened, opened_blobs, take, write_model
from felloe.domain.ids import ModelDigest
from gguf_bytes import STRING, tiny_model

CHILD = """
import asyncio, pathlib, sys
from catalog_house import opened, take

async def main(folder, *paths):
    store = await opened(pathlib.Path(folder))
    print("ready", flush=True)
    while True:
        for path in map(pathlib.Path, paths):
            await take(store, path, path.stem)
            async with store.in_use(path.stem):
                await store.set_pinned(path.stem, True)
            print("step", flush=True)
        await store.verify()
        for path in map(pathlib.Path, paths):
            await store.remove(path.stem)
            print("step", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

RECEIVER = """
import asyncio, pathlib, resource, sys
from catalog_house import opened_blobs
from felloe.domain.errors import FelloeError

async def main(folder, source, limit, pace="at once"):
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    data = pathlib.Path(source).read_bytes()
    incoming = await opened_blobs(pathlib.Path(folder)).receive("key", len(data))
    print(incoming.length, flush=True)
    try:
        while piece := data[incoming.length : incoming.length + 500_000]:
            if pace == "step by step":
                await asyncio.to_thread(sys.stdin.readline)
            await incoming.write(piece)
            print(incoming.length, flush=True)
        await incoming.finish()
    except FelloeError as error:
        await incoming.close()
        sys.exit(error.code)

asyncio.run(main(*sys.argv[1:]))
"""


def start(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", program, *(str(each) for each in arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def kill_after(child: subprocess.Popen[bytes], lines: int, seconds: float) -> list[bytes]:
    """Kill the child the given time after it said so many lines; returns them."""
    with child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        assert said[0], child.stderr and child.stderr.read()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
    return said


def kill_in_step(child: subprocess.Popen[bytes], steps: int, seconds: float) -> list[int]:
    """Let the child write so many pieces, and kill it the given time into the next; what it said it has."""
    with child:
        assert child.stdin is not None and child.stdout is not None
        said = [int(child.stdout.readline())]
        for _ in range(steps):
            _go_on(child.stdin)
            said.append(int(child.stdout.readline()))
        _go_on(child.stdin)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        child.kill()
    return said


def _go_on(stdin: IO[bytes]) -> None:
    stdin.write(b"\n")
    stdin.flush()


async def check_killed(tmp_path: Path, kills: int) -> None:
    digests: dict[str, str] = {}
    for name in ("first", "second"):
        file = tiny_model(general__name=(STRING, name))
        file.data_size = 2 * CHUNK + 100
        digests[name] = write_model(tmp_path / f"{name}.gguf", file)
    folder, chance = tmp_path / "models", random.Random(8470)
    for _ in range(kills):
        child = start(CHILD, folder, *(tmp_path / f"{name}.gguf" for name in digests))
        kill_after(child, chance.randint(1, 6), chance.uniform(0, 0.15))
        store = await opened(folder)
        assert store.problems() == ()
        for model in store.list():
            assert model.digest == digests[model.name] == digest_of(store.path_of(model.name).read_bytes())
        assert all(not verified.damaged for verified in await store.verify())
    for name, digest in digests.items():
        assert (await take(store, tmp_path / f"{name}.gguf", name)).digest == digest
    for name in digests:
        await store.remove(name)
    await store.clean()
    assert content(folder) == set()


async def test_a_kill_at_any_moment_leaves_only_whole_models(tmp_path: Path) -> None:
    await check_killed(tmp_path, kills=4)


@pytest.mark.slow
async def test_forty_kills_leave_only_whole_models(tmp_path: Path) -> None:
    await check_killed(tmp_path, kills=40)


async def test_a_pull_that_is_killed_again_and_again_never_loses_a_whole_chunk(tmp_path: Path) -> None:
    source, folder, chance = tmp_path / "source", tmp_path / "models", random.Random(8471)
    data = os.urandom(4 * CHUNK + 77)
    source.write_bytes(data)
    reached = 0
    for steps in (0, 10, 11, 13):
        said = kill_in_step(start(RECEIVER, folder, source, 0, "step by step"), steps, chance.uniform(0, 0.004))
        assert said[0] >= reached // CHUNK * CHUNK
        # What is in the writer's memory, at most 1 MiB, and the chunk that is not whole come again.
        reached = said[-1] - 2**20
    with start(RECEIVER, folder, source, 0) as child:
        assert child.wait(60) == 0
    blob = opened_blobs(folder).received("key")
    assert blob is not None
    assert blob.path.read_bytes() == data


async def test_a_pull_on_a_disk_that_fills_goes_on_when_there_is_room(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "models"
    data = os.urandom(3 * CHUNK + 5)
    source.write_bytes(data)
    begun = 0
    for limit in (CHUNK + 9, 2 * CHUNK + 9, 0):
        with start(RECEIVER, folder, source, limit) as child:
            assert child.wait(60) == (1 if limit else 0)
            assert child.stdout is not None and child.stderr is not None
            assert int(child.stdout.readline()) == begun
            assert child.stderr.read().strip() == (b"disk_full" if limit else b"")
        begun = limit // CHUNK * CHUNK
    found = opened_blobs(folder).find(ModelDigest(digest_of(data)))
    assert found is not None
    assert found.path.read_bytes() == data
