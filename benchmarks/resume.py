"""Streams that outlive their replica: SIGKILL the spoke that answers, again and again, under greedy streams.

`python benchmarks/resume.py [--kills N] [--streams N] [--json FILE]`. A hub, two spokes with the tiny model, and a node
without any, which is asked. Every answer is compared with the same answer of an undisturbed run.
"""

import argparse
import http.client
import json
import math
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from native import wait_until
from nodes import TINY_MODEL, Network, Node

MODEL = "tiny"
TOPICS = (
    "a stack", "a queue", "a linked list", "a binary tree", "a heap", "a graph search", "a cache", "a lock",
    "a socket server", "a URL parser", "a JSON reader", "a CSV writer", "a logger", "a test case", "a decorator",
    "a context manager", "an iterator", "a thread pool", "a date parser", "a temporary file", "a zip archive",
    "a mail message", "a text wrapper", "a regular expression", "a priority queue", "a random walk", "a matrix",
    "a configuration file", "a command line", "a subprocess",
)  # fmt: skip
TOKENS = 200
SHORTEST = 100


@dataclass
class Stream:
    """One answer as a client sees it; `times` are the arrivals of its pieces, `sizes` the text's length after each."""

    topic: str
    asked: float = field(default_factory=time.monotonic)
    text: str = ""
    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    finished: bool = False
    failure: str = ""

    def gap_at(self, moment: float) -> float | None:
        """The silence around `moment` in seconds, None when the stream did not run then."""
        after = next((time for time in self.times if time > moment), None)
        if after is None or self.times[0] > moment:
            return None
        return after - max(time for time in self.times if time <= moment)

    def was_wrong_before(self, moments: list[float], expected: str) -> bool:
        """Whether the text left the expected one before any kill could touch it: then resuming is not to blame."""
        pairs = enumerate(zip(self.text, expected, strict=False))
        same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(self.text), len(expected)))
        arrival = next((time for time, size in zip(self.times, self.sizes, strict=True) if size > same), math.inf)
        return not any(self.times[0] <= moment <= arrival for moment in moments)


def ask(node: Node, headers: dict[str, str], stream: Stream) -> Stream:
    """Stream one greedy answer to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Write {stream.topic} in Python."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {**headers, "Content-Type": "application/json"}
        )
        _read(connection.getresponse(), stream)
    except (OSError, http.client.HTTPException, ValueError) as error:
        stream.failure = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return stream


def _read(response: http.client.HTTPResponse, stream: Stream) -> None:
    if response.status != 200:
        stream.failure = response.read(2000).decode(errors="replace")
        return
    finish_reason = None
    for line in response:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            stream.finished = finish_reason is not None
            return
        event = json.loads(line[6:])
        if "error" in event:
            stream.failure = json.dumps(event["error"])
            return
        for choice in event["choices"]:
            stream.text += choice["delta"].get("content") or ""
            finish_reason = choice["finish_reason"] or finish_reason
        stream.times.append(time.monotonic())
        stream.sizes.append(len(stream.text))


class Clients:
    """Threads that ask one question after the other until they are told to stop."""

    def __init__(self, node: Node, headers: dict[str, str], topics: list[str], count: int) -> None:
        self._node, self._headers, self._topics = node, headers, topics
        self._stopping = threading.Event()
        self.done: list[Stream] = []
        self.current: dict[int, Stream] = {}
        self._count = count
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Ask; after `stop` also anew."""
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every stream come to its end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def all_moved_since(self, moment: float) -> bool:
        """Whether every stream that is open has brought something after `moment`."""
        return all(stream.times and stream.times[-1] > moment for stream in list(self.current.values()))

    def _run(self, thread: int) -> None:
        number = thread
        while not self._stopping.is_set():
            stream = self.current[thread] = Stream(self._topics[number % len(self._topics)])
            ask(self._node, self._headers, stream)
            number += 1
            self.done.append(stream)
            if stream.failure:
                time.sleep(0.2)  # a node that refuses is not to be asked in a tight loop


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(part * len(values)) - 1)] if values else math.nan


def _quantiles(values: list[float]) -> str:
    return f"{quantile(values, 0.5):.0f} / {quantile(values, 0.99):.0f}"


def references(node: Node, headers: dict[str, str]) -> dict[str, str]:
    """The undisturbed answers, of the topics that the model has enough to say about."""
    answers = {topic: ask(node, headers, Stream(topic)) for topic in TOPICS}
    broken = [answer.failure or "no end" for answer in answers.values() if not answer.finished]
    if broken:
        raise RuntimeError(f"an undisturbed answer failed: {broken[0]}")
    return {topic: answer.text for topic, answer in answers.items() if len(answer.times) >= SHORTEST}


def kill_again_and_again(
    network: Network, asker: Node, spokes: list[Node], clients: Clients, kills: int
) -> list[float]:
    """Kill the spokes in turns, each once both serve again and every stream has moved on; returns the moments."""
    moments: list[float] = []
    names = {spoke.name for spoke in spokes}
    for number in range(kills):
        wait_until("both spokes", lambda: network.ready_replicas(asker, MODEL) == names, seconds=120)
        time.sleep(0.5)  # new streams spread over both before one of them goes
        victim = spokes[number % len(spokes)]
        moments.append(time.monotonic())
        victim.kill()
        wait_until("every stream to move", lambda moment=moments[-1]: clients.all_moved_since(moment), seconds=60)
        network.restart(victim)
        print(f"kill {number + 1} of {kills}: {victim.name}", file=sys.stderr, flush=True)
    wait_until("both spokes", lambda: network.ready_replicas(asker, MODEL) == names, seconds=120)
    return moments


def summarise(streams: list[Stream], expected: dict[str, str], moments: list[float]) -> dict[str, Any]:
    """Counts and gaps in milliseconds. `worst` has one gap for each kill: that of the stream that waited longest."""
    lost = [stream for stream in streams if not stream.finished]
    wrong = [stream for stream in streams if stream.finished and stream.text != expected[stream.topic]]
    at_kill = [[gap for stream in streams if (gap := stream.gap_at(moment)) is not None] for moment in moments]
    every = [gap * 1e3 for gaps in at_kill for gap in gaps]
    worst = [max(gaps) * 1e3 for gaps in at_kill if gaps]
    return {
        "kills": len(moments),
        "streams": len(streams),
        "times a kill fell into a stream": len(every),
        "lost": len(lost),
        "wrong": len(wrong),
        "of these, wrong before any kill": sum(
            stream.was_wrong_before(moments, expected[stream.topic]) for stream in wrong
        ),
        "gap p50 / p99 over all streams at a kill, ms": _quantiles(every),
        "gap p50 / p99 of the worst stream of each kill, ms": _quantiles(worst),
        "longest gap, ms": f"{max(worst, default=math.nan):.0f}",
        "failures": sorted({stream.failure for stream in lost})[:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--model", type=Path, default=TINY_MODEL)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the summary here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-") as folder, Network(Path(folder)) as network:
        network.hub()
        # A survivor takes all streams at once: without room for them the gaps would show its queue.
        # Two engines on one machine with a thread for every core each would wait for each other.
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
        engine = {"context": 1024, "slots": 1 << (options.streams - 1).bit_length(), "threads": threads}
        spokes = [network.spoke(name, engine=engine) for name in ("spoke-a", "spoke-b")]
        for spoke in spokes:
            spoke.command("pull", str(options.model), "--name", MODEL)
            spoke.command("load", MODEL)
        asker = network.spoke("asker")
        network.wait_for_model(asker, MODEL)
        expected = references(asker, network.headers)
        clients = Clients(asker, network.headers, list(expected), options.streams)
        clients.start()
        moments = kill_again_and_again(network, asker, spokes, clients, options.kills)
        clients.stop()
    summary = summarise(clients.done, expected, moments)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), **summary}))
    print(f"{machine.describe()}\n")
    print(f"**{options.kills} SIGKILLs under {options.streams} concurrent streams of up to {TOKENS} tokens**\n")
    print("| | |\n|---|---|")
    for name, value in summary.items():
        print(f"| {name} | {value or 'none'} |" if name == "failures" else f"| {name} | {value} |")
    if summary["lost"] or summary["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
