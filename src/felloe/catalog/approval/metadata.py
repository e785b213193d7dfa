"""From one catalogue to the next: what curators are to sign, and what hubs make of it when they have.

A candidate is a function of the trusted catalogue, the decisions and the hubs' signing key, so every curator's node
computes the same bytes for itself and signs no other's.
"""

# pyright: reportPrivateImportUsage=false
# tuf documents these names as public where they are imported from, and defines them elsewhere.

import hashlib
from collections.abc import Iterable
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from felloe.catalog.approval.decisions import opened
from felloe.catalog.approval.rules import LASTING_SECONDS, Catalogue, following
from felloe.catalog.approval.tuf_files import (
    SPECIFICATION,
    Files,
    date,
    meta_file,
    parse,
    root_part,
    signature,
    targets_part,
    tuf_key,
    unsigned,
    verified,
)
from felloe.domain.approval import (
    MOST_ROOTS,
    Bundle,
    Candidate,
    CandidateSignature,
    Curator,
    SignedDecision,
)
from felloe.domain.ports import StatementSigner

SNAPSHOT_SECONDS = 30 * 86_400
TIMESTAMP_SECONDS = 7 * 86_400
RENEWAL_SECONDS = 86_400


def found(name: str, curator: StatementSigner, issuer: StatementSigner, now: float) -> Bundle:
    """The first catalogue of a network: one curator, nothing approved. `now` in Unix seconds."""
    until = int(now) + LASTING_SECONDS
    first = Catalogue(
        pin=b"",
        issuer=issuer.public_key,
        root_version=1,
        root_until=until,
        root_bytes=0,
        threshold=1,
        threshold_since=1,
        curators=(Curator(name=name, key=curator.public_key, since=1),),
        former={},
        former_floor=0,
        targets_version=1,
        targets_until=until,
        approved={},
        withdrawn={},
        withdrawn_floor=0,
    )
    root, targets = root_part(first), targets_part(first)
    for part in (root, targets):
        _sign(part, curator)
    return _bundle((root.to_bytes(),), targets.to_bytes(), None, issuer, now)


def pin_of(bundle: Bundle) -> bytes:
    """What a network's trust list says of its catalogue: the SHA-256 of the first root."""
    return hashlib.sha256(bundle.roots[0]).digest()


def candidate(bundle: Bundle, decisions: Iterable[SignedDecision], issuer: bytes, issued_at: int) -> Candidate | None:
    """What curators are to sign next; None when nothing is to be changed.

    `bundle` is trusted, `issuer` the raw key that hubs sign with since `issued_at` (Unix seconds), as the network's
    trust list says. Decisions that are not properly signed are passed over. Raises `catalog_refused` for a bad bundle.
    """
    before = verified(bundle, pin_of(bundle)).catalogue
    after = following(before, opened(decisions), issuer, issued_at)
    if after is before or len(bundle.roots) >= MOST_ROOTS:
        return None
    root = root_part(after).signed_bytes if after.root_version != before.root_version else b""
    targets = targets_part(after).signed_bytes
    digest = hashlib.sha256(hashlib.sha256(root).digest() + hashlib.sha256(targets).digest()).digest()
    curators = (*after.curators, *before.curators) if root else after.curators
    return Candidate(digest=digest, root=root, targets=targets, signers=tuple(sorted({one.key for one in curators})))


def sign_candidate(candidate: Candidate, curator: StatementSigner) -> CandidateSignature | None:
    """A curator's part in it; None where the key has none."""
    if curator.public_key not in candidate.signers:
        return None
    return CandidateSignature(
        key=curator.public_key,
        digest=candidate.digest,
        root=curator.sign(candidate.root) if candidate.root else b"",
        targets=curator.sign(candidate.targets),
    )


def fits(candidate: Candidate, offered: CandidateSignature) -> bool:
    """Whether a signature is one over this candidate, by somebody who has a part in it."""
    if offered.key not in candidate.signers or offered.digest != candidate.digest:
        return False
    key, parts = tuf_key(offered.key), [(offered.targets, candidate.targets)]
    if candidate.root:
        parts.append((offered.root, candidate.root))
    for raw, statement in parts:
        try:
            key.verify_signature(signature(key, raw), statement)
        except (UnverifiedSignatureError, VerificationError):
            return False
    return True


def complete(
    bundle: Bundle,
    candidate: Candidate,
    signatures: Iterable[CandidateSignature],
    issuer: StatementSigner,
    now: float,
) -> Bundle | None:
    """The next bundle, when enough curators have signed the candidate; None while they have not.

    Raises `catalog_refused` when it would be too large.
    """
    before = verified(bundle, pin_of(bundle))
    good = [one for one in signatures if fits(candidate, one)]
    targets = unsigned(candidate.targets, Targets)
    targets.signatures.update(_sorted((one.key, one.targets) for one in good))
    root, roots = before.root, bundle.roots
    if candidate.root:
        root = unsigned(candidate.root, Root)
        root.signatures.update(_sorted((one.key, one.root) for one in good))
        if not root.signed.get_root_verification_result(before.root.signed, candidate.root, root.signatures):
            return None
        roots = (*roots, root.to_bytes())
    if tuf_key(issuer.public_key).keyid not in root.signed.roles[Timestamp.type].keyids:
        return None
    if not root.signed.get_verification_result(Targets.type, candidate.targets, targets.signatures):
        return None
    return _bundle(roots, targets.to_bytes(), before, issuer, now)


def renewed(bundle: Bundle, issuer: StatementSigner, now: float) -> Bundle | None:
    """The same catalogue with fresh dates, when a day has passed since it was dated; None while it has not.

    None also where the catalogue does not name this issuer: then curators have to sign first.
    """
    before = verified(bundle, pin_of(bundle))
    left = before.timestamp.signed.expires.timestamp() - now
    if before.catalogue.issuer != issuer.public_key or left > TIMESTAMP_SECONDS - RENEWAL_SECONDS:
        return None
    return _bundle(bundle.roots, bundle.targets, before, issuer, now)


def _bundle(
    roots: tuple[bytes, ...], targets: bytes, before: Files | None, issuer: StatementSigner, now: float
) -> Bundle:
    """All four, the snapshot and the timestamp made anew, after `before`."""
    version = 1 if before is None else before.snapshot.signed.version + 1
    targets_version = parse(targets, Targets).signed.version
    snapshot = Metadata(
        Snapshot(
            version=version,
            spec_version=SPECIFICATION,
            expires=date(now + SNAPSHOT_SECONDS),
            meta={"targets.json": meta_file(targets, targets_version)},
        )
    )
    _sign(snapshot, issuer)
    snapshot_bytes = snapshot.to_bytes()
    timestamp = Metadata(
        Timestamp(
            version=1 if before is None else before.timestamp.signed.version + 1,
            spec_version=SPECIFICATION,
            expires=date(now + TIMESTAMP_SECONDS),
            snapshot_meta=meta_file(snapshot_bytes, version),
        )
    )
    _sign(timestamp, issuer)
    bundle = Bundle(roots, targets, snapshot_bytes, timestamp.to_bytes())
    bundle.encode()
    verified(bundle, pin_of(bundle))
    return bundle


def _sign(part: Metadata[Any], signer: StatementSigner) -> None:
    key = tuf_key(signer.public_key)
    part.signatures[key.keyid] = signature(key, signer.sign(part.signed_bytes))


def _sorted(signatures: Iterable[tuple[bytes, bytes]]) -> dict[str, Signature]:
    made = {(key := tuf_key(raw_key)).keyid: signature(key, raw) for raw_key, raw in signatures}
    return dict(sorted(made.items()))
