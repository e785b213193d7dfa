from pathlib import PurePosixPath

import pytest

from felloe.host.cgroups import Limits, parse_bytes, parse_membership, parse_quota, parse_statistic, read_limits

GIB = 2**30


def limits(membership: str, files: dict[str, str]) -> Limits:
    return read_limits(membership, lambda path: files.get(str(path.relative_to(PurePosixPath("/sys/fs/cgroup")))))


def test_without_control_groups_there_is_no_limit() -> None:
    assert limits("", {}) == Limits()
    assert limits("0::/user.slice\n", {}) == Limits()


def test_version_2_limits_are_read_with_the_page_cache_counted_as_left() -> None:
    files = {
        "app/cpu.max": "150000 100000\n",
        "app/memory.max": f"{4 * GIB}\n",
        "app/memory.current": f"{3 * GIB}\n",
        "app/memory.stat": f"anon 1\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n",
    }
    assert limits("0::/app\n", files) == Limits(cores=1.5, memory_limit=4 * GIB, memory_left=2 * GIB)


def test_the_tightest_level_counts() -> None:
    files = {
        "cpu.max": "800000 100000",
        "a/cpu.max": "200000 100000",
        "a/b/cpu.max": "max 100000",
        "a/memory.max": str(2 * GIB),
        "a/memory.current": str(GIB),
        "a/b/memory.max": str(8 * GIB),
        "a/b/memory.current": "0",
    }
    assert limits("0::/a/b\n", files) == Limits(cores=2.0, memory_limit=2 * GIB, memory_left=GIB)


def test_in_a_container_the_limits_stand_at_the_root_that_it_sees() -> None:
    assert limits("0::/\n", {"memory.max": str(GIB)}).memory_limit == GIB
    assert limits("0::/../../elsewhere\n", {"memory.max": str(GIB)}).memory_limit == GIB


def test_version_1_limits_are_read() -> None:
    membership = "9:name=systemd:/\n4:memory:/box\n2:cpu,cpuacct:/\n0::/\n"
    files = {
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": str(GIB),
        "memory/box/memory.usage_in_bytes": str(GIB // 2),
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert limits(membership, files) == Limits(cores=0.5, memory_limit=GIB, memory_left=GIB // 2)


def test_version_1_without_a_quota_says_so_with_minus_one() -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert limits("1:cpu:/\n", files).cores is None


@pytest.mark.parametrize("text", [None, "", "max 100000", "5", "a b", "1 0", "-1 100000", "1 2 3"])
def test_what_is_no_quota_limits_nothing(text: str | None) -> None:
    assert parse_quota(text) is None


@pytest.mark.parametrize("text", [None, "", "max", "-1", "1.5", str(2**63)])
def test_what_is_no_size_limits_nothing(text: str | None) -> None:
    assert parse_bytes(text) is None


def test_odd_lines_are_passed_over() -> None:
    assert parse_membership("rubbish\n0::/a:b\n\n") == [((), "/a:b")]
    assert parse_statistic("x\ninactive_file many\ninactive_file 5\n", "inactive_file") == 5
