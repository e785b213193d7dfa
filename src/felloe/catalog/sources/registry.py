"""What Ollama's registry and OCI registries have in common: manifests and blobs by digest.

Source: the OCI distribution specification 1.1: `GET /v2/<name>/manifests/<reference>` and `/v2/<name>/blobs/<digest>`.
"""

import hashlib
import re
from typing import TypeVar

import msgspec

from felloe.catalog.sources.plan import MOST_TEXT_BYTES, RemoteFile
from felloe.catalog.sources.web import Credentials, Web
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import MOST_FILE_BYTES, Role

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_MOST_MANIFEST_BYTES = 4 * 2**20
_MOST_LAYERS = 512
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_Shape = TypeVar("_Shape")


class Descriptor(msgspec.Struct, rename="camel"):
    """What a manifest says of one blob; `size` in bytes."""

    digest: str
    size: int
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] | None = None

    @property
    def kind(self) -> str:
        """The media type without parameters, in lower case."""
        return self.media_type.partition(";")[0].strip().lower()

    def note(self, *keys: str) -> str:
        """The first annotation of `keys` that is there."""
        notes = self.annotations or {}
        return next((notes[key] for key in keys if notes.get(key)), "")


class Manifest(msgspec.Struct, rename="camel"):
    """A manifest, or an index of manifests."""

    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] = []
    manifests: list[Descriptor] = []


class Repository:
    """One repository of a registry: reads what is small, and says where the rest is."""

    def __init__(self, web: Web, base_url: str, name: str, credentials: Credentials, where: str) -> None:
        self._web = web
        self._url = f"{base_url}/v2/{name}"
        self._credentials = credentials
        self.where = where

    async def manifest(self, version: str, accept: str) -> tuple[Manifest, str]:
        """The manifest of a tag or digest, and its digest. Raises `source_failed` when they do not fit together."""
        url = f"{self._url}/manifests/{version}"
        document = await self._web.read(url, self._credentials, most_bytes=_MOST_MANIFEST_BYTES, accept=accept)
        digest = f"sha256:{hashlib.sha256(document.content).hexdigest()}"
        told = document.headers.get("Docker-Content-Digest", "")
        if digest != (version if ":" in version else digest) or (told.startswith("sha256:") and told != digest):
            raise FelloeError("source_failed", f"{self.where}: the manifest does not have the digest it should have")
        manifest = self._decoded(document.content, Manifest)
        every = [*manifest.layers, *manifest.manifests, *([manifest.config] if manifest.config else [])]
        if manifest.schema_version != 2 or len(every) > _MOST_LAYERS:
            raise FelloeError("source_failed", f"{self.where}: it is no manifest of schema version 2")
        for one in every:
            if not 0 <= one.size <= MOST_FILE_BYTES:
                raise FelloeError("source_failed", f"{self.where}: the manifest names a size that no file has")
        return manifest, digest

    async def text(self, blob: Descriptor) -> str:
        """A small blob of text, checked."""
        return (await self._small(blob)).decode("utf-8", errors="replace")

    async def json(self, blob: Descriptor, shape: type[_Shape]) -> _Shape:
        """A small blob of JSON, checked."""
        return self._decoded(await self._small(blob), shape)

    def file(self, blob: Descriptor, path: str, role: Role) -> RemoteFile:
        """A blob that is to be fetched."""
        digest = self._digest(blob)
        url = f"{self._url}/blobs/{digest}"
        return RemoteFile(url=url, path=path, role=role, size=blob.size, sha256=digest.removeprefix("sha256:"))

    async def _small(self, blob: Descriptor) -> bytes:
        digest = self._digest(blob)
        if blob.size > MOST_TEXT_BYTES:
            raise FelloeError("source_failed", f"{self.where}: a text has {blob.size} bytes, more than any should")
        document = await self._web.read(f"{self._url}/blobs/{digest}", self._credentials, most_bytes=MOST_TEXT_BYTES)
        if f"sha256:{hashlib.sha256(document.content).hexdigest()}" != digest:
            raise FelloeError("source_failed", f"{self.where}: a text does not have the digest it should have")
        return document.content

    def _digest(self, blob: Descriptor) -> str:
        if not _DIGEST.fullmatch(blob.digest):
            raise FelloeError("source_failed", f"{self.where}: {blob.digest[:80]!r} is no SHA-256 digest")
        return blob.digest

    def _decoded(self, content: bytes, shape: type[_Shape]) -> _Shape:
        try:
            return msgspec.json.decode(content, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            detail = f"{self.where}: the registry answers with something that does not fit the protocol"
            raise FelloeError("source_failed", detail) from error
