"""Real networks for tests: `felloe` processes with homes of their own, on loopback."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec
import openai
import tomli_w

from felloe.node.home import Home

TINY_MODEL = Path(__file__).parents[1] / "models" / "tiny-python" / "tiny-python-q8_0.gguf"
START_SECONDS = 60.0

Value = TypeVar("Value")


_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections: one that is free now may be anybody's a moment later."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on now."""
    return [free_run(1) for _ in range(count)]


def free_run(count: int) -> int:
    """The first of so many ports in a row that nothing listens on now."""
    while True:
        first = random.choice(_PORTS)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def wait_for(what: str, condition: Callable[[], Value], seconds: float = START_SECONDS) -> Value:
    """The first true value of `condition`; fails the test with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.01)


class NodeProcess:
    """One `felloe` in a home of its own."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.home = Home(folder / name)
        self.home.folder.mkdir(parents=True)
        self.api_port: int = settings["api"]["port"]
        self.peer: dict[str, Any] = settings.get("peer", {})
        self.base_url = f"http://127.0.0.1:{self.api_port}/v1"
        self.process: subprocess.Popen[bytes] | None = None
        self.program: tuple[str, ...] = ("-m", "felloe")
        self.home.config.write_text(tomli_w.dumps({"name": name} | settings))

    def start(self, *arguments: str, stdin: str = "") -> Self:
        """Start `felloe ARGUMENTS` here."""
        with (self.home.folder / "terminal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin.encode())
        self.process.stdin.close()
        return self

    def run(
        self, *arguments: str, stdin: str = "", check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line in this home to its end, which must come within `seconds`."""
        done = subprocess.run(
            [sys.executable, "-m", "felloe", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self._environment(),
            timeout=seconds,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"felloe {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FELLOE_")}
        return kept | {"FELLOE_HOME": str(self.home.folder), "COLUMNS": "200"}

    def ask(self, path: str) -> Any:
        """The operator API's answer, or None while the node is not up."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended: {self.last_words()}")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.home.operator_socket)) != 0:
                return None
        transport = httpx.HTTPTransport(uds=str(self.home.operator_socket))
        try:
            with httpx.Client(transport=transport, base_url="http://felloe", timeout=5) as client:
                return msgspec.json.decode(client.get(path).content)
        except (httpx.TransportError, msgspec.DecodeError):
            return None

    def wait_until_up(self) -> Self:
        """Return when the node is connected to a hub."""
        wait_for(f"{self.name} to be up", lambda: (self.ask("/status") or {}).get("connected"))
        return self

    def tell(self, path: str, message: object, seconds: float = 60.0) -> bytes:
        """POST to the operator API; fails the test unless the node agrees."""
        transport = httpx.HTTPTransport(uds=str(self.home.operator_socket))
        with httpx.Client(transport=transport, base_url="http://felloe", timeout=seconds) as client:
            answer = client.post(path, content=msgspec.json.encode(message))
        assert answer.status_code == 200, answer.text
        return answer.content

    def sees(self, *, alive: set[str]) -> bool:
        """Whether this node's roster holds exactly these living nodes."""
        members = self.ask("/members") or []
        return {member["record"]["name"] for member in members if member["alive"]} == alive

    def hubs(self) -> list[dict[str, Any]]:
        """The hubs as this node knows them."""
        return list((self.ask("/hubs") or {"hubs": []})["hubs"])

    def keepers(self) -> set[str]:
        """The names of the hubs that keep the state."""
        return {hub["name"] for hub in self.hubs() if hub["keeps_state"]}

    def leader(self) -> str | None:
        """The name of the hub that leads, as this hub knows."""
        return next((str(hub["name"]) for hub in self.hubs() if hub["leads"]), None)

    def replicas_of(self, model: str) -> set[str]:
        """The names of the nodes on which the model is ready, as this node sees it."""
        rows = {row["model"]["name"]: row["replicas"] for row in self.ask("/models") or []}
        return {node for node, state in rows.get(model, {}).items() if state == "ready"}

    def client(self, **settings: Any) -> openai.OpenAI:
        """The official SDK, pointed at this node."""
        return openai.OpenAI(base_url=self.base_url, api_key="none", max_retries=0, timeout=60, **settings)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node's process alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it does not end."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self) -> str:
        """The end of what it printed and logged."""
        printed = (self.home.folder / "terminal.log").read_text(errors="replace")
        log = self.home.logs / "node.log"
        return printed[-2000:] + (log.read_text(errors="replace")[-2000:] if log.exists() else "")


class Network:
    """A hub and spokes; `close` ends them all."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._settings = settings
        self.nodes: list[NodeProcess] = []
        self._approved: set[Path] = set()
        self.hub = self._prepare("hub")

    @property
    def peer(self) -> dict[str, Any]:
        """The `peer` settings of the hub that founded the network."""
        return self.hub.peer

    def promote(self, *nodes: NodeProcess) -> None:
        """Make these nodes hubs beside the first; the state is on all of them when this returns."""
        for node in nodes:
            self.hub.run("promote", node.name, seconds=150)
        hubs = {self.hub.name, *(node.name for node in nodes)}
        wait_for("the state on all hubs", lambda: all(node.keepers() == hubs for node in (self.hub, *nodes)))

    def start_hub(self, *arguments: str) -> Self:
        """Found the network."""
        self.hub.start("up", *arguments).wait_until_up()
        return self

    def prepare_spoke(self, name: str, *, advertise: str = "127.0.0.1") -> NodeProcess:
        """A spoke's home, not started. It has ports of its own, so that it can become a hub."""
        return self._prepare(name, advertise)

    def _prepare(self, name: str, advertise: str = "127.0.0.1") -> NodeProcess:
        api, peer, mesh, route = free_ports(4)
        ports = {"port": peer, "mesh_port": mesh, "route_port": route, "state_port": free_run(2), "transfer_port": 0}
        settings = {"api": {"port": api}, "peer": {"host": "127.0.0.1", "advertise": [advertise]} | ports}
        node = NodeProcess(self._folder, name, self._settings | settings)
        self.nodes.append(node)
        return node

    def approve(self, model: Path = TINY_MODEL) -> None:
        """Have every node load `model` from now on: the founder is the only curator, and what it pulls is approved."""
        if model not in self._approved:
            steps = self.hub.tell("/models/pull", {"reference": str(model)}).splitlines()
            assert "error" not in msgspec.json.decode(steps[-1]), steps[-1]
            self._approved.add(model)

    def add_spoke(self, name: str, *arguments: str) -> NodeProcess:
        """A spoke that has joined and is up."""
        return self.prepare_spoke(name).start("join", "-", *arguments, stdin=self.invite()).wait_until_up()

    def add_serving_spoke(self, name: str, model: Path = TINY_MODEL) -> NodeProcess:
        """A spoke that serves `model`, seen by all nodes."""
        self.approve(model)
        spoke = self.add_spoke(name, "--model", str(model))
        wait_for(f"{name} to serve", lambda: all(name in node.replicas_of("tiny-python") for node in self.running()))
        return spoke

    def running(self) -> list[NodeProcess]:
        """The nodes whose process lives."""
        return [node for node in self.nodes if node.process is not None and node.process.poll() is None]

    def invite(self, *arguments: str) -> str:
        """A join token."""
        return self.hub.run("invite", *arguments).stdout.strip()

    def close(self) -> None:
        """End every node, spokes first."""
        for node in reversed(self.nodes):
            node.stop()
