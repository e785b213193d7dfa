"""How fast bytes may pass, and for how long liars are remembered."""

from pathlib import Path

import pytest

from felloe.catalog.transfer.bans import Bans
from felloe.catalog.transfer.pacing import Pacer
from transfer_house import node

MIB = 2**20


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def seconds_for(pacer: Pacer, clock: Clock, size: int, at_most: float = float("inf")) -> float:
    """How long `size` bytes take in pieces over a line that carries `at_most` bytes a second."""
    began = clock.now
    for _ in range(size // 65_536):
        await pacer.take(65_536)
        clock.now += 65_536 / at_most
    return clock.now - began


async def test_what_passes_is_held_to_the_rate() -> None:
    clock = Clock()
    pacer = Pacer(4 * MIB, now=clock, sleep=clock.sleep)
    assert await seconds_for(pacer, clock, 40 * MIB) == pytest.approx(10, rel=0.05)


async def test_time_in_which_nothing_passed_is_not_saved_up() -> None:
    clock = Clock()
    pacer = Pacer(4 * MIB, now=clock, sleep=clock.sleep)
    clock.now += 3600
    assert await seconds_for(pacer, clock, 40 * MIB) == pytest.approx(10, rel=0.05)


async def test_without_a_rate_everything_passes_at_once() -> None:
    clock = Clock()
    assert await seconds_for(Pacer(0, now=clock, sleep=clock.sleep), clock, 1000 * MIB) == 0


@pytest.mark.parametrize(("idle", "rate"), [(1.0, 25), (0.0, 100 / 32), (0.5, 12.5 + 100 / 64)])
async def test_while_requests_are_answered_a_part_passes_by_the_time_that_the_processors_have(
    idle: float, rate: float
) -> None:
    clock, busy = Clock(), False
    pacer = Pacer(0, busy=lambda: busy, idle=lambda: idle, now=clock, sleep=clock.sleep)
    await seconds_for(pacer, clock, 400 * MIB, at_most=100 * MIB)
    busy = True
    assert await seconds_for(pacer, clock, 100 * MIB) == pytest.approx(100 / rate, rel=0.15)
    busy = False
    clock.now += 1
    assert await seconds_for(pacer, clock, 100 * MIB) == 0


async def test_nothing_rushes_in_between_one_request_and_the_next() -> None:
    clock, busy = Clock(), False
    pacer = Pacer(0, busy=lambda: busy, now=clock, sleep=clock.sleep)
    await seconds_for(pacer, clock, 400 * MIB, at_most=100 * MIB)
    busy = True
    await seconds_for(pacer, clock, MIB)
    busy = False
    assert await seconds_for(pacer, clock, MIB) > 0.25


async def test_a_line_that_was_never_measured_still_carries_something_while_requests_are_answered() -> None:
    clock = Clock()
    pacer = Pacer(0, busy=lambda: True, now=clock, sleep=clock.sleep)
    assert await seconds_for(pacer, clock, 8 * MIB) == pytest.approx(8, rel=0.05)
    slow = Pacer(MIB // 2, busy=lambda: True, now=clock, sleep=clock.sleep)
    assert await seconds_for(slow, clock, 8 * MIB) == pytest.approx(16, rel=0.05)


async def test_a_ban_doubles_and_outlives_a_restart(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "peers-banned.json"
    bans = Bans(path, clock)
    bans.load()
    for seconds in (600, 1200, 2400):
        await bans.lied(node(1), "a wrong chunk")
        clock.now += seconds - 1
        again = Bans(path, clock)
        again.load()
        assert again.is_banned(node(1)) and bans.is_banned(node(1))
        clock.now += 2
        assert not again.is_banned(node(1)) and not bans.is_banned(node(1))
    assert path.stat().st_mode & 0o777 == 0o600


async def test_only_so_many_liars_are_remembered_the_latest_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felloe.catalog.transfer.bans.write_atomic", Path.write_bytes)
    path = tmp_path / "peers-banned.json"
    bans = Bans(path, Clock())
    for number in range(270):
        await bans.lied(node(number), "a wrong chunk")
    assert not bans.is_banned(node(0))
    assert bans.is_banned(node(269))
    assert path.stat().st_size < 2**16


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff" * 99, b'{"x":1}', b'{"x":{"times":1,"until":9e99}}', b"[" * 99_999]
)
async def test_a_damaged_file_counts_as_empty(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "peers-banned.json"
    path.write_bytes(text)
    bans = Bans(path, Clock())
    bans.load()
    assert not bans.is_banned(node(1))
    await bans.lied(node(1), "a wrong chunk")
    again = Bans(path, Clock())
    again.load()
    assert again.is_banned(node(1))


async def test_a_clock_that_was_set_back_makes_no_ban_longer(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "peers-banned.json"
    clock.now = 4e9
    await Bans(path, clock).lied(node(1), "a wrong chunk")
    clock.now = 1000
    bans = Bans(path, clock)
    bans.load()
    assert bans.is_banned(node(1))
    clock.now += 601
    assert not bans.is_banned(node(1))
