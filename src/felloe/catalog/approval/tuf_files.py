"""The catalogue as TUF metadata and back. Nothing here decides whether to believe a file but `verified`.

What TUF has no field for stands in fields of our own, `felloe` in root and targets and `custom` in a target, which are
signed with the rest; those of a newer version are passed over. Canonical JSON of TUF takes integers and text only.
"""

# pyright: reportPrivateImportUsage=false
# tuf documents these names as public where they are imported from, and defines them elsewhere.

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct
from securesystemslib.exceptions import Error as KeysError
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from felloe.catalog.approval.rules import Catalogue
from felloe.domain.approval import (
    MOST_REASON,
    Approvals,
    Approved,
    Bundle,
    Curator,
    Listing,
    Withdrawn,
    is_curator_name,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName, NodeId, is_content_id, is_id, is_model_name

TUF_FAILURES = (RepositoryError, KeysError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What python-tuf raises over files that are not what they should be."""

_Kind = TypeVar("_Kind", Root, Targets, Snapshot, Timestamp)
_Own = TypeVar("_Own", bound=Struct)
SPECIFICATION = "1.0.31"
"""The TUF specification that the files follow: not that of the installed python-tuf, for all nodes make equal bytes."""

_MOST_WORD_CHARACTERS = 64
_SIGNED_BY_CURATORS = ("root", "targets")
_SIGNED_BY_HUBS = ("snapshot", "timestamp")


class _RootFields(Struct, frozen=True):
    """Own fields of the root: by key id the curators' names, and the versions that changed things last."""

    names: dict[str, str]
    since: dict[str, int]
    former: dict[str, int]
    former_floor: int
    threshold_since: int


class _WithdrawnFields(Struct, frozen=True):
    name: str
    reason: str
    at: int
    since: int


class _TargetsFields(Struct, frozen=True):
    withdrawn: dict[str, _WithdrawnFields]
    withdrawn_floor: int


class _Custom(Struct, frozen=True):
    """Own fields of a target: what lists show."""

    name: str
    size: int
    made_by: str
    architecture: str
    quantisation: str
    approved_at: int
    approved_by: tuple[str, ...]
    since: int


class Files(NamedTuple):
    """A bundle taken apart: the newest file of each kind."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    catalogue: Catalogue

    def approvals(self) -> Approvals:
        """What the files say, for those who load models."""
        catalogue = self.catalogue
        parts: tuple[Signed, ...] = (
            self.root.signed,
            self.targets.signed,
            self.snapshot.signed,
            self.timestamp.signed,
        )
        return Approvals(
            catalog=catalogue.pin,
            root_version=catalogue.root_version,
            targets_version=catalogue.targets_version,
            timestamp_version=self.timestamp.signed.version,
            expires_at=min(part.expires.timestamp() for part in parts),
            threshold=catalogue.threshold,
            curators=catalogue.curators,
            approved=catalogue.approved,
            withdrawn=catalogue.withdrawn,
        )


def tuf_key(raw_public_key: bytes) -> SSlibKey:
    """A raw Ed25519 key as TUF names it."""
    key = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw_public_key))
    key.unrecognized_fields.clear()
    return key


def date(unix_seconds: float) -> datetime:
    """A date as TUF has it: whole seconds."""
    return datetime.fromtimestamp(int(unix_seconds), UTC)


def parse(data: bytes, kind: type[_Kind]) -> Metadata[_Kind]:
    """One file; raises what is in `TUF_FAILURES`."""
    read = Metadata[_Kind].from_bytes(data)
    # The class says nothing while the program runs.
    if read.signed.type != kind.type:
        raise ValueError(f"not a {kind.type}")
    return read


def unsigned(canonical: bytes, kind: type[_Kind]) -> Metadata[_Kind]:
    """The part that a candidate holds, without signatures; raises what is in `TUF_FAILURES`."""
    return parse(b'{"signatures":[],"signed":' + canonical + b"}", kind)


def signature(key: SSlibKey, raw: bytes) -> Signature:
    """A raw Ed25519 signature as TUF has it."""
    return Signature(key.keyid, raw.hex())


def root_part(catalogue: Catalogue) -> Metadata[Root]:
    """The root that says this, unsigned."""
    keys = {tuf_key(one.key).keyid: one for one in catalogue.curators}
    issuer = tuf_key(catalogue.issuer)
    signers = sorted(keys)
    roles = {kind: Role(list(signers), catalogue.threshold) for kind in _SIGNED_BY_CURATORS}
    roles |= {kind: Role([issuer.keyid], 1) for kind in _SIGNED_BY_HUBS}
    fields = _RootFields(
        names={keyid: keys[keyid].name for keyid in signers},
        since={keyid: keys[keyid].since for keyid in signers},
        former={key.hex(): since for key, since in sorted(catalogue.former.items())},
        former_floor=catalogue.former_floor,
        threshold_since=catalogue.threshold_since,
    )
    root = Root(
        version=catalogue.root_version,
        spec_version=SPECIFICATION,
        expires=date(catalogue.root_until),
        keys={**{keyid: tuf_key(one.key) for keyid, one in keys.items()}, issuer.keyid: issuer},
        roles=roles,
        consistent_snapshot=True,
        unrecognized_fields={"felloe": msgspec.to_builtins(fields)},
    )
    return Metadata(root)


def targets_part(catalogue: Catalogue) -> Metadata[Targets]:
    """The targets that say this, unsigned."""
    withdrawn = {
        str(content): _WithdrawnFields(one.name, one.reason, one.at, one.since)
        for content, one in sorted(catalogue.withdrawn.items())
    }
    fields = _TargetsFields(withdrawn, catalogue.withdrawn_floor)
    files = [_target(one) for _, one in sorted(catalogue.approved.items())]
    targets = Targets(
        version=catalogue.targets_version,
        spec_version=SPECIFICATION,
        expires=date(catalogue.targets_until),
        targets={file.path: file for file in files},
        unrecognized_fields={"felloe": msgspec.to_builtins(fields)},
    )
    return Metadata(targets)


def meta_file(data: bytes, version: int) -> MetaFile:
    """What one file says of another: version, length and SHA-256, so that no other file passes for it."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def verified(bundle: Bundle, pin: bytes) -> Files:
    """Take a bundle apart whose every signature and link holds, whatever its dates. Raises `catalog_refused`.

    It knows nothing of what was there before: whether a bundle from outside replaces a trusted one, `Updater` decides.
    """
    if hashlib.sha256(bundle.roots[0]).digest() != pin:
        raise FelloeError("catalog_refused", "the catalogue's first root is not the one that this network names")
    try:
        roots = [parse(data, Root) for data in bundle.roots]
        _check_roots(roots)
        targets, snapshot = parse(bundle.targets, Targets), parse(bundle.snapshot, Snapshot)
        timestamp = parse(bundle.timestamp, Timestamp)
        for read in (targets, snapshot, timestamp):
            roots[-1].signed.verify_delegate(read.signed.type, read.signed_bytes, read.signatures)
        timestamp.signed.snapshot_meta.verify_length_and_hashes(bundle.snapshot)
        snapshot.signed.meta["targets.json"].verify_length_and_hashes(bundle.targets)
        catalogue = _catalogue(roots[-1].signed, targets.signed, pin, sum(map(len, bundle.roots)))
    except TUF_FAILURES as error:
        raise FelloeError("catalog_refused", f"the catalogue does not hold together: {str(error)!a:.200}") from error
    return Files(roots[-1], targets, snapshot, timestamp, catalogue)


def _check_roots(roots: list[Metadata[Root]]) -> None:
    """Each root is signed by those of the one before and by its own, and names no key twice."""
    first = roots[0]
    first.signed.verify_delegate(Root.type, first.signed_bytes, first.signatures)
    for before, after in pairwise(roots):
        result = after.signed.get_root_verification_result(before.signed, after.signed_bytes, after.signatures)
        if not result:
            raise ValueError(f"root version {after.signed.version} is not signed by enough curators")
    for one in roots:
        for keyid, key in one.signed.keys.items():
            if tuf_key(_raw(key.keyval)).keyid != keyid:
                raise ValueError("a key of the root goes by a name that is not its own")


def _catalogue(root: Root, targets: Targets, pin: bytes, root_bytes: int) -> Catalogue:
    own, listed = _fields(root, _RootFields), _fields(targets, _TargetsFields)
    signers, hubs = root.roles[Root.type], root.roles[Timestamp.type]
    if targets.delegations is not None or signers.to_dict() != root.roles[Targets.type].to_dict():
        raise ValueError("the catalogue is not arranged as this program arranges it")
    (issuer,) = hubs.keyids
    curators = [
        Curator(name=own.names[keyid], key=_raw(root.keys[keyid].keyval), since=own.since[keyid])
        for keyid in signers.keyids
    ]
    if not all(is_curator_name(one.name) for one in curators):
        raise ValueError("a curator goes by an impossible name")
    return Catalogue(
        pin=pin,
        issuer=_raw(root.keys[issuer].keyval),
        root_version=root.version,
        root_until=int(root.expires.timestamp()),
        root_bytes=root_bytes,
        threshold=signers.threshold,
        threshold_since=own.threshold_since,
        curators=tuple(sorted(curators, key=lambda one: one.key)),
        former={bytes.fromhex(key): since for key, since in own.former.items()},
        former_floor=own.former_floor,
        targets_version=targets.version,
        targets_until=int(targets.expires.timestamp()),
        approved=_by_content(_approved(file) for file in targets.targets.values()),
        withdrawn={ContentId(content): _withdrawn(content, one) for content, one in listed.withdrawn.items()},
        withdrawn_floor=listed.withdrawn_floor,
    )


def _by_content(entries: Iterable[Approved]) -> dict[ContentId, Approved]:
    return {one.listing.content: one for one in entries}


def _target(entry: Approved) -> TargetFile:
    listing = entry.listing
    custom = _Custom(
        name=listing.name,
        size=listing.size,
        made_by=listing.made_by,
        architecture=listing.architecture,
        quantisation=listing.quantisation,
        approved_at=entry.approved_at,
        approved_by=entry.approved_by,
        since=entry.since,
    )
    hashes, own = {"sha256": listing.sha256.hex()}, {"custom": msgspec.to_builtins(custom)}
    return TargetFile(listing.length, hashes, f"models/{listing.content}.json", own)


def _approved(file: TargetFile) -> Approved:
    custom = msgspec.convert(file.custom, type=_Custom)
    listing = Listing(
        content=ContentId(file.path.removeprefix("models/").removesuffix(".json")),
        name=ModelName(custom.name),
        sha256=bytes.fromhex(file.hashes["sha256"]),
        length=file.length,
        size=custom.size,
        made_by=NodeId(custom.made_by),
        architecture=custom.architecture,
        quantisation=custom.quantisation,
    )
    words = (custom.architecture, custom.quantisation)
    _check_words(listing.content, listing.name, *words, *custom.approved_by)
    if not is_id(listing.made_by) or max(map(len, words)) > _MOST_WORD_CHARACTERS:
        raise ValueError("a model of the catalogue is described as no model can be")
    return Approved(listing=listing, approved_at=custom.approved_at, approved_by=custom.approved_by, since=custom.since)


def _withdrawn(content: str, fields: _WithdrawnFields) -> Withdrawn:
    _check_words(content, fields.name, fields.reason)
    return Withdrawn(
        content=ContentId(content),
        name=ModelName(fields.name),
        reason=fields.reason,
        at=fields.at,
        since=fields.since,
    )


def _check_words(content: str, name: str, *texts: str) -> None:
    """Enough curators may sign anything; what no decision may hold is not put before people all the same."""
    fits = all(text.isprintable() and len(text) <= MOST_REASON for text in texts)
    if not (is_content_id(content) and is_model_name(name) and fits):
        raise ValueError("a model of the catalogue goes by an impossible name")


def _fields(signed: Signed, kind: type[_Own]) -> _Own:
    return msgspec.convert(signed.unrecognized_fields["felloe"], type=kind)


def _raw(keyval: Mapping[str, Any]) -> bytes:
    return bytes.fromhex(keyval["public"])
