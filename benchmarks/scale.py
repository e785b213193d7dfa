"""What a large network costs its hubs, and how fast it learns: simulated spokes against three real hubs.

`make bench-scale`, or `PYTHONPATH=tests python benchmarks/scale.py [--spokes 100,500,1000] [--json FILE]`.
"""

import argparse
import contextlib
import itertools
import json
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import scale_routing
from scale_crowd import Herd, ask_all
from scale_hubs import PARTS, Gateways, Hubs, Use, living

VICTIMS = 3
SETTLE_SECONDS = 20.0
CHANGES = 10
SEEN_SECONDS = 60.0
REJOIN_SECONDS = 300.0
_MARKERS = itertools.count(1)

Figures = dict[str, Any]


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def spread(times: Sequence[float], missing: int = 0) -> Figures:
    """p50, p99 and the greatest, in seconds; what never came counts as missing, and is in none of them."""
    ordered = sorted(times)
    if not ordered:
        return {"p50": None, "p99": None, "all": None, "missing": missing}
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "all": ordered[-1],
        "missing": missing,
    }


class Scene:
    """Three hubs and a crowd in several processes; measures one thing after the other."""

    def __init__(self, hubs: Hubs, spokes: int, processes: int) -> None:
        self.hubs = hubs
        self.spokes = spokes
        self.herds: list[Herd] = []
        self._processes = processes

    @property
    def everybody(self) -> int:
        """The nodes that live: the crowd and the hubs."""
        return sum(len(herd.ids) for herd in self.herds) + len(self.hubs.nodes)

    def herd(self, name: str, count: int) -> Herd:
        """Start a process of so many spokes; it joins meanwhile."""
        token = self.hubs.network.invite("--uses", str(count), "--expires", "2h")
        return Herd(token, [f"{name}-{number}" for number in range(count)])

    def gather(self) -> Figures:
        """Let the crowd join, over HTTPS, one after the other as the hubs take them."""
        shares = [self.spokes // self._processes + (n < self.spokes % self._processes) for n in range(self._processes)]
        self.herds = [self.herd(f"spoke-{number}", share) for number, share in enumerate(shares)]
        for herd in self.herds:
            herd.joined()
        self.complete()
        passed = max(herd.join_seconds for herd in self.herds)
        return {"seconds": passed, "per_second": self.spokes / passed}

    def complete(self, seconds: float = REJOIN_SECONDS) -> tuple[list[float], int]:
        """Wait until every spoke sees everybody alive: when each did, and how many never did."""
        ask_all(self.herds, "watch", what="alive", node="", value=self.everybody)
        return _flat(ask_all(self.herds, "times", node="", seconds=seconds))

    def idle(self, seconds: float) -> Figures:
        """What the hubs use while nobody asks anything."""
        before, crowd_before = self.hubs.use(), ask_all(self.herds, "used")
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        after, crowd_after = self.hubs.use(), ask_all(self.herds, "used")
        crowd = sum(late["seconds"] - early["seconds"] for early, late in zip(crowd_before, crowd_after, strict=True))
        return {
            "seconds": passed,
            "cores": {part: [_share(b, a, part, passed) for b, a in zip(before, after, strict=True)] for part in PARTS},
            "memory": {part: [used[part].memory for used in after if part in used] for part in PARTS},
            "crowd_cores": crowd / passed,
            "crowd_lag": max((late["lag"] for late in crowd_after), default=0.0),
        }

    def dissemination(self, what: str) -> Figures:
        """From a change that one spoke makes until each other spoke has it."""
        times: list[float] = []
        slowest: list[float] = []
        missing = 0
        for number in range(CHANGES):
            speaker = self.herds[number % len(self.herds)]
            node, marker = speaker.ids[number % len(speaker.ids)], next(_MARKERS)
            ask_all(self.herds, "watch", what=what, node=node, value=marker)
            at = speaker.ask("change", what=what, node=node, value=marker)["at"]
            seen, lost = _flat(ask_all(self.herds, "times", node=node, seconds=SEEN_SECONDS))
            times += [moment - at for moment in seen]
            slowest.append(max(seen, default=at) - at)
            missing += lost
            time.sleep(0.2)
        return spread(times, missing) | {"slowest_p50": statistics.median(slowest)}

    def death(self, number: signal.Signals) -> Figures:
        """From the death, or the freezing, of a few spokes until no gateway chooses any of them."""
        say(f"  {number.name} to {VICTIMS} spokes")
        victims = self.herd(f"victim-{number.name}-{next(_MARKERS)}", VICTIMS)
        try:
            victims.joined()
            self.herds.append(victims)
            _, missing = self.complete()
            _wait_for_hubs(self.hubs, self.everybody)
            self.herds.remove(victims)
            ask_all(self.herds, "watch", what="dead", node=victims.ids[0], value=0)
            gateways = Gateways(self.hubs.nodes, self.everybody)
            at = time.monotonic()
            victims.signal(number)
            seen, missing = _flat(ask_all(self.herds, "times", node=victims.ids[0], seconds=SEEN_SECONDS))
            at_hubs = gateways.times(SEEN_SECONDS)
            return {
                "spokes": spread([moment - at for moment in seen], missing),
                "hubs": spread([moment - at for moment in at_hubs], len(self.hubs.nodes) - len(at_hubs)),
            }
        finally:
            if victims in self.herds:
                self.herds.remove(victims)
            victims.close()

    def rejoin(self) -> Figures:
        """SIGKILL to every hub, then start them: when lines stand, and when everybody sees everybody again."""
        before = self.hubs.use()
        crowd = sum(used["seconds"] for used in ask_all(self.herds, "used"))
        at = time.monotonic()
        self.hubs.kill()
        self.hubs.restart()
        for node in self.hubs.nodes:
            node.wait_until_up()
        up = time.monotonic()
        seen, missing = self.complete()
        lines, without = _flat(ask_all(self.herds, "lines", since=at))
        used = sum(used["seconds"] for used in ask_all(self.herds, "used")) - crowd
        after = self.hubs.use()
        return {
            "hubs_up": up - at,
            "lines": spread([moment - at for moment in lines], without),
            "everybody": spread([moment - at for moment in seen], missing),
            "hub_seconds": {part: [use[part].seconds for use in after if part in use] for part in PARTS},
            "memory_before": sum(use["node"].memory for use in before) / len(before),
            "memory_after": sum(use["node"].memory for use in after) / len(after),
            "crowd_seconds": used,
        }

    def close(self) -> None:
        """End the crowd."""
        for herd in self.herds:
            herd.close()


def _share(before: dict[str, Use], after: dict[str, Use], part: str, passed: float) -> float:
    if part not in before or part not in after:
        return 0.0
    return (after[part].seconds - before[part].seconds) / passed


def _flat(answers: Sequence[dict[str, Any]]) -> tuple[list[float], int]:
    return [moment for answer in answers for moment in answer["times"]], sum(answer["missing"] for answer in answers)


def _wait_for_hubs(hubs: Hubs, wanted: int) -> None:
    deadline = time.monotonic() + SEEN_SECONDS
    while any(living(node) != wanted for node in hubs.nodes) and time.monotonic() < deadline:
        time.sleep(0.05)


@contextlib.contextmanager
def scene(spokes: int, processes: int) -> Iterator[Scene]:
    """Fresh hubs, and a crowd that has not joined yet; all ends with the block."""
    with tempfile.TemporaryDirectory(prefix="felloe-scale-") as folder:
        hubs = Hubs(Path(folder))
        stage = Scene(hubs, spokes, processes)
        try:
            hubs.start()
            yield stage
        finally:
            stage.close()
            hubs.close()


def measure(spokes: int, options: argparse.Namespace) -> Figures:
    """Everything about one size."""
    figures: Figures = {"spokes": spokes}
    say(f"{spokes} spokes: three hubs start")
    with scene(spokes, options.processes) as stage:
        time.sleep(5)
        figures["empty"] = stage.idle(options.seconds / 2)
        say(f"{spokes} spokes join")
        figures["join"] = stage.gather()
        say(f"  joined in {figures['join']['seconds']:.0f} s; settling")
        time.sleep(SETTLE_SECONDS)
        say("  idle")
        figures["idle"] = stage.idle(options.seconds)
        say(f"  {_cores(figures['idle'])}")
        for what in ("load", "record"):
            say(f"  a change of a {what} goes round")
            figures[what] = stage.dissemination(what)
            say(f"  {_seconds(figures[what])} s")
        for what, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            figures[what] = stage.death(number)
            say(f"  spokes know after {_seconds(figures[what]['spokes'])} s, hubs {_seconds(figures[what]['hubs'])} s")
        say("  SIGKILL to every hub")
        figures["rejoin"] = stage.rejoin()
        for what in ("lines", "everybody"):
            say(f"  {what}: {_seconds(figures['rejoin'][what])} s")
    return figures


def _cores(idle: Figures) -> str:
    parts = ", ".join(f"{part} {max(idle['cores'][part]):.1%}" for part in PARTS)
    return f"of one core: {parts}; crowd {idle['crowd_cores']:.2f} cores"


def _seconds(figures: Figures) -> str:
    if figures["p50"] is None:
        return "none"
    text = " / ".join(f"{figures[name]:.2f}" for name in ("p50", "p99", "all"))
    return text + (f" ({figures['missing']} never)" if figures["missing"] else "")


def table(results: Sequence[Figures]) -> str:
    """The figures of all sizes, side by side."""
    columns = [f"{result['spokes']:,} spokes" for result in results]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]

    def row(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    for part in PARTS:
        row(f"{part}, of one core", [f"{max(r['idle']['cores'][part]):.1%}" for r in results])
    row("a hub in all, of one core", [f"{max(_totals(r['idle'])):.1%}" for r in results])
    for part in PARTS:
        row(f"{part}, MiB", [f"{max(r['idle']['memory'][part]) / 2**20:.0f}" for r in results])
    row("a hub's memory per spoke, KiB", [f"{_memory_per_spoke(r):.0f}" for r in results])
    row("load to all others, s", [_seconds(r["load"]) for r in results])
    row("record to all others, s", [_seconds(r["record"]) for r in results])
    for what in ("killed", "frozen"):
        row(f"{what}: spokes know, s", [_seconds(r[what]["spokes"]) for r in results])
        row(f"{what}: hubs know, s", [_seconds(r[what]["hubs"]) for r in results])
    row("all hubs killed: hubs are up, s", [f"{r['rejoin']['hubs_up']:.1f}" for r in results])
    row("lines stand, s", [_seconds(r["rejoin"]["lines"]) for r in results])
    row("everybody sees everybody, s", [_seconds(r["rejoin"]["everybody"]) for r in results])
    row("joins a second", [f"{r['join']['per_second']:.0f}" for r in results])
    row("the crowd itself when idle, cores", [f"{r['idle']['crowd_cores']:.2f}" for r in results])
    return "\n".join(lines)


def _totals(idle: Figures) -> list[float]:
    return [sum(shares) for shares in zip(*(idle["cores"][part] for part in PARTS), strict=True)]


def _memory_per_spoke(result: Figures) -> float:
    grown = sum(sum(result["idle"]["memory"][part]) - sum(result["empty"]["memory"][part]) for part in PARTS)
    return grown / 3 / result["spokes"] / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spokes", default="100,500,1000", help="sizes, with commas")
    parser.add_argument("--seconds", type=float, default=30, help="how long the hubs are watched when idle")
    parser.add_argument("--processes", type=int, default=2, help="processes that the crowd is spread over")
    parser.add_argument("--json", type=Path, help="write every reading there")
    options = parser.parse_args()
    _raise_file_limit()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    results: list[Figures] = []
    routing: Figures = {}
    try:
        say("routing decisions")
        routing = scale_routing.measure()
        results.extend(measure(int(size), options) for size in options.spokes.split(",") if int(size))
    except KeyboardInterrupt:
        say("stopped; what was measured so far:")
        if not routing:
            return
    print(f"{machine.describe()}\n\n{scale_routing.table(routing)}")
    results.sort(key=lambda result: result["spokes"])
    if results:
        print(f"\n{table(results)}\n\nTimes: p50 / p99 / all.")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine.describe(), "routing": routing, "sizes": results}))


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
