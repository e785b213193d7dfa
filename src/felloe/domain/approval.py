"""What a network's curators have approved, and what is said on the way there. Pure.

A *content* is what a model is under one name. Curators make decisions; m of them who agree change the catalogue, which
is TUF metadata. A `Bundle` is all of it, from the first root on; `Approvals` is what a verified bundle says. Versions,
not clocks, order decisions: each names the metadata that its maker had seen, and speaks only of what has not changed
since.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, ModelName, NodeId, is_content_id, is_id, is_model_name

MOST_BUNDLE_BYTES = 512 * 1024
MOST_ROOTS = 128
MOST_ENVELOPE_BYTES = 300 * 1024
MOST_CURATORS = 16
MOST_APPROVED = 512
MOST_WITHDRAWN = 128
MOST_DECISIONS = 1024
MOST_PUBLICATIONS = 1024
MOST_REASON = 300
MOST_DECISION_BYTES = 8192
LATEST_DATE = 32_503_680_000
"""Unix seconds, the year 3000: later dates are nobody's."""

Verdict = Literal["approve", "reject", "withdraw", "add_curator", "remove_curator", "set_threshold"]
Standing = Literal["approved", "withdrawn", "unknown"]

_Date = Annotated[int, Meta(ge=0, le=LATEST_DATE)]
_Version = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
_NoKey = Annotated[bytes, Meta(max_length=32)]
_Seal = Annotated[bytes, Meta(min_length=64, max_length=64)]
_NoSeal = Annotated[bytes, Meta(max_length=64)]
_Word = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._+-]{0,64}\Z")]
_Text = Annotated[str, Meta(max_length=MOST_REASON)]


class Bundle(Struct, frozen=True, array_like=True):
    """All of a catalogue's TUF metadata as files: every root from the first, and the newest of the other three."""

    roots: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MOST_ROOTS)]
    targets: bytes
    snapshot: bytes
    timestamp: bytes

    def encode(self) -> bytes:
        """What is stored and handed on. Raises `catalog_refused` when it would be too large for any node."""
        data = msgspec.msgpack.encode(self)
        if len(data) > MOST_BUNDLE_BYTES:
            raise FelloeError("catalog_refused", f"the catalogue would be larger than {MOST_BUNDLE_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> "Bundle":
        """Read what somebody handed over; nothing in it is verified. Raises `catalog_refused`."""
        if len(data) > MOST_BUNDLE_BYTES:
            raise FelloeError("catalog_refused", f"a catalogue has at most {MOST_BUNDLE_BYTES} bytes")
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FelloeError("catalog_refused", "what was offered is no catalogue") from error


class Listing(Struct, frozen=True, kw_only=True):
    """What an approval binds: a signed manifest by its SHA-256 and length, and what lists show of it.

    `size` is that of all files in bytes, `length` that of the signed manifest.
    """

    content: ContentId
    name: ModelName
    sha256: _Hash
    length: Annotated[int, Meta(ge=1, le=MOST_ENVELOPE_BYTES)]
    size: _Version
    made_by: NodeId
    architecture: _Word = ""
    quantisation: _Word = ""


class Decision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One person's word. `catalog` is the pin of the catalogue's first root, `by` the curator's raw public key.

    `seen_root` and `seen_targets` are the versions that the maker trusted. `listing` goes with `approve`; `content` and
    `name` with every verdict on a model; `curator` (a raw key) and `name` with those on a curator; `threshold` with its
    own. `made_at` in Unix seconds is for people, and orders what one curator said about one thing.
    """

    version: Literal[1] = 1
    catalog: _Hash
    verdict: Verdict
    by: _Key
    seen_root: _Version
    seen_targets: _Version
    made_at: _Date
    content: str = ""
    name: Annotated[str, Meta(max_length=128)] = ""
    listing: Listing | None = None
    curator: _NoKey = b""
    threshold: Annotated[int, Meta(ge=0, le=MOST_CURATORS)] = 0
    reason: _Text = ""


class SignedDecision(Struct, frozen=True, array_like=True):
    """A decision's bytes and the curator's signature over them, as it is stored and sent."""

    body: Annotated[bytes, Meta(max_length=MOST_DECISION_BYTES)]
    signature: _Seal


class Curator(Struct, frozen=True, kw_only=True):
    """A person who decides. `key` is raw; `since` the version of the root that added this curator."""

    name: str
    key: _Key
    since: int


class Approved(Struct, frozen=True, kw_only=True):
    """A content that may be loaded. `approved_at` in Unix seconds; `approved_by` the curators' names then."""

    listing: Listing
    approved_at: int
    approved_by: tuple[str, ...]
    since: int


class Withdrawn(Struct, frozen=True, kw_only=True):
    """A content that may be loaded no more. `at` in Unix seconds."""

    content: ContentId
    name: ModelName
    reason: str
    at: int
    since: int


class Publication(Struct, frozen=True, kw_only=True):
    """A model that a node offers for approval. `published_at` in Unix seconds."""

    listing: Listing
    published_at: int


class Candidate(Struct, frozen=True, kw_only=True):
    """The next metadata as decided and not yet signed: the canonical bytes that curators sign.

    `root` is empty where it stays. `digest` (SHA-256) names both. `signers` are the raw keys of all whose signature
    counts for something.
    """

    digest: _Hash
    root: bytes
    targets: bytes
    signers: tuple[bytes, ...]


class CandidateSignature(Struct, frozen=True, kw_only=True):
    """One curator's signatures over a candidate; `root` is empty where the candidate has none."""

    key: _Key
    digest: _Hash
    root: _NoSeal
    targets: _Seal


class Approvals(Struct, frozen=True, kw_only=True):
    """What a verified catalogue says. `catalog` is its pin; `expires_at` in Unix seconds, the soonest of its parts'."""

    catalog: bytes
    root_version: int
    targets_version: int
    timestamp_version: int
    expires_at: float
    threshold: int
    curators: tuple[Curator, ...]
    approved: Mapping[ContentId, Approved]
    withdrawn: Mapping[ContentId, Withdrawn]

    def standing(self, content: ContentId) -> Standing:
        """Whether this content may be loaded, whatever the time."""
        return "approved" if content in self.approved else "withdrawn" if content in self.withdrawn else "unknown"

    def check(self, content: ContentId, name: str, now: float) -> None:
        """Raise `model_withdrawn`, `not_approved` or `catalog_expired` unless `content` may be loaded at `now`."""
        withdrawn = self.withdrawn.get(content)
        if withdrawn is not None:
            why = f": {withdrawn.reason}" if withdrawn.reason else ""
            raise FelloeError("model_withdrawn", f"the curators have withdrawn {name}{why}")
        if content not in self.approved:
            other = self.named(name)
            if other is not None:
                raise FelloeError("not_approved", f"another content than this one is approved as {name}")
            raise FelloeError("not_approved", f"the curators have not approved {name}; `felloe approve {name}` does")
        if now >= self.expires_at:
            raise FelloeError(
                "catalog_expired", f"what is known of the approval of {name} is too old; it is renewed by the hubs"
            )

    def named(self, name: str) -> Approved | None:
        """The one approved content of this name."""
        return next((one for one in self.approved.values() if one.listing.name == name), None)

    def curator(self, key: bytes) -> Curator | None:
        """The present curator with this raw public key."""
        return next((one for one in self.curators if one.key == key), None)

    def find(self, text: str) -> Approved | None:
        """An approved content by its name, or by an unambiguous beginning (8 digits or more) of its id."""
        found = self.named(text)
        if found is not None or len(text) < 8:
            return found
        several = [one for content, one in self.approved.items() if content.startswith(text)]
        return several[0] if len(several) == 1 else None


class PublishQuestion(Struct, frozen=True):
    """Service `PUBLISH`: offer a signed manifest for approval; the same content once more changes nothing."""

    envelope: Annotated[bytes, Meta(max_length=MOST_ENVELOPE_BYTES)]


class PublishAnswer(Struct, frozen=True):
    """What the hubs keep for this content: perhaps another node's manifest of it, which came first."""

    publication: Publication


class DecideQuestion(Struct, frozen=True):
    """Service `DECIDE`: hand in a decision."""

    decision: SignedDecision


class SignQuestion(Struct, frozen=True):
    """Service `SIGN`: hand in a signature over the candidate that follows the present catalogue."""

    signature: CandidateSignature


class CatalogAnswer(Struct, frozen=True):
    """The versions of the catalogue's root and targets after a decision or signature was taken."""

    root_version: int
    targets_version: int


class LookQuestion(Struct, frozen=True):
    """Service `LOOK`: what waits; `after` is the `next` of the page before, 0 for the first."""

    after: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


class LookAnswer(Struct, frozen=True):
    """One page; `next` is 0 on the last. All of it must be verified by who reads it."""

    decisions: tuple[SignedDecision, ...]
    publications: tuple[Publication, ...]
    signatures: tuple[CandidateSignature, ...]
    next: int


class EnvelopeQuestion(Struct, frozen=True):
    """Service `ENVELOPE`: the signed manifest that was published for a content."""

    content: Annotated[str, Meta(max_length=64)]


class EnvelopeAnswer(Struct, frozen=True):
    """The signed manifest as it was published."""

    envelope: bytes


PUBLISH = "catalog-publish"
DECIDE = "catalog-decide"
SIGN = "catalog-sign"
LOOK = "catalog-look"
ENVELOPE = "catalog-envelope"


def check_decision(decision: Decision) -> None:
    """Raise `invalid_value` unless its fields are those of its verdict."""
    _require(not decision.reason or decision.reason.isprintable(), "reason", "it holds control characters")
    if decision.verdict in ("approve", "reject", "withdraw"):
        _require(is_content_id(decision.content), "content", "it is no content's id")
        _require(is_model_name(decision.name), "name", "it cannot name a model")
        _check_listing(decision)
    elif decision.verdict == "set_threshold":
        _require(decision.threshold >= 1, "threshold", "it is below 1")
    else:
        _require(len(decision.curator) == 32, "curator", "it is no public key")
        _require(is_curator_name(decision.name), "name", "it cannot name a curator")


def is_curator_name(name: str) -> bool:
    """Whether `name` can name a curator: 1 to 64 printable characters, no `:`."""
    return 0 < len(name) <= 64 and name.isprintable() and ":" not in name and name == name.strip()


def _check_listing(decision: Decision) -> None:
    listing = decision.listing
    if listing is None:
        _require(decision.verdict != "approve", "listing", "an approval names what it approves")
        return
    _require(is_id(listing.made_by), "listing", "it names no node")
    same = (listing.content, listing.name) == (decision.content, decision.name)
    _require(same, "listing", "it is of another content")


def _require(condition: bool, field: str, why: str) -> None:
    if not condition:
        raise FelloeError("invalid_value", f"decision: {field}: {why}", param=field)
