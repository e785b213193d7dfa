"""Models of a Hugging Face hub, pinned to the commit that the revision stands for.

Source: the hub's HTTP API as the `huggingface_hub` client uses it: `/api/models/<id>/revision/<revision>?blobs=true`
lists files with size and, for large ones, `lfs.sha256`; `/<id>/resolve/<commit>/<path>` redirects to a content server.
"""

import re
from urllib.parse import quote

import msgspec

from felloe.catalog.sources.choice import choose
from felloe.catalog.sources.credentials import HubToken
from felloe.catalog.sources.plan import Plan, RemoteFile, check_names, file_name
from felloe.catalog.sources.reference import HuggingFaceReference
from felloe.catalog.sources.web import Web
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import MOST_FILE_BYTES, Role

_MOST_LISTING_BYTES = 32 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_LICENCE_CHARACTERS = 200


class _LargeFile(msgspec.Struct):
    sha256: str = ""
    size: int | None = None


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    lfs: _LargeFile | None = None


class _Listing(msgspec.Struct):
    sha: str
    siblings: list[_Sibling] = []
    card: msgspec.Raw = msgspec.field(name="cardData", default=msgspec.Raw(b"null"))


class _Card(msgspec.Struct):
    license: str | list[str] = ""
    license_name: str = ""


async def plan_hugging_face(
    reference: HuggingFaceReference, web: Web, base_url: str, token: str
) -> tuple[Plan, HubToken]:
    """What the repository holds of the model, and the token that its files need. Raises as `Web.read` and `choose`."""
    name = f"{reference.owner}/{reference.repository}"
    credentials = HubToken(base_url, token, f"{base_url}/{name}")
    revision = quote(reference.revision or "main", safe="")
    url = f"{base_url}/api/models/{name}/revision/{revision}?blobs=true"
    where = reference.text
    document = await web.read(url, credentials, most_bytes=_MOST_LISTING_BYTES, accept="application/json")
    try:
        listing = msgspec.json.decode(document.content, type=_Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("source_failed", f"{where}: the hub answers with something that is no listing") from error
    if not _COMMIT.fullmatch(listing.sha):
        raise FelloeError("source_failed", f"{where}: the hub names no commit")
    siblings = {one.rfilename: one for one in listing.siblings}
    files = tuple(
        _file(siblings[one.path], one.role, f"{base_url}/{name}/resolve/{listing.sha}", where)
        for one in choose(siblings, reference.wanted, where)
    )
    plan = Plan(files=check_names(files, where), source=where, revision=listing.sha, licence=_licence(listing.card))
    return plan, credentials


def _file(sibling: _Sibling, role: Role, folder: str, where: str) -> RemoteFile:
    large = sibling.lfs or _LargeFile()
    size = sibling.size if large.size is None else large.size
    if size is not None and not 0 <= size <= MOST_FILE_BYTES:
        raise FelloeError("source_failed", f"{where}: the hub names a size that no file has")
    if large.sha256 and not _SHA256.fullmatch(large.sha256):
        raise FelloeError("source_failed", f"{where}: the hub names a hash that is none")
    return RemoteFile(
        url=f"{folder}/{quote(sibling.rfilename)}",
        path=file_name(sibling.rfilename, where),
        role=role,
        size=size,
        sha256=large.sha256 or None,
    )


def _licence(card: msgspec.Raw) -> str:
    """What the repository's card says; a card that cannot be read says nothing."""
    try:
        found = msgspec.json.decode(card, type=_Card | None) or _Card()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    names = [found.license] if isinstance(found.license, str) else found.license
    if names == ["other"] and found.license_name:
        names = [found.license_name]
    return ", ".join(names)[:_MOST_LICENCE_CHARACTERS]
