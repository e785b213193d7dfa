import asyncio
import hashlib
import os
import resource
from pathlib import Path

import pytest

from catalog_house import CHUNK, content, digest_of, opened_blobs, put
from felloe.catalog.blobs import Blobs
from felloe.catalog.journal import JOURNAL_SUFFIX
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest

DATA = os.urandom(2 * CHUNK + 12_345)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    return opened_blobs(folder)


async def left(blobs: Blobs, data: bytes, size: int | None = len(DATA), key: str = "key") -> None:
    """An interrupted pull leaves the first bytes."""
    incoming = await blobs.receive(key, size)
    await incoming.write(data)
    await incoming.close()


async def test_a_blob_is_named_by_its_hash_and_has_the_hash_of_each_chunk(blobs: Blobs) -> None:
    blob = await put(blobs, DATA)
    assert blob.digest == digest_of(DATA)
    assert blob.path.read_bytes() == DATA
    parts = (DATA[:CHUNK], DATA[CHUNK : 2 * CHUNK], DATA[2 * CHUNK :])
    assert [f"blake3:{chunk.hex()}" for chunk in blob.chunks] == [digest_of(part) for part in parts]
    assert blobs.find(blob.digest) == blob


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("is_announced", [True, False])
async def test_files_of_any_length_come_in(blobs: Blobs, size: int, is_announced: bool) -> None:
    sha256 = hashlib.sha256(DATA[:size]).hexdigest()
    incoming = await blobs.receive("key", size if is_announced else None, sha256)
    await incoming.write(DATA[:size])
    blob = await incoming.finish()
    await incoming.close()
    assert (blob.digest, blob.size, len(blob.chunks)) == (digest_of(DATA[:size]), size, -(-size // CHUNK))
    assert blobs.find(blob.digest) == blob


async def test_whole_content_is_for_its_owner_alone_and_nobody_writes_it(blobs: Blobs, folder: Path) -> None:
    blob = await put(blobs, DATA)
    assert blob.path.stat().st_mode & 0o777 == 0o400
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o700}


async def test_a_pull_goes_on_behind_the_last_whole_chunk(blobs: Blobs, folder: Path) -> None:
    await left(blobs, DATA[: CHUNK + 99])
    again = await opened_blobs(folder).receive("key", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert again.length == CHUNK
    await again.write(DATA[CHUNK:])
    assert (await again.finish()).digest == digest_of(DATA)
    await again.close()


async def test_a_whole_file_that_was_not_finished_need_not_come_again(blobs: Blobs, folder: Path) -> None:
    await left(blobs, DATA)
    again = await opened_blobs(folder).receive("key", len(DATA))
    assert again.length == len(DATA)
    assert (await again.finish()).digest == digest_of(DATA)
    await again.close()


async def test_a_size_that_becomes_known_keeps_what_is_there(blobs: Blobs) -> None:
    await left(blobs, DATA[: CHUNK + 1], size=None)
    again = await blobs.receive("key", len(DATA))
    assert again.length == CHUNK
    await again.close()


async def test_another_size_or_another_key_starts_anew(blobs: Blobs) -> None:
    await left(blobs, DATA[: CHUNK + 1])
    for key, size in (("key", len(DATA) + 1), ("other", len(DATA))):
        again = await blobs.receive(key, size)
        assert again.length == 0
        await again.close()


@pytest.mark.parametrize("chunk", [0, 1])
async def test_what_was_torn_on_the_disk_comes_again(blobs: Blobs, folder: Path, chunk: int) -> None:
    await left(blobs, DATA)
    path = next((folder / "incoming").glob("*.data"))
    with path.open("r+b") as stream:
        stream.seek(chunk * CHUNK + 7)
        stream.write(b"torn" * 10)
    again = await blobs.receive("key", len(DATA))
    assert again.length == chunk * CHUNK
    await again.write(DATA[again.length :])
    assert (await again.finish()).digest == digest_of(DATA)
    await again.close()


@pytest.mark.parametrize(
    "journal", [b"", b"fel-in", bytes(range(64)), bytes(range(160)), bytes(64 + 96), b"x" * 10_000]
)
async def test_a_damaged_journal_starts_anew(blobs: Blobs, folder: Path, journal: bytes) -> None:
    await left(blobs, DATA)
    next((folder / "incoming").glob(f"*{JOURNAL_SUFFIX}")).write_bytes(journal)
    again = await blobs.receive("key", len(DATA))
    assert again.length == 0
    await again.write(DATA)
    assert (await again.finish()).digest == digest_of(DATA)
    await again.close()


async def test_a_journal_that_is_ahead_of_the_data_is_not_believed(blobs: Blobs, folder: Path) -> None:
    await left(blobs, DATA)
    os.truncate(next((folder / "incoming").glob("*.data")), CHUNK + 5)
    again = await blobs.receive("key", len(DATA))
    assert again.length == CHUNK
    await again.close()


async def test_a_wrong_hash_is_refused_and_drops_what_came(blobs: Blobs, folder: Path) -> None:
    incoming = await blobs.receive("key", len(DATA), "0" * 64)
    await incoming.write(DATA)
    with pytest.raises(FelloeError, match="SHA-256") as caught:
        await incoming.finish()
    assert caught.value.code == "bad_model_file"
    await incoming.close()
    again = await blobs.receive("key", len(DATA))
    assert again.length == 0
    await again.close()
    assert not list((folder / "blobs").iterdir())


@pytest.mark.parametrize("sent", [DATA[:-1], DATA + b"x", DATA + bytes(2**20)])
async def test_more_or_less_than_announced_is_refused(blobs: Blobs, folder: Path, sent: bytes) -> None:
    incoming = await blobs.receive("key", len(DATA))
    with pytest.raises(FelloeError) as caught:
        await incoming.write(sent)
        await incoming.finish()
    assert caught.value.code == "bad_model_file"
    assert incoming.length == 0
    await incoming.close()


async def test_a_source_that_changed_starts_anew(blobs: Blobs) -> None:
    incoming = await blobs.receive("key", len(DATA))
    await incoming.write(b"old" * 1_000_000)
    await incoming.start_anew()
    assert incoming.length == 0
    await incoming.write(DATA)
    assert (await incoming.finish()).digest == digest_of(DATA)
    await incoming.close()


@pytest.mark.parametrize("size", [-1, 2**44 + 1, 2**64])
async def test_a_size_that_no_file_has_is_refused(blobs: Blobs, size: int) -> None:
    with pytest.raises(FelloeError) as caught:
        await blobs.receive("key", size)
    assert caught.value.code == "bad_model_file"


async def test_a_key_has_one_writer_at_a_time(blobs: Blobs) -> None:
    first = await blobs.receive("key", 1)
    with pytest.raises(FelloeError) as caught:
        await blobs.receive("key", 1)
    assert caught.value.code == "already_pulling"
    await first.close()
    await (await blobs.receive("key", 1)).close()


async def test_what_came_under_a_key_is_known_by_it(blobs: Blobs, folder: Path) -> None:
    assert blobs.received("url\nwith an entity tag") is None
    blob = await put(blobs, DATA, "url\nwith an entity tag")
    assert opened_blobs(folder).received("url\nwith an entity tag") == blob
    blobs.drop(blob.digest)
    assert blobs.received("url\nwith an entity tag") is None
    assert content(folder) == set()


async def test_the_same_content_from_two_places_is_kept_once(blobs: Blobs, folder: Path) -> None:
    first, second = await put(blobs, DATA, "one"), await put(blobs, DATA, "two")
    assert first == second
    assert len(list((folder / "blobs").iterdir())) == 2
    assert not list((folder / "incoming").glob("*.data"))


async def test_a_disk_that_fills_keeps_what_came_and_goes_on_once_there_is_room(blobs: Blobs) -> None:
    incoming = await blobs.receive("key", len(DATA))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + 1000, before[1]))
    try:
        with pytest.raises(FelloeError) as caught:
            await incoming.write(DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "disk_full"
    assert incoming.length == CHUNK + 1000
    await incoming.close()
    again = await blobs.receive("key", len(DATA))
    assert again.length == CHUNK
    await again.write(DATA[CHUNK:])
    assert (await again.finish()).digest == digest_of(DATA)
    await again.close()


async def test_a_cancelled_write_harms_nothing(blobs: Blobs) -> None:
    incoming = await blobs.receive("key", len(DATA))
    writing = asyncio.create_task(incoming.write(DATA))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await incoming.close()
    assert await put(blobs, DATA, "key") == blobs.find(ModelDigest(digest_of(DATA)))


async def test_a_pull_that_is_called_off_while_it_looks_at_what_is_there_loses_nothing(blobs: Blobs) -> None:
    await left(blobs, DATA[: 2 * CHUNK])
    looking = asyncio.create_task(blobs.receive("key", len(DATA)))
    await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    again = await blobs.receive("key", len(DATA))
    assert again.length == 2 * CHUNK
    await again.close()


async def test_content_that_came_again_replaces_damaged_content(blobs: Blobs) -> None:
    blob = await put(blobs, DATA, "one")
    blob.path.chmod(0o600)
    blob.path.write_bytes(DATA[:-1] + b"!")
    await put(blobs, DATA, "two")
    assert blob.path.read_bytes() == DATA


async def test_only_old_leftovers_that_nobody_writes_are_dropped(blobs: Blobs, folder: Path) -> None:
    await left(blobs, DATA[: CHUNK + 1])
    written = await blobs.receive("written", len(DATA))
    for path in (folder / "incoming").iterdir():
        os.utime(path, (100, 100))
    assert blobs.drop_partial(oldest=50) == 0
    assert blobs.drop_partial(oldest=150) > CHUNK
    assert len(list((folder / "incoming").iterdir())) == 2
    await written.close()


async def test_strange_files_in_the_folders_are_left_alone(blobs: Blobs, folder: Path) -> None:
    for part in ("blobs", "incoming", "damaged"):
        (folder / part / "notes.txt").write_text("mine")
    again = opened_blobs(folder)
    again.drop_unnamed((), float("inf"))
    again.drop_partial(float("inf"))
    assert content(folder) == {"blobs/notes.txt", "incoming/notes.txt", "damaged/notes.txt"}
