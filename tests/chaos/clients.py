"""The clients' processes as the harness sees them: one beside each node, and the undisturbed answers."""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from chaos.load import Order
from chaos.nodes import ChaosNode
from chaos.records import Prompt, Request

MODEL = "tiny-python"
_TESTS = Path(__file__).parents[1]
_TOPICS = (
    "a stack", "a queue", "a linked list", "a binary tree", "a heap", "a cache", "a lock", "a socket server",
    "a URL parser", "a JSON reader", "a CSV writer", "a logger", "a decorator", "an iterator", "a thread pool",
    "a date parser",
)  # fmt: skip
_LENGTHS = ((250, True), (30, False), (120, True), (400, True))


def questions() -> list[Prompt]:
    """Long streams, which faults hit in the middle, and some short plain answers."""
    return [
        Prompt(f"{topic}, {tokens}", f"Write {topic} in Python.", tokens, stream)
        for number, topic in enumerate(_TOPICS)
        for tokens, stream in (_LENGTHS[number % len(_LENGTHS)],)
    ]


class Clients:
    """The process with one node's clients; `noted` gets each request as it ends."""

    def __init__(self, node: ChaosNode, order: Order, noted: Callable[[Request], None]) -> None:
        self._node = node
        self._order = order
        self._noted = noted
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False

    def check(self) -> None:
        """Raise RuntimeError when they are gone although nobody stopped them: a run without load proves nothing."""
        if self._reader is not None and self._reader.done() and not self._stopping:
            raise RuntimeError(f"the clients of {self._node.name} ended by themselves")

    async def start(self) -> None:
        """Start asking."""
        self._process = await asyncio.create_subprocess_exec(
            *self._node.place.prefix,
            sys.executable,
            "-m",
            "chaos.load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(_TESTS)},
            start_new_session=True,
            limit=1 << 20,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._order) + b"\n")
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._noted(msgspec.json.decode(line, type=Request))

    async def wait(self) -> None:
        """Until its rounds are done. Raises when the process failed."""
        assert self._process is not None
        assert self._reader is not None
        await self._reader
        if await self._process.wait():
            raise RuntimeError(f"the clients of {self._node.name} ended with {self._process.returncode}")

    async def stop(self, seconds: float) -> None:
        """Let running requests end, for so long at most. What was stopped before stays stopped."""
        if self._process is None or self._process.stdin is None or self._reader is None or self._stopping:
            return
        self._stopping = True
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self._reader.cancel()
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()


async def undisturbed(nodes: Sequence[ChaosNode], seed: int, patience: float) -> list[Prompt]:
    """The prompts whose greedy answer is the same on these nodes, asked in other orders, with that answer.

    A model this small often chooses between tokens that are almost equally likely; what was in the cache before may
    then tip the choice. Such prompts prove nothing and are left out. Raises RuntimeError when hardly any is left.
    """
    answers: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
    prompts = questions()
    found: list[Request] = []
    asking = [
        Clients(
            node,
            Order(
                node=node.name,
                base_url=node.base_url,
                model=MODEL,
                prompts=prompts,
                clients=1,
                rounds=1,
                seed=seed,
                patience=patience,
            ),
            found.append,
        )
        for node in nodes
    ]
    for clients in asking:
        await clients.start()
    await asyncio.gather(*(clients.wait() for clients in asking))
    for request in found:
        if request.outcome != "answered":
            raise RuntimeError(f"an undisturbed answer failed on {request.node}: {request.code} {request.detail}")
        answers[request.prompt].add((request.digest, request.text, request.tokens))
    stable: list[Prompt] = []
    for prompt in prompts:
        if len(answers[prompt.name]) == 1:
            ((digest, text, tokens),) = answers[prompt.name]
            if tokens == prompt.tokens:
                stable.append(msgspec.structs.replace(prompt, digest=digest, text=text))
    if len(stable) < len(prompts) // 2:
        raise RuntimeError(f"only {len(stable)} of {len(prompts)} prompts have the same answer everywhere")
    return stable
