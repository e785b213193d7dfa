"""A network's catalogue as any member may hand it over, and one curator's decision as a hub gets it."""

import hashlib
import json
from functools import cache
from random import Random
from typing import Any

from msgspec.structs import replace

from approval_house import ISSUER, Catalogues, resigned, signer
from felloe.catalog.approval.decisions import open_decision
from felloe.catalog.approval.metadata import pin_of
from felloe.catalog.approval.tuf_files import TUF_FAILURES, verified
from felloe.domain.approval import Bundle, SignedDecision
from felloe.domain.errors import FelloeError
from fuzz.json_mutation import mutate_json
from fuzz.surface import Surface

_NOW = 1_800_000_000.0
_CURATOR = signer(1)
_FILES = ("root", "targets", "snapshot", "timestamp")


@cache
def _true() -> Bundle:
    """A catalogue with something approved and something withdrawn."""
    catalogues = Catalogues("ann", now=_NOW)
    catalogues.approve("tiny", "ann")
    catalogues.approve("other", "ann")
    catalogues.decide("ann", "withdraw", name="other", reason="it lies")
    assert catalogues.sign("ann")
    return catalogues.bundle


def _take(data: bytes) -> str:
    """The first line says what the rest is: a file of the catalogue, a decision, or the catalogue as it is sent."""
    kind, _, rest = data.partition(b"\n")
    name = kind.decode(errors="replace")
    if name == "decision":
        return f"decision {open_decision(_signed_decision(rest)).verdict}"
    if name not in _FILES:
        return _read(Bundle.decode(rest))
    refusal: FelloeError | None = None
    for content in (_signed(name, rest), rest):
        try:
            return _read(_with(name, content))
        except FelloeError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _read(bundle: Bundle) -> str:
    """As a hub and a node do; whoever signed it: its first root names them."""
    assert Bundle.decode(bundle.encode()) == bundle
    approvals = verified(bundle, pin_of(bundle)).approvals()
    assert 1 <= approvals.threshold <= len(approvals.curators)
    for content, entry in approvals.approved.items():
        assert content == entry.listing.content
        # What it says is put before people and decides what is loaded; a date alone may stand in the way here.
        assert all(text.isprintable() for text in (content, entry.listing.name, *entry.approved_by))
        try:
            approvals.check(content, entry.listing.name, _NOW)
        except FelloeError as error:
            assert error.code in ("catalog_expired", "model_withdrawn", "not_approved")
            assert error.detail.isprintable()
    return f"{len(approvals.curators)} {len(approvals.approved)} {len(approvals.withdrawn)}"


def _signed(name: str, data: bytes) -> bytes:
    """The file with a signature of those who may, when it is such a file at all."""
    try:
        return resigned(data, lambda signed: None, _CURATOR if name in ("root", "targets") else ISSUER)
    except (*TUF_FAILURES, OverflowError):
        return data


def _with(name: str, content: bytes) -> Bundle:
    """The true catalogue with one file exchanged, and with those made anew that vouch for it."""
    if name == "root":
        return replace(_true(), roots=(content,))
    bundle = replace(_true(), **{name: content})
    for inner, outer in (("targets", "snapshot"), ("snapshot", "timestamp")):
        if name in ("targets", inner) and name != outer:
            vouched = _vouched(getattr(bundle, outer), inner, getattr(bundle, inner))
            bundle = replace(bundle, **{outer: vouched})
    return bundle


def _vouched(outer: bytes, inner: str, data: bytes) -> bytes:
    entry: dict[str, Any] = {"length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
    try:
        version = json.loads(data)["signed"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        version = 1
    entry["version"] = version if type(version) is int and 0 < version < 2**53 else 1
    return resigned(outer, lambda signed: signed["meta"].__setitem__(f"{inner}.json", entry), ISSUER)


def _signed_decision(body: bytes) -> SignedDecision:
    return SignedDecision(body, _CURATOR.sign(b"felloe decision 1\0" + body))


def _seeds() -> list[bytes]:
    true = _true()
    files = [true.roots[0], true.targets, true.snapshot, true.timestamp]
    catalogues = Catalogues("ann", now=_NOW)
    decisions = [
        catalogues.decision("ann", "approve", name="tiny"),
        catalogues.decision("ann", "withdraw", name="tiny", reason="x"),
        catalogues.decision("ann", "add_curator", name="bob", curator=bytes(32)),
    ]
    compact = [json.dumps(json.loads(data), separators=(",", ":")).encode() for data in files]
    seeds = [name.encode() + b"\n" + data for name, data in zip(_FILES, compact, strict=True)]
    return [
        *seeds,
        *(b"decision\n" + one.body for one in decisions),
        b"bundle\n" + Bundle((b"{}",), *(b"",) * 3).encode(),
    ]


def _mutate(data: bytes, random: Random) -> bytes | None:
    kind, line, rest = data.partition(b"\n")
    changed = mutate_json(rest, random)
    return None if changed is None else kind + line + changed


CATALOGUE = Surface(
    name="catalogue",
    take=_take,
    codes=frozenset({"catalog_refused"}),
    seeds=_seeds,
    words=("signed", "felloe", "custom", "keyids", "threshold", "decision\n"),
    mutate=_mutate,
)
