"""The parent's side of the simulated spokes: several processes, asked all at once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from native import end


class Herd:
    """One process of simulated spokes."""

    def __init__(self, token: str, names: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("scale_spokes.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self.ids: list[str] = []
        self.join_seconds = 0.0
        self.send("join", token=token, names=list(names))

    def joined(self) -> None:
        """Wait until all of them have joined."""
        answer = self.receive()
        self.ids, self.join_seconds = answer["ids"], answer["seconds"]

    def send(self, question: str, /, **arguments: Any) -> None:
        """Ask; `receive` gives the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ask": question, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to the oldest question."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulated spokes ended with code {self._process.wait()}")
        return dict(json.loads(line))

    def ask(self, question: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask and wait."""
        self.send(question, **arguments)
        return self.receive()

    def signal(self, number: signal.Signals) -> None:
        """Kill or freeze all its spokes at once."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End it, frozen or not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            end(self._process, 1)


def ask_all(herds: Sequence[Herd], question: str, /, **arguments: Any) -> list[dict[str, Any]]:
    """Ask every process at once."""
    for herd in herds:
        herd.send(question, **arguments)
    return [herd.receive() for herd in herds]
