"""Hubs and registries that answer with bombs, lead inside, choose impossible names; a disk that fills half-way."""

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from source_house import House
from source_servers import Content, Reply, SourceServer, as_json, redirect

from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from gguf_bytes import STRING, tiny_model

MIB = 2**20
REFERENCES = {
    "hf:house/tiny": "/api/models/house/tiny/revision/main",
    "ollama:tiny": "/v2/library/tiny/manifests/latest",
    "oci:registry.test/house/tiny": "/v2/house/tiny/manifests/latest",
}


async def refusal(house: House, reference: str, name: str | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(reference, name)
    assert house.store.list() == ()
    return caught.value


@pytest.mark.parametrize("reference", REFERENCES)
async def test_a_bomb_is_not_unpacked(house: House, server: SourceServer, reference: str) -> None:
    bomb = gzip.compress(b'{"schemaVersion": 2, "sha": "' + b"0" * 10 * MIB + b'"}')
    server.paths[REFERENCES[reference]] = lambda _: Reply(200, {"Content-Encoding": "gzip"}, bomb)
    error = await refusal(house, reference)
    assert (error.code, "compressed" in error.detail) == ("source_failed", True)


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/meta-data/", "https://127.0.0.1/", "https://[::1]/"])
@pytest.mark.parametrize("reference", REFERENCES)
async def test_what_leads_inside_is_not_followed(
    house: House, server: SourceServer, reference: str, target: str
) -> None:
    server.paths[REFERENCES[reference]] = lambda _: redirect(target)
    assert (await refusal(house, reference)).code == "address_refused"


@pytest.mark.parametrize("path", ["../../m.gguf/..", "a/\x1b[2J.gguf", "x" * 10_000 + ".gguf", "..\u202e.gguf"])
async def test_a_hub_that_chooses_an_impossible_name_is_refused(house: House, server: SourceServer, path: str) -> None:
    listing = {"sha": "0" * 40, "siblings": [{"rfilename": path, "size": 100}]}
    server.paths[REFERENCES["hf:house/tiny"]] = lambda _: as_json(listing)
    error = await refusal(house, "hf:house/tiny")
    assert error.code in ("source_failed", "source_not_found")
    assert error.detail.isprintable()
    assert len(error.detail) < 1000


@pytest.mark.parametrize("name", ["../tiny", "a/../b", "a\x00b", "a\nb", "\x1b[2J", "x" * 10_000, "\ud800"])
async def test_an_impossible_name_that_is_asked_for_is_refused(
    house: House, server: SourceServer, model: bytes, name: str
) -> None:
    server.paths["/m.gguf"] = Content(model)
    error = await refusal(house, f"{server.url}/m.gguf", name)
    assert (error.code, error.detail.isprintable(), len(error.detail) < 1000) == ("invalid_value", True, True)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\x00b\x1b[2J", "x" * 10_000])
async def test_an_impossible_name_inside_the_file_becomes_a_possible_one(
    house: House, server: SourceServer, name: str, tmp_path: Path
) -> None:
    server.paths["/m.gguf"] = Content(bytes(tiny_model(general__name=(STRING, name))))
    pulled = await house.pull(f"{server.url}/m.gguf")
    assert (pulled.name.isprintable(), len(pulled.name) <= 128, ".." in pulled.name) == (True, True, False)
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Six MiB and no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={6 * MIB}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_pull_that_fills_the_disk_half_way_goes_on_once_there_is_room(
    small_disk: Path, server: SourceServer, large_model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(small_disk / "models", Ed25519PrivateKey.generate())
    await store.open()
    house = House(store, server)
    server.paths["/m.gguf"] = Content(large_model)
    with monkeypatch.context() as patched:
        # What is free when the pull begins is gone when it is half-way.
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 0, 2**40))
        error = await refusal(house, f"{server.url}/m.gguf")
    assert (error.code, error.detail.isprintable()) == ("disk_full", True)
    subprocess.run(["mount", "-o", f"remount,size={32 * MIB}", str(small_disk)], check=True)
    pulled = await house.pull(f"{server.url}/m.gguf")
    assert house.content(pulled.name) == large_model
    assert server.seen[-1].headers["range"] == f"bytes={4 * MIB}-"
