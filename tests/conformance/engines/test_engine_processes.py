"""Engine processes: they are cancelled, killed, frozen, fed damaged files, and never outlive their parent."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_house import MODEL_FILE, REPOSITORY, TINY, Answering, RunningChild, Subject, collect, tiny_model
from felloe.domain.errors import FelloeError
from felloe.engines.http_client import HttpClient, TcpAddress, UnixAddress
from felloe.engines.options import EngineOptions
from felloe.engines.rules import RestartPolicy
from felloe.engines.service import Engines
from waiting import until

LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}


class _Maker:
    """Makes engines in a folder and closes them when the test ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Engines] = []

    def __call__(self, folder: Path | None = None, **policy: Any) -> Engines:
        quick = {"first_delay": 0.01, "longest_delay": 0.02, "probe_every": 1.0, **policy}
        home = folder or self.folder
        engines = Engines(
            state_folder=home / "state", log_folder=home / "logs", clock=time.monotonic, policy=RestartPolicy(**quick)
        )
        self.made.append(engines)
        return engines


@pytest.fixture
async def make_engines(tmp_path: Path) -> AsyncGenerator[_Maker, None]:
    maker = _Maker(tmp_path)
    yield maker
    for engines in maker.made:
        await engines.close()


async def _load(engines: Engines, **options: Any) -> Subject:
    await engines.load(tiny_model(), MODEL_FILE, EngineOptions(context=1024, threads=1, **options))
    return Subject(engines, tells_ids=True)


def _engine_processes(parent: int | None = None) -> list[psutil.Process]:
    """Living engine children, the newest first."""
    found: list[psutil.Process] = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # includes zombies
            if "felloe.engines.llama_child" in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda each: each.create_time(), reverse=True)


def _process(parent: int | None = None) -> psutil.Process:
    return _engine_processes(parent)[0]


async def _requests_under_way(client: HttpClient) -> int:
    with await client.request("GET", "/metrics") as exchange:
        text = (await exchange.read_all()).decode()
    found = re.search(r"^llamacpp:requests_processing (\d+)", text, re.M)
    assert found is not None
    return int(found.group(1))


async def _check_cancel(subject: Subject, client: HttpClient) -> None:
    answering = Answering(subject.engines, subject.request("completion", **LONG))
    await answering.until_pieces(1)
    assert await _requests_under_way(client) == 1
    answering.task.cancel()
    closed = time.monotonic()
    while await _requests_under_way(client):
        assert time.monotonic() - closed < 5
    assert time.monotonic() - closed < 0.1
    await answering.cancel()
    await client.close()


async def test_closing_a_local_answer_frees_its_slot_within_100_ms(llama: Subject, tmp_path: Path) -> None:
    (path,) = (tmp_path / "state" / "engines").glob("*.sock")
    await _check_cancel(llama, HttpClient(UnixAddress(str(path))))


async def test_closing_an_upstream_answer_frees_its_slot_within_100_ms(
    upstream: Subject, upstream_child: RunningChild
) -> None:
    port = int(upstream_child.address.rpartition(":")[2])
    headers = {"authorization": "Bearer test-key-of-the-upstream"}
    await _check_cancel(upstream, HttpClient(TcpAddress("127.0.0.1", port), headers=headers))


async def test_a_killed_engine_fails_its_answers_as_lost_and_is_started_again(make_engines: _Maker) -> None:
    engines = make_engines()
    subject = await _load(engines)
    states: list[str] = []
    engines.on_change(lambda: states.append(engines.replicas()[0].state if engines.replicas() else "gone"))
    before = _process()
    with pytest.raises(FelloeError) as caught:
        answering = Answering(engines, subject.request("completion", **LONG))
        await answering.until_pieces(1)
        before.kill()
        await answering.task
    assert caught.value.code == "replica_lost"
    await until(lambda: "starting" in states)
    answer = await subject.ask("completion", prompt="a", max_tokens=3)  # waits for the new child
    assert answer.pieces
    assert _process().pid != before.pid
    assert engines.find(TINY) is not None
    assert states[:2] == ["starting", "ready"]


async def test_a_request_to_an_engine_that_stays_down_fails_by_its_deadline(make_engines: _Maker) -> None:
    engines = make_engines(first_delay=60.0, longest_delay=60.0)
    subject = await _load(engines)
    _process().kill()
    await until(lambda: engines.replicas()[0].state == "starting")
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt="a", max_tokens=3, deadline=0.05)
    assert caught.value.code == "engine_failed"
    assert engines.find(TINY) is None


async def test_an_engine_that_keeps_dying_is_given_up_with_its_reason(make_engines: _Maker) -> None:
    engines = make_engines(crashes_allowed=1)
    subject = await _load(engines)
    for _ in range(2):
        await until(lambda: engines.find(TINY) is not None)
        _process().kill()
        await until(lambda: engines.find(TINY) is None)
    await until(lambda: engines.replicas()[0].state == "failed")
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt="a", max_tokens=3)
    assert caught.value.code == "engine_failed"
    assert "2 times" in caught.value.detail
    await engines.unload(TINY, 0)
    await _load(engines)
    assert engines.find(TINY) is not None


async def test_a_frozen_engine_is_found_and_replaced(make_engines: _Maker) -> None:
    engines = make_engines(probe_every=0.05, probe_seconds=0.1, deaf_after=0.3)
    subject = await _load(engines)
    frozen = _process()
    frozen.suspend()
    await until(lambda: engines.find(TINY) is None)
    await until(lambda: engines.find(TINY) is not None)
    assert _process().pid != frozen.pid
    assert (await subject.ask("completion", prompt="a", max_tokens=3)).pieces


def _patched(field: bytes, value: bytes) -> bytes:
    """The model file with another value of a metadata field."""
    data = MODEL_FILE.read_bytes()
    at = data.index(field) + len(field) + 4
    return data[:at] + value + data[at + len(value) :]


def _template_length() -> bytes:
    data = MODEL_FILE.read_bytes()
    at = data.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template") + 4
    return data[at : at + 8]


DAMAGED = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"hello, this is text", "is not a GGUF file"),
    "header": (lambda: b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "number of tensors"),
    "truncated": (lambda: MODEL_FILE.read_bytes()[:100_000], "not within the file bounds"),
    "layers": (lambda: _patched(b"llama.block_count", b"\xff\xff\xff\x7f"), "n_layer"),
    "heads": (lambda: _patched(b"llama.attention.head_count", b"\x00" * 4), "wrong shape"),
    "template": (lambda: _patched(b"tokenizer.chat_template", _template_length() + b"{% for"), "template"),
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_a_damaged_file_is_refused_by_name_and_nothing_stays(
    make_engines: _Maker, tmp_path: Path, kind: str
) -> None:
    content, reason = DAMAGED[kind]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content())
    engines = make_engines()
    before = _engine_processes()
    with pytest.raises(FelloeError) as caught:
        await engines.load(tiny_model(), path, EngineOptions(context=512))
    assert caught.value.code == "bad_model_file"
    assert "damaged.gguf" in caught.value.detail
    assert reason in caught.value.detail
    assert str(tmp_path) not in caught.value.detail
    assert engines.replicas() == ()
    assert _engine_processes() == before
    await _load(engines)  # the name is free again


async def test_a_missing_file_is_refused(make_engines: _Maker, tmp_path: Path) -> None:
    engines = make_engines()
    with pytest.raises(FelloeError) as caught:
        await engines.load(tiny_model(), tmp_path / "absent.gguf", EngineOptions())
    assert caught.value.code == "bad_model_file"


async def test_a_name_is_loaded_once(llama: Subject) -> None:
    with pytest.raises(FelloeError) as caught:
        await llama.engines.load(tiny_model(), MODEL_FILE, EngineOptions())
    assert caught.value.code == "already_loaded"
    assert llama.engines.find(TINY) is not None


async def test_unloading_lets_answers_finish_and_takes_no_new_ones(make_engines: _Maker) -> None:
    engines = make_engines()
    subject = await _load(engines)
    process = _process()
    request = subject.request("completion", prompt="a", max_tokens=300, ignore_eos=True)
    answering = Answering(engines, request)
    await answering.until_pieces(1)
    unloading = asyncio.create_task(engines.unload(TINY, 30))
    await until(lambda: engines.replicas()[0].state == "draining")
    with pytest.raises(FelloeError) as caught:
        await subject.ask("completion", prompt="a", max_tokens=1)
    assert caught.value.code == "draining"
    done = await answering.task
    await unloading
    assert done.finish_reason == "length"
    assert engines.replicas() == ()
    assert not process.is_running()


async def test_unloading_at_once_hands_answers_over_as_lost(make_engines: _Maker) -> None:
    engines = make_engines()
    subject = await _load(engines)
    with pytest.raises(FelloeError) as caught:
        answering = Answering(engines, subject.request("completion", **LONG))
        await answering.until_pieces(1)
        await engines.unload(TINY, 0)
        await answering.task
    assert caught.value.code == "replica_lost"


async def test_several_answers_run_at_once_and_do_not_mix(llama: Subject) -> None:
    requests = [
        llama.request("completion", prompt=prompt, max_tokens=20, index=index)
        for index, prompt in enumerate(("import os\n", "class A:\n", "def f(x):\n", "for i in "))
    ]

    alone = [await collect(llama.engines, each) for each in requests]
    together = await asyncio.gather(*(collect(llama.engines, each) for each in requests))
    assert [each.text for each in together] == [each.text for each in alone]


async def test_no_prompt_and_no_answer_stands_in_a_log_or_argument(make_engines: _Maker, tmp_path: Path) -> None:
    engines = make_engines()
    subject = await _load(engines)
    secret = "zebra-quartz-sphinx"
    await subject.ask(messages=[{"role": "user", "content": secret}], max_tokens=5)
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": secret}}}
    with pytest.raises(FelloeError) as caught:
        await subject.ask(max_tokens=5, response_format=bad)
    assert secret not in str(caught.value)
    odd = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": secret}}}
    with contextlib.suppress(FelloeError):
        await subject.ask(max_tokens=5, response_format=odd)
    assert secret not in " ".join(_process().cmdline())
    if sys.platform == "linux":
        limits = Path(f"/proc/{_process().pid}/limits").read_text()
        assert re.search(r"Max core file size +1 +1 ", limits)
    await engines.close()
    logs = b"".join(path.read_bytes() for path in (tmp_path / "logs").iterdir())
    assert secret.encode() not in logs
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "logs").iterdir())


async def test_only_the_owner_can_reach_the_engine(llama: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "engines"
    (path,) = folder.glob("*.sock")
    assert folder.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0


async def test_without_room_for_a_socket_path_a_key_guards_the_port(make_engines: _Maker, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    engines = make_engines(deep)
    subject = await _load(engines)
    assert (await subject.ask("completion", prompt="a", max_tokens=2)).pieces
    (listening,) = [each for each in _process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert listening.laddr.ip == "127.0.0.1"
    stranger = HttpClient(TcpAddress("127.0.0.1", listening.laddr.port))
    with await stranger.request("POST", "/completion", b'{"prompt":"a","n_predict":1}') as exchange:
        assert exchange.status == 401
    await stranger.close()


_PARENT = """
import asyncio, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from engine_house import MODEL_FILE, tiny_model
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines

async def main():
    engines = Engines(state_folder=Path({home!r}), log_folder=Path({home!r}) / "logs", clock=time.monotonic)
    await engines.load(tiny_model(), MODEL_FILE, EngineOptions(context=512))
    print("loaded", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_an_engine_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = _PARENT.format(tests=str(REPOSITORY / "tests"), home=str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert parent.stdout is not None
    assert await asyncio.to_thread(parent.stdout.readline) == b"loaded\n"
    engine = _process(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    await until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


async def test_an_upstream_that_goes_away_is_failed_and_comes_back(make_engines: _Maker) -> None:
    from felloe.engines.options import Upstream

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listing = json.dumps({"data": [{"id": "away"}]}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(listing) + listing)
        await writer.drain()
        writer.close()

    engines = make_engines()
    url = f"http://127.0.0.1:{port}/v1"
    assert await engines.attach(Upstream(name="u", base_url=url, refresh_seconds=0.02)) == ()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await until(lambda: len(engines.replicas()) == 1)
    assert engines.replicas()[0].state == "ready"
    server.close()
    await server.wait_closed()
    await until(lambda: engines.replicas()[0].state == "failed")
    await engines.detach("u")
    assert engines.replicas() == ()
