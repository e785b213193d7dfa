"""The chunk hashes of a file, asked of peers and held against the manifest."""

import asyncio
import random

from blake3 import blake3

from felloe.catalog.journal import HASH_BYTES
from felloe.catalog.transfer.circle import Circle, Companion
from felloe.catalog.transfer.peers import Lied
from felloe.catalog.transfer.swarm import SwarmSettings
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import CHUNK_BYTES, ManifestFile

_NEXT_SECONDS = 1.0
_LEAST_RATE = 64 * 2**10
_Asking = set[asyncio.Task[tuple[bytes, ...] | None]]


async def chunk_hashes(
    file: ManifestFile, circle: Circle, settings: SwarmSettings, chance: random.Random
) -> tuple[bytes, ...]:
    """The raw BLAKE3 of each chunk, as the manifest vouches for them.

    While a peer does not answer, the next one is asked as well. Raises `no_holder` when nobody has them, `bad_manifest`
    when a manifest contradicts itself.
    """
    count = -(-file.size // CHUNK_BYTES)
    if count <= 1:
        # A file of one chunk has that chunk's hash.
        alone = bytes.fromhex(file.digest.partition(":")[2]) * count
        return _vouched(file, alone) or _contradiction(file)
    clock = asyncio.get_running_loop().time
    end = clock() + settings.patience_seconds
    asking: _Asking = set()
    try:
        while clock() < end:
            circle.renew(clock())
            rows = [companion for companion in circle.askable(clock()) if not companion.is_being_looked_at]
            chance.shuffle(rows)
            for companion in rows:
                companion.is_being_looked_at = True
                asking.add(asyncio.create_task(_ask(file, count, companion, circle, settings)))
                found, asking = await _first(asking)
                if found:
                    return found
            if not rows:
                await asyncio.sleep(_NEXT_SECONDS)
            found, asking = await _first(asking)
            if found:
                return found
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    raise FelloeError("no_holder", f"no node that can be reached has {file.path[:80]!r}")


async def _first(asking: _Asking) -> tuple[tuple[bytes, ...] | None, _Asking]:
    """What one of them found, if any did within a moment, and those that still ask."""
    if not asking:
        return None, asking
    done, pending = await asyncio.wait(asking, timeout=_NEXT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    return next((found for task in done if (found := task.result())), None), pending


async def _ask(
    file: ManifestFile, count: int, companion: Companion, circle: Circle, settings: SwarmSettings
) -> tuple[bytes, ...] | None:
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(settings.answer_seconds + count * HASH_BYTES / _LEAST_RATE):
            found = _vouched(file, await companion.peer.chunks(file.digest, count))
        if found is None:
            raise Lied(f"the chunk hashes of {file.digest} are not the manifest's")
    except Lied as lie:
        await circle.lied(companion.peer.node, str(lie))
        return None
    except (FelloeError, OSError) as error:
        companion.failed(error, clock())
        return None
    finally:
        companion.is_being_looked_at = False
    companion.succeeded()
    return found


def _vouched(file: ManifestFile, hashes: bytes) -> tuple[bytes, ...] | None:
    """The hashes one by one, if they are those that the manifest stands for."""
    if len(hashes) != HASH_BYTES * -(-file.size // CHUNK_BYTES) or blake3(hashes).hexdigest() != file.chunks:
        return None
    return tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))


def _contradiction(file: ManifestFile) -> tuple[bytes, ...]:
    if file.size or file.chunks != blake3().hexdigest():
        raise FelloeError("bad_manifest", f"manifest: file {file.path[:80]!r}: its digest and its chunks contradict")
    return ()
