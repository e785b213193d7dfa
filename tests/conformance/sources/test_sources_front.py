"""What a model is, from the front of its file: a few pieces of a remote file, whatever its size."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from source_house import IMPATIENT, House
from source_servers import Content, Reply, SourceServer, hub_model

from felloe.catalog.sources.front import layout_of, layout_of_file
from felloe.domain.errors import FelloeError
from felloe.domain.gguf_layout import GgufLayout
from gguf_bytes import UINT16, UINT32, GgufFile, tiny_model


async def layout(house: House, reference: str) -> GgufLayout:
    limits = replace(IMPATIENT, stall_seconds=2.0)
    return await layout_of(reference, house.settings, agent="felloe/test", environment={}, limits=limits, tls=house.tls)


def sharded() -> tuple[bytes, bytes]:
    """One model in two files."""
    counts = {"split__count": (UINT16, 2), "split__tensors__count": (UINT32, 3)}
    first = tiny_model(split__no=(UINT16, 0), **counts)
    other = GgufFile(
        metadata=tiny_model(split__no=(UINT16, 1), **counts).metadata,
        tensors=[("blk.1.ffn_up.weight", (64, 16), 8, 0)],
        data_size=1088,
    )
    return bytes(first), bytes(other)


async def test_only_the_front_of_a_large_remote_file_is_read(
    house: House, server: SourceServer, cdn: SourceServer
) -> None:
    file = tiny_model()
    file.data_size += 8 * 2**20
    hub_model(server, {"tiny.Q8_0.gguf": bytes(file)}, cdn)
    found = await layout(house, "hf:house/tiny")
    assert found.header.name == "Tiny Thing"
    assert [seen.headers.get("range", "")[:8] for seen in cdn.seen] == ["bytes=0-"]


async def test_all_parts_of_a_sharded_model_are_read(house: House, server: SourceServer, cdn: SourceServer) -> None:
    first, other = sharded()
    hub_model(server, {"t-00001-of-00002.gguf": first, "t-00002-of-00002.gguf": other}, cdn)
    found = await layout(house, "hf:house/tiny")
    assert (found.layers[1].feed_forward, found.header.tensor_count) == (1088, 3)


async def test_a_server_without_ranges_is_read_no_further_than_needed(house: House, server: SourceServer) -> None:
    server.paths["/m.gguf"] = lambda _: Reply(body=bytes(tiny_model()) + bytes(8 * 2**20))
    house.allow(server.url)
    assert (await layout(house, f"{server.url}/m.gguf")).header.architecture == "llama"


async def test_a_remote_file_that_is_no_model_is_refused(house: House, server: SourceServer) -> None:
    server.paths["/m.gguf"] = Content(b"<html>" + bytes(2**20))
    house.allow(server.url)
    with pytest.raises(FelloeError) as caught:
        await layout(house, f"{server.url}/m.gguf")
    assert caught.value.code == "bad_model_file"


async def test_a_remote_file_that_ends_within_its_header_is_refused(house: House, server: SourceServer) -> None:
    server.paths["/m.gguf"] = Content(bytes(tiny_model())[:200])
    house.allow(server.url)
    with pytest.raises(FelloeError, match="ends here"):
        await layout(house, f"{server.url}/m.gguf")


async def test_a_server_on_this_network_is_not_asked_unless_it_is_the_owners_own(
    house: House, server: SourceServer
) -> None:
    with pytest.raises(FelloeError):
        await layout(house, f"{server.url.replace('127.0.0.1', 'localhost')}/m.gguf")
    assert server.seen == []


async def test_a_local_model_is_read_with_its_further_parts(tmp_path: Path) -> None:
    for name, data in zip(("t-00001-of-00002.gguf", "t-00002-of-00002.gguf"), sharded(), strict=True):
        (tmp_path / name).write_bytes(data)
    found = await layout_of_file(tmp_path / "t-00001-of-00002.gguf")
    assert found.header.tensor_count == 3


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FelloeError) as caught:
        await layout_of_file(tmp_path / "none.gguf")
    assert caught.value.code == "not_found"
