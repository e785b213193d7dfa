"""What clients notice when the leading hub is killed: SIGKILL, again and again, under streams on every node.

`PYTHONPATH=tests python benchmarks/leader.py [--kills N] [--streams N] [--json FILE]`. Three hubs and a spoke with the
tiny model, and a spoke without one. Every answer is compared with the same answer of an undisturbed run. Nothing is
asked of the node that is killed: its own clients lose their connection to it, whatever the network does.
"""

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from native import wait_until
from nodes import TINY_MODEL, Network, Node
from resume import MODEL, TOKENS, Clients, Stream, quantile, references

from networks import free_ports, free_run

HUBS = ("hub", "hub-b", "hub-c")
WINDOW_SECONDS = 10.0
_PATIENCE_SECONDS = 120.0


def longest_pause(stream: Stream, begin: float, end: float) -> float | None:
    """The longest time between two pieces that touches this window, the wait for the first one included."""
    edges = (stream.asked, *stream.times)
    return max(
        (later - sooner for sooner, later in itertools.pairwise(edges) if sooner < end and later > begin), default=None
    )


def peer_settings() -> dict[str, Any]:
    """Ports of its own for each hub: they share a machine here."""
    peer, mesh, route = free_ports(3)
    ports = {"port": peer, "mesh_port": mesh, "route_port": route, "state_port": free_run(2)}
    return {"host": "127.0.0.1", "advertise": ["127.0.0.1"], **ports}


def build(network: Network, streams: int) -> list[Node]:
    """All nodes, three of them hubs, four with the model."""
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    engine = {"context": 1024, "slots": 1 << (5 * streams - 1).bit_length(), "threads": threads}
    nodes = [network.hub(engine=engine, peer=peer_settings())]
    nodes += [network.spoke(name, engine=engine, peer=peer_settings()) for name in (*HUBS[1:], "spoke")]
    for node in nodes:
        node.command("pull", str(TINY_MODEL), "--name", MODEL)
        node.command("load", MODEL)
    nodes.append(network.spoke("asker", peer=peer_settings()))
    for name in HUBS[1:]:
        nodes[0].command("promote", name)
    return nodes


def leader_seen_by(node: Node) -> str | None:
    """The name of the leading hub, as a hub knows it; None while one of the hubs is away."""
    try:
        view = json.loads(node.command("hubs", "--json"))
    except RuntimeError:
        return None
    alive = [hub for hub in view["hubs"] if hub["alive"]]
    return next((str(hub["name"]) for hub in alive if hub["leads"]), None) if len(alive) == len(HUBS) else None


def kill_leaders(
    network: Network, nodes: list[Node], clients: dict[str, Clients], kills: int
) -> list[tuple[float, str]]:
    """Kill who leads, each time once the network is whole; the moments and the victims."""
    killed: list[tuple[float, str]] = []
    by_name = {node.name: node for node in nodes}
    serving = set(by_name) - {"asker"}
    for number in range(kills):
        for node in nodes:
            wait_until(
                f"{node.name} to see all replicas",
                lambda node=node: network.ready_replicas(node, MODEL) == serving,
                seconds=_PATIENCE_SECONDS,
            )
        wait_until("one leader", lambda: leader_seen_by(by_name[HUBS[0]]) is not None, seconds=_PATIENCE_SECONDS)
        victim = by_name[str(leader_seen_by(by_name[HUBS[0]]))]
        clients[victim.name].stop()
        time.sleep(WINDOW_SECONDS)  # a window without any fault, to compare with
        moment = time.monotonic()
        victim.kill()
        killed.append((moment, victim.name))
        time.sleep(WINDOW_SECONDS)
        network.restart(victim)
        network.wait_for_model(victim, MODEL)
        clients[victim.name].start()
        print(f"kill {number + 1} of {kills}: {victim.name}", file=sys.stderr, flush=True)
    return killed


def summarise(streams: list[Stream], expected: dict[str, str], moments: list[float]) -> dict[str, Any]:
    """Counts, and pauses in milliseconds: in the windows after the kills and in those before them."""
    lost = [stream for stream in streams if not stream.finished]
    wrong = [stream for stream in streams if stream.finished and stream.text != expected[stream.topic]]

    def pauses(begin: float, end: float) -> list[float]:
        found = (longest_pause(stream, moment + begin, moment + end) for moment in moments for stream in streams)
        return [pause * 1e3 for pause in found if pause is not None]

    after, before = pauses(0.0, WINDOW_SECONDS), pauses(-WINDOW_SECONDS, 0.0)
    before_any = sum(stream.was_wrong_before(moments, expected[stream.topic]) for stream in wrong)
    return {
        "kills of the leading hub": len(moments),
        "requests": len(streams),
        "lost": len(lost),
        "wrong": len(wrong),
        "of these, wrong before any kill": before_any,
        "streams in the 10 s after a kill": len(after),
        "longest pause of each, p50 / p99 / max, ms": _quantiles(after),
        "the same in the 10 s before a kill, ms": _quantiles(before),
        "failures": sorted({stream.failure for stream in lost})[:5],
    }


def _quantiles(values: list[float]) -> str:
    return " / ".join(
        f"{value:.0f}" for value in (quantile(values, 0.5), quantile(values, 0.99), max(values, default=math.nan))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=1, help="on each node")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the summary here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-") as folder, Network(Path(folder)) as network:
        nodes = build(network, options.streams)
        network.wait_for_model(nodes[-1], MODEL)
        expected = references(nodes[-1], network.headers)
        clients = {node.name: Clients(node, network.headers, list(expected), options.streams) for node in nodes}
        for each in clients.values():
            each.start()
        killed = kill_leaders(network, nodes, clients, options.kills)
        for each in clients.values():
            each.stop()
    streams = [stream for each in clients.values() for stream in each.done]
    summary = summarise(streams, expected, [moment for moment, _ in killed])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), **summary}))
    print(f"{machine.describe()}\n")
    load = f"{options.streams} streams of up to {TOKENS} tokens on each node"
    print(f"**{options.kills} SIGKILLs of the leading hub, {load}**\n")
    print("| | |\n|---|---|")
    for name, value in summary.items():
        print(f"| {name} | {value or 'none'} |" if name == "failures" else f"| {name} | {value} |")
    if summary["lost"] or summary["wrong"] > summary["of these, wrong before any kill"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
