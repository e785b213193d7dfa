"""How soon what an owner wants is so: from `felloe serve` to a token, from a killed node to its models elsewhere.

`PYTHONPATH=tests python benchmarks/convergence.py [--rounds N] [--json FILE]`. A hub and three spokes on this machine,
each with memory for two replicas of the tiny model. Each round declares a model that is on the hub's disk, asks for
it until a token comes, kills a node that serves models with SIGKILL, waits until its models serve elsewhere, and brings
it back. Moves are the replicas that a plan has in another place than the plan before; the least possible are those that
the killed node had.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine

from networks import TINY_MODEL, Network, NodeProcess, wait_for

ROOM = "1000MB"
STANDING = ("a", "b", "c", "d")
PATIENCE_SECONDS = 120.0
SETTLING_SECONDS = 30.0


def placements(node: NodeProcess) -> set[tuple[str, str]]:
    """Which model the newest plan has on which node."""
    view = node.ask("/plan") or {"plan": {"placements": []}}
    return {(one["model"], one["node"]) for one in view["plan"]["placements"]}


def first_token(node: NodeProcess, model: str) -> float:
    """Seconds until a request for a model that is being loaded gives its first token."""
    began = time.perf_counter()
    with node.client(default_headers={"Prefer": f"wait={PATIENCE_SECONDS:.0f}"}) as client:
        pieces = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "x"}], max_tokens=4, stream=True
        )
        next(piece for piece in pieces if piece.choices and piece.choices[0].delta.content)
        took = time.perf_counter() - began
        pieces.close()
    return took


def ready(network: Network, model: str) -> set[str]:
    """The living nodes that serve a model, as the hub sees it."""
    alive = {row["record"]["name"] for row in network.hub.ask("/members") or [] if row["alive"]}
    return network.hub.replicas_of(model) & alive


def serve_and_ask(network: Network, name: str) -> float:
    """Seconds from the start of the command `felloe serve` to the first token; the model goes again after."""
    began = time.perf_counter()
    network.hub.run("serve", name, "--slots", "2", "--context", "1024")
    first_token(network.hub, name)
    took = time.perf_counter() - began
    network.hub.run("retire", name)
    wait_for(f"{name} to be gone", lambda: not ready(network, name), PATIENCE_SECONDS)
    return took


def kill_and_wait(network: Network, victim: NodeProcess) -> dict[str, Any]:
    """What a SIGKILL costs; the node is back when this returns."""
    ids = {row["record"]["name"]: row["record"]["id"] for row in network.hub.ask("/members")}
    before = placements(network.hub)
    lost = [model for model, node in before if node == ids[victim.name]]
    began = time.perf_counter()
    victim.kill()
    seconds: dict[str, float] = {}
    while len(seconds) < len(lost):
        for model in lost:
            if model not in seconds and ready(network, model) - {victim.name}:
                seconds[model] = time.perf_counter() - began
        if time.perf_counter() - began > PATIENCE_SECONDS:
            raise RuntimeError(f"not served elsewhere after {PATIENCE_SECONDS:.0f} s: {set(lost) - set(seconds)}")
        time.sleep(0.02)
    token = max((first_token(network.hub, model) for model in lost), default=0.0)
    moved = len(placements(network.hub) - before)
    after = placements(network.hub)
    victim.start("up").wait_until_up()
    wait_for("the killed node to be seen", lambda: victim.name in alive(network), PATIENCE_SECONDS)
    time.sleep(SETTLING_SECONDS)  # a plan that moves something back would be made by then
    return {
        "lost": len(lost),
        "seconds": sorted(seconds.values()),
        "token": token,
        "moved": moved,
        "moved_back": len(placements(network.hub) - after),
    }


def alive(network: Network) -> set[str]:
    return {row["record"]["name"] for row in network.hub.ask("/members") or [] if row["alive"]}


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All rounds."""
    network = Network(folder, hardware={"ram_limit": ROOM}, engine={"threads": 1})
    try:
        network.start_hub()
        spokes = [network.add_spoke(f"spoke-{number}") for number in (1, 2, 3)]
        for name in (*STANDING, *(f"new-{number}" for number in range(rounds))):
            network.hub.run("pull", str(TINY_MODEL), "--name", name)
        served = [serve_and_ask(network, f"new-{number}") for number in range(rounds)]
        network.hub.run("serve", *STANDING, "--slots", "2", "--context", "1024")
        wait_for("the standing models", lambda: all(ready(network, model) for model in STANDING), PATIENCE_SECONDS)
        kills = list[dict[str, Any]]()
        while len(kills) < rounds:
            victim = max(spokes, key=lambda spoke: sum(spoke.name in ready(network, model) for model in STANDING))
            kills.append(kill_and_wait(network, victim))
            print(f"kill {len(kills)} of {rounds}: {kills[-1]}", file=sys.stderr, flush=True)
        return {"served": served, "kills": kills}
    finally:
        network.close()


def table(found: dict[str, Any]) -> str:
    """Medians and the worst."""
    kills = found["kills"]
    elsewhere = [seconds for kill in kills for seconds in kill["seconds"]]
    lost, moved = sum(kill["lost"] for kill in kills), sum(kill["moved"] for kill in kills)
    rows = [
        ("`felloe serve` to the first token", found["served"]),
        ("SIGKILL of a node to its models ready elsewhere", elsewhere),
        ("of these, a request for them to its first token", [kill["token"] for kill in kills if kill["lost"]]),
    ]
    lines = ["| from | s, median | least | most | of |", "|---|---|---|---|---|"]
    for name, seconds in rows:
        if seconds:
            figures = f"{median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f} | {len(seconds)}"
            lines.append(f"| {name} | {figures} |")
    back = sum(kill["moved_back"] for kill in kills)
    lines.append(
        f"\nReplicas lost with {len(kills)} nodes: {lost}; moved for it: {moved}; moved when they came back: {back}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the readings here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-") as folder:
        found = measure(Path(folder), options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), **found}))
    print(f"{machine.describe()}\n")
    print(table(found))


if __name__ == "__main__":
    main()
