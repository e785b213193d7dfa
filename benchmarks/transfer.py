"""A model from other nodes, over links of a known rate: beside one `curl` from one machine, and for many nodes at once.

`PYTHONPATH=tests python benchmarks/transfer.py [--layers N] [--rate 1gbit] [--repeats N] [--at-once N]
[--crowd-layers N] [--crowd-rate 1gbit] [--folder DIR] [--json FILE]`. As root on Linux; it needs iproute2, curl and
nginx (Debian: apt-get install iproute2 curl nginx-light). Every machine is a network namespace with a link of its own;
all share this machine's processors, so a rate is only reached where these suffice: compare with the curl beside it.
Times are those of the whole command `felloe pull NAME`, start of Python included, until the model is checked and in the
store; curl's are those of `curl` alone, from nginx over TLS 1.3, and nothing is checked.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import machine
from links import ShapedLab, bits_per_second
from native import server, wait_until
from placed import PlacedNetwork, begin, command, finish, timed, wait_for_approval

from big_model import write_big_model
from chaos.lab import Place
from chaos.nodes import ChaosNode

MODEL = "big"
HOLDERS = (1, 2, 4)
_NGINX = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address}:8443 ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        location / {{ root {root}; }}
    }}
}}
"""


@contextmanager
def nginx(place: Place, file: Path, folder: Path) -> Iterator[str]:
    """Serve one file from a machine over TLS; gives its URL."""
    folder.mkdir(parents=True)
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=bench", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(made, check=True, capture_output=True)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, address=place.address, root=file.parent))
    # Its workers run as another user, who has to come to the file.
    for path in (folder, *file.parents[:2]):
        path.chmod(0o755)
    file.chmod(0o644)
    url = f"https://{place.address}:8443"
    with server("nginx", [*place.prefix, "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]) as process:
        wait_until("nginx", lambda: _curl(place, url, Path("/dev/null")).wait() == 0, process=process)
        yield f"{url}/{file.name}"


def _curl(place: Place, url: str, target: Path) -> subprocess.Popen[bytes]:
    arguments = ["curl", "--silent", "--insecure", "--output", str(target), url]
    return subprocess.Popen([*place.prefix, *arguments])


def curl(place: Place, url: str, target: Path, size: int) -> None:
    """Fetch to the end. Raises RuntimeError when it is not the whole file."""
    _curl(place, url, target).wait()
    if not target.exists() or target.stat().st_size != size:
        raise RuntimeError("curl did not bring the whole file")
    target.unlink()


def pull(node: ChaosNode) -> None:
    command(node, "pull", MODEL)


def forget(node: ChaosNode) -> None:
    """The node has never had the model."""
    command(node, "models", "remove", MODEL)


def check(node: ChaosNode, source: Path) -> None:
    """Raises RuntimeError unless the store holds exactly the file."""
    blobs = [path for path in (node.home.models / "blobs").iterdir() if len(path.name) == 64]
    if len(blobs) != 1 or subprocess.run(["cmp", str(blobs[0]), str(source)], check=False).returncode:
        raise RuntimeError(f"{node.name} does not hold the file that was pulled")


def few_holders(lab: ShapedLab, source: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat, by from whom it came; curl's turn comes before each of Felloe's."""
    size = source.stat().st_size
    with PlacedNetwork(lab) as network:
        holders = [network.add(f"holder-{number + 1}") for number in range(max(HOLDERS))]
        taker = network.add("taker")
        command(holders[0], "pull", str(source), "--name", MODEL)
        for node in (*holders, taker):
            wait_for_approval(node, MODEL)
        have = 1
        seconds: dict[str, list[float]] = {"one machine, curl": []}
        with nginx(holders[0].place, source, lab.folder / "nginx") as url:
            for count in HOLDERS:
                for node in holders[have:count]:
                    pull(node)
                have = count
                name = f"{count} node{'s' if count > 1 else ''}, felloe pull"
                seconds[name] = []
                for number in range(repeats):
                    fetched = timed(lambda: curl(taker.place, url, lab.folder / "fetched", size))
                    seconds["one machine, curl"].append(fetched)
                    seconds[name].append(timed(lambda: pull(taker)))
                    check(taker, source)
                    forget(taker)
                    print(f"{name}: {number + 1} of {repeats}", file=sys.stderr, flush=True)
        seconds["start of the command alone"] = [timed(lambda: command(taker, "models")) for _ in range(repeats)]
    return seconds


def crowd(lab: ShapedLab, source: Path, count: int) -> dict[str, dict[str, float]]:
    """What it takes until so many nodes have the model, beside as many curls at once."""
    size = source.stat().st_size
    with PlacedNetwork(lab) as network:
        holder = network.add("holder")
        takers = [network.add(f"taker-{number + 1}") for number in range(count)]
        command(holder, "pull", str(source), "--name", MODEL)
        for node in takers:
            wait_for_approval(node, MODEL)
        sent = lab.sent_bytes("holder")
        began = time.perf_counter()
        ends = ends_of([begin(node, "pull", MODEL) for node in takers], began)
        ours = summary_of(ends, (lab.sent_bytes("holder") - sent) / size)
        for node in takers:
            check(node, source)
            forget(node)
        with nginx(holder.place, source, lab.folder / "nginx") as url:
            sent = lab.sent_bytes("holder")
            began = time.perf_counter()
            targets = [lab.folder / f"fetched-{node.name}" for node in takers]
            fetches = [_curl(node.place, url, target) for node, target in zip(takers, targets, strict=True)]
            ends = ends_of(fetches, began)
            theirs = summary_of(ends, (lab.sent_bytes("holder") - sent) / size)
            if any(target.stat().st_size != size for target in targets):
                raise RuntimeError("curl did not bring the whole file")
    return {"felloe pull": ours, "curl": theirs}


def ends_of(processes: Sequence[subprocess.Popen[Any]], began: float) -> list[float]:
    """When each process ended, in seconds since `began`. Raises RuntimeError when one failed."""
    ends: dict[int, float] = {}
    while len(ends) < len(processes):
        for number, process in enumerate(processes):
            if number not in ends and process.poll() is not None:
                ends[number] = time.perf_counter() - began
        time.sleep(0.02)
    for process in processes:
        finish(process)
    return sorted(ends.values())


def summary_of(ends: list[float], copies: float) -> dict[str, float]:
    return {"first": ends[0], "median": median(ends), "last": ends[-1], "copies": copies}


def holders_table(seconds: dict[str, list[float]], size: int, rate: str) -> str:
    """`of the link` is the share of the rate that the content alone took."""
    lines = ["| from | seconds, median (least to most) | MB/s | of the link | x curl |", "|---|---|---|---|---|"]
    base = median(seconds["one machine, curl"])
    for name, times in seconds.items():
        middle = median(times)
        spread = f"{middle:.2f} ({min(times):.2f} to {max(times):.2f})"
        if name.startswith("start"):
            lines.append(f"| {name} | {spread} | - | - | - |")
            continue
        share = 8 * size / middle / bits_per_second(rate)
        lines.append(f"| {name} | {spread} | {size / middle / 1e6:.0f} | {share:.0%} | {middle / base:.2f} |")
    return "\n".join(lines)


def crowd_table(summary: dict[str, dict[str, float]], ideal: float) -> str:
    """Copies count all that the first holder sent, headers included."""
    lines = [
        "| by | first, s | median, s | last, s | last, x ideal | copies by the first holder |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in summary.items():
        times = " | ".join(f"{found[key]:.1f}" for key in ("first", "median", "last"))
        lines.append(f"| {name} | {times} | {found['last'] / ideal:.2f} | {found['copies']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=19, help="of the model, about 55 MB each (default: %(default)s)")
    parser.add_argument("--rate", default="1gbit", help="of every link, as tc writes it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=8, help="nodes that fetch at the same time; 0 leaves that out")
    parser.add_argument("--crowd-layers", type=int, help="default: as --layers")
    parser.add_argument("--crowd-rate", help="default: as --rate")
    parser.add_argument("--folder", type=Path, help="where the nodes' homes lie; default: the system's temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the readings here")
    options = parser.parse_args()
    missing = [name for name in ("curl", "nginx", "openssl", "tc", "cmp") if shutil.which(name) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    readings: dict[str, Any] = {"machine": machine.describe()}
    print(f"{machine.describe()}\n")
    if options.repeats:
        with workplace(options.folder, options.layers, options.rate) as (lab, source):
            size = source.stat().st_size
            seconds = readings["holders"] = few_holders(lab, source, options.repeats)
        print(f"**A model of {size / 2**20:.0f} MiB, links of {options.rate}, {options.repeats} repeats**\n")
        print(holders_table(seconds, size, options.rate) + "\n")
    if options.at_once:
        rate = options.crowd_rate or options.rate
        with workplace(options.folder, options.crowd_layers or options.layers, rate) as (lab, source):
            size = source.stat().st_size
            summary = readings["crowd"] = crowd(lab, source, options.at_once)
        ideal = 8 * size / bits_per_second(rate)
        print(
            f"**{options.at_once} nodes fetch {size / 2**20:.0f} MiB at once, links of {rate}; ideal {ideal:.1f} s**\n"
        )
        print(crowd_table(summary, ideal))
    if options.json:
        options.json.write_text(json.dumps(readings))


@contextmanager
def workplace(parent: Path | None, layers: int, rate: str) -> Iterator[tuple[ShapedLab, Path]]:
    """Machines to be and the file that is to spread; the file lies in memory as far as it fits."""
    with tempfile.TemporaryDirectory(prefix="felloe-bench-", dir=parent) as name:
        source = Path(name) / "source" / "big.gguf"
        source.parent.mkdir()
        write_big_model(source, layers)
        lab = ShapedLab(Path(name), rate)
        try:
            yield lab, source
        finally:
            lab.close()


if __name__ == "__main__":
    main()
