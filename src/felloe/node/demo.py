"""The demo network: one hub and two spokes on this machine, three processes with homes of their own."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import tomli_w

from felloe.console.messages import (
    ErrorBody,
    InvitationCreated,
    InvitationRequest,
    Progress,
    PullRequest,
    Status,
)
from felloe.console.model_messages import ModelRow
from felloe.domain.errors import FelloeError
from felloe.host.files import make_private_directory
from felloe.host.processes import end, spawn
from felloe.node.home import Home

_START_SECONDS = 90.0
_END_SECONDS = 4.0
_SPOKES = ("spoke-a", "spoke-b")


def bundled_model() -> Path:
    """The tiny model that comes with Felloe: inside the installed package, or in the checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    name = "tiny-python-q8_0.gguf"
    places = (package / "bundled" / name, package.parents[1] / "models" / "tiny-python" / name)
    for place in places:
        if place.is_file():
            return place
    raise FelloeError("bad_state", f"the bundled model is missing; looked for {places[0]} and {places[1]}")


class DemoNode:
    """One child process and its home."""

    def __init__(self, folder: Path, name: str, api_port: int) -> None:
        self.home = Home(folder / name)
        self.name = name
        self.base_url = f"http://127.0.0.1:{api_port}/v1"
        self._api_port = api_port
        self._process: asyncio.subprocess.Process | None = None

    def configure(self, peer_port: int, mesh_port: int) -> None:
        """Write its `config.toml`: loopback only."""
        make_private_directory(self.home.folder)
        settings = {
            "name": self.name,
            "api": {"port": self._api_port},
            "peer": {
                "host": "127.0.0.1",
                "port": peer_port,
                "mesh_port": mesh_port,
                "advertise": ["127.0.0.1"],
            },
        }
        self.home.config.write_text(tomli_w.dumps(settings), encoding="utf-8")

    async def start(self, *arguments: str, standard_input: bytes = b"") -> None:
        """Start `felloe ARGUMENTS` in this home; its own lines go to `logs/terminal.log`."""
        make_private_directory(self.home.logs)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FELLOE_")}
        environment = inherited | {"FELLOE_HOME": str(self.home.folder)}
        with (self.home.logs / "terminal.log").open("wb") as log:
            self._process = await spawn(
                [sys.executable, "-m", "felloe", *arguments],
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                environment=environment,
            )
        if self._process.stdin is not None:
            self._process.stdin.write(standard_input)
            self._process.stdin.close()

    @property
    def started(self) -> bool:
        """Whether there is a child."""
        return self._process is not None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The child; only after `start`."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def last_words(self) -> str:
        """The end of what the child printed, for an error message."""
        text = (self.home.logs / "terminal.log").read_text(encoding="utf-8", errors="replace")
        return text.strip()[-2000:]

    def operator(self) -> httpx.AsyncClient:
        """A client of its operator API."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.home.operator_socket))
        return httpx.AsyncClient(transport=transport, base_url="http://felloe", timeout=10)


class Demo:
    """Starts the three nodes in order, waits until they answer, ends them."""

    def __init__(self, folder: Path, model: Path, api_port: int) -> None:
        self._folder = folder
        self._model = model
        self.hub = DemoNode(folder, "hub", api_port)
        ports = free_ports(len(_SPOKES))
        self.spokes = [DemoNode(folder, name, port) for name, port in zip(_SPOKES, ports, strict=True)]

    @property
    def nodes(self) -> list[DemoNode]:
        """The hub first."""
        return [self.hub, *self.spokes]

    async def start(self, say: Callable[[str], None]) -> str:
        """Bring up the network; returns the name of the model that both spokes serve."""
        shutil.rmtree(self._folder, ignore_errors=True)
        peer_port, mesh_port = free_ports(2)
        for node in self.nodes:
            node.configure(peer_port, mesh_port)
        say("starting the hub ...")
        await self.hub.start("up")
        await _until(self.hub, lambda: _is_connected(self.hub))
        await self._approve()
        async with self.hub.operator() as operator:
            wanted = InvitationRequest(uses=len(self.spokes))
            reply = await operator.post("/invitations/create", content=msgspec.json.encode(wanted))
        token = msgspec.json.decode(reply.content, type=InvitationCreated).token
        for spoke in self.spokes:
            say(f"starting {spoke.name} ...")
            await spoke.start("join", "-", "--model", str(self._model), standard_input=f"{token}\n".encode())
        for spoke in self.spokes:
            await _until(spoke, lambda spoke=spoke: _is_connected(spoke))
        await _until(self.hub, lambda: _both_serve(self.hub, len(self.spokes)))
        async with self.hub.operator() as operator:
            return (await _models(operator))[0].model.name

    async def _approve(self) -> None:
        """Pull the model on the hub: as the network's only curator it approves what it pulls, so spokes may load it.

        Raises what the hub answers.
        """
        async with self.hub.operator() as operator:
            reply = await operator.post("/models/pull", content=msgspec.json.encode(PullRequest(str(self._model))))
        if reply.status_code != 200:
            refused = msgspec.json.decode(reply.content, type=ErrorBody)
        else:
            refused = msgspec.json.decode(reply.content.splitlines()[-1], type=Progress).error
        if refused is not None:
            raise FelloeError(refused.code, refused.detail)

    async def wait(self) -> DemoNode:
        """Return the first node whose process ends by itself."""
        waiting = {asyncio.ensure_future(node.process.wait()): node for node in self.nodes}
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return waiting[done.pop()]

    async def stop(self) -> None:
        """End all nodes at once; returns within 5 s."""
        started = [node.process for node in self.nodes if node.started]
        await asyncio.gather(*(end(process, _END_SECONDS) for process in started))


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


async def _until(node: DemoNode, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not await _holds(condition):
        if node.process.returncode is not None:
            raise FelloeError("engine_start_failed", f"{node.name} ended:\n{node.last_words()}")
        if time.monotonic() > deadline:
            raise FelloeError("engine_start_failed", f"{node.name} took too long:\n{node.last_words()}")
        await asyncio.sleep(0.05)


async def _holds(condition: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await condition()
    except (httpx.TransportError, msgspec.DecodeError, UnicodeDecodeError):
        return False


async def _is_connected(node: DemoNode) -> bool:
    async with node.operator() as operator:
        return msgspec.json.decode((await operator.get("/status")).content, type=Status).connected


async def _models(operator: httpx.AsyncClient) -> list[ModelRow]:
    return msgspec.json.decode((await operator.get("/models")).content, type=list[ModelRow])


async def _both_serve(hub: DemoNode, count: int) -> bool:
    async with hub.operator() as operator:
        rows = await _models(operator)
    return any(list(row.replicas.values()).count("ready") == count for row in rows)


def run_demo(folder: Path, *, model: Path | None, api_port: int) -> None:
    """Run the demo network in the foreground until Ctrl-C."""
    demo = Demo(folder, (model or bundled_model()).expanduser().absolute(), api_port)
    asyncio.run(_run(demo))


async def _run(demo: Demo) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        running = asyncio.ensure_future(_serve(demo))
        stopped = asyncio.ensure_future(stopping.wait())
        done, pending = await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if running in done:
            running.result()
        _say("\nstopping ...")
    finally:
        await demo.stop()


async def _serve(demo: Demo) -> None:
    name = await demo.start(_say)
    _say(_welcome(demo, name))
    lost = await demo.wait()
    raise FelloeError("internal", f"{lost.name} ended by itself:\n{lost.last_words()}")


def _welcome(demo: Demo, model: str) -> str:
    spokes = "\n".join(f"  {node.name:<9} {node.base_url}" for node in demo.spokes)
    body = f'{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"Write a function"}}]}}'
    return f"""
One private network, three nodes on this machine; the model runs on the spokes.

  hub       {demo.hub.base_url}
{spokes}

Ask any of them, with any OpenAI client:

  curl -N {demo.hub.base_url}/chat/completions -H 'content-type: application/json' \\
    -d '{body}'

See the nodes:  FELLOE_HOME={demo.hub.home.folder} felloe ps
Ctrl-C ends everything."""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
