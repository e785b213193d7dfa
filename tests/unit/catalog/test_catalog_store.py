import asyncio
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from gguf_bytes import STRING, GgufFile, tiny_model

BIG = 24 * 2**20


def write_model(path: Path, file: GgufFile | None = None) -> str:
    """Write a model; returns its digest."""
    data = bytes(file or tiny_model())
    path.write_bytes(data)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "thing.gguf"
    write_model(path)
    return path


@pytest.fixture
async def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models", now=lambda: 1_800_000_000.5)
    await store.open()
    return store


async def reopened(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    await store.open()
    return store


async def refused(store: ModelStore, path: Path, name: str | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await store.pull_file(path, name)
    return caught.value


async def test_a_pulled_model_is_described_listed_and_kept(store: ModelStore, source: Path, tmp_path: Path) -> None:
    model = await store.pull_file(source)
    assert (model.name, model.architecture, model.quantisation, model.context) == ("tiny-thing", "llama", "Q8_0", 512)
    assert model.digest == f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}"
    assert (model.size, model.created) == (source.stat().st_size, 1_800_000_000)
    assert store.list() == (model,)
    assert store.path_of("tiny-thing").read_bytes() == source.read_bytes()
    assert (await reopened(tmp_path)).list() == (model,)


async def test_everything_in_the_folder_is_for_its_owner_alone(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source)
    folder = tmp_path / "models"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


async def test_progress_is_told_up_to_the_end(store: ModelStore, source: Path) -> None:
    told: list[tuple[int, int]] = []
    model = await store.pull_file(source, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (model.size, model.size)


async def test_the_same_file_and_name_again_changes_nothing(store: ModelStore, source: Path, tmp_path: Path) -> None:
    first = await store.pull_file(source)
    before = names(tmp_path / "models")
    assert await store.pull_file(source) == first
    assert names(tmp_path / "models") == before


async def test_another_file_under_a_taken_name_is_refused(store: ModelStore, source: Path, tmp_path: Path) -> None:
    first = await store.pull_file(source)
    before = names(tmp_path / "models")
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes()[:-1] + b"\x01")
    error = await refused(store, other)
    assert (error.code, error.param) == ("invalid_value", "name")
    assert first.digest in error.detail
    assert names(tmp_path / "models") == before
    longer = tiny_model()
    longer.data_size += 1
    write_model(other, longer)
    assert (await refused(store, other)).code == "invalid_value"


async def test_one_file_may_have_two_names(store: ModelStore, source: Path) -> None:
    await store.pull_file(source, "one")
    await store.pull_file(source, "Org/Two:latest")
    assert [model.name for model in store.list()] == ["Org/Two:latest", "one"]
    assert store.path_of("one") == store.path_of("Org/Two:latest")
    await store.remove("one")
    assert store.path_of("Org/Two:latest").is_file()
    with pytest.raises(FelloeError, match="no model 'one'"):
        store.path_of("one")


async def test_names_that_differ_in_case_are_different_models(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source, "tiny")
    other = tmp_path / "other.gguf"
    write_model(other, tiny_model(general__name=(STRING, "other")))
    await store.pull_file(other, "TINY")
    assert len({store.path_of("tiny"), store.path_of("TINY")}) == 2


async def test_a_removed_model_leaves_nothing(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source)
    await store.remove("tiny-thing")
    assert store.list() == ()
    assert names(tmp_path / "models") == set()
    with pytest.raises(FelloeError) as caught:
        await store.remove("tiny-thing")
    assert caught.value.code == "model_not_found"


async def test_a_file_that_is_not_there_is_named(store: ModelStore, tmp_path: Path) -> None:
    error = await refused(store, tmp_path / "absent.gguf")
    assert error.code == "not_found"
    assert "absent.gguf" in error.detail


async def test_what_is_no_regular_file_is_refused_at_once(store: ModelStore, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    assert (await refused(store, pipe)).code == "bad_model_file"
    assert (await refused(store, tmp_path)).code == "bad_model_file"


@pytest.mark.parametrize("keep", [0, 3, 40, 700, -1])
async def test_a_truncated_file_is_refused_by_name_and_leaves_nothing(
    store: ModelStore, source: Path, tmp_path: Path, keep: int
) -> None:
    source.write_bytes(source.read_bytes()[:keep])
    error = await refused(store, source)
    assert error.code == "bad_model_file"
    assert error.detail.startswith(f"{source}: ")
    assert names(tmp_path / "models") == set()


async def test_a_full_disk_is_said_before_and_during_the_copy(
    store: ModelStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        assert (await refused(store, source)).code == "disk_full"

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    error = await refused(store, source)
    assert error.code == "disk_full"
    assert names(tmp_path / "models") == set()


async def test_a_full_disk_at_the_last_step_takes_the_copy_back(
    store: ModelStore, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, _data: bytes) -> None:
        raise FelloeError("disk_full", f"no room to write {path}")

    monkeypatch.setattr("felloe.catalog.store.write_atomic", no_room)
    assert (await refused(store, source)).code == "disk_full"
    assert names(tmp_path / "models") == set()
    assert store.list() == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_really_full_disk_keeps_what_was_there(
    small_disk: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(small_disk / "models")
    await store.open()
    model = await store.pull_file(source)
    large = tiny_model(general__name=(STRING, "large"))
    large.data_size += 2 * 2**20
    path = tmp_path / "large.gguf"
    write_model(path, large)
    before = names(small_disk / "models")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(BIG, 0, BIG))
    assert (await refused(store, path)).code == "disk_full"
    assert names(small_disk / "models") == before
    assert store.list() == (model,)


async def test_a_pull_that_is_called_off_leaves_nothing(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    file = tiny_model()
    file.data_size = BIG
    write_model(path, file)
    begun = asyncio.Event()
    pull = asyncio.create_task(store.pull_file(path, progress=lambda _done, _total: begun.set()))
    await begun.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert names(tmp_path / "models") == set()


async def test_two_pulls_of_one_name_at_once_accept_one_file(store: ModelStore, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes()[:-1] + b"\x01")
    results = await asyncio.gather(
        *(store.pull_file(path, "same") for path in (source, other, source, other)), return_exceptions=True
    )
    kept = store.list()[0].digest
    assert {result.digest for result in results if not isinstance(result, BaseException)} == {kept}
    refusals = [result for result in results if isinstance(result, FelloeError)]
    assert {error.code for error in refusals} == {"invalid_value"}
    assert len(refusals) == 2
    assert len(names(tmp_path / "models")) == 2


async def test_a_file_that_lost_bytes_is_not_offered(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source)
    os.truncate(store.path_of("tiny-thing"), 100)
    after = await reopened(tmp_path)
    assert after.list() == ()
    assert "size: 100 bytes of tiny-thing" in after.problems()[0]
    model = await after.pull_file(source)
    assert (await reopened(tmp_path)).list() == (model,)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":2}', b"\xff" * 100, b"[" * 100_000])
async def test_a_damaged_entry_is_told_and_its_file_is_kept(
    store: ModelStore, source: Path, tmp_path: Path, content: bytes
) -> None:
    await store.pull_file(source)
    file = store.path_of("tiny-thing")
    next((tmp_path / "models").glob("*.json")).write_bytes(content)
    after = await reopened(tmp_path)
    assert after.list() == ()
    assert len(after.problems()) == 1
    assert file.is_file()


async def test_an_entry_cannot_point_outside_the_folder(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source)
    entry = next((tmp_path / "models").glob("*.json"))
    digest = store.list()[0].digest
    entry.write_text(entry.read_text().replace(digest, "sha256:../../../etc/passwd"))
    after = await reopened(tmp_path)
    assert after.list() == ()
    assert "does not belong" in after.problems()[0]


async def test_only_our_own_leftovers_are_cleared(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await store.pull_file(source)
    folder = tmp_path / "models"
    kept = names(folder) | {"notes.txt", ".hidden", "own.gguf"}
    for name in ("notes.txt", ".hidden", "own.gguf", ".abc.part", "0" * 64 + ".gguf", f".{'0' * 32}.json.x1"):
        (folder / name).write_text("x")
    await reopened(tmp_path)
    assert names(folder) == kept


KILLED = """
import asyncio, pathlib, sys
from felloe.catalog.store import ModelStore

async def main(folder, *paths):
    store = ModelStore(pathlib.Path(folder))
    await store.open()
    print("ready", flush=True)
    while True:
        for path in paths:
            path = pathlib.Path(path)
            await store.pull_file(path, path.stem, progress=lambda *_: print("step", flush=True))
            print("step", flush=True)
        for path in paths:
            await store.remove(pathlib.Path(path).stem)
            print("step", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_at_any_step_leaves_only_whole_models(tmp_path: Path) -> None:
    digests = {}
    for name in ("first", "second"):
        file = tiny_model(general__name=(STRING, name))
        file.data_size = BIG // 3
        digests[name] = write_model(tmp_path / f"{name}.gguf", file)
    folder = tmp_path / "models"
    arguments = [sys.executable, "-c", KILLED, str(folder), *(str(tmp_path / f"{name}.gguf") for name in digests)]
    for steps in range(1, 13):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(steps):
                assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
        store = ModelStore(folder)
        await store.open()
        assert store.problems() == ()
        for model in store.list():
            data = store.path_of(model.name).read_bytes()
            assert model.digest == digests[model.name] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert len(names(folder)) == 2 * len(store.list())
