"""`felloe pull` against a real node and a real web server: ended by Ctrl-C, gone on with, told as JSON."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from networks import TINY_MODEL, Network, wait_for

MODEL = TINY_MODEL.read_bytes() + bytes(9 * 2**20)
"""Larger than two chunks of the store; llama.cpp does not mind what comes after the tensors."""


class SlowFiles(ThreadingHTTPServer):
    """Serves `MODEL`; while `held` is set, it stops after 6 MiB."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.held = threading.Event()
        self.released = threading.Event()
        self.ranges: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: SlowFiles

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(MODEL) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(MODEL) - 1}/{len(MODEL)}")
        self.end_headers()
        try:
            self.wfile.write(MODEL[start : 6 * 2**20])
            if self.server.held.is_set():
                self.server.released.wait()
            self.wfile.write(MODEL[max(start, 6 * 2**20) :])
        except OSError:
            pass  # the other side has gone

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[SlowFiles]:
    with SlowFiles() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, files: SlowFiles) -> Iterator[Network]:
    built = Network(tmp_path_factory.mktemp("pull"), sources={"allow": [files.url]})
    try:
        yield built.start_hub()
    finally:
        built.close()


def test_a_pull_that_ctrl_c_ended_goes_on(network: Network, files: SlowFiles) -> None:
    hub, files_url = network.hub, f"{files.url}/tiny.gguf"
    files.held.set()
    environment = os.environ | {"FELLOE_HOME": str(hub.home.folder)}
    command = [sys.executable, "-m", "felloe", "pull", files_url, "--name", "web", "--pin"]
    # Where the tests run in the background SIGINT is ignored, and a child would inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pull = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    incoming: Path = hub.home.models / "incoming"
    wait_for("the first bytes", lambda: sum(path.stat().st_size for path in incoming.glob("*.data")) > 5 * 2**20)
    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=20)
    assert (pull.returncode, "what has come is kept" in said) == (130, True)
    files.held.clear()
    files.released.set()
    done = wait_for("the first pull to end", lambda: _pulled(network, files_url))
    steps = [json.loads(line) for line in done.splitlines()]
    assert steps[-1]["model"]["name"] == "web"
    assert steps[-1]["total"] == len(MODEL)
    assert files.ranges[-1] == f"bytes={4 * 2**20}-"
    assert "pinned" in hub.run("models").stdout


def _pulled(network: Network, url: str) -> str:
    """What a whole pull prints; empty while the one before still ends."""
    done = network.hub.run("pull", url, "--name", "web", "--pin", "--json", check=False)
    assert done.returncode == 0 or "already_pulling" in done.stderr, done.stderr
    return done.stdout if done.returncode == 0 else ""


def test_what_is_wrong_is_said_in_two_lines(network: Network, files: SlowFiles) -> None:
    asked = len(files.ranges)
    for reference, code in (
        ("hf:nobody", "invalid_value"),
        ("https://127.0.0.1:1/x.gguf", "address_refused"),
        ("http://127.0.0.1:1/x.gguf", "address_refused"),
    ):
        refused = network.hub.run("pull", reference, check=False)
        assert code in refused.stderr
        assert len(refused.stderr.splitlines()) == 2
    assert len(files.ranges) == asked
