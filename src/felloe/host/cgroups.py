"""What Linux control groups let this process use: processor time and memory, in versions 1 and 2.

A limit may stand at any level above the process, so every level is asked and the tightest one counts. Inside a
container some levels are out of sight; what cannot be read limits nothing.
Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the Linux kernel.
"""

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

_Number = TypeVar("_Number", int, float)

ReadText = Callable[[PurePosixPath], str | None]
"""The text of a file, or None when it is not there."""

ROOT = PurePosixPath("/sys/fs/cgroup")


class Limits(NamedTuple):
    """`cores` may be a fraction; memory in bytes. None: no limit."""

    cores: float | None = None
    memory_limit: int | None = None
    memory_left: int | None = None


def read_limits(membership: str, read: ReadText) -> Limits:
    """The limits for a process whose /proc/self/cgroup is `membership`."""
    limits = Limits()
    for controllers, path in parse_membership(membership):
        if not controllers:
            limits = _tighter(limits, _version_2(path, read))
        if "cpu" in controllers:
            limits = _tighter(limits, _version_1_cpu(path, read))
        if "memory" in controllers:
            limits = _tighter(limits, _version_1_memory(path, read))
    return limits


def parse_membership(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Lines `<number>:<controllers>:<path>`; no controllers means version 2."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return [(tuple(part for part in line[1].split(",") if part), line[2]) for line in lines if len(line) == 3]


def parse_quota(text: str | None) -> float | None:
    """`cpu.max`: `<quota> <period>` in microseconds, or `max <period>`; gives cores."""
    words = (text or "").split()
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def parse_bytes(text: str | None) -> int | None:
    """A number of bytes; `max` and version 1's huge number both mean no limit."""
    word = (text or "").strip()
    return int(word) if word.isdigit() and int(word) < 2**60 else None


def parse_statistic(text: str | None, name: str) -> int:
    """One line `<name> <number>` of a statistics file, 0 when it is not there."""
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdigit():
            return int(words[1])
    return 0


def _version_2(path: str, read: ReadText) -> Limits:
    limits = Limits()
    for folder in _levels(ROOT, path):
        cores = parse_quota(read(folder / "cpu.max"))
        memory = _memory(folder, read, "memory.max", "memory.current", ("inactive_file", "active_file"))
        limits = _tighter(limits, memory._replace(cores=cores))
    return limits


def _version_1_cpu(path: str, read: ReadText) -> Limits:
    limits = Limits()
    for folder in _levels(ROOT / "cpu", path):
        quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        limits = _tighter(limits, Limits(cores=parse_quota(f"{quota} {period}")))
    return limits


def _version_1_memory(path: str, read: ReadText) -> Limits:
    limits = Limits()
    for folder in _levels(ROOT / "memory", path):
        caches = ("total_inactive_file", "total_active_file")
        level = _memory(folder, read, "memory.limit_in_bytes", "memory.usage_in_bytes", caches)
        limits = _tighter(limits, level)
    return limits


def _memory(folder: PurePosixPath, read: ReadText, limit_file: str, usage_file: str, caches: tuple[str, ...]) -> Limits:
    """The page cache counts as used, but is given back on demand, so it is left: as the kernel's MemAvailable has it.

    Files that are mapped, such as the weights of models, are in its active part.
    """
    limit = parse_bytes(read(folder / limit_file))
    if limit is None:
        return Limits()
    statistics = read(folder / "memory.stat")
    used = parse_bytes(read(folder / usage_file)) or 0
    used -= sum(parse_statistic(statistics, cache) for cache in caches)
    return Limits(memory_limit=limit, memory_left=min(limit, max(0, limit - used)))


def _levels(mount: PurePosixPath, path: str) -> Iterator[PurePosixPath]:
    inside = PurePosixPath(path.lstrip("/"))
    if ".." in inside.parts:
        inside = PurePosixPath()
    yield mount / inside
    for parent in inside.parents:
        yield mount / parent


def _tighter(first: Limits, second: Limits) -> Limits:
    return Limits(
        _smaller(first.cores, second.cores),
        _smaller(first.memory_limit, second.memory_limit),
        _smaller(first.memory_left, second.memory_left),
    )


def _smaller(first: _Number | None, second: _Number | None) -> _Number | None:
    return second if first is None else first if second is None else min(first, second)
