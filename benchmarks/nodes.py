"""Real Felloe nodes for the benchmarks, started as a user would: `felloe up`, `felloe invite`, `felloe join`."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from native import end, wait_until
from peers import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
TINY_MODEL = REPOSITORY / "models/tiny-python/tiny-python-q8_0.gguf"


class Node:
    """One process with a home of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.home = folder / name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The node's process; only while it runs."""
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    def configure(self, **settings: Any) -> None:
        """Write `config.toml`: these settings, on loopback, on ports that are free."""
        self.home.mkdir(parents=True)
        defaults = {
            "name": self.name,
            "log_level": "warning",
            "api": {"port": self.port},
            "peer": {"host": "127.0.0.1", "port": free_port(), "mesh_port": free_port(), "advertise": ["127.0.0.1"]},
        }
        merged = {**defaults, **settings, "api": {**defaults["api"], **settings.get("api", {})}}
        (self.home / "config.toml").write_text(tomli_w.dumps(merged))

    def start(self, *arguments: str, text: str = "") -> None:
        """Start `felloe ARGUMENTS` and write `text` to its standard input."""
        with (self.home / "terminal.log").open("ab") as log:
            self.process = subprocess.Popen(
                _command(*arguments), stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(self.home)
            )
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.close()

    def command(self, *arguments: str) -> str:
        """Run `felloe ARGUMENTS` against this node; returns what it prints."""
        done = subprocess.run(_command(*arguments), capture_output=True, text=True, env=_environment(self.home))
        if done.returncode:
            raise RuntimeError(f"felloe {arguments[0]} on {self.name}: {done.stderr.strip()}")
        return done.stdout.strip()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        """The end of what the node printed."""
        return (self.home / "terminal.log").read_text(errors="replace")[-2000:]


class Network:
    """A hub and its spokes; ends them all when the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[Node] = []
        self._hub: Node | None = None
        self.headers: dict[str, str] = {}

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for node in self._nodes:
            if kind is not None and (node.home / "terminal.log").exists():
                sys.stderr.write(f"--- the end of what {node.name} printed\n{node.last_words()}\n---\n")
        # Spokes first, so that none of them looks for the hub.
        for node in reversed(self._nodes):
            if node.process is not None and node.process.poll() is None:
                end(node.process)

    def hub(self, **settings: Any) -> Node:
        """Found the network; keys are required from here on."""
        node = self._add("hub", {**settings, "api": {"require_key": True}})
        self._hub = node
        node.start("up")
        self._wait(node, lambda: _succeeds(node, "ps"))
        self.headers = {"Authorization": f"Bearer {node.command('key', 'create', 'bench')}"}
        return node

    def spoke(self, name: str, *arguments: str, **settings: Any) -> Node:
        """Join a node to the network; `arguments` go to `felloe join`."""
        assert self._hub is not None
        node = self._add(name, {**settings, "api": {"require_key": True}})
        node.start("join", "-", *arguments, text=self._hub.command("invite") + "\n")
        self._wait(node, lambda: self.models_of(node) is not None)
        return node

    def restart(self, node: Node) -> None:
        """Start a node again that had joined before."""
        node.start("up")

    def models_of(self, node: Node) -> list[str] | None:
        """The names of the models that `node` offers, None while it does not answer."""
        request = urllib.request.Request(f"{node.url}/v1/models", headers=self.headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return [model["id"] for model in json.load(response)["data"]]
        except (OSError, ValueError):
            return None

    def wait_for_model(self, node: Node, model: str) -> None:
        """Until requests for `model` can be sent to `node`."""
        self._wait(node, lambda: model in (self.models_of(node) or []))

    def ready_replicas(self, node: Node, model: str) -> set[str]:
        """The names of the nodes that serve `model`, as `node` sees it."""
        members = json.loads(node.command("ps", "--json"))
        return {
            member["record"]["name"]
            for member in members
            if member["alive"]
            for replica in member["record"]["replicas"]
            if replica["model"]["name"] == model and replica["state"] == "ready"
        }

    def _add(self, name: str, settings: dict[str, Any]) -> Node:
        node = Node(self._folder, name)
        node.configure(**settings)
        self._nodes.append(node)
        return node

    def _wait(self, node: Node, condition: Any) -> None:
        wait_until(node.name, condition, process=node.process, seconds=90)


def _command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "felloe", *arguments]


def _environment(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FELLOE_")}
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), inherited.get("PYTHONPATH", "")]))
    return {**inherited, "FELLOE_HOME": str(home), "PYTHONPATH": path}


def _succeeds(node: Node, *arguments: str) -> bool:
    try:
        node.command(*arguments)
    except RuntimeError:
        return False
    return True
