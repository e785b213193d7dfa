"""Ollama's registry: the layers of a manifest become the files, parameters and licence of a model."""

import json

import pytest
from source_house import House
from source_servers import Content, Reply, SourceServer, registry_artefact, registry_manifest, sha256

from felloe.domain.errors import FelloeError

KIND = "application/vnd.ollama.image."
CONFIG = ("application/vnd.docker.container.image.v1+json", b'{"model_format": "gguf"}')


def publish(server: SourceServer, model: bytes, *more: tuple[str, bytes], name: str = "library/tiny") -> str:
    layers = [(KIND + kind, data, {}) for kind, data in (("model", model), *more)]
    return registry_artefact(server, name, "latest", layers, CONFIG)


async def refusal(house: House, reference: str) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(reference)
    assert house.store.list() == ()
    return caught.value


async def test_a_model_brings_its_parameters_template_and_licence(
    house: House, server: SourceServer, model: bytes
) -> None:
    parameters = {"stop": ["<|end|>"], "temperature": 0.6, "num_ctx": 4096, "odd": {"not": "known"}}
    digest = publish(
        server,
        model,
        ("template", b"{{ .Prompt }}"),
        ("params", json.dumps(parameters).encode()),
        ("system", b"You are small."),
        ("license", b"\nMIT License\n\nCopyright"),
    )
    pulled = await house.pull("ollama:tiny")
    manifest = house.store.manifest_of(pulled.name)
    assert house.content(pulled.name) == model
    assert (manifest.source, manifest.revision, manifest.licence) == ("ollama:tiny:latest", digest, "MIT License")
    assert dict(manifest.defaults) == {
        "stop": ("<|end|>",),
        "temperature": 0.6,
        "num_ctx": 4096,
        "system": "You are small.",
    }
    assert {file.role for file in manifest.files} == {"model", "template", "licence"}


async def test_a_name_space_and_a_tag_are_asked_for(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model, name="me/mine")
    server.paths["/v2/me/mine/manifests/1b"] = server.paths["/v2/me/mine/manifests/latest"]
    pulled = await house.pull("ollama:me/mine:1b")
    assert house.store.manifest_of(pulled.name).source == "ollama:me/mine:1b"


async def test_a_blob_on_another_host_is_followed(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    publish(server, model)
    blob = f"/v2/library/tiny/blobs/sha256:{sha256(model)}"
    server.paths[blob] = lambda _: Reply(307, {"Location": f"{cdn.url}/r2/blob"})
    cdn.paths["/r2/blob"] = Content(model)
    assert house.content((await house.pull("ollama:tiny")).name) == model


async def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    house: House, server: SourceServer, model: bytes
) -> None:
    publish(server, model, ("params", b"{}"))
    server.paths[f"/v2/library/tiny/blobs/sha256:{sha256(model)}"] = Content(model[:-1] + b"\x01")
    assert (await refusal(house, "ollama:tiny")).code == "bad_model_file"
    server.paths[f"/v2/library/tiny/blobs/sha256:{sha256(b'{}')}"] = Content(b"[]")
    assert (await refusal(house, "ollama:tiny")).code == "source_failed"


async def test_what_is_no_gguf_model_is_refused(house: House, server: SourceServer, model: bytes) -> None:
    registry_artefact(server, "library/tiny", "latest", [(f"{KIND}tensor", b"x", {})], CONFIG)
    assert "GGUF" in (await refusal(house, "ollama:tiny")).detail
    publish(server, model, ("adapter", b"GGUF"))
    assert "adapter" in (await refusal(house, "ollama:tiny")).detail


@pytest.mark.parametrize("digest", ["sha256:zz", "md5:" + "0" * 32, "sha256:../../../etc", "sha512:" + "0" * 128])
async def test_a_digest_that_is_none_is_refused(house: House, server: SourceServer, digest: str) -> None:
    layer = {"mediaType": f"{KIND}model", "digest": digest, "size": 9}
    manifest = {"schemaVersion": 2, "mediaType": "application/x", "layers": [layer]}
    registry_manifest(server, "library/tiny", "latest", manifest)
    assert (await refusal(house, "ollama:tiny")).code == "source_failed"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": "text/html"}, b"<html>"),
        Reply(200, {}, b'{"schemaVersion": 1}'),
        Reply(200, {}, b'{"schemaVersion": 2, "layers": [{"digest": "sha256:0", "size": -1}]}'),
        Reply(200, {}, b"{", None, "endless"),
        Reply(200, {"Docker-Content-Digest": f"sha256:{'0' * 64}"}, b'{"schemaVersion": 2}'),
    ],
    ids=["page", "schema 1", "negative", "endless", "digest"],
)
async def test_a_manifest_that_is_none_is_refused(house: House, server: SourceServer, reply: Reply) -> None:
    server.paths["/v2/library/tiny/manifests/latest"] = lambda _: reply
    assert (await refusal(house, "ollama:tiny")).code == "source_failed"


async def test_a_name_that_is_not_there_is_told(house: House) -> None:
    assert (await refusal(house, "ollama:nothing")).code == "source_not_found"
