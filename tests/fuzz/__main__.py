"""`python -m fuzz [--seconds N] [--surface NAME]`: exit code 0 when nothing was found, 1 otherwise."""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fuzz.choose import keep
from fuzz.surface import Surface
from fuzz.surfaces import SURFACES

_MOST_MEBIBYTES = 2048
_HANG_SECONDS = 60
_TESTS = Path(__file__).parents[1]


class Run(NamedTuple):
    """What a surface's turn came to; coverage in edges of the instrumented code."""

    surface: str
    inputs: int
    before: int
    after: int
    corpus: int
    findings: tuple[str, ...]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description="Look for input that breaks what reads a stranger's.")
    parser.add_argument("--seconds", type=float, default=600, help="for all surfaces together (default: %(default)s)")
    parser.add_argument(
        "--surface", action="append", default=[], choices=sorted(SURFACES), help="only this; repeatable"
    )
    parser.add_argument("--folder", type=Path, help="where corpora and findings go (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="take the smallest input of each new way into corpus/")
    return parser.parse_args()


def fuzz(surface: Surface, folder: Path, seconds: float) -> Run:
    """One surface for so many seconds of wall time."""
    there = folder.absolute() / surface.name
    there.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")])
    limits = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-timeout={_HANG_SECONDS}",
        f"-rss_limit_mb={_MOST_MEBIBYTES}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.guided", surface.name, str(there), *limits, f"-artifact_prefix={there}/findings/"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(there), "PYTHONPATH": path},
        timeout=seconds + 4 * _HANG_SECONDS,
    )
    (there / "log").write_text(done.stdout)
    coverage = [int(found) for found in re.findall(r"\bcov: ([0-9]+)", done.stdout)]
    inputs = re.search(r"stat::number_of_executed_units: ([0-9]+)", done.stdout)
    if inputs is None:
        raise RuntimeError(f"{surface.name} did not run:\n{done.stdout[-3000:]}")
    found = [path for path in (there / "findings").iterdir() if path.suffix != ".why"]
    corpus = len(list((there / "corpus").iterdir()))
    return Run(
        surface.name, int(inputs[1]), min(coverage), max(coverage), corpus, tuple(sorted(_told(path) for path in found))
    )


def _told(path: Path) -> str:
    why = path.with_name(f"{path.name}.why")
    return f"{path}: {why.read_text().strip() if why.exists() else 'it hung, or took too much memory'}"


def main() -> None:
    arguments = read_arguments()
    if importlib.util.find_spec("atheris") is None:
        sys.exit(
            "fuzzing needs atheris, which has no build for this system or is not installed: see requirements/fuzz.in"
        )
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="felloe-fuzz-"))
    surfaces = [SURFACES[name] for name in arguments.surface or SURFACES]
    print(
        "| surface | inputs | coverage at first | at last | corpus | findings |\n|---|---|---|---|---|---|", flush=True
    )
    found: list[str] = []
    for surface in surfaces:
        run = fuzz(surface, folder, arguments.seconds / len(surfaces))
        found += run.findings
        print(
            f"| {run.surface} | {run.inputs} | {run.before} | {run.after} | {run.corpus} | {len(run.findings)} |",
            flush=True,
        )
        if arguments.keep:
            keep(surface, folder / surface.name / "corpus")
    print("\n".join(["", *found, f"{len(found)} findings; everything lies in {folder}"]))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
