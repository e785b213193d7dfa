"""`felloe demo`: what the README's first command shows."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from networks import free_ports, wait_for


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    said = tmp_path / "said"
    (port,) = free_ports(1)
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "felloe", "demo", "--api-port", str(port)],
            stdout=out,
            stderr=out,
            env=os.environ | {"FELLOE_HOME": str(tmp_path / "home")},
        )
    try:
        yield process, said
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def test_its_line_answers_and_ctrl_c_ends_everything(demo: tuple[subprocess.Popen[bytes], Path]) -> None:
    process, said = demo
    wait_for("the welcome", lambda: "Ctrl-C ends everything" in said.read_text() or process.poll() is not None, 120)
    text = said.read_text()
    line = re.search(r"curl .*\n.*'\n", text)
    assert line is not None, text
    command = shlex.split(line.group().replace("\\\n", " "))
    answer = subprocess.run([*command, "-s"], capture_output=True, timeout=60, check=True).stdout
    assert answer.startswith(b"data: {")
    assert answer.endswith(b"data: [DONE]\n\n")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 6, "three nodes, one message server, two engines"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5.0, "Ctrl-C took too long"
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
