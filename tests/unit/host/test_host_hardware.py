import os

import pytest

from felloe.host.cgroups import Limits
from felloe.host.hardware import Inspector, limited_memory, parse_anonymous, parse_processor, usable_cores


def test_this_machine_is_described() -> None:
    inspector = Inspector()
    hardware = inspector.look([os.getpid()])
    inspector.close()
    assert hardware.processor
    assert 1 <= hardware.cores <= (os.cpu_count() or 1)
    assert 0 < hardware.memory_available <= hardware.memory_total
    assert 0 < hardware.memory_own < hardware.memory_total


def test_processes_that_are_gone_hold_nothing() -> None:
    assert Inspector().look([2**22 + 1]).memory_own == 0


def test_what_a_process_holds_is_counted_without_the_pages_of_files() -> None:
    status = "Name:\tx\nVmRSS:\t    900 kB\nRssAnon:\t     300 kB\nRssFile:\t     500 kB\nRssShmem:\t     100 kB\n"
    assert parse_anonymous(status) == 400 * 1024
    assert parse_anonymous("") == parse_anonymous("RssAnon: -5 kB\nRssAnon: many kB\n") == 0


def test_a_quota_is_rounded_down_to_whole_cores_but_never_to_none() -> None:
    assert usable_cores(8, Limits(cores=2.9)) == 2
    assert usable_cores(8, Limits(cores=0.5)) == 1
    assert usable_cores(2, Limits(cores=16.0)) == 2
    assert usable_cores(2, Limits()) == 2


def test_memory_is_what_the_control_group_leaves() -> None:
    assert limited_memory(100, 80, Limits()) == (100, 80)
    assert limited_memory(100, 80, Limits(memory_limit=50, memory_left=10)) == (50, 10)
    assert limited_memory(100, 80, Limits(memory_limit=50, memory_left=None)) == (50, 50)
    assert limited_memory(100, 80, Limits(memory_limit=500, memory_left=400)) == (100, 80)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R)  Xeon(R)\n\nmodel name\t: other\n", "Intel(R) Xeon(R)"),
        ("processor\t: 0\nBogoMIPS\t: 108\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", ""),
        ("", ""),
    ],
)
def test_the_processor_is_named_from_cpuinfo(text: str, name: str) -> None:
    assert parse_processor(text) == name
