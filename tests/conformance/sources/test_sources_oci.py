"""OCI registries: ModelPack, Docker's and plain artefacts, indexes, and tokens that are asked for and run out."""

import base64
import json

import pytest
from source_house import House
from source_servers import Content, Reply, Seen, SourceServer, as_json, registry_artefact, registry_manifest

from felloe.domain.errors import FelloeError

REFERENCE = "oci:registry.test/team/tiny:v1"
RAW = "application/vnd.cncf.model.weight.v1.raw"
PATH = "org.cncf.model.filepath"
LOGIN = {"FELLOE_REGISTRY_CREDENTIALS": "other.test=a:b registry.test=ada:pass:word"}


async def refusal(house: House, reference: str = REFERENCE, environment: dict[str, str] | None = None) -> FelloeError:
    with pytest.raises(FelloeError) as caught:
        await house.pull(reference, environment=environment)
    assert house.store.list() == ()
    return caught.value


def publish(server: SourceServer, model: bytes, tag: str = "v1") -> str:
    return registry_artefact(server, "team/tiny", tag, [(RAW, model, {PATH: "weights/tiny.gguf"})])


async def test_a_modelpack_brings_its_file_and_licence(house: House, server: SourceServer, model: bytes) -> None:
    config = json.dumps({"descriptor": {"licenses": ["Apache-2.0", "MIT"]}, "config": {}, "modelfs": {}}).encode()
    digest = registry_artefact(
        server,
        "team/tiny",
        "v1",
        [
            (RAW, model, {PATH: "weights/tiny.gguf"}),
            ("application/vnd.cncf.model.doc.v1.raw", b"Apache License", {PATH: "LICENSE"}),
            ("application/vnd.cncf.model.doc.v1.raw", b"# Tiny", {PATH: "README.md"}),
        ],
        ("application/vnd.cncf.model.config.v1+json", config),
        artifactType="application/vnd.cncf.model.manifest.v1+json",
    )
    pulled = await house.pull(REFERENCE)
    manifest = house.store.manifest_of(pulled.name)
    assert house.content(pulled.name) == model
    assert (manifest.source, manifest.revision, manifest.licence) == (REFERENCE, digest, "Apache-2.0, MIT")
    assert [(file.path, file.role) for file in manifest.files] == [("tiny.gguf", "model"), ("LICENSE", "licence")]


@pytest.mark.parametrize(
    ("kind", "notes"),
    [
        ("application/vnd.docker.ai.gguf.v3", {}),
        ("application/vnd.cnai.model.weight.v1.raw", {"org.cnai.model.filepath": "x.gguf"}),
        ("application/vnd.cncf.model.weight.v1.gguf", {}),
        ("application/octet-stream", {"org.opencontainers.image.title": "x.gguf"}),
        ("application/gguf", {}),
    ],
)
async def test_other_artefacts_that_hold_gguf_are_understood(
    house: House, server: SourceServer, model: bytes, kind: str, notes: dict[str, str]
) -> None:
    registry_artefact(server, "team/tiny", "v1", [(kind, model, notes)])
    assert house.content((await house.pull(REFERENCE)).name) == model


async def test_a_digest_pins_the_artefact(house: House, server: SourceServer, model: bytes) -> None:
    digest = publish(server, model)
    pulled = await house.pull(f"oci:registry.test/team/tiny@{digest}")
    assert house.store.manifest_of(pulled.name).revision == digest
    server.paths[f"/v2/team/tiny/manifests/{digest}"] = lambda _: Reply(200, {}, b'{"schemaVersion": 2}')
    with pytest.raises(FelloeError, match="does not have the digest"):
        await house.pull(f"oci:registry.test/team/tiny@{digest}", "again")


async def test_an_index_leads_to_its_one_model(house: House, server: SourceServer, model: bytes) -> None:
    digest = publish(server, model, "inner")
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 9},
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": f"sha256:{'0' * 64}",
                "size": 9,
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            },
        ],
    }
    registry_manifest(server, "team/tiny", "v1", index)
    assert house.store.manifest_of((await house.pull(REFERENCE)).name).revision == digest
    accepted = server.asked("/v2/team/tiny/manifests/v1")[0].headers["accept"]
    assert "application/vnd.oci.image.index.v1+json" in accepted
    index["manifests"] = [index["manifests"][0]] * 2
    registry_manifest(server, "team/tiny", "v2", index)
    with pytest.raises(FelloeError, match="name one of them by its digest"):
        await house.pull("oci:registry.test/team/tiny:v2", "two")


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ([("application/vnd.cncf.model.weight.v1.tar+gzip", b"x", {PATH: "tiny.gguf"})], "archives"),
        ([("application/vnd.oci.image.layer.v1.tar+gzip", b"x", {})], "no GGUF"),
        ([(RAW, b"GGUF", {PATH: "a/x.gguf"}), (RAW, b"GGUG", {PATH: "a/x.gguf"})], "same path"),
        ([(RAW, b"GGUF", {PATH: "x/\x07.gguf"})], "cannot be the name"),
    ],
)
async def test_what_holds_no_model_is_refused(
    house: House, server: SourceServer, layers: list[tuple[str, bytes, dict[str, str]]], word: str
) -> None:
    registry_artefact(server, "team/tiny", "v1", layers)
    error = await refusal(house)
    assert (error.code, word in error.detail) == ("source_failed", True), error.detail


class Guard:
    """A registry's lock: tokens by challenge, each for some requests."""

    def __init__(self, server: SourceServer, realm: str, uses: int = 100) -> None:
        self.tokens: dict[str, int] = {}
        self._uses = uses
        self._challenge = f'Bearer realm="{realm}",service="registry.test",scope="repository:all:push,pull"'
        for path, handler in list(server.paths.items()):
            server.paths[path] = lambda seen, handler=handler: self._checked(seen, handler)

    def _checked(self, seen: Seen, handler: object) -> Reply:
        token = seen.headers.get("authorization", "").removeprefix("Bearer ")
        if self.tokens.get(token, 0) < 1:
            return Reply(401, {"WWW-Authenticate": self._challenge})
        self.tokens[token] -= 1
        assert callable(handler)
        return handler(seen)

    def issue(self, _: Seen) -> Reply:
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = self._uses
        return as_json({"access_token": token, "expires_in": 300})


async def test_a_token_is_asked_for_and_sent(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model)
    guard = Guard(server, f"{server.url}/token")
    server.paths["/token"] = guard.issue
    assert house.content((await house.pull(REFERENCE)).name) == model
    [asked] = server.asked("/token")
    assert asked.query == "service=registry.test&scope=repository%3Ateam%2Ftiny%3Apull"
    assert "authorization" not in asked.headers


async def test_a_token_that_runs_out_is_renewed(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model)
    guard = Guard(server, f"{server.url}/token", uses=1)
    server.paths["/token"] = guard.issue
    assert house.content((await house.pull(REFERENCE)).name) == model
    assert len(server.asked("/token")) == 2


async def test_the_login_goes_to_the_token_server_of_its_registry(
    house: House, server: SourceServer, model: bytes
) -> None:
    publish(server, model)
    guard = Guard(server, f"{server.url}/token")
    server.paths["/token"] = guard.issue
    await house.pull(REFERENCE, environment=LOGIN)
    basic = "Basic " + base64.b64encode(b"ada:pass:word").decode()
    assert server.asked("/token")[0].headers["authorization"] == basic
    assert all(seen.headers.get("authorization") != basic for seen in server.seen if seen.path != "/token")


async def test_a_token_server_of_somebody_else_gets_no_login(
    house: House, server: SourceServer, cdn: SourceServer, model: bytes
) -> None:
    publish(server, model)
    guard = Guard(server, f"{cdn.url.replace('127.0.0.1', 'localhost')}/token")
    house.allow(cdn.url.replace("127.0.0.1", "localhost"))
    cdn.paths["/token"] = guard.issue
    await house.pull(REFERENCE, environment=LOGIN)
    assert "authorization" not in cdn.asked("/token")[0].headers


async def test_a_token_server_inside_is_not_asked(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model)
    Guard(server, "http://169.254.169.254/token")
    assert (await refusal(house)).code == "address_refused"


async def test_a_blob_server_gets_no_token(house: House, server: SourceServer, cdn: SourceServer, model: bytes) -> None:
    publish(server, model)
    for path in list(server.paths):
        if "/blobs/" in path:
            cdn.paths[path] = Content(model)
            server.paths[path] = lambda seen: Reply(307, {"Location": cdn.url + seen.path})
    guard = Guard(server, f"{server.url}/token")
    server.paths["/token"] = guard.issue
    assert house.content((await house.pull(REFERENCE)).name) == model
    assert cdn.seen and all("authorization" not in seen.headers for seen in cdn.seen)


async def test_a_basic_challenge_takes_the_login(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model)
    basic = "Basic " + base64.b64encode(b"ada:pass:word").decode()
    for path, handler in list(server.paths.items()):
        server.paths[path] = lambda seen, handler=handler: (
            handler(seen)
            if seen.headers.get("authorization") == basic
            else Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        )
    assert (await refusal(house)).code == "source_refused"
    assert house.content((await house.pull(REFERENCE, environment=LOGIN)).name) == model


@pytest.mark.parametrize("realm", ["https://xn--a/token", "https://h.example:99999/", "https://h\x0b/", "http://"])
async def test_a_token_server_at_what_is_no_address_is_refused(
    house: House, server: SourceServer, model: bytes, realm: str
) -> None:
    publish(server, model)
    Guard(server, realm)
    assert (await refusal(house, environment=LOGIN)).code in ("source_failed", "address_refused")


async def test_a_login_that_is_refused_is_named_and_not_shown(house: House, server: SourceServer, model: bytes) -> None:
    publish(server, model)
    Guard(server, f"{server.url}/token")
    server.paths["/token"] = lambda _: Reply(401)
    error = await refusal(house, environment=LOGIN)
    assert error.code == "source_refused"
    assert "FELLOE_REGISTRY_CREDENTIALS" in error.detail
    assert "pass:word" not in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": "text/html"}, b"<html>"),
        as_json({}),
        as_json({"token": "a\r\nX-Evil: 1"}),
        Reply(200, {}, b"{", None, "endless"),
    ],
    ids=["page", "none", "header", "endless"],
)
async def test_a_token_that_is_none_is_refused(house: House, server: SourceServer, model: bytes, reply: Reply) -> None:
    publish(server, model)
    Guard(server, f"{server.url}/token")
    server.paths["/token"] = lambda _: reply
    assert (await refusal(house)).code == "source_failed"
