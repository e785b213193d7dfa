import asyncio
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from catalog_house import CHUNK, KEY, content, digest_of, opened, put, take, write_model
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.manifests import signer_of
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from felloe.domain.models import Model
from gguf_bytes import STRING, UINT16, UINT32, GgufFile, tiny_model

BIG = 6 * CHUNK


def large_model(name: str, size: int = BIG) -> GgufFile:
    file = tiny_model(general__name=(STRING, name))
    file.data_size = size
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "thing.gguf"
    write_model(path)
    return path


@pytest.fixture
async def store(folder: Path) -> ModelStore:
    return await opened(folder)


async def refused(store: ModelStore, path: Path, name: str | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await take(store, path, name)
    return caught.value


def damage(path: Path, at: int = -1) -> None:
    """Change one byte, as a disk does: without anybody's leave."""
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def test_a_pulled_model_is_described_listed_and_kept(folder: Path, source: Path) -> None:
    store = await opened(folder, now=lambda: 1_800_000_000.5)
    model = await take(store, source)
    assert (model.name, model.architecture, model.quantisation, model.context) == ("tiny-thing", "llama", "Q8_0", 512)
    assert model.digest == digest_of(source.read_bytes())
    assert (model.size, model.created) == (source.stat().st_size, 1_800_000_000)
    assert store.list() == (model,)
    assert store.path_of("tiny-thing").read_bytes() == source.read_bytes()
    assert store.path_of("tiny-thing").name == "thing.gguf"
    assert (await opened(folder)).list() == (model,)


async def test_the_manifest_says_what_the_source_said_and_who_made_it(store: ModelStore, source: Path) -> None:
    blob = await put(store.blobs, source.read_bytes())
    facts = Facts(
        template="{{ other }}",
        parameters={"temperature": 0.5, "stop": ("end",)},
        licence="MIT",
        source="hf:owner/repo",
        revision="abc",
    )
    await store.accept("mine", [TakenFile("m.gguf", "model", blob)], facts)
    manifest = store.manifest_of("mine")
    assert (manifest.template, manifest.licence, manifest.source) == ("{{ other }}", "MIT", "hf:owner/repo")
    assert manifest.defaults == facts.parameters
    assert manifest.made_by == signer_of(KEY)


async def test_everything_in_the_folder_is_for_its_owner_alone(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*") if path.is_file()} == {0}


async def test_the_same_file_and_name_again_changes_nothing(store: ModelStore, source: Path, folder: Path) -> None:
    first = await take(store, source)
    before = content(folder)
    assert await take(store, source) == first
    assert content(folder) == before


async def test_another_file_under_a_taken_name_is_refused(store: ModelStore, source: Path, tmp_path: Path) -> None:
    first = await take(store, source)
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes()[:-1] + b"\x01")
    error = await refused(store, other)
    assert (error.code, error.param) == ("invalid_value", "name")
    assert first.digest in error.detail
    assert store.list() == (first,)


async def test_the_same_weights_with_another_template_are_the_same_model_anew(store: ModelStore, source: Path) -> None:
    blob = await put(store.blobs, source.read_bytes())
    files = [TakenFile("m.gguf", "model", blob)]
    await store.accept("mine", files, Facts())
    await store.set_pinned("mine", True)
    await store.accept("mine", files, Facts(template="new"))
    assert store.manifest_of("mine").template == "new"
    assert store.kept()[0].entry.pinned


async def test_one_file_may_have_two_names_and_is_kept_once(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source, "one")
    await take(store, source, "Org/Two:latest")
    assert [model.name for model in store.list()] == ["Org/Two:latest", "one"]
    assert store.path_of("one").samefile(store.path_of("Org/Two:latest"))
    assert len(store.blobs.sizes()) == 1
    await store.remove("one")
    assert store.path_of("Org/Two:latest").is_file()
    with pytest.raises(FelloeError, match="no model 'one'"):
        store.path_of("one")
    await store.remove("Org/Two:latest")
    assert content(folder) == set()


async def test_names_that_differ_in_case_are_different_models(store: ModelStore, source: Path, tmp_path: Path) -> None:
    await take(store, source, "tiny")
    other = tmp_path / "other.gguf"
    write_model(other, tiny_model(general__name=(STRING, "other")))
    await take(store, other, "TINY")
    assert not store.path_of("tiny").samefile(store.path_of("TINY"))


async def test_a_removed_model_leaves_nothing(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    await store.remove("tiny-thing")
    assert store.list() == ()
    assert content(folder) == set()
    with pytest.raises(FelloeError) as caught:
        await store.remove("tiny-thing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("keep", [0, 3, 40, 700, -1])
async def test_a_truncated_file_is_refused_by_name_and_leaves_nothing(
    store: ModelStore, source: Path, folder: Path, keep: int
) -> None:
    source.write_bytes(source.read_bytes()[:keep])
    error = await refused(store, source)
    assert error.code == "bad_model_file"
    assert error.detail.startswith("thing.gguf: ")
    assert content(folder) == set()


def sharded(count: int = 3) -> list[bytes]:
    """The parts of a model as llama-gguf-split writes them: only the first says what it is."""
    whole = tiny_model(split__no=(UINT16, 0), split__count=(UINT16, count), split__tensors__count=(UINT32, count + 1))
    parts = [bytes(whole)]
    for number in range(1, count):
        metadata = {
            "split.no": (UINT16, number),
            "split.count": (UINT16, count),
            "split.tensors.count": (UINT32, count + 1),
        }
        parts.append(bytes(GgufFile(metadata=metadata, tensors=[(f"t{number}", (64,), 0, 0)], data_size=256)))
    return parts


async def taken(store: ModelStore, parts: list[bytes], folder: str = "Q8/") -> list[TakenFile]:
    return [
        TakenFile(
            f"{folder}m-{number + 1:05d}-of-{len(parts):05d}.gguf",
            "part" if number else "model",
            await put(store.blobs, data),
        )
        for number, data in enumerate(parts)
    ]


async def test_the_parts_of_a_sharded_model_lie_together_under_their_names(store: ModelStore, folder: Path) -> None:
    parts = sharded()
    model = await store.accept(None, await taken(store, parts), Facts())
    assert model.size == sum(len(part) for part in parts)
    for one in (store, await opened(folder)):
        first = one.path_of(model.name)
        assert first.name == "m-00001-of-00003.gguf"
        assert [path.read_bytes() for path in sorted(first.parent.iterdir())] == parts
    assert (await opened(folder)).list() == (model,)


async def test_other_parts_make_another_digest(store: ModelStore) -> None:
    first = await store.accept("first", await taken(store, sharded()), Facts())
    parts = sharded()
    parts[2] = parts[2][:-1] + b"\x01"
    assert (await store.accept("other", await taken(store, parts), Facts())).digest != first.digest


async def test_a_sharded_model_without_a_part_is_refused_and_leaves_nothing(store: ModelStore, folder: Path) -> None:
    files = await taken(store, sharded())
    with pytest.raises(FelloeError) as caught:
        await store.accept(None, files[:2], Facts())
    assert caught.value.code == "bad_model_file"
    with pytest.raises(FelloeError):
        await store.accept(None, files[1:], Facts())
    await store.clean()
    assert not (content(folder) - {path for path in content(folder) if path.startswith("blobs/")})


async def test_what_no_manifest_may_hold_is_refused_and_leaves_nothing(
    store: ModelStore, source: Path, folder: Path
) -> None:
    blob = await put(store.blobs, source.read_bytes())
    with pytest.raises(FelloeError) as caught:
        await store.accept(None, [TakenFile("../m.gguf", "model", blob)], Facts())
    assert caught.value.code == "bad_manifest"
    assert content(folder) == set()


async def test_a_refused_pull_leaves_what_others_name(store: ModelStore, source: Path) -> None:
    model = await take(store, source)
    blob = store.blobs.find(store.manifest_of(model.name).files[0].digest)
    assert blob is not None
    with pytest.raises(FelloeError):
        await store.accept("x", [TakenFile("../m.gguf", "model", blob)], Facts())
    assert (await store.verify())[0].damaged == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * CHUNK}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_really_full_disk_keeps_what_was_there_and_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tmp_path / "small.gguf", tmp_path / "large.gguf"
    write_model(small, large_model("small", CHUNK))
    write_model(large, large_model("large", 2 * CHUNK + 1000))
    store = await opened(small_disk / "models")
    model = await take(store, small)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(BIG, 0, BIG))
        assert (await refused(store, large)).code == "disk_full"
    assert store.list() == (model,)
    await store.remove("small")
    again = await opened(small_disk / "models")
    assert [each.name for each in (await take(again, large), *again.list())] == ["large", "large"]
    assert again.path_of("large").read_bytes() == large.read_bytes()


async def test_a_full_disk_at_any_write_leaves_a_store_that_goes_on(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, 0

    def no_room(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    for steps in range(100):
        store, left = await opened(folder), steps
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", no_room)
            try:
                await take(store, source)
            except FelloeError as error:
                assert error.code == "disk_full"
            else:
                break
        assert (await opened(folder)).problems() == ()
    assert steps > 5
    assert [model.name for model in (await opened(folder)).list()] == ["tiny-thing"]


async def test_two_pulls_of_one_name_at_once_accept_one_file(store: ModelStore, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes()[:-1] + b"\x01")
    results = await asyncio.gather(*(take(store, path, "same") for path in (source, other)), return_exceptions=True)
    assert {type(result) for result in results} == {Model, FelloeError}
    assert len(store.list()) == 1


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"version":2}', b"\xff" * 100, b"[" * 100_000])
@pytest.mark.parametrize("part", ["names", "manifests"])
async def test_a_damaged_entry_is_told_and_its_content_is_kept(
    store: ModelStore, source: Path, folder: Path, text: bytes, part: str
) -> None:
    await take(store, source)
    next((folder / part).glob("*.json")).write_bytes(text)
    after = await opened(folder, now=lambda: 4e9)
    assert after.list() == ()
    assert len(after.problems()) == 1
    assert len(after.blobs.sizes()) == 1
    await after.clean()
    assert len(after.blobs.sizes()) == 1
    await after.remove("tiny-thing")
    assert (await opened(folder)).problems() == ()


async def test_an_entry_that_was_moved_to_another_name_is_not_believed(
    store: ModelStore, source: Path, folder: Path
) -> None:
    await take(store, source)
    entry = next((folder / "names").glob("*.json"))
    entry.write_text(entry.read_text().replace("tiny-thing", "other"))
    assert "does not belong" in (await opened(folder)).problems()[0]


async def test_only_our_own_leftovers_are_cleared(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    kept = content(folder)
    for part in ("", "names", "manifests", "views", "blobs"):
        for name in ("notes.txt", ".hidden"):
            (folder / part / name).write_text("x")
            kept.add(f"{part}/{name}".lstrip("/"))
    (folder / "blobs" / ("0" * 64)).write_text("x")
    (folder / "blobs" / ("1" * 64 + ".chunks")).write_text("x")
    (folder / "names" / f".{'0' * 32}.json.x1").write_text("x")
    (folder / "manifests" / ("0" * 64 + ".json")).write_text("x")
    (folder / "views" / ("0" * 64)).mkdir()
    (folder / "views" / ("0" * 64) / "x.gguf").write_text("x")
    await opened(folder)
    assert content(folder) == kept


async def test_a_damaged_chunk_is_found_moved_aside_and_mended_by_a_pull(
    store: ModelStore, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "big.gguf"
    write_model(path, large_model("big"))
    model = await take(store, path)
    (tmp_path / "small.gguf").write_bytes(bytes(tiny_model()))
    await take(store, tmp_path / "small.gguf")
    damage(store.path_of("big"), at=2 * CHUNK + 5)
    told: list[tuple[int, int]] = []
    big, small = await store.verify(progress=lambda done, total: told.append((done, total)))
    assert [(file.path, file.bad_chunks) for file in big.damaged] == [("big.gguf", (2,))]
    assert big.source == str(path)
    assert small.damaged == ()
    assert told[-1][0] == told[-1][1]
    for one in (store, await opened(folder)):
        with pytest.raises(FelloeError, match="pull it again from") as caught:
            one.usable("big")
        assert caught.value.code == "bad_model_file"
        assert [each.name for each in one.list()] == ["tiny-thing"]
        assert one.kept()[0].problem
    assert len(list((folder / "damaged").iterdir())) == 1
    assert await take(store, path) == model
    assert store.path_of("big").read_bytes() == path.read_bytes()
    assert [each.damaged for each in await store.verify()] == [(), ()]
    assert not list((folder / "damaged").iterdir())


async def test_damage_is_found_in_every_model_that_has_the_file(store: ModelStore, source: Path) -> None:
    await take(store, source, "one")
    await take(store, source, "two")
    damage(store.path_of("one"))
    assert [bool(each.damaged) for each in await store.verify("two")] == [True]
    assert store.list() == ()
    await take(store, source, "one")
    assert [each.name for each in store.list()] == ["one", "two"]


async def test_lost_or_damaged_chunk_hashes_are_made_anew(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    chunks = next((folder / "blobs").glob("*.chunks"))
    before = chunks.read_bytes()
    chunks.write_bytes(b"x" * 32)
    assert (await store.verify())[0].damaged == ()
    assert chunks.read_bytes() == before


async def test_a_file_that_lost_bytes_is_not_offered(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    store.path_of("tiny-thing").chmod(0o600)
    os.truncate(store.path_of("tiny-thing"), 100)
    after = await opened(folder)
    assert after.list() == ()
    assert "size: 100 bytes of tiny-thing" in after.problems()[0]
    model = await take(after, source)
    assert (await opened(folder)).list() == (model,)


async def test_a_lost_link_is_made_anew(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    shutil.rmtree(folder / "views")
    assert (await opened(folder)).path_of("tiny-thing").read_bytes() == source.read_bytes()


async def pull_sized(store: ModelStore, tmp_path: Path, name: str, size: int = CHUNK) -> Model:
    path = tmp_path / f"{name}.gguf"
    write_model(path, large_model(name, size))
    return await take(store, path, name)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        self.now += 1
        return self.now


async def test_a_pull_beyond_the_quota_deletes_what_was_not_used_for_longest(folder: Path, tmp_path: Path) -> None:
    store = await opened(folder, quota=3 * CHUNK + CHUNK // 2, now=Clock())
    for name in ("first", "second", "third"):
        await pull_sized(store, tmp_path, name)
    async with store.in_use("first"):
        pass
    await pull_sized(store, tmp_path, "fourth")
    assert {model.name for model in store.list()} == {"first", "third", "fourth"}


async def test_what_is_pinned_loaded_or_being_loaded_is_never_deleted(folder: Path, tmp_path: Path) -> None:
    loaded = {"loaded"}
    store = await opened(folder, quota=4 * CHUNK + CHUNK // 2, loaded=lambda: loaded, now=Clock())
    for name in ("pinned", "loaded", "loading", "free"):
        await pull_sized(store, tmp_path, name)
    await store.set_pinned("pinned", True)
    async with store.in_use("loading"):
        await pull_sized(store, tmp_path, "new")
        assert {model.name for model in store.list()} == {"pinned", "loaded", "loading", "new"}
        with pytest.raises(FelloeError) as caught:
            await store.make_room(2 * CHUNK)
        assert caught.value.code == "disk_full"
        with pytest.raises(FelloeError, match="being loaded"):
            await store.remove("loading")
        assert len(store.list()) == 4
    again = await opened(folder, quota=4 * CHUNK + CHUNK // 2, loaded=lambda: loaded, now=Clock())
    await again.make_room(2 * CHUNK)
    assert {model.name for model in again.list()} == {"pinned", "loaded"}


async def test_a_model_larger_than_the_quota_is_refused_before_anything_is_deleted(
    folder: Path, tmp_path: Path
) -> None:
    store = await opened(folder, quota=2 * CHUNK)
    await pull_sized(store, tmp_path, "small")
    with pytest.raises(FelloeError, match="quota"):
        await pull_sized(store, tmp_path, "large", 3 * CHUNK)
    assert [model.name for model in store.list()] == ["small"]


async def test_a_full_disk_makes_room_too(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await pull_sized(store, tmp_path, "old")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
    await store.make_room(CHUNK)
    assert store.list() == ()
    with pytest.raises(FelloeError, match="do not fit"):
        await store.make_room(CHUNK)


async def test_clean_deletes_leftovers_and_comes_back_to_the_quota(folder: Path, tmp_path: Path) -> None:
    store = await opened(folder, now=Clock())
    for name in ("first", "second"):
        await pull_sized(store, tmp_path, name)
    incoming = await store.blobs.receive("partial", None)
    await incoming.write(b"x" * 2**20)
    await incoming.close()
    again = await opened(folder, quota=CHUNK + CHUNK // 2, now=Clock())
    cleaned = await again.clean()
    assert cleaned.models == ("first",)
    assert cleaned.freed > CHUNK + 2**20
    assert [model.name for model in again.list()] == ["second"]


async def test_clean_keeps_what_a_pull_is_about_to_name(store: ModelStore, source: Path, folder: Path) -> None:
    blob = await put(store.blobs, source.read_bytes())
    next_file = await store.blobs.receive("the next file", 1)
    await store.clean()
    await next_file.close()
    await store.accept("mine", [TakenFile("m.gguf", "model", blob)], Facts())
    assert (await opened(folder)).find("mine") is not None


async def test_a_file_that_was_removed_with_another_model_has_to_be_pulled_again(
    store: ModelStore, source: Path
) -> None:
    await take(store, source, "one")
    blob = await put(store.blobs, source.read_bytes())
    await store.remove("one")
    with pytest.raises(FelloeError, match="pull again"):
        await store.accept("two", [TakenFile("m.gguf", "model", blob)], Facts())


async def test_a_model_that_another_key_signed_stays_usable(store: ModelStore, source: Path, folder: Path) -> None:
    model = await take(store, source)
    other = ModelStore(folder, Ed25519PrivateKey.generate())
    await other.open()
    assert await take(other, source) == model
    assert (await opened(folder)).list() == (model,)


async def test_parts_of_an_interrupted_pull_wait_a_week_for_the_rest(store: ModelStore, folder: Path) -> None:
    await put(store.blobs, sharded()[1], "the second part")
    again = await opened(folder)
    assert again.blobs.received("the second part") is not None
    assert (await opened(folder, now=lambda: 4e9)).blobs.received("the second part") is None


async def test_pins_and_last_use_outlive_a_restart(store: ModelStore, source: Path, folder: Path) -> None:
    await take(store, source)
    await store.set_pinned("tiny-thing", True)
    async with store.in_use("tiny-thing"):
        pass
    assert (await opened(folder)).kept() == store.kept()
    await store.set_pinned("tiny-thing", False)
    assert not (await opened(folder)).kept()[0].entry.pinned
    with pytest.raises(FelloeError):
        await store.set_pinned("absent", True)
