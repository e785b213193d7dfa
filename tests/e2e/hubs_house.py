"""A network with three hubs, and clients that never stop asking."""

import threading
import time
from dataclasses import dataclass, field
from typing import Self

import openai

from networks import Network, NodeProcess, wait_for

MODEL = "tiny-python"
QUESTION = [{"role": "user", "content": "Write a function"}]


@dataclass
class Load:
    """Clients that stream from nodes until told to stop; notes what came of each request."""

    nodes: list[NodeProcess]
    answered: int = 0
    failures: list[str] = field(default_factory=list[str])
    pauses: list[float] = field(default_factory=list[float])
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask, args=(node,)) for node in self.nodes]
        for thread in self._threads:
            thread.start()
        wait_for("the load to run", lambda: self.answered >= len(self.nodes))
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, node: NodeProcess) -> None:
        client = node.client()
        while not self._over.is_set():
            last = time.monotonic()
            longest = 0.0
            try:
                stream = client.chat.completions.create(
                    model=MODEL, messages=QUESTION, temperature=0, max_tokens=60, stream=True
                )
                for _ in stream:
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
            except openai.OpenAIError as error:
                self.failures.append(f"{node.name}: {error}")
            else:
                self.answered += 1
                self.pauses.append(longest)


def with_three_hubs(network: Network) -> Network:
    """Three hubs, two of which serve the model, and a spoke without one."""
    one = network.add_serving_spoke("hub-b")
    two = network.add_serving_spoke("hub-c")
    network.add_spoke("empty")
    network.promote(one, two)
    return network


def named(network: Network, name: str) -> NodeProcess:
    return next(node for node in network.nodes if node.name == name)
