"""Reads references: the text behind `felloe pull` that says where a model comes from. Pure."""

import re
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct

from felloe.domain.errors import FelloeError

_MOST_CHARACTERS = 2048
_PATH_BEGINNINGS = ("/", "./", "../", "~")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_OLLAMA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_REGISTRY_HOST = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?"
)
_REPOSITORY_PART = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_REPOSITORY_CHARACTERS = 255


class FileReference(Struct, frozen=True):
    """A GGUF file, or a folder of them, on the machine of the node."""

    path: str

    @property
    def text(self) -> str:
        return self.path


class HuggingFaceReference(Struct, frozen=True):
    """`hf:owner/repo[@revision][:wanted]`; `wanted` is a file of the repository, a quantisation, or empty."""

    owner: str
    repository: str
    revision: str = ""
    wanted: str = ""

    @property
    def text(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.owner}/{self.repository}{revision}{':' if self.wanted else ''}{self.wanted}"


class OllamaReference(Struct, frozen=True):
    """`ollama:[namespace/]name[:tag]`."""

    namespace: str
    name: str
    tag: str

    @property
    def text(self) -> str:
        return f"ollama:{'' if self.namespace == 'library' else self.namespace + '/'}{self.name}:{self.tag}"


class OciReference(Struct, frozen=True):
    """`oci:host/repository:tag` or `@sha256:...`; `version` is the tag or the digest."""

    host: str
    repository: str
    version: str

    @property
    def text(self) -> str:
        return f"oci:{self.host}/{self.repository}{'@' if ':' in self.version else ':'}{self.version}"


class WebReference(Struct, frozen=True):
    """`https://...`. A query may hold a secret, so `text` leaves it out."""

    url: str

    @property
    def text(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


Reference = FileReference | HuggingFaceReference | OllamaReference | OciReference | WebReference


def parse_reference(text: str) -> Reference:
    """What `text` names; without a known prefix it is a path. Raises `invalid_value` for `reference`."""
    if not text or len(text) > _MOST_CHARACTERS or not text.isprintable():
        _refuse(f"it has 1 to {_MOST_CHARACTERS} characters and no control characters")
    scheme, colon, rest = text.partition(":")
    if colon and scheme.lower() in _PARSERS:
        return _PARSERS[scheme.lower()](rest)
    return FileReference(text)


def is_reference(text: str) -> bool:
    """Whether `text` says where a model comes from, and is not just the name of one."""
    scheme, colon, _ = text.partition(":")
    return bool(colon and scheme.lower() in _PARSERS) or text.endswith(".gguf") or text.startswith(_PATH_BEGINNINGS)


def _hugging_face(rest: str) -> Reference:
    place, _, wanted = rest.partition(":")
    name, at, revision = place.partition("@")
    owner, _, repository = name.partition("/")
    if not _HUB_NAME.fullmatch(owner) or not _HUB_NAME.fullmatch(repository) or ".." in name:
        _refuse("a Hugging Face model is written hf:owner/repository[@revision][:file or quantisation]")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        _refuse("a revision is a branch, a tag or a commit")
    if wanted.startswith("/") or ".." in wanted.split("/"):
        _refuse("the file lies inside the repository")
    return HuggingFaceReference(owner, repository, revision, wanted)


def _ollama(rest: str) -> Reference:
    place, _, tag = rest.partition(":")
    *namespaces, name = place.split("/")
    namespace = namespaces[0] if namespaces else "library"
    whole = len(namespaces) <= 1 and all(_OLLAMA_NAME.fullmatch(part) for part in (namespace, name))
    if not whole or ".." in rest or not _OLLAMA_NAME.fullmatch(tag or "latest"):
        _refuse("an Ollama model is written ollama:[namespace/]name[:tag]")
    return OllamaReference(namespace, name, tag or "latest")


def _oci(rest: str) -> Reference:
    host, _, place = rest.removeprefix("//").partition("/")
    place, at, digest = place.partition("@")
    repository, _, tag = place.partition(":")
    parts = repository.split("/")
    whole = len(repository) <= _MOST_REPOSITORY_CHARACTERS and all(_REPOSITORY_PART.fullmatch(part) for part in parts)
    named = _REGISTRY_HOST.fullmatch(host) and ("." in host or ":" in host or host == "localhost")
    if not named or not whole or not _TAG.fullmatch(tag or "latest"):
        _refuse("an OCI artefact is written oci:host/repository[:tag][@sha256:digest]")
    if at and not _SHA256.fullmatch(digest):
        _refuse("a digest is sha256: and 64 lower-case hex digits")
    return OciReference(host.lower(), repository, digest or tag or "latest")


def _web(scheme: str, rest: str) -> Reference:
    try:
        parts = urlsplit(f"{scheme}:{rest}")
        userinfo, host = parts.username is not None or parts.password is not None, parts.hostname
        _ = parts.port
    except ValueError:
        _refuse("it is no URL")
    if not rest.startswith("//") or not host or " " in rest or "\\" in rest:
        _refuse("it is no URL")
    if userinfo:
        _refuse("a URL holds no user name or password")
    return WebReference(urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, "")))


_PARSERS: dict[str, Callable[[str], Reference]] = {
    "hf": _hugging_face,
    "ollama": _ollama,
    "oci": _oci,
    "https": lambda rest: _web("https", rest),
    "http": lambda rest: _web("http", rest),
}


def _refuse(why: str) -> NoReturn:
    raise FelloeError("invalid_value", f"this reference cannot be read: {why}", param="reference")
