"""What an idle node costs: memory and share of a core, without an engine. `python benchmarks/idle.py [--seconds N]`"""

import argparse
import tempfile
import time
from pathlib import Path

import machine
import psutil
from nodes import Network, Node


def tree(node: Node) -> list[psutil.Process]:
    process = psutil.Process(node.pid)
    return [process, *process.children(recursive=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-") as folder, Network(Path(folder)) as network:
        nodes = [network.hub(), network.spoke("spoke")]
        time.sleep(5)  # what a start leaves behind is not idling
        processes = {node.name: tree(node) for node in nodes}
        before = {name: [sum(each.cpu_times()[:2]) for each in members] for name, members in processes.items()}
        started = time.monotonic()
        time.sleep(options.seconds)
        passed = time.monotonic() - started
        print(f"{machine.describe()}\n")
        print(f"**Idle for {passed:.0f} s**, a hub and one spoke without engine\n")
        print("| process | RSS MiB | of one core |\n|---|---|---|")
        for name, members in processes.items():
            for number, member in enumerate(members):
                share = (sum(member.cpu_times()[:2]) - before[name][number]) / passed
                label = name if number == 0 else f"{name}'s {member.name()}"
                print(f"| {label} | {member.memory_info().rss / 2**20:.0f} | {share:.2%} |")


if __name__ == "__main__":
    main()
