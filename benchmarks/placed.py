"""A Felloe network whose nodes stand on machines with links of a known rate: started and used by the command line."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from links import ShapedLab
from native import wait_until

from chaos.nodes import ChaosNode

_START_SECONDS = 120.0
_REPOSITORY = Path(__file__).resolve().parents[1]


class PlacedNetwork:
    """The first node founds the network; all others join it. Ends every node when the block ends."""

    def __init__(self, lab: ShapedLab) -> None:
        self.lab = lab
        self.nodes: dict[str, ChaosNode] = {}

    def __enter__(self) -> "PlacedNetwork":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for node in self.nodes.values():
                sys.stderr.write(f"--- the end of what {node.name} said\n{node.last_words()}\n")
        for node in reversed(self.nodes.values()):
            node.stop()

    def add(self, name: str, *arguments: str) -> ChaosNode:
        """A node that is up; `arguments` go to `felloe up` or `felloe join`."""
        node = ChaosNode(self.lab.add(name), serves=False, may_be_hub=True, request_seconds=60)
        if self.nodes:
            token = command(next(iter(self.nodes.values())), "invite")
            node.start("join", "-", *arguments, stdin=f"{token}\n")
        else:
            node.start("up", *arguments)
        self.nodes[name] = node
        wait_until(name, lambda: is_up(node), process=node.process, seconds=_START_SECONDS)
        return node


def ask(node: ChaosNode, path: str) -> Any:
    """What a node's operator API answers, None while it does not."""
    return asyncio.run(node.ask(path))


def is_up(node: ChaosNode) -> bool:
    """Whether a node is connected to a hub."""
    return bool((ask(node, "/status") or {}).get("connected"))


def begin(node: ChaosNode, *arguments: str) -> subprocess.Popen[str]:
    """Start `felloe ARGUMENTS` on a node's machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FELLOE_")}
    path = os.pathsep.join(filter(None, [str(_REPOSITORY / "src"), inherited.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [*node.place.prefix, sys.executable, "-m", "felloe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "FELLOE_HOME": str(node.home.folder), "PYTHONPATH": path},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait; what it printed. Raises RuntimeError when it failed."""
    printed, complaints = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args[-3:]))}: {(complaints or '').strip()}")  # type: ignore[index]
    return (printed or "").strip()


def command(node: ChaosNode, *arguments: str) -> str:
    """Run `felloe ARGUMENTS` on a node's machine to its end."""
    return finish(begin(node, *arguments))


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def wait_for_approval(node: ChaosNode, model: str) -> None:
    """Until a node knows that it may load `model`."""

    def knows() -> bool:
        process = begin(node, "catalog", "show", model)
        process.communicate()
        return process.returncode == 0

    wait_until(f"{node.name} to know {model}", knows, seconds=_START_SECONDS)
