import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from felloe.domain.errors import FelloeError
from felloe.host.files import HomeLock, make_private_directory, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_wholly_and_privately(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["state.json"]


def test_a_reader_of_the_old_file_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"one")
    with path.open("rb") as reader:
        write_atomic(path, b"two")
        assert reader.read() == b"one"


def test_the_content_is_on_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    seen: list[bool] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(path, b"one")
    assert seen == [False, True]  # the file, then the folder that names it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, b"old")

    def no_room(_: int) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(FelloeError) as caught:
        write_atomic(path, b"new")
    assert caught.value.code == "disk_full"
    assert str(path) in caught.value.detail
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "state.json", b"x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_keeps_the_old_content(small_disk: Path) -> None:
    path = small_disk / "state.json"
    write_atomic(path, b"old")
    with pytest.raises(FelloeError, match="disk_full"):
        write_atomic(path, b"x" * 2**20)
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["state.json"]


def test_a_private_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = make_private_directory(tmp_path / "a" / "keys")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    make_private_directory(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


HOLDER = """
import pathlib, sys
from felloe.host.files import HomeLock
HomeLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        yield child
        child.kill()


def test_a_lock_that_another_process_holds_names_it(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(FelloeError) as caught:
        HomeLock(tmp_path / "lock").acquire()
    assert caught.value.code == "home_in_use"
    assert str(tmp_path) in caught.value.detail
    assert f"process {holder.pid}" in caught.value.detail


def test_a_killed_holder_lets_go(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with HomeLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path / "lock")
    for _ in range(2):
        with lock, pytest.raises(FelloeError, match="home_in_use"):
            HomeLock(tmp_path / "lock").acquire()
        lock.release()
