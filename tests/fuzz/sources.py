"""What people type and what hubs, registries and web servers answer, up to the plan of a pull."""

import hashlib
import json
import re
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar, cast

import httpx

from felloe.catalog.sources.address_rules import AddressRules, origin_of, parse_url, shown
from felloe.catalog.sources.credentials import RegistryLogin
from felloe.catalog.sources.https import plan_web
from felloe.catalog.sources.huggingface import plan_hugging_face
from felloe.catalog.sources.oci import plan_oci, registry_url
from felloe.catalog.sources.ollama import plan_ollama
from felloe.catalog.sources.plan import Plan
from felloe.catalog.sources.reference import (
    HuggingFaceReference,
    OciReference,
    OllamaReference,
    WebReference,
    is_reference,
    parse_reference,
)
from felloe.catalog.sources.retry_rules import retry_after
from felloe.catalog.sources.web import Credentials, Document, Web
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import MOST_FILE_BYTES, check_path
from fuzz.json_mutation import mutate_json
from fuzz.surface import Surface

_BASE = "https://hub.example"
_BETWEEN = b"\n--\n"
_OWN = AddressRules(["http://127.0.0.1:5000"])
_Value = TypeVar("_Value")


class _Answers:
    """Stands in for the web: every request gets what `choose` says, or an answer that is too long."""

    def __init__(self, choose: Callable[[str], bytes | None]) -> None:
        self._choose = choose

    async def read(self, url: str, credentials: Credentials, *, most_bytes: int, accept: str = "*/*") -> Document:
        del accept
        for value in credentials.headers(parse_url(url)).values():
            assert re.fullmatch(r"[\x20-\x7e]*", value)
        answer = self._choose(url)
        if answer is None:
            raise FelloeError("source_not_found", "nothing is there")
        if len(answer) > most_bytes:
            raise FelloeError("source_failed", "too long")
        return Document(answer, httpx.Headers())


def _run(work: Coroutine[Any, Any, _Value]) -> _Value:
    """Work that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(_Value, done.value)
    raise AssertionError("it waits")


def _web(choose: Callable[[str], bytes | None]) -> Web:
    return cast(Web, _Answers(choose))


def _check_plan(plan: Plan, base: str) -> str:
    assert plan.files
    assert len({file.path.casefold() for file in plan.files}) == len(plan.files)
    assert [file.role for file in plan.files].count("model") == 1
    for file in plan.files:
        check_path(file.path)
        assert "/" not in file.path
        assert origin_of(parse_url(file.url)) == origin_of(httpx.URL(base))
        assert file.size is None or 0 <= file.size <= MOST_FILE_BYTES
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert plan.source.isprintable()
    assert len(plan.licence) <= 2000
    return f"{sorted({file.role for file in plan.files})} {plan.template is None} {sorted(plan.parameters)[:2]}"


def _take_reference(data: bytes) -> str:
    text = data.decode(errors="surrogateescape")
    assert is_reference(text) in (True, False)
    reference = parse_reference(text)
    again = parse_reference(reference.text)
    assert parse_reference(again.text) == again
    if isinstance(reference, WebReference):
        return f"web {len(plan_web(reference).files)}"
    if isinstance(reference, OciReference):
        login = RegistryLogin(registry_url(reference.host, {}), reference.repository, ("user", "password"))
        assert login.advice(401).isprintable()
        parse_url(f"{registry_url(reference.host, {})}/v2/{reference.repository}/manifests/{reference.version}")
    return type(reference).__name__


def _take_listing(data: bytes) -> str:
    wanted, _, answer = data.partition(b"\n")
    reference = parse_reference(f"hf:house/tiny{':' if wanted else ''}{wanted.decode(errors='surrogateescape')}")
    assert isinstance(reference, HuggingFaceReference)
    plan, _ = _run(plan_hugging_face(reference, _web(lambda _: answer), _BASE, "token"))
    return _check_plan(plan, _BASE)


def _take_artefact(data: bytes) -> str:
    """A manifest and blobs; `@1` in it stands for the digest of the first blob."""
    manifest, *blobs = data.split(_BETWEEN)
    for number, blob in enumerate(blobs, 1):
        manifest = manifest.replace(b"@%d" % number, f"sha256:{hashlib.sha256(blob).hexdigest()}".encode())
    by_digest = {hashlib.sha256(blob).hexdigest(): blob for blob in blobs}

    def choose(url: str) -> bytes | None:
        return manifest if url.endswith("/latest") else by_digest.get(url.rpartition(":")[2])

    taken: list[str] = []
    refusal: FelloeError | None = None
    oci, ollama = OciReference("hub.example", "house/tiny", "latest"), OllamaReference("house", "tiny", "latest")
    for plan_it in (lambda: plan_oci(oci, _web(choose), _BASE, None), lambda: plan_ollama(ollama, _web(choose), _BASE)):
        try:
            plan, _ = _run(plan_it())
            taken.append(_check_plan(plan, _BASE))
        except FelloeError as error:
            refusal = refusal or error
    if not taken and refusal is not None:
        raise refusal
    return " ".join(taken)


def _take_challenge(data: bytes) -> str:
    """A registry's 401 and, in further lines, what its token server answers."""
    header, _, answer = data.partition(b"\n")
    challenge = header.replace(b"\r", b"").replace(b"\0", b"")
    request = httpx.Request("GET", "https://127.0.0.1/", headers={"Host": "hub.example"})
    refusal = httpx.Response(401, headers=[(b"WWW-Authenticate", challenge)], request=request)
    login = RegistryLogin(_BASE, "house/tiny", ("user", "password"))
    renewed = _run(login.renew(_web(lambda _: answer), refusal))
    for value in login.headers(httpx.URL(_BASE)).values():
        assert re.fullmatch(r"[\x20-\x7e]+", value)
    assert not login.headers(httpx.URL("https://elsewhere.example/"))
    return f"challenge {renewed}"


def _take_address(data: bytes) -> str:
    """Where a redirect may lead, and when a server wants to be asked again."""
    text = data.decode(errors="replace")
    seconds = retry_after(text, 1e9)
    assert seconds is None or seconds >= 0.0
    url = parse_url(text)
    assert shown(url).isprintable()
    _OWN.check_url(url, None)
    _OWN.check_name(url)
    assert origin_of(url).host not in ("localhost", "127.0.0.1", "169.254.169.254") or _OWN.is_own(url)
    return f"{url.scheme} {_OWN.is_own(url)}"


def _mutate_second_line(data: bytes, random: Random) -> bytes | None:
    first, line, rest = data.partition(b"\n")
    changed = mutate_json(rest, random)
    return first + line + changed if changed is not None and random.random() < 0.9 else None


def _mutate_one_part(data: bytes, random: Random) -> bytes | None:
    parts = data.split(_BETWEEN)
    at = 0 if random.random() < 0.7 else random.randrange(len(parts))
    changed = mutate_json(parts[at], random)
    return None if changed is None else _BETWEEN.join((*parts[:at], changed, *parts[at + 1 :]))


def _reference_seeds() -> list[bytes]:
    texts = (
        "", "/m.gguf", "~/m", "hf:a/b", "hf:a/b.c@refs/pr/1:Q4_K_M", "hf:a/b:sub/x y.gguf", "ollama:me/mine:1b",
        "ollama:llama3.2", f"oci:ghcr.io/a/b:v1@sha256:{'ab' * 32}", "oci:localhost:5000/b", "oci:[::1]:5000/b",
        "https://h.example/x-00001-of-00003.gguf", "http://h:80/x.gguf?sig=1#part", "oci:xn--a.example/b",
    )  # fmt: skip
    return [text.encode() for text in texts]


def _listing_seeds() -> list[bytes]:
    names = ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m-f16.gguf", "s/b-00001-of-00002.gguf", "s/b-00002-of-00002.gguf")
    lfs = {"sha256": "ab" * 32, "size": 100, "pointerSize": 134}
    siblings = [{"rfilename": name, "size": 100, "lfs": lfs} for name in names] + [{"rfilename": "README.md"}]
    listing = {"sha": "0" * 40, "siblings": siblings, "cardData": {"license": ["mit", "other"], "license_name": "x"}}
    one = {"sha": "a" * 64, "siblings": siblings[:1]}
    return [b"\n" + json.dumps(one).encode(), *(w + b"\n" + json.dumps(listing).encode() for w in (b"", b"Q8_0", b"b"))]


def _artefact_seeds() -> list[bytes]:
    def layer(kind: str, digest: str, **notes: str) -> dict[str, object]:
        return {"mediaType": kind, "digest": digest, "size": 9} | ({"annotations": notes} if notes else {})

    ollama, cncf = "application/vnd.ollama.image.", "application/vnd.cncf.model."
    kinds = ("model", "projector", "template", "license", "params", "system")
    layers = [layer(f"{ollama}{kind}", f"@{number}") for number, kind in enumerate(kinds, 1)]
    blobs = [
        b"GGUF",
        b"GGUF",
        b"{{ .Prompt }}",
        b"MIT License\n",
        b'{"stop": ["a"], "top_k": 3, "x": null}',
        b"be kind",
    ]
    pack = {
        "schemaVersion": 2,
        "config": layer(f"{cncf}config.v1+json", "@1"),
        "layers": [
            layer(f"{cncf}weight.v1.raw", "@2", **{"org.cncf.model.filepath": "m.gguf"}),
            layer("x/license", "@3"),
        ],
    }
    index = {"schemaVersion": 2, "manifests": [layer("application/vnd.oci.image.manifest.v1+json", "@1")]}
    docker = {
        "schemaVersion": 2,
        "layers": [
            layer("application/vnd.docker.ai.gguf.v3", "@1"),
            layer("application/vnd.docker.ai.chat.template.jinja", "@2"),
            layer("application/vnd.docker.ai.license", "@2"),
        ],
    }
    inner = json.dumps({"schemaVersion": 2, "layers": [layer("gguf", f"sha256:{'0' * 64}")]}).encode()
    return [
        _BETWEEN.join((json.dumps({"schemaVersion": 2, "layers": layers}).encode(), *blobs)),
        _BETWEEN.join((json.dumps(pack).encode(), b'{"descriptor": {"licenses": ["MIT"]}}', b"GGUF", b"text")),
        _BETWEEN.join((json.dumps(index).encode(), inner)),
        _BETWEEN.join((json.dumps(docker).encode(), b"GGUF", b"{{ x }}")),
    ]


def _challenge_seeds() -> list[bytes]:
    token, realm = b'\n{"access_token": "abc"}', b'Bearer realm="https://hub.example/token",service="s",scope="a"'
    elsewhere = realm.replace(b"hub.example/token", b"auth.other.example/t?x=1")
    return [realm + token, elsewhere + b'\n{"token": "x"}', b'Basic realm="x"\n', b"Digest\n", b"\n"]


def _address_seeds() -> list[bytes]:
    texts = (
        "https://hub.example/a%1b?q#f", "http://127.0.0.1:5000/x", "https://[::ffff:10.0.0.1]/", "https://0x7f000001/",
        "https://user:pw@h.example/", "https://xn--bcher-kva.example/", "120", "Thu, 01 Jan 1970 00:01:40 +0100",
        "https://metadata.google.internal/", "//h/x", "https://h.example:99999/", "ftp://h/",
    )  # fmt: skip
    return [text.encode() for text in texts]


_SOURCE_CODES = frozenset({"source_failed", "source_not_found", "invalid_value", "address_refused"})

REFERENCE = Surface("reference", _take_reference, _SOURCE_CODES, _reference_seeds, ("hf:", "oci:", "@sha256:", "xn--"))
LISTING = Surface("listing", _take_listing, _SOURCE_CODES, _listing_seeds, ("rfilename",), _mutate_second_line)
ARTEFACT = Surface("artefact", _take_artefact, _SOURCE_CODES, _artefact_seeds, ("@1", "\n--\n"), _mutate_one_part)
CHALLENGE = Surface("challenge", _take_challenge, _SOURCE_CODES, _challenge_seeds, ("realm=", "https://", "xn--"))
ADDRESS = Surface("address", _take_address, _SOURCE_CODES, _address_seeds, ("https://", "xn--", "[::", "%1b", "GMT"))
