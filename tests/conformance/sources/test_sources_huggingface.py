"""A Hugging Face hub: pinned to a commit, gated by a token, large files on another host."""

import pytest
from source_house import House
from source_servers import Content, Reply, SourceServer, as_json, hub_model, redirect

from felloe.domain.errors import FelloeError
from gguf_bytes import UINT16, UINT32, tiny_model

LISTING = "/api/models/house/tiny/revision/main"


async def refusal(house: House, reference: str, environment: dict[str, str] | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(reference, environment=environment)
    assert house.store.list() == ()
    return caught.value


async def test_a_model_comes_from_where_the_hub_redirects_to(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    commit = hub_model(server, {"tiny.Q8_0.gguf": model}, cdn, license="apache-2.0")
    pulled = await house.pull("hf:house/tiny")
    manifest = house.store.manifest_of(pulled.name)
    assert house.content(pulled.name) == model
    assert (manifest.source, manifest.revision, manifest.licence) == ("hf:house/tiny", commit, "apache-2.0")
    assert server.seen[0].query == "blobs=true"


async def test_the_token_goes_to_the_hub_and_to_nobody_else(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    hub_model(server, {"tiny.gguf": model}, cdn)
    await house.pull("hf:house/tiny", environment={"HF_TOKEN": "hf_secret", "OTHER": "x"})
    assert {seen.headers.get("authorization") for seen in server.seen} == {"Bearer hf_secret"}
    assert cdn.seen and all("authorization" not in seen.headers for seen in cdn.seen)


async def test_a_gated_model_says_how_to_get_in(house: House, server: SourceServer, cdn: SourceServer) -> None:
    commit = hub_model(server, {"tiny.gguf": b"GGUF"}, cdn)
    path = f"/house/tiny/resolve/{commit}/tiny.gguf"
    server.paths[path] = lambda _: Reply(401, {"X-Error-Code": "GatedRepo"})
    error = await refusal(house, "hf:house/tiny")
    assert (error.code, "HF_TOKEN" in error.detail, "house/tiny" in error.detail) == ("source_refused", True, True)


@pytest.mark.parametrize(("status", "word"), [(401, "expired"), (403, "accept its terms")])
async def test_a_token_that_does_not_do_is_named_and_not_shown(
    house: House, server: SourceServer, status: int, word: str
) -> None:
    server.paths[LISTING] = lambda _: Reply(status)
    error = await refusal(house, "hf:house/tiny", {"HF_TOKEN": "hf_secret"})
    assert (error.code, word in error.detail, "hf_secret" in str(error)) == ("source_refused", True, False)


async def test_a_revision_is_asked_for_as_it_stands(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    commit = hub_model(server, {"tiny.gguf": model}, cdn)
    server.paths["/api/models/house/tiny/revision/refs%2Fpr%2F1"] = server.paths[LISTING]
    pulled = await house.pull("hf:house/tiny@refs/pr/1")
    assert house.store.manifest_of(pulled.name).revision == commit


async def test_a_quantisation_or_a_file_chooses_among_many(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    other = bytes(tiny_model(general__name=(8, "Other")))
    hub_model(server, {"tiny-Q4_K_M.gguf": model, "tiny-Q8_0.gguf": other, "tiny-Q4_K_S.gguf": b"GGUF"}, cdn)
    assert house.content((await house.pull("hf:house/tiny:q8_0")).name) == other
    assert house.content((await house.pull("hf:house/tiny:tiny-Q8_0.gguf")).name) == other
    assert house.content((await house.pull("hf:house/tiny")).name) == model


async def test_what_there_is_is_named_when_nothing_fits(house: House, server: SourceServer, cdn: SourceServer) -> None:
    hub_model(server, {"tiny-Q3_K_M.gguf": b"GGUF", "tiny-Q8_0.gguf": b"GGUF"}, cdn)
    for reference in ("hf:house/tiny", "hf:house/tiny:Q2_K"):
        error = await refusal(house, reference)
        assert error.code == "source_not_found"
        assert "tiny-Q3_K_M.gguf, tiny-Q8_0.gguf" in error.detail


async def test_a_sharded_model_comes_with_all_its_parts(house: House, server: SourceServer, cdn: SourceServer) -> None:
    parts: dict[str, bytes] = {}
    for number in range(3):
        split = {"split__count": (UINT16, 3), "split__no": (UINT16, number), "split__tensors__count": (UINT32, 6)}
        parts[f"big/tiny-{number + 1:05}-of-00003.gguf"] = bytes(tiny_model(**split))
    hub_model(server, parts, cdn)
    pulled = await house.pull("hf:house/tiny")
    first = house.store.path_of(pulled.name)
    assert sorted(path.name for path in first.parent.iterdir()) == [path.rpartition("/")[2] for path in parts]
    assert [file.role for file in house.store.manifest_of(pulled.name).files] == ["model", "part", "part"]


async def test_a_missing_part_is_named_before_anything_is_fetched(
    house: House, server: SourceServer, cdn: SourceServer
) -> None:
    hub_model(server, {"tiny-00001-of-00002.gguf": b"GGUF"}, cdn)
    error = await refusal(house, "hf:house/tiny")
    assert (error.code, "tiny-00002-of-00002.gguf" in error.detail) == ("source_not_found", True)
    assert cdn.seen == []


async def test_a_wrong_hash_is_refused_and_dropped(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    hub_model(server, {"tiny.gguf": model}, cdn)
    place = next(iter(cdn.paths))
    cdn.paths[place] = Content(model[:-1] + b"\x01")
    assert (await refusal(house, "hf:house/tiny")).code == "bad_model_file"
    cdn.paths[place] = Content(model)
    assert house.content((await house.pull("hf:house/tiny")).name) == model


async def test_another_length_than_the_hub_says_is_refused(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    hub_model(server, {"tiny.gguf": model}, cdn)
    cdn.paths[next(iter(cdn.paths))] = Content(model + b"x")
    error = await refusal(house, "hf:house/tiny")
    assert (error.code, f"instead of {len(model)}" in error.detail) == ("source_failed", True)


async def test_two_repositories_with_the_same_file_fetch_it_once(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    hub_model(server, {"tiny.gguf": model}, cdn)
    await house.pull("hf:house/tiny", "one")
    fetched = len(cdn.seen)
    await house.pull("hf:house/tiny", "two")
    assert (len(cdn.seen), house.content("two")) == (fetched, model)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": "text/html"}, b"<html>welcome</html>"),
        Reply(200, {"Content-Type": "application/json"}, b"[" * 100_000),
        as_json({"sha": "main", "siblings": []}),
        as_json({"sha": "0" * 40, "siblings": [{"rfilename": "x.gguf", "size": -1}]}),
        as_json({"sha": "0" * 40, "siblings": [{"rfilename": "x.gguf", "lfs": {"sha256": "../x", "size": 1}}]}),
        as_json({"sha": "0" * 40, "siblings": [{"rfilename": "a\x00.gguf", "size": 1}]}),
        Reply(200, {}, b"{", None, "endless"),
        Reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
    ],
    ids=["page", "nested", "no commit", "size", "hash", "name", "endless", "gzip"],
)
async def test_a_listing_that_is_none_is_refused(house: House, server: SourceServer, reply: Reply) -> None:
    server.paths[LISTING] = lambda _: reply
    assert (await refusal(house, "hf:house/tiny")).code == "source_failed"


async def test_a_hub_that_stalls_is_given_up(house: House, server: SourceServer) -> None:
    server.paths[LISTING] = lambda _: Reply(200, {}, b"{", 100, "stall")
    assert (await refusal(house, "hf:house/tiny")).code == "source_failed"


async def test_a_renamed_repository_is_followed_with_the_token(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    hub_model(server, {"tiny.gguf": model}, cdn)
    server.paths["/api/models/old/name/revision/main"] = lambda _: redirect(f"{LISTING}?blobs=true", 307)
    commit = "c0ffee" + "0" * 34
    old = f"/old/name/resolve/{commit}/tiny.gguf"
    server.paths[old] = lambda _: redirect(f"/house/tiny/resolve/{commit}/tiny.gguf", 307)
    assert house.content((await house.pull("hf:old/name", environment={"HF_TOKEN": "t"})).name) == model
    assert {seen.headers.get("authorization") for seen in server.seen} == {"Bearer t"}
