"""Local servers that speak the protocols of model sources, and misbehave when a test says so."""

import asyncio
import contextlib
import hashlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass
class Seen:
    """One request as it came."""

    path: str
    query: str
    headers: dict[str, str]


@dataclass
class Reply:
    """One answer. `body` may be shorter than the Content-Length that it announces, or have no end."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = -1
    after: str = "end"  # or "cut", "stall", "drip", "endless"

    async def send(self, receive: Receive, send: Send) -> None:
        length = len(self.body) if self.length == -1 else self.length
        headers = {name.lower(): value for name, value in self.headers.items()}
        if length is not None:
            headers.setdefault("content-length", str(length))
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": encoded})
        await send({"type": "http.response.body", "body": self.body, "more_body": self.after != "end"})
        if self.after == "stall":
            while (await receive())["type"] != "http.disconnect":
                pass
        while self.after == "drip":
            await send({"type": "http.response.body", "body": b"\0", "more_body": True})
            if await _is_gone(receive, 0.05):
                return
        while self.after == "endless":
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
            if await _is_gone(receive):
                return


async def _is_gone(receive: Receive, seconds: float = 0.001) -> bool:
    with contextlib.suppress(TimeoutError):
        return (await asyncio.wait_for(receive(), seconds))["type"] == "http.disconnect"
    return False


def redirect(url: str, status: int = 302, **headers: str) -> Reply:
    return Reply(status, {"Location": url, **headers})


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())


@dataclass
class Content:
    """A file with a strong entity tag, served whole or in part."""

    data: bytes
    etag: str = ""
    kind: str = "application/octet-stream"

    def __post_init__(self) -> None:
        self.etag = self.etag or f'"{hashlib.md5(self.data).hexdigest()}"'

    def __call__(self, seen: Seen) -> Reply:
        headers = {"ETag": self.etag, "Content-Type": self.kind, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=([0-9]+)-", seen.headers.get("range", ""))
        if match is None or seen.headers.get("if-range", self.etag) != self.etag:
            return Reply(200, headers, self.data)
        start = int(match[1])
        if start >= len(self.data):
            return Reply(416, {"Content-Range": f"bytes */{len(self.data)}"})
        headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        return Reply(206, headers, self.data[start:])


Handler = Callable[[Seen], Reply]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SourceServer:
    """Answers what `paths` names; `faults[path]` are answers that come first, each once."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.paths: dict[str, Handler] = {}
        self.faults: dict[str, list[Reply | Handler]] = {}
        self.seen: list[Seen] = []
        self._tls = tls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._socket.getsockname()[1]}"

    def asked(self, path: str) -> list[Seen]:
        return [one for one in self.seen if one.path == path]

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        seen = Seen(scope["raw_path"].decode(), scope["query_string"].decode(), headers)
        self.seen.append(seen)
        faults = self.faults.get(seen.path)
        handler: Reply | Handler = faults.pop(0) if faults else self.paths.get(seen.path, lambda _: Reply(404))
        reply = handler if isinstance(handler, Reply) else handler(seen)
        await reply.send(receive, send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["SourceServer"]:
        config = uvicorn.Config(
            self, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=1, ws="none"
        )
        config.load()
        if self._tls is not None:
            config.ssl = self._tls
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[self._socket]))
        try:
            yield self
        finally:
            server.should_exit = True
            await task


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hub_model(server: SourceServer, files: dict[str, bytes], cdn: SourceServer, **card: object) -> str:
    """A repository `house/tiny` on a hub whose large files lie on `cdn`; returns its commit."""
    commit = "c0ffee" + "0" * 34
    siblings: list[dict[str, object]] = [{"rfilename": "README.md", "size": 3, "blobId": "0" * 40}]
    for path, data in files.items():
        lfs = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        siblings.append({"rfilename": path, "size": len(data), "blobId": "1" * 40, "lfs": lfs})
        linked = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256(data)}"'}
        place = f"/cdn/{sha256(data)}"
        server.paths[f"/house/tiny/resolve/{commit}/{path}"] = (
            lambda _, to=f"{cdn.url}{place}?sig=hidden", more=linked: redirect(to, **more)
        )
        cdn.paths[place] = Content(data)
    listing = {"id": "house/tiny", "sha": commit, "gated": False, "siblings": siblings, "cardData": card}
    for revision in ("main", commit):
        server.paths[f"/api/models/house/tiny/revision/{revision}"] = lambda _: as_json(listing)
    return commit


def registry_artefact(
    server: SourceServer,
    name: str,
    tag: str,
    layers: list[tuple[str, bytes, dict[str, str]]],
    config: tuple[str, bytes] = ("application/vnd.oci.empty.v1+json", b"{}"),
    **more: object,
) -> str:
    """An artefact in a registry, by tag and by digest; returns the manifest's digest."""

    def descriptor(kind: str, data: bytes, notes: dict[str, str]) -> dict[str, object]:
        digest = f"sha256:{sha256(data)}"
        server.paths[f"/v2/{name}/blobs/{digest}"] = Content(data)
        annotated = {"annotations": notes} if notes else {}
        return {"mediaType": kind, "digest": digest, "size": len(data), **annotated}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(*config, {}),
        "layers": [descriptor(*layer) for layer in layers],
        **more,
    }
    return registry_manifest(server, name, tag, manifest)


def registry_manifest(server: SourceServer, name: str, tag: str, manifest: dict[str, Any]) -> str:
    data = json.dumps(manifest).encode()
    digest = f"sha256:{sha256(data)}"
    headers = {"Content-Type": str(manifest["mediaType"]), "Docker-Content-Digest": digest}
    for version in (tag, digest):
        server.paths[f"/v2/{name}/manifests/{version}"] = lambda _: Reply(200, headers, data)
    return digest
