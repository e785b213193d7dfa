"""Models in OCI registries: ModelPack artefacts, Docker's model artefacts, and plain artefacts that hold GGUF files.

Sources: OCI image and distribution specifications 1.1; the CNCF ModelPack model-spec v1 (`vnd.cncf.model.*`,
before that `vnd.cnai.model.*`; a layer's path is its annotation `org.cncf.model.filepath`);
docker/model-runner (`vnd.docker.ai.*`).
"""

import re

import msgspec

from felloe.catalog.sources.choice import choose
from felloe.catalog.sources.credentials import RegistryLogin
from felloe.catalog.sources.plan import Plan, RemoteFile, check_names, file_name
from felloe.catalog.sources.reference import OciReference
from felloe.catalog.sources.registry import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Repository,
)
from felloe.catalog.sources.web import Web
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import Role

_ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))
_PUBLIC_HOSTS = {"docker.io": "registry-1.docker.io"}
_PATHS = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
_MODEL_CONFIG = re.compile(r"application/vnd\.(cncf|cnai)\.model\.config\.v1\+json")
_MODEL_WEIGHT = re.compile(r"application/vnd\.(cncf|cnai)\.model\.weight\.v1\.(.+)")
_DOCKER = "application/vnd.docker.ai."
_DOCKER_TEMPLATE = f"{_DOCKER}chat.template.jinja"
_LICENCE_NAMES = ("license", "licence", "copying")


class _Descriptor(msgspec.Struct):
    licenses: list[str] = []


class _ModelConfig(msgspec.Struct):
    descriptor: _Descriptor | None = None


def registry_url(host: str, mirrors: dict[str, str]) -> str:
    """The base URL that is asked for what references call `host`."""
    return mirrors.get(host, f"https://{_PUBLIC_HOSTS.get(host, host)}").rstrip("/")


async def plan_oci(
    reference: OciReference, web: Web, base_url: str, login: tuple[str, str] | None
) -> tuple[Plan, RegistryLogin]:
    """What the artefact holds of a model, and the login for it. Raises as `Web.read` and `choose` do."""
    credentials = RegistryLogin(base_url, reference.repository, login)
    repository = Repository(web, base_url, reference.repository, credentials, reference.text)
    manifest, digest = await repository.manifest(reference.version, _ACCEPT)
    if manifest.manifests:
        entry = _entry(manifest, reference.text)
        manifest, digest = await repository.manifest(entry.digest, _ACCEPT)
        if manifest.manifests:
            raise FelloeError("source_failed", f"{reference.text} is an index of indexes")
    templates = [layer for layer in manifest.layers if layer.kind == _DOCKER_TEMPLATE]
    plan = Plan(
        files=check_names(_files(repository, manifest, reference), reference.text),
        source=reference.text,
        revision=digest,
        template=await repository.text(templates[0]) if templates else None,
        licence=await _licence(repository, manifest),
    )
    return plan, credentials


def _entry(index: Manifest, where: str) -> Descriptor:
    """The one manifest of an index that can be a model: attestations are none, and models have no platform."""
    entries = [one for one in index.manifests if one.kind in (OCI_MANIFEST, DOCKER_MANIFEST)]
    entries = [one for one in entries if one.note("vnd.docker.reference.type") != "attestation-manifest"]
    models = [one for one in entries if ".model." in one.artifact_type] or entries
    if len(models) != 1:
        detail = f"{where} is an index of {len(models)} manifests; name one of them by its digest"
        raise FelloeError("source_not_found", detail)
    return models[0]


def _files(repository: Repository, manifest: Manifest, reference: OciReference) -> tuple[RemoteFile, ...]:
    where = reference.text
    stem = f"{reference.repository.rpartition('/')[2]}"
    layers: dict[str, Descriptor] = {}
    for number, layer in enumerate(manifest.layers):
        path = _path(layer, f"{stem}-{number}" if number else stem)
        if path in layers:
            raise FelloeError("source_failed", f"{where}: two layers have the same path")
        layers[path] = layer
    if not any(path.lower().endswith(".gguf") for path in layers):
        _explain_none(manifest, where)
    chosen: dict[str, Role] = {one.path: one.role for one in choose(layers, "", where)}
    files = [repository.file(layers[path], file_name(path, where), role) for path, role in chosen.items()]
    for path, layer in layers.items():
        if path not in chosen and (role := _text_role(path, layer)) is not None:
            files.append(repository.file(layer, file_name(path, where), role))
    return tuple(files)


def _path(layer: Descriptor, default: str) -> str:
    """The layer's own path, or one that says what its media type says."""
    path = layer.note(*_PATHS)
    weight = _MODEL_WEIGHT.fullmatch(layer.kind)
    if weight is not None and weight[2] not in ("raw", "gguf"):
        return f"{path or default}.packed"
    if path:
        return path
    if layer.kind == f"{_DOCKER}mmproj":
        return f"mmproj-{default}.gguf"
    if "gguf" in layer.kind or layer.kind == "application/vnd.ollama.image.model":
        return f"{default}.gguf"
    return f"{default}.{'license' if layer.kind == f'{_DOCKER}license' else 'other'}"


def _text_role(path: str, layer: Descriptor) -> Role | None:
    if layer.kind == _DOCKER_TEMPLATE:
        return "template"
    name = path.rpartition("/")[2].lower()
    if layer.kind == f"{_DOCKER}license" or name.partition(".")[0] in _LICENCE_NAMES:
        return "licence"
    return None


def _explain_none(manifest: Manifest, where: str) -> None:
    weights = [match for layer in manifest.layers if (match := _MODEL_WEIGHT.fullmatch(layer.kind))]
    if any(match[2] not in ("raw", "gguf") for match in weights):
        raise FelloeError("source_failed", f"{where}: the weights are packed in archives; only raw layers can be used")
    raise FelloeError("source_failed", f"{where} holds no GGUF file")


async def _licence(repository: Repository, manifest: Manifest) -> str:
    config = manifest.config
    if config is None or not _MODEL_CONFIG.fullmatch(config.kind):
        return ""
    found = await repository.json(config, _ModelConfig)
    return ", ".join(found.descriptor.licenses if found.descriptor else [])[:200]
