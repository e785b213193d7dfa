"""A plain web server may be slow, wrong or hostile: what comes is the whole file, or a named error and no model."""

import asyncio
import gzip
from pathlib import Path

import pytest
from msgspec.structs import replace
from source_house import IMPATIENT, House
from source_servers import Content, Reply, Seen, SourceServer, redirect

from felloe.domain.errors import FelloeError
from waiting import until

PATH = "/files/tiny.gguf"


async def refusal(house: House, reference: str) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(reference)
    assert house.store.list() == ()
    return caught.value


async def test_a_file_comes_whole_and_is_called_as_it_says(house: House, server: SourceServer, model: bytes) -> None:
    server.paths[PATH] = Content(model)
    pulled = await house.pull(server.url + PATH)
    assert (pulled.name, house.content(pulled.name)) == ("tiny-thing", model)
    assert house.store.manifest_of(pulled.name).source == server.url + PATH


async def test_the_last_report_says_that_all_is_here(house: House, server: SourceServer, model: bytes) -> None:
    server.paths[PATH] = Content(model)
    await house.pull(server.url + PATH)
    last = house.reports[-1]
    assert (last.done, last.total, last.file) == (len(model), len(model), "tiny.gguf")


async def test_a_cut_transfer_goes_on_where_it_was_cut(house: House, server: SourceServer, large_model: bytes) -> None:
    content = server.paths[PATH] = Content(large_model)
    headers = {"ETag": content.etag}
    cut = Reply(200, headers, large_model[: 5 * 2**20], length=len(large_model), after="cut")
    server.faults[PATH] = [content, cut]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == large_model
    again = server.asked(PATH)[-1].headers
    assert int(again["range"].removeprefix("bytes=").removesuffix("-")) > 4 * 2**20
    assert again["if-range"] == content.etag


async def test_a_pull_that_was_ended_goes_on_in_the_next_one(
    house: House, server: SourceServer, large_model: bytes, tmp_path: Path
) -> None:
    content = server.paths[PATH] = Content(large_model)
    stalled = Reply(200, {"ETag": content.etag}, large_model[: 6 * 2**20], length=len(large_model), after="stall")
    server.faults[PATH] = [content, stalled]
    pull = asyncio.create_task(house.pull(server.url + PATH, limits=replace(IMPATIENT, stall_seconds=20.0)))
    incoming = tmp_path / "models" / "incoming"
    await until(lambda: sum(file.stat().st_size for file in incoming.glob("*.data")) > 5 * 2**20)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == large_model
    assert server.asked(PATH)[-1].headers["range"] == f"bytes={4 * 2**20}-"


async def test_a_stalled_transfer_is_begun_anew(house: House, server: SourceServer, model: bytes) -> None:
    content = server.paths[PATH] = Content(model)
    server.faults[PATH] = [content, Reply(200, {"ETag": content.etag}, model[:64], len(model), "stall")]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == model
    assert any("stalled" in report.note for report in house.reports)


async def test_a_transfer_that_only_drips_counts_as_stalled(
    house: House, server: SourceServer, large_model: bytes
) -> None:
    content = server.paths[PATH] = Content(large_model)
    dripping = Reply(200, {"ETag": content.etag}, large_model[: 2**20], len(large_model), "drip")
    server.faults[PATH] = [content, dripping]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == large_model
    assert any("next to nothing" in report.note for report in house.reports)


async def test_a_server_that_starts_over_and_over_is_given_up(
    house: House, server: SourceServer, large_model: bytes
) -> None:
    content = Content(large_model)
    half = Reply(200, {"ETag": content.etag}, large_model[: 3 * 2**20], len(large_model), "cut")
    wrong = Reply(206, {"ETag": content.etag, "Content-Range": f"bytes 0-9/{len(large_model)}"}, large_model[:10])
    server.paths[PATH] = lambda seen: wrong if "range" in seen.headers else half
    server.faults[PATH] = [content]
    assert (await refusal(house, server.url + PATH)).code == "source_failed"
    assert len(server.seen) < 10


async def test_a_server_that_never_sends_all_is_given_up(house: House, server: SourceServer, model: bytes) -> None:
    content = Content(model)
    server.paths[PATH] = lambda _: Reply(200, {"ETag": content.etag}, model[:64], len(model), "cut")
    error = await refusal(house, server.url + PATH)
    assert (error.code, "cut" in error.detail) == ("source_failed", True)


async def test_a_file_that_changes_between_two_tries_is_not_mixed(
    house: House, server: SourceServer, large_model: bytes
) -> None:
    before = Content(large_model)
    newer = server.paths[PATH] = Content(large_model[:-1] + b"\x01")
    cut = Reply(200, {"ETag": before.etag}, large_model[: 5 * 2**20], length=len(large_model), after="cut")
    server.faults[PATH] = [before, cut]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == newer.data


async def test_without_a_validator_nothing_is_resumed(house: House, server: SourceServer, model: bytes) -> None:
    def plain(_: Seen) -> Reply:
        return Reply(200, {}, model)

    server.paths[PATH] = plain
    server.faults[PATH] = [plain, Reply(200, {}, model[:200], len(model), "cut")]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == model
    assert all("range" not in seen.headers for seen in server.asked(PATH))


async def test_a_part_that_was_not_asked_for_is_not_used(
    house: House, server: SourceServer, large_model: bytes
) -> None:
    content = server.paths[PATH] = Content(large_model)
    cut = Reply(200, {"ETag": content.etag}, large_model[: 5 * 2**20], length=len(large_model), after="cut")
    wrong = {"ETag": content.etag, "Content-Range": f"bytes 7-99/{len(large_model)}"}
    server.faults[PATH] = [content, cut, Reply(206, wrong, large_model[7:100])]
    pulled = await house.pull(server.url + PATH)
    assert house.content(pulled.name) == large_model


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
async def test_a_failure_that_passes_is_borne(house: House, server: SourceServer, model: bytes, status: int) -> None:
    server.paths[PATH] = Content(model)
    server.faults[PATH] = [Reply(status, {"Retry-After": "0"}), Reply(status)]
    assert house.content((await house.pull(server.url + PATH)).name) == model
    assert any(f"answers {status}" in report.note for report in house.reports)


async def test_a_wait_that_is_too_long_is_told(house: House, server: SourceServer) -> None:
    server.paths[PATH] = lambda _: Reply(429, {"Retry-After": "900"})
    error = await refusal(house, server.url + PATH)
    assert (error.code, error.retry_after, len(server.seen)) == ("rate_limited", 900.0, 1)


@pytest.mark.parametrize(
    ("reply", "code", "word"),
    [
        (Reply(404), "source_not_found", "does not exist"),
        (Reply(403), "source_refused", "refuses"),
        (Reply(418), "source_failed", "418"),
        (Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in"), "source_failed", "web page"),
        (Reply(200, {}, b"<!doctype html>....."), "bad_model_file", "not GGUF"),
        (Reply(200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(10**7))), "source_failed", "compressed"),
        (Reply(200, {}, b"GGUF", length=None, after="endless"), "source_failed", "how long"),
        (Reply(200, {}, b"", length=2**63), "bad_model_file", "announces"),
        (Reply(200, {"Content-Length": "9" * 30}, b"", length=None), "source_failed", ""),
    ],
    ids=["missing", "forbidden", "odd", "page", "no GGUF", "gzip bomb", "endless", "huge", "absurd length"],
)
async def test_what_is_no_model_is_refused(
    house: House, server: SourceServer, reply: Reply, code: str, word: str
) -> None:
    server.paths[PATH] = lambda _: reply
    error = await refusal(house, server.url + PATH)
    assert (error.code, word in error.detail) == (code, True), error.detail


async def test_more_bytes_than_announced_are_refused(house: House, server: SourceServer, model: bytes) -> None:
    etag = Content(model).etag
    server.paths[PATH] = lambda _: Reply(200, {"ETag": etag}, model + bytes(9), None, "endless")
    server.faults[PATH] = [Content(model)]
    error = await refusal(house, server.url + PATH)
    assert (error.code, "more than" in error.detail) == ("source_failed", True)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/x.gguf",
        "http://127.0.0.1:1/x.gguf",
        "https://127.0.0.1:1/x.gguf",
        "https://[::1]/x.gguf",
        "https://[::ffff:10.0.0.1]/x.gguf",
        "https://0x7f000001/x.gguf",
        "https://localhost/x.gguf",
        "https://10.1.2.3/x.gguf",
        "https://100.100.100.200/x.gguf",
        "https://168.63.129.16/x.gguf",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.gguf",
        "https://user:secret@127.0.0.1/x.gguf",
    ],
)
async def test_a_redirect_into_the_inside_is_refused(house: House, server: SourceServer, target: str) -> None:
    server.paths[PATH] = lambda _: redirect(target)
    error = await refusal(house, server.url + PATH)
    assert error.code == "address_refused"
    assert "secret" not in error.detail


async def test_only_the_origins_that_the_settings_name_may_be_inside(
    house: House, server: SourceServer, model: bytes
) -> None:
    async with SourceServer().running() as stranger:
        stranger.paths[PATH] = Content(model)
        assert (await refusal(house, stranger.url + PATH)).code == "address_refused"
        server.paths[PATH] = lambda _: redirect(stranger.url + PATH)
        assert (await refusal(house, server.url + PATH)).code == "address_refused"
        assert stranger.seen == []


@pytest.mark.parametrize(
    "target",
    ["https://xn--a/x.gguf", "//xn--/x.gguf", "https://h.example:99999/x", "https://h.example:-1/x", "//[bad/x"],
)
async def test_a_redirect_to_what_is_no_address_is_refused(house: House, server: SourceServer, target: str) -> None:
    server.paths[PATH] = lambda _: redirect(target)
    assert (await refusal(house, server.url + PATH)).code in ("source_failed", "address_refused")


@pytest.mark.parametrize(
    "place", ["https://xn--a/x.gguf", "https://h.example:99999/x.gguf", "https://[::1/x.gguf", "oci:xn--a.example/b"]
)
async def test_a_reference_to_what_is_no_address_is_refused(house: House, place: str) -> None:
    assert (await refusal(house, place)).code in ("source_failed", "invalid_value")


async def test_redirects_end(house: House, server: SourceServer) -> None:
    server.paths[PATH] = lambda _: redirect(PATH)
    error = await refusal(house, server.url + PATH)
    assert (error.code, "without end" in error.detail) == ("source_failed", True)


async def test_a_redirect_to_an_allowed_server_is_followed(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    server.paths[PATH] = lambda _: redirect(f"{cdn.url}/blob?sig=1", 307)
    cdn.paths["/blob"] = Content(model)
    assert house.content((await house.pull(server.url + PATH)).name) == model


async def test_the_query_of_an_address_is_neither_kept_nor_shown(
    house: House, server: SourceServer, model: bytes
) -> None:
    server.paths[PATH] = Content(model)
    server.faults[PATH] = [Reply(404)]
    error = await refusal(house, f"{server.url}{PATH}?token=hidden")
    assert "hidden" not in str(error)
    pulled = await house.pull(f"{server.url}{PATH}?token=hidden")
    assert "hidden" not in house.store.manifest_of(pulled.name).source
    assert server.asked(PATH)[-1].query == "token=hidden"


async def test_no_cookie_is_given_back(house: House, server: SourceServer, model: bytes) -> None:
    content = Content(model)

    def with_cookie(seen: Seen) -> Reply:
        reply = content(seen)
        reply.headers["Set-Cookie"] = "who=you"
        return reply

    server.paths[PATH] = with_cookie
    await house.pull(server.url + PATH)
    assert len(server.seen) == 2
    assert all("cookie" not in seen.headers for seen in server.seen)


async def test_no_compression_is_asked_for(house: House, server: SourceServer, model: bytes) -> None:
    server.paths[PATH] = Content(model)
    await house.pull(server.url + PATH)
    assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}
    assert {seen.headers["user-agent"] for seen in server.seen} == {"felloe/test"}


async def test_the_same_pull_again_fetches_nothing(house: House, server: SourceServer, model: bytes) -> None:
    server.paths[PATH] = Content(model)
    first = await house.pull(server.url + PATH)
    looked = len(server.seen)
    assert await house.pull(server.url + PATH) == first
    assert len(server.seen) == looked + 1
