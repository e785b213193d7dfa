"""A store, and servers on loopback that the settings name as the owner's own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from source_house import House
from source_servers import SourceServer

from felloe.catalog.store import ModelStore
from gguf_bytes import tiny_model


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy this machine needs for the world outside."""
    for scheme in ("http", "https", "all", "no"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server() -> AsyncIterator[SourceServer]:
    async with SourceServer().running() as running:
        yield running


@pytest.fixture
async def house(tmp_path: Path, server: SourceServer) -> House:
    """A node's store and its sources; `server` is every mirror."""
    store = ModelStore(tmp_path / "models", Ed25519PrivateKey.generate())
    await store.open()
    return House(store, server)


@pytest.fixture
async def cdn(house: House) -> AsyncIterator[SourceServer]:
    """A second server, which the settings allow."""
    async with SourceServer().running() as running:
        house.allow(running.url)
        yield running


@pytest.fixture
def model() -> bytes:
    """A small whole model."""
    return bytes(tiny_model())


@pytest.fixture
def large_model() -> bytes:
    """A model of more than two chunks, so that a part of it outlives a pull that ends early."""
    file = tiny_model()
    file.data_size += 9 * 2**20
    return bytes(file)
