"""What the store costs: a file written into it and read again by it, beside `cp` and `b3sum`.

`PYTHONPATH=tests python benchmarks/store.py [--layers N] [--repeats N] [--folder DIR] [--json FILE]`. The store's
side is what `felloe pull FILE` and `felloe models verify` do, without their process: the file is copied, its SHA-256,
its BLAKE3 and those of its 4 MiB chunks are taken on the way, and it is on the disk at the end. The other side is
`cp FILE COPY && sync COPY && b3sum COPY`, and for reading again `b3sum COPY`. They take turns in each repeat. Without
b3sum (Debian: apt-get install b3sum) its stand-in is the blake3 module's many-threaded file hash in its own process.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from big_model import write_big_model
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.sources.file import copy_file
from felloe.catalog.sources.plan import RemoteFile
from felloe.catalog.store import ModelStore

OURS, THEIRS = "Felloe's store", "cp, sync, b3sum"
_HASH = "import sys, blake3; print(blake3.blake3(max_threads=blake3.blake3.AUTO).update_mmap(sys.argv[1]).hexdigest())"


class Reading(NamedTuple):
    """Wall and processor time of one run, in seconds."""

    seconds: float
    processor: float


class Ours:
    """A store in a folder of its own."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._store = ModelStore(folder, Ed25519PrivateKey.generate())

    async def write(self) -> None:
        """Have the file come in and be accepted."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._store = ModelStore(self._folder, Ed25519PrivateKey.generate())
        await self._store.open()
        file = RemoteFile(path="m.gguf", role="model", local=str(self._source))
        blob = await copy_file(file, self._store.blobs, lambda done, size: None, self._store.make_room)
        await self._store.accept("bench", [TakenFile("m.gguf", "model", blob)], Facts(source=str(self._source)))

    async def verify(self) -> None:
        """Read it all again."""
        (verified,) = await self._store.verify()
        if verified.damaged:
            raise RuntimeError(f"the store says that its own file is damaged: {verified}")

    @property
    def content(self) -> Path:
        """The file in the store."""
        return self._store.path_of("bench")


class Theirs:
    """A copy and its hash."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source = source
        folder.mkdir(parents=True, exist_ok=True)
        self.content = folder / "m.gguf"
        self.hash = ["b3sum", "--no-names"] if shutil.which("b3sum") else [sys.executable, "-c", _HASH]

    async def write(self) -> None:
        """Copy, sync, hash."""
        self.content.unlink(missing_ok=True)
        _run("cp", "--reflink=never", str(self._source), str(self.content))
        _run("sync", str(self.content))
        await self.verify()

    async def verify(self) -> None:
        """Hash it again."""
        _run(*self.hash, str(self.content))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.PIPE)


def measure(work: Callable[[], object]) -> Reading:
    """Run to its end; the processor time is this process's and that of its children."""
    before, began = _processor(), time.perf_counter()
    asyncio.run(work())  # type: ignore[arg-type]
    return Reading(time.perf_counter() - began, _processor() - before)


def _processor() -> float:
    return sum(os.times()[:4])


def forget(path: Path) -> None:
    """Have the system drop what it holds of a file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def warm(path: Path) -> None:
    """Have the system hold all of a file in memory."""
    with path.open("rb", buffering=0) as file:
        while file.read(2**22):
            pass


def repeat(ours: Ours, theirs: Theirs, source: Path, repeats: int) -> dict[str, dict[str, list[Reading]]]:
    """The readings by kind of work and by who did it; who begins changes with each repeat."""
    kinds = ("write", "read again, from memory", "read again, from the disk")
    readings: dict[str, dict[str, list[Reading]]] = {kind: {OURS: [], THEIRS: []} for kind in kinds}
    sides: list[tuple[str, Ours | Theirs]] = [(OURS, ours), (THEIRS, theirs)]
    for number in range(repeats):
        order = sides if number % 2 else sides[::-1]
        for name, side in order:
            warm(source)
            readings[kinds[0]][name].append(measure(side.write))
        for name, side in order:
            warm(side.content)
            readings[kinds[1]][name].append(measure(side.verify))
        for name, side in order:
            forget(side.content)
            readings[kinds[2]][name].append(measure(side.verify))
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return readings


def table(readings: dict[str, dict[str, list[Reading]]], mebibytes: float) -> str:
    """Medians; a ratio above 1 means that the store takes longer."""
    lines = ["| | by | seconds, median (least to most) | MiB/s | processor s | x |", "|---|---|---|---|---|---|"]
    for kind, sides in readings.items():
        base = median(reading.seconds for reading in sides[THEIRS])
        for name, all_readings in sides.items():
            seconds = sorted(reading.seconds for reading in all_readings)
            processor = median(reading.processor for reading in all_readings)
            spread = f"{median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})"
            ratio = f"{median(seconds) / base:.2f}"
            lines.append(
                f"| {kind} | {name} | {spread} | {mebibytes / median(seconds):.0f} | {processor:.2f} | {ratio} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=19, help="of the model, about 55 MB each (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; default: the system's temporary one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the readings here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="felloe-bench-", dir=options.folder) as name:
        folder = Path(name)
        source = folder / "source.gguf"
        write_big_model(source, options.layers)
        mebibytes = source.stat().st_size / 2**20
        theirs = Theirs(source, folder / "copy")
        readings = repeat(Ours(source, folder / "store"), theirs, source, options.repeats)
        system = subprocess.run(["stat", "--file-system", "--format=%T", name], capture_output=True, text=True).stdout
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine.describe(), "mebibytes": mebibytes, "readings": readings})
        )
    print(f"{machine.describe()}, file system {system.strip()}; `{theirs.hash[0]}` as hash\n")
    print(f"**A model of {mebibytes:.0f} MiB, {options.repeats} repeats in turns; the source lies in memory**\n")
    print(table(readings, mebibytes))


if __name__ == "__main__":
    main()
