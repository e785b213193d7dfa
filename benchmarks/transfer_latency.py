"""What clients of a node notice while it sends a model to another node, or fetches one: waits with and without.

`PYTHONPATH=tests python benchmarks/transfer_latency.py [--layers N] [--rate 1gbit] [--seconds N] [--rounds N]
[--streams N] [--served N] [--folder DIR] [--json FILE]`. As root on Linux; it needs iproute2. The node that answers has
the first half of this machine's cores, its engine included; the other node and the clients have the rest, as if they
were other machines, and there the clients go first. In each round the streams run some seconds alone, while the other
node pulls a large model from this one, and while this one pulls it from the other, again and again; the order changes
with each round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import machine
from links import ShapedLab
from native import wait_until
from placed import PlacedNetwork, begin, command, wait_for_approval
from resume import quantile

from big_model import write_big_model
from chaos.nodes import ChaosNode
from networks import TINY_MODEL

BIG, SERVED = "big", "served"
ALONE, SENDING, FETCHING = "alone", "while it sends", "while it fetches"


class Pulls:
    """Has one node pull the large model again and again, from the moment it is begun until it is ended."""

    def __init__(self, node: ChaosNode | None) -> None:
        self._node = node
        self._ending = threading.Event()
        self._failure = ""
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Pulls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self._failure:
            raise RuntimeError(self._failure)

    def _run(self) -> None:
        while self._node is not None and not self._ending.is_set():
            pull = begin(self._node, "pull", BIG)
            while pull.poll() is None and not self._ending.wait(0.05):
                pass
            if pull.poll() is None:
                pull.terminate()  # what has come stays and is removed with the rest
            said = pull.communicate()[1]
            if pull.returncode and not self._ending.is_set():
                self._failure = f"{self._node.name} could not pull: {said.strip()}"
                return
            begin(self._node, "models", "remove", BIG).communicate()
            begin(self._node, "models", "clean").communicate()


def stream(node: ChaosNode, cores: list[int], streams: int, seconds: float) -> dict[str, Any]:
    """The waits of all streams of one window."""
    load = Path(__file__).with_name("stream_load.py")
    inside = node.place.prefix[: node.place.prefix.index("nice")]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))]
    arguments = [node.base_url.removesuffix("/v1"), SERVED, str(streams), str(seconds)]
    done = subprocess.run(
        [*inside, *pinned, sys.executable, str(load), *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout))


def measure(lab: ShapedLab, source: Path, served: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The waits by what went on meanwhile, with the bytes that the node sent and got."""
    cores = sorted(os.sched_getaffinity(0))
    ours, others = cores[: max(1, len(cores) // 2)], cores[len(cores) // 2 :]
    lab.pin("node", ours)
    lab.pin("other", others, niceness=10)
    found: dict[str, dict[str, Any]] = {
        kind: {"first": [], "gap": [], "failed": 0, "bytes": 0, "seconds": 0.0} for kind in (ALONE, SENDING, FETCHING)
    }
    with PlacedNetwork(lab) as network:
        node, other = network.add("node"), network.add("other")
        command(node, "pull", str(source), "--name", BIG)
        command(node, "pull", str(served), "--name", SERVED)
        command(node, "load", SERVED)
        wait_for_approval(other, BIG)
        wait_until("the served model", lambda: stream(node, others, 1, 0.1)["failed"] == 0)
        for number in range(options.rounds):
            kinds = list(found) if number % 2 else list(found)[::-1]
            for kind in kinds:
                puller = {SENDING: other, FETCHING: node}.get(kind)
                _prepare(node, other, kind, source.stat().st_size)
                sender = other if kind == FETCHING else node
                sent = lab.sent_bytes(sender.name)
                with Pulls(puller):
                    waits = stream(node, others, options.streams, options.seconds)
                found[kind]["bytes"] += lab.sent_bytes(sender.name) - sent
                found[kind]["seconds"] += options.seconds
                for key in ("first", "gap", "failed"):
                    found[kind][key] += waits[key]
                print(f"round {number + 1} of {options.rounds}: {kind}", file=sys.stderr, flush=True)
    return found


def _prepare(node: ChaosNode, other: ChaosNode, kind: str, size: int) -> None:
    """The one that is to fetch has not got the large model, the other one has."""
    holder, taker = (other, node) if kind == FETCHING else (node, other)
    if not holds(holder, size):
        command(holder, "pull", BIG)
    begin(taker, "models", "remove", BIG).communicate()


def holds(node: ChaosNode, size: int) -> bool:
    """Whether a node's store has the large model of `size` bytes, whole."""
    return any(len(path.name) == 64 for path in (node.home.models / "blobs").iterdir() if path.stat().st_size == size)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Quantiles, each beside what it is alone."""
    lines = ["| | first piece p50 / p99, ms | x | between pieces p50 / p99, ms | x | pieces | failed | MB/s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for kind, waits in found.items():
        cells: list[str] = []
        for what in ("first", "gap"):
            now, alone = ([quantile(each[what], part) for part in (0.5, 0.99)] for each in (waits, found[ALONE]))
            cells += [f"{now[0]:.1f} / {now[1]:.1f}", f"{_ratio(now[0], alone[0])} / {_ratio(now[1], alone[1])}"]
        rate = waits["bytes"] / waits["seconds"] / 1e6
        cells += [str(len(waits["gap"])), str(waits["failed"]), f"{rate:.0f}" if kind != ALONE else "-"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(now: float, alone: float) -> str:
    """Below a tenth of a millisecond there is nothing to compare."""
    return f"{now / alone:.2f}" if alone >= 0.1 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=19, help="of the model, about 55 MB each (default: %(default)s)")
    parser.add_argument("--rate", default="1gbit", help="of every link, as tc writes it")
    parser.add_argument("--seconds", type=float, default=20, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1, help="at once; the engine answers one after the other")
    parser.add_argument(
        "--served",
        type=int,
        default=2,
        metavar="LAYERS",
        help="of the model that answers, 0 for the tiny one with a thousand tokens a second (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="where the nodes' homes lie; default: the system's temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the waits here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-", dir=options.folder) as name:
        source = Path(name) / "big.gguf"
        write_big_model(source, options.layers)
        served = TINY_MODEL
        if options.served:
            served = Path(name) / "served.gguf"
            write_big_model(served, options.served)
        lab = ShapedLab(Path(name), options.rate)
        try:
            found = measure(lab, source, served, options)
        finally:
            lab.close()
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), "waits": found}))
    print(f"{machine.describe()}\n")
    windows = f"{options.rounds} windows of {options.seconds:.0f} s each"
    answering = f"a model of {options.served} layers" if options.served else "the tiny model"
    print(f"**{options.streams} streams from {answering}, links of {options.rate}, {windows}**\n")
    print(table(found))


if __name__ == "__main__":
    main()
