"""What a gateway costs: the same fast fake engine asked directly, through other gateways, and through Felloe.

`python benchmarks/gateway.py [--quick] [--json FILE] [--only NAME]...`; docs/benchmarks.md explains the figures.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import psutil
from native import Scenario, Target, Watched, build, fake_engine, load
from nodes import Network
from peers import DEFAULT_FOLDER, PEERS, Missing

FIRST_TOKEN = Scenario("first token", 1, stream=True, tokens=4, pace=1)
REQUESTS = Scenario("requests", 32, stream=False, tokens=16, pace=0, burst=True)
STREAMS = tuple(Scenario(f"{count} streams", count, stream=True) for count in (1, 50, 500))
SCENARIOS = (FIRST_TOKEN, REQUESTS, *STREAMS)
DIRECT = "engine directly"

Readings = dict[str, Any]
Results = dict[str, dict[str, list[Readings]]]


@contextlib.contextmanager
def start_felloe(engine: str) -> Iterator[tuple[Target, Target]]:
    """A hub, a spoke with the engine attached, a spoke without; keys required. Gives the two spokes as targets."""
    with tempfile.TemporaryDirectory(prefix="felloe-bench-") as folder, Network(Path(folder)) as network:
        hub = network.hub()
        upstream = {"url": f"{engine}/v1", "slots": 1024, "models": ["fake"]}
        server = network.spoke("server", engine={"queue": 4096}, upstreams={"fake": upstream})
        asker = network.spoke("asker")
        network.wait_for_model(server, "fake")
        network.wait_for_model(asker, "fake")
        headers = tuple(f"{name}: {value}" for name, value in network.headers.items())
        yield (
            Target("Felloe, same node", server.url, (Watched("gateway", server.pid),), headers),
            Target(
                "Felloe, sealed through the mesh",
                asker.url,
                (Watched("gateway", asker.pid), Watched("server", server.pid), Watched("hub", hub.pid)),
                headers,
            ),
        )


def start_all(stack: contextlib.ExitStack, only: list[str]) -> tuple[list[Target], list[str]]:
    """Everything that can be started, the engine itself first; and a note for each that cannot."""
    engine = stack.enter_context(fake_engine())
    targets, notes = [Target(DIRECT, engine)], []
    for peer in PEERS:
        if only and peer.name.lower() not in only:
            continue
        try:
            targets.append(stack.enter_context(peer.start(engine, DEFAULT_FOLDER)))
        except Missing as reason:
            notes.append(f"{peer.name}: {reason}")
    if not only or "felloe" in only:
        targets += stack.enter_context(start_felloe(engine))
    return targets, notes


def measure(targets: list[Target], rounds: int, seconds: float) -> Results:
    """Every scenario on every target, in turns, so that what else the machine does falls on all alike."""
    results: Results = {target.name: {scenario.name: [] for scenario in SCENARIOS} for target in targets}
    for target in targets:
        load(target, Scenario("warm-up", 4, stream=True, tokens=8, pace=1), 2)
        settle(target)
    for scenario in SCENARIOS:
        for number in range(rounds):
            for target in targets:
                say(f"{scenario.name}, round {number + 1} of {rounds}: {target.name}")
                results[target.name][scenario.name].append(load(target, scenario, seconds))
                settle(target)
    return results


def settle(target: Target, seconds: float = 30) -> None:
    """Wait until the target has put away what the load left behind: under a tenth of a core for a quarter second."""
    deadline = time.monotonic() + seconds
    processes = [psutil.Process(watched.pid) for watched in target.watched]
    while time.monotonic() < deadline:
        before = [process.cpu_times()[:2] for process in processes]
        time.sleep(0.25)
        after = [process.cpu_times()[:2] for process in processes]
        if sum(map(sum, after)) - sum(map(sum, before)) < 0.025:
            return


def cpu(readings: Readings, labels: tuple[str, ...] = ()) -> float:
    """Seconds of processor time, of all watched processes or of those named."""
    return sum(process["cpu_s"] for label, process in readings["processes"].items() if not labels or label in labels)


def median(rows: list[Readings], value: Any) -> float:
    return statistics.median(value(row) for row in rows)


def added_ms(results: Results, name: str, scenario: Scenario, quantile: str) -> float:
    """Time to first token beyond the engine's own, in the same run."""
    own = median(results[DIRECT][scenario.name], lambda row: row["first_token_ms"][quantile])
    return median(results[name][scenario.name], lambda row: row["first_token_ms"][quantile]) - own


def events_per_cpu_second(rows: list[Readings], labels: tuple[str, ...] = ()) -> float:
    """Streamed tokens for each second of processor time."""
    return median(rows, lambda row: row["events"] / cpu(row, labels) if cpu(row, labels) else 0)


def tables(results: Results) -> str:
    """The Markdown for docs/benchmarks.md."""
    nginx = next((name for name in results if name.startswith("nginx")), None)
    parts = [_first_token_table(results), _requests_table(results, nginx), _streams_table(results, nginx)]
    return "\n\n".join(parts)


def _first_token_table(results: Results) -> str:
    lines = [
        "**Added time to first token** (ms, p50 / p99)\n",
        "| through | one connection | 50 streams | 500 streams |",
        "|---|---|---|---|",
    ]
    for name in results:
        if name == DIRECT:
            continue
        cells = [
            f"{added_ms(results, name, scenario, 'p50'):.2f} / {added_ms(results, name, scenario, 'p99'):.2f}"
            for scenario in (FIRST_TOKEN, *STREAMS[1:])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _requests_table(results: Results, nginx: str | None) -> str:
    def per_cpu(name: str) -> float:
        rows = results[name][REQUESTS.name]
        return median(rows, lambda row: row["requests"] / cpu(row) if cpu(row) else 0)

    lines = [
        f"**Without streaming** ({REQUESTS.connections} connections, {REQUESTS.tokens} tokens an answer)\n",
        "| through | requests/s | requests per CPU-second, all processes | x nginx |",
        "|---|---|---|---|",
    ]
    for name, by_scenario in results.items():
        rate = median(by_scenario[REQUESTS.name], lambda row: row["requests"] / row["seconds"])
        ratio = f"{per_cpu(name) / per_cpu(nginx):.2f}" if nginx and name != DIRECT else "-"
        efficiency = "-" if name == DIRECT else f"{per_cpu(name):,.0f}"
        lines.append(f"| {name} | {rate:,.0f} | {efficiency} | {ratio} |")
    return "\n".join(lines)


def _streams_table(results: Results, nginx: str | None) -> str:
    lines = [
        "**Streams of 64 tokens, one in 20 ms** (tokens delivered per CPU-second; for several processes: of the node "
        "that is asked, then of all together)\n",
        "| through | streams | tokens/s | per CPU-second | x nginx | stalled | failed | RSS MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_scenario in results.items():
        for scenario in STREAMS:
            rows = by_scenario[scenario.name]
            rate = median(rows, lambda row: row["events"] / row["seconds"])
            stalls, failed = sum(row["stalls"] for row in rows), sum(row["bad"] + row["refused"] for row in rows)
            if name == DIRECT:
                efficiency, ratio, memory = "-", "-", "-"
            else:
                figures = [events_per_cpu_second(rows, ("gateway",))]
                if len(rows[0]["processes"]) > 1:
                    figures.append(events_per_cpu_second(rows))
                base = events_per_cpu_second(results[nginx][scenario.name]) if nginx else 0
                efficiency = " / ".join(f"{figure:,.0f}" for figure in figures)
                ratio = " / ".join(f"{figure / base:.2f}" for figure in figures) if base else "-"
                memory = f"{median(rows, lambda row: row['processes']['gateway']['rss_mib']):.0f}"
            cells = [name, scenario.connections, f"{rate:,.0f}", efficiency, ratio, stalls, failed, memory]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of two seconds instead of three of five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every reading here")
    parser.add_argument(
        "--only", action="append", default=[], type=str.lower, help="nginx, vllm-router, litellm, felloe"
    )
    options = parser.parse_args()
    build()
    with contextlib.ExitStack() as stack:
        targets, notes = start_all(stack, options.only)
        results = measure(targets, *((1, 2.0) if options.quick else (3, 5.0)))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine.describe(), "notes": notes, "results": results}))
    print(f"{machine.describe()}; {'quick' if options.quick else 'full'} run\n")
    print(tables(results))
    for note in notes:
        print(f"\n{note}")


if __name__ == "__main__":
    main()
