"""What a member may ask another one for, and what it may be answered."""

import asyncio
from functools import cache

import msgspec

from catalog_house import opened, take, write_model
from felloe.catalog.transfer.serving import Serving
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import CHUNK_BYTES
from felloe.mesh import transfer_https
from felloe.mesh.fetching import FetchQuestion
from felloe.node import transfer_server
from fuzz.surface import Surface, scratch
from gguf_bytes import tiny_model


class _House:
    """One loop, and what a node with one model serves."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.serving, self.paths = self.runner.run(self._open())

    async def _open(self) -> tuple[Serving, list[str]]:
        folder = scratch()
        source = folder / "m.gguf"
        file = tiny_model()
        file.data_size += CHUNK_BYTES
        write_model(source, file)
        store = await opened(folder / "models")
        model = await take(store, source)
        (content,) = store.contents()
        blob = f"/blobs/{model.digest.partition(':')[2]}"
        paths = [blob, f"{blob}/have", f"{blob}/chunks", f"/manifests/{content}", "/catalog"]
        return Serving(store, may_serve=lambda digest: digest == model.digest, bundle=lambda: b"{}"), paths


@cache
def _house() -> _House:
    return _House()


def _take(data: bytes) -> str:
    """The first line says what the rest is: the head and body of an answer, or what is asked over HTTPS or the mesh."""
    kind, _, rest = data.partition(b"\n")
    if kind == b"answer":
        return _house().runner.run(_answered(rest))
    if kind == b"mesh":
        try:
            question = msgspec.msgpack.decode(rest, type=FetchQuestion)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "no question"
        return _served(question.path, question.start, question.length)
    path, _, span = rest.partition(b"\n")
    found = transfer_server._span_of([(b"range", span)]) if span else None
    return _served(path.decode("latin-1"), *(found or (0, None)))


def _served(path: str, start: int, length: int | None) -> str:
    house = _house()
    # `*1` stands for the first path that there is.
    for number, known in enumerate(house.paths, 1):
        path = path.replace(f"*{number}", known)
    answer = house.runner.run(house.serving.answer(path, start, length))
    assert 0 < len(answer.body) <= max(answer.size, 1)
    assert length is None or len(answer.body) <= length
    assert len(answer.body) <= CHUNK_BYTES
    return f"{path in house.paths} {length is None} {len(answer.body) == answer.size}"


async def _answered(data: bytes) -> str:
    reader = asyncio.StreamReader(limit=1 << 16)
    reader.feed_data(data)
    reader.feed_eof()
    came = 0

    async def count(size: int) -> None:
        nonlocal came
        came += size

    try:
        head = await transfer_https._read_head(reader)
        assert 100 <= head.status < 600
        assert 0 <= head.length < 10**15
        body = await transfer_https._read_body(reader, head.length, count)
    except EOFError as error:
        raise FelloeError("node_unreachable", "the line broke") from error
    assert came == len(body) == head.length
    return f"{head.status // 100} {head.stays}"


def _seeds() -> list[bytes]:
    answers = (
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    )
    asked = [b"*%d\nbytes=0-99" % number for number in range(1, 6)] + [b"*%d\n" % number for number in range(1, 6)]
    asked += [b"*1\nbytes=4194304-4194400", b"/../etc/passwd\n", b"*1\nbytes=0-4194304", b"*2\nbytes=9-1"]
    questions = [FetchQuestion("*1", 0, 262_144), FetchQuestion("*4", 10, 20), FetchQuestion("*1", -1, 0)]
    return [
        *(b"answer\n" + one for one in answers),
        *(b"ask\n" + one for one in asked),
        *(b"mesh\n" + msgspec.msgpack.encode(one) for one in questions),
    ]


TRANSFER = Surface(
    name="transfer",
    take=_take,
    codes=frozenset({"not_found", "invalid_value", "source_failed", "node_unreachable"}),
    seeds=_seeds,
    words=("bytes=", "content-length: ", "HTTP/1.1 206", "answer\n", "ask\n", "mesh\n", "*1/chunks"),
)
