"""Models at a plain web address. Only the address is known beforehand; the download asks for the rest."""

from urllib.parse import unquote, urlsplit, urlunsplit

from felloe.catalog.sources.choice import parts_of, roles_of
from felloe.catalog.sources.plan import Plan, RemoteFile, file_name
from felloe.catalog.sources.reference import WebReference
from felloe.domain.errors import FelloeError


def plan_web(reference: WebReference) -> Plan:
    """The file at the address, with all its parts when it is one of several. Raises `invalid_value`."""
    address = urlsplit(reference.url)
    folder, _, name = address.path.rpartition("/")
    if not unquote(name).lower().endswith(".gguf"):
        raise FelloeError("invalid_value", "a web address of a model ends with .gguf", param="reference")
    parts = parts_of(name)
    if len(parts) > 1 and address.query:
        detail = "a model in several parts has no query in its address, for it would hold for one part alone"
        raise FelloeError("invalid_value", detail, param="reference")
    files = tuple(
        RemoteFile(
            url=urlunsplit((address.scheme, address.netloc, f"{folder}/{one.path}", address.query, "")),
            path=file_name(unquote(one.path), reference.text),
            role=one.role,
        )
        for one in roles_of(parts)
    )
    return Plan(files=files, source=reference.text)
