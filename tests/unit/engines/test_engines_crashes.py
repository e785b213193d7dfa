"""The crash history outlives a restart, a set clock, a damaged file and a full disk."""

import logging
from pathlib import Path

import pytest

from felloe.engines.crashes import CrashHistory


class Clocks:
    def __init__(self, monotonic: float = 50.0, wall: float = 1_800_000_000.0) -> None:
        self.monotonic = monotonic
        self.wall = wall

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def history(self, path: Path) -> CrashHistory:
        return CrashHistory(path, 600.0, clock=lambda: self.monotonic, wall_clock=lambda: self.wall)


async def test_crashes_count_on_after_a_restart_of_the_node(tmp_path: Path) -> None:
    clocks = Clocks()
    record = clocks.history(tmp_path / "crashes.json").record("sha256:a")
    await record.add(clocks.monotonic)
    clocks.pass_by(100)
    await record.add(clocks.monotonic)
    clocks.wall += 50
    after = Clocks(monotonic=3.0, wall=clocks.wall).history(tmp_path / "crashes.json").record("sha256:a")
    assert after.times == pytest.approx([3.0 - 150, 3.0 - 50])


async def test_a_quarantine_lasts_until_it_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "crashes.json"
    clocks = Clocks()
    await clocks.history(path).record("sha256:a").keep_out("it crashed at midnight")
    clocks.pass_by(1e7)
    record = clocks.history(path).record("sha256:a")
    assert record.quarantine == "it crashed at midnight"
    await record.forgive()
    assert clocks.history(path).record("sha256:a").quarantine == ""
    assert path.read_bytes() == b"{}"


async def test_old_crashes_leave_the_file(tmp_path: Path) -> None:
    clocks = Clocks()
    history = clocks.history(tmp_path / "crashes.json")
    await history.record("sha256:old").add(clocks.monotonic)
    clocks.pass_by(601)
    await history.record("sha256:new").add(clocks.monotonic)
    assert b"sha256:new" in (tmp_path / "crashes.json").read_bytes()
    assert b"sha256:old" not in (tmp_path / "crashes.json").read_bytes()


async def test_a_clock_that_was_set_back_makes_a_crash_new_but_not_everlasting(tmp_path: Path) -> None:
    clocks = Clocks()
    await clocks.history(tmp_path / "crashes.json").record("a").add(clocks.monotonic)
    clocks.wall -= 1e8
    assert clocks.history(tmp_path / "crashes.json").record("a").times == [clocks.monotonic]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": {"crashes": ["x"]}}', b"\xff\xfe", b'{"a": '])
def test_a_damaged_file_is_told_and_counts_as_empty(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "crashes.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Clocks().history(path).record("a").times == []
    assert str(path) in caplog.text


async def test_the_file_is_private_and_bounded(tmp_path: Path) -> None:
    clocks = Clocks()
    path = tmp_path / "state" / "crashes.json"
    history = clocks.history(path)
    for number in range(80):
        clocks.pass_by(1)
        for _ in range(30 if number == 79 else 1):
            await history.record(f"model-{number}").add(clocks.monotonic)
    assert path.stat().st_mode & 0o077 == 0
    again = clocks.history(path)
    assert len(again.record("model-79").times) == 16
    assert again.record("model-0").times == []
    assert path.stat().st_size < 10_000


async def test_a_disk_that_takes_nothing_loses_only_what_outlives_a_restart(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_bytes(b"")
    record = Clocks().history(tmp_path / "blocked" / "crashes.json").record("a")
    assert list(await record.add(1.0)) == [1.0]
