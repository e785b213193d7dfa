"""Files whose chunks come in any order: kept whole through kills, full disks, damage and change of writer."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from catalog_house import CHUNK, content, digest_of, opened_blobs, put
from felloe.catalog.blobs import Blobs
from felloe.catalog.gathering import Gathering
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelDigest

DATA = os.urandom(4 * CHUNK + 12_345)
PARTS = [DATA[at : at + CHUNK] for at in range(0, len(DATA), CHUNK)]
HASHES = tuple(blake3(part).digest() for part in PARTS)
DIGEST = ModelDigest(digest_of(DATA))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def blobs(folder: Path) -> Blobs:
    return opened_blobs(folder)


async def gathering(blobs: Blobs) -> Gathering:
    return await blobs.gather(DIGEST, len(DATA), HASHES)


async def left(blobs: Blobs, *chunks: int) -> None:
    """An interrupted pull leaves these chunks."""
    coming = await gathering(blobs)
    for chunk in chunks:
        assert await coming.put(chunk, PARTS[chunk])
    await coming.close()


async def complete(coming: Gathering) -> None:
    for chunk, part in enumerate(PARTS):
        if not coming.whole >> chunk & 1:
            assert await coming.put(chunk, part)
    blob = await coming.finish()
    await coming.close()
    assert (blob.digest, blob.chunks, blob.path.read_bytes() == DATA) == (DIGEST, HASHES, True)


async def test_chunks_in_any_order_make_the_file(blobs: Blobs, folder: Path) -> None:
    coming = await gathering(blobs)
    for chunk in (4, 0, 3, 1):
        assert await coming.put(chunk, PARTS[chunk])
    assert (coming.whole, coming.length) == (0b11011, 3 * CHUNK + 12_345)
    await complete(coming)
    assert blobs.find(DIGEST) == blobs.held(DIGEST, len(DATA))
    assert content(folder) == {
        f"blobs/{DIGEST[7:]}",
        f"blobs/{DIGEST[7:]}.chunks",
        f"incoming/{blake3(DIGEST.encode()).hexdigest()}.received",
    }


async def test_an_empty_file_comes_in(blobs: Blobs) -> None:
    coming = await blobs.gather(ModelDigest(digest_of(b"")), 0, ())
    assert (await coming.finish()).size == 0
    await coming.close()


@pytest.mark.parametrize("data", [b"", PARTS[0][:-1], PARTS[0] + b"x", PARTS[1], bytes(CHUNK)])
async def test_what_is_not_the_chunk_is_not_written(blobs: Blobs, folder: Path, data: bytes) -> None:
    coming = await gathering(blobs)
    assert not await coming.put(0, data)
    assert (coming.whole, coming.read(0)) == (0, None)
    await coming.close()
    assert next((folder / "incoming").glob("*.data")).stat().st_size == 0


async def test_a_pull_goes_on_with_every_whole_chunk(blobs: Blobs, folder: Path) -> None:
    await left(blobs, 3, 1)
    again = await gathering(opened_blobs(folder))
    assert again.whole == 0b01010
    await complete(again)


async def test_a_chunk_that_was_torn_on_the_disk_comes_again(blobs: Blobs, folder: Path) -> None:
    await left(blobs, 3, 1, 4)
    with next((folder / "incoming").glob("*.data")).open("r+b") as stream:
        stream.seek(CHUNK + 9)
        stream.write(b"torn")
    again = await gathering(opened_blobs(folder))
    assert again.whole == 0b11000
    await complete(again)


@pytest.mark.parametrize("journal", [b"", b"fel-in", bytes(range(64)), bytes(range(224)), b"x" * 10_000])
async def test_a_damaged_journal_starts_anew(blobs: Blobs, folder: Path, journal: bytes) -> None:
    await left(blobs, 3)
    next((folder / "incoming").glob("*.journal")).write_bytes(journal)
    again = await gathering(opened_blobs(folder))
    assert again.whole == 0
    await again.close()


async def test_who_writes_in_order_goes_on_with_what_came_in_any_order(blobs: Blobs) -> None:
    await left(blobs, 0, 1, 3)
    incoming = await blobs.receive(DIGEST, len(DATA))
    assert incoming.length == 2 * CHUNK
    await incoming.close()
    again = await gathering(blobs)
    assert again.whole == 0b01011
    await again.close()
    assert (await put(blobs, DATA, DIGEST)).digest == DIGEST


async def test_chunks_in_any_order_go_on_with_what_came_in_order(blobs: Blobs) -> None:
    incoming = await blobs.receive(DIGEST, len(DATA))
    await incoming.write(DATA[: 2 * CHUNK + 99])
    with pytest.raises(FelloeError) as caught:
        await gathering(blobs)
    assert caught.value.code == "already_pulling"
    await incoming.close()
    again = await gathering(blobs)
    assert again.whole == 0b00011
    await complete(again)


async def test_chunks_and_digest_of_two_files_are_refused_and_dropped(blobs: Blobs, folder: Path) -> None:
    coming = await blobs.gather(ModelDigest(digest_of(b"other")), len(DATA), HASHES)
    with pytest.raises(FelloeError) as caught:
        await complete(coming)
    assert caught.value.code == "bad_manifest"
    assert coming.whole == 0
    await coming.close()
    assert not list((folder / "blobs").iterdir())


async def test_a_file_that_is_not_whole_cannot_be_finished(blobs: Blobs) -> None:
    coming = await gathering(blobs)
    await coming.put(2, PARTS[2])
    with pytest.raises(FelloeError) as caught:
        await coming.finish()
    assert caught.value.code == "bad_model_file"
    assert coming.whole == 0b00100
    await coming.close()


@pytest.mark.parametrize("size", [-1, len(DATA) + CHUNK, 2**60])
async def test_hashes_that_cannot_be_those_of_the_size_are_refused(blobs: Blobs, size: int) -> None:
    with pytest.raises(FelloeError) as caught:
        await blobs.gather(DIGEST, size, HASHES)
    assert caught.value.code == "bad_manifest"


async def test_what_is_here_of_an_unfinished_file_can_be_read(blobs: Blobs) -> None:
    assert blobs.partial(DIGEST) is None
    coming = await gathering(blobs)
    await coming.put(4, PARTS[4])
    assert blobs.partial(DIGEST) is coming
    assert [coming.read(chunk) for chunk in range(5)] == [None, None, None, None, PARTS[4]]
    await complete(coming)
    assert blobs.partial(DIGEST) is None
    assert coming.read(4) is None


async def test_a_disk_that_fills_keeps_whole_chunks_and_goes_on_once_there_is_room(blobs: Blobs) -> None:
    coming = await gathering(blobs)
    await coming.put(0, PARTS[0])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK + 1000, before[1]))
    try:
        with pytest.raises(FelloeError) as caught:
            await coming.put(2, PARTS[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "disk_full"
    assert coming.whole == 0b00001
    await coming.close()
    again = await gathering(blobs)
    assert again.whole == 0b00001
    await complete(again)


async def test_a_cancelled_write_harms_nothing(blobs: Blobs) -> None:
    coming = await gathering(blobs)
    writing = asyncio.create_task(coming.put(1, PARTS[1]))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await coming.close()
    await complete(await gathering(blobs))


async def test_damaged_content_is_the_start_of_what_comes_again(blobs: Blobs, folder: Path) -> None:
    blob = await put(blobs, DATA)
    place = blob.path.stat().st_ino
    blob.path.chmod(0o600)
    with blob.path.open("r+b") as stream:
        stream.seek(2 * CHUNK)
        stream.write(b"rot")
    blobs.set_aside(DIGEST)
    coming = await gathering(blobs)
    assert coming.whole == 0b11011
    assert not list((folder / "damaged").iterdir())
    await complete(coming)
    assert blob.path.stat().st_ino == place


@pytest.mark.parametrize("change", [-CHUNK - 5, 99])
async def test_damaged_content_of_another_length_is_mended_too(blobs: Blobs, change: int) -> None:
    blob = await put(blobs, DATA)
    blob.path.chmod(0o600)
    os.truncate(blob.path, len(DATA) + change)
    blobs.set_aside(DIGEST)
    coming = await gathering(blobs)
    assert coming.whole == (0b00111 if change < 0 else 0b11111)
    await complete(coming)


CHILD = """
import asyncio, pathlib, random, sys
from blake3 import blake3
from catalog_house import CHUNK, digest_of, opened_blobs

async def main(folder, source, seed):
    data = pathlib.Path(source).read_bytes()
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    hashes = tuple(blake3(part).digest() for part in parts)
    coming = await opened_blobs(pathlib.Path(folder)).gather(digest_of(data), len(data), hashes)
    print(coming.whole, flush=True)
    missing = [chunk for chunk in range(len(parts)) if not coming.whole >> chunk & 1]
    random.Random(int(seed)).shuffle(missing)
    for chunk in missing:
        assert await coming.put(chunk, parts[chunk])
        print(coming.whole, flush=True)
    await coming.finish()
    await coming.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_writer_that_is_killed_again_and_again_never_loses_a_whole_chunk(tmp_path: Path) -> None:
    source, folder, chance = tmp_path / "source", tmp_path / "models", random.Random(8472)
    data = DATA + os.urandom(3 * CHUNK)
    source.write_bytes(data)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    reached = code = 0
    for kills in range(5):
        command = [sys.executable, "-c", CHILD, str(folder), str(source), str(kills)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None and child.stderr is not None
            said = [child.stdout.readline() for _ in range(chance.randint(1, 3) if kills < 4 else 9)]
            assert said[0], child.stderr.read()
            assert int(said[0]) & reached == reached
            reached = max(int(line) for line in said if line)
            try:
                code = child.wait(chance.uniform(0, 0.01) if kills < 4 else 60)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
    assert code == 0
    blob = opened_blobs(folder).find(ModelDigest(digest_of(data)))
    assert blob is not None
    assert blob.path.read_bytes() == data
