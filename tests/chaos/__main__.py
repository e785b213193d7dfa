"""`python -m chaos [--seconds N] [--seed N] [--nodes N]`: exit code 0 when no invariant was broken, 1 when one was."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from chaos.lab import FOLDER_PREFIX, sweep
from chaos.run import Plan, run_chaos
from chaos.schedule import KINDS


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="Faults, one after the other, on a network under load.")
    parser.add_argument("--seconds", type=float, default=1800, help="how long the faults go on (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the same seed draws the same faults (default: %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=5, help="nodes with the tiny model (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=2, help="clients on each node (default: %(default)s)")
    parser.add_argument("--fault", action="append", default=[], choices=sorted(KINDS), help="only this one; repeatable")
    parser.add_argument("--loopback", action="store_true", help="without namespaces: processes and signals alone")
    parser.add_argument("--report", type=Path, help="also write the table here")
    parser.add_argument("--records", type=Path, help="also write everything that was noted here, as JSON")
    parser.add_argument("--keep", type=Path, help="keep the nodes' logs in this folder")
    parser.add_argument("--sweep", action="store_true", help="only remove what killed runs left behind")
    return parser.parse_args()


def main() -> int:
    options = read_arguments()
    if options.sweep:
        print("\n".join(sweep()) or "nothing is left of earlier runs")
        return 0
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {line}", file=sys.stderr, flush=True)

    plan = Plan(
        seconds=options.seconds,
        seed=options.seed,
        nodes=options.nodes,
        kinds=frozenset(options.fault),
        clients=options.clients,
        loopback=options.loopback,
    )
    # SIGTERM ends a run as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER_PREFIX}-{os.getpid()}-") as folder:
        try:
            result = asyncio.run(run_chaos(plan, Path(folder), say, options.keep))
        except KeyboardInterrupt:
            say("interrupted; everything it started has ended")
            return 130
    print(result.report)
    if options.report:
        options.report.write_text(result.report)
    if options.records:
        options.records.write_bytes(msgspec.json.encode(result.records))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
