"""A model store with its parts, and the files that go into it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.catalog.blobs import Blobs
from felloe.catalog.incoming import Blob, Incoming
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.store import ModelStore
from felloe.domain.models import Model
from gguf_bytes import GgufFile, tiny_model

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHUNK = 4 * 2**20


def write_model(path: Path, file: GgufFile | None = None) -> str:
    """Write a model; returns its digest."""
    data = bytes(file or tiny_model())
    path.write_bytes(data)
    return digest_of(data)


def digest_of(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


def content(folder: Path) -> set[str]:
    """Every file of the store, by its path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def opened(folder: Path, **options: object) -> ModelStore:
    store = ModelStore(folder, KEY, **options)  # type: ignore[arg-type]
    await store.open()
    return store


def opened_blobs(folder: Path) -> Blobs:
    blobs = Blobs(folder)
    blobs.open()
    return blobs


async def _no_room_needed(_size: int, _incoming: Incoming) -> None:
    pass


async def put(
    blobs: Blobs, data: bytes, key: str = "", make_room: Callable[[int, Incoming], Awaitable[None]] = _no_room_needed
) -> Blob:
    """Have `data` come in as a source would send it: only what is not there yet, in pieces."""
    key = key or digest_of(data)
    if (known := blobs.received(key)) is not None:
        return known
    incoming = await blobs.receive(key, len(data))
    try:
        await make_room(len(data) - incoming.length, incoming)
        while piece := data[incoming.length : incoming.length + CHUNK]:
            await incoming.write(piece)
        return await incoming.finish()
    finally:
        await incoming.close()


async def take(store: ModelStore, path: Path, name: str | None = None) -> Model:
    """Have a whole model come in under the file's own name."""
    data = path.read_bytes()
    blob = await put(store.blobs, data, make_room=store.make_room)
    return await store.accept(name, [TakenFile(path.name, "model", blob)], Facts(source=str(path)))
