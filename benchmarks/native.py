"""The two C programs of the benchmarks: built with `cc` when they are missing or old, started, their output read."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHAT = "/v1/chat/completions"


def build() -> None:
    """Compile what has changed into `bin/`; ends the program with a clear line when there is no compiler."""
    if sys.platform != "linux":
        sys.exit("the benchmarks use epoll and /proc: they run on Linux only")
    for name in ("fake_engine", "sse_load"):
        source, binary = HERE / f"{name}.c", HERE / "bin" / name
        if binary.exists() and binary.stat().st_mtime > source.stat().st_mtime:
            continue
        if shutil.which("cc") is None:
            sys.exit("the benchmarks need a C compiler called `cc` (Debian: apt-get install gcc libc6-dev)")
        binary.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-o", str(binary), str(source)], check=True)


@contextlib.contextmanager
def fake_engine() -> Iterator[str]:
    """Run the fake engine; gives its base URL, without a path."""
    with subprocess.Popen([str(HERE / "bin/fake_engine"), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@dataclass(frozen=True)
class Watched:
    """A process to measure; `tree` adds all its descendants."""

    label: str
    pid: int
    tree: bool = True


@dataclass(frozen=True)
class Target:
    """Something that answers chat completions. `watched` are the processes that do the work."""

    name: str
    url: str
    watched: tuple[Watched, ...] = ()
    headers: tuple[str, ...] = ()
    model: str = "fake"


@dataclass(frozen=True)
class Scenario:
    """What the load asks for; `pace` in milliseconds between tokens."""

    name: str
    connections: int
    stream: bool
    tokens: int = 64
    pace: int = 20
    burst: bool = False


def load(target: Target, scenario: Scenario, seconds: float, warm_up: float = 0.7) -> dict[str, Any]:
    """Put the load on and return the readings of `sse_load.c`; answers that went wrong are counted in `bad`."""
    arguments = [str(HERE / "bin/sse_load"), "-u", target.url + CHAT, "-m", target.model]
    arguments += ["-c", str(scenario.connections), "-n", str(scenario.tokens), "-p", str(scenario.pace)]
    arguments += ["-d", str(seconds), "-w", str(warm_up)]
    arguments += ["-s"] * scenario.stream + ["-B"] * scenario.burst
    for header in target.headers:
        arguments += ["-H", header]
    for watched in target.watched:
        arguments += ["-P", f"{watched.label}={watched.pid}{'+' * watched.tree}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180)
    if not done.stdout:
        raise RuntimeError(f"the load on {target.name} failed: {done.stderr.strip()}")
    readings = json.loads(done.stdout)
    readings["complaints"] = done.stderr.strip()
    return readings


@contextlib.contextmanager
def server(
    name: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run another program until the block ends; what it prints goes to a temporary file, shown if it dies early."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, cwd=folder, env={**os.environ, **(environment or {})}
        )
        try:
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(
                f"--- the end of what {name} printed\n{log.read().decode(errors='replace')[-3000:]}\n---\n"
            )
            raise
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], grace: float = 10) -> None:
    """Terminate, wait up to `grace` seconds, kill."""
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(
    what: str, condition: Callable[[], bool], *, process: "subprocess.Popen[bytes] | None" = None, seconds: float = 60
) -> None:
    """Ask `condition` until it is true; gives up when `process` has ended or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what} ended with code {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
