"""The work on catalogues that hubs need, behind the port `CatalogMaker`."""

from collections.abc import Iterable

from felloe.catalog.approval import metadata
from felloe.catalog.approval.decisions import open_decision
from felloe.catalog.approval.rules import check_use, counts
from felloe.catalog.approval.tuf_files import Files, verified
from felloe.catalog.manifests import listing
from felloe.domain.approval import (
    MOST_DECISIONS,
    Approvals,
    Bundle,
    Candidate,
    CandidateSignature,
    Decision,
    Listing,
    SignedDecision,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ports import StatementSigner


class Maker:
    """Implements `CatalogMaker`; remembers the bundle that it read last, and decisions that it verified."""

    def __init__(self) -> None:
        self._read: tuple[Bundle, Files] | None = None
        self._opened: dict[SignedDecision, Decision] = {}

    def listing(self, envelope: bytes) -> Listing:
        """See the port."""
        return listing(envelope)

    def approvals(self, bundle: Bundle) -> Approvals:
        """See the port."""
        return self._files(bundle).approvals()

    def check_decision(self, bundle: Bundle, signed: SignedDecision, now: float) -> None:
        """See the port."""
        check_use(self._files(bundle).catalogue, self._open(signed), now)

    def counts(self, bundle: Bundle, signed: SignedDecision) -> bool:
        """See the port."""
        try:
            return counts(self._files(bundle).catalogue, self._open(signed))
        except FelloeError:
            return False

    def by(self, signed: SignedDecision) -> bytes:
        """See the port."""
        try:
            return self._open(signed).by
        except FelloeError:
            return b""

    def candidate(
        self, bundle: Bundle, decisions: Iterable[SignedDecision], issuer: bytes, issued_at: int
    ) -> Candidate | None:
        """See the port."""
        return metadata.candidate(bundle, decisions, issuer, issued_at)

    def fits(self, candidate: Candidate, signature: CandidateSignature) -> bool:
        """See the port."""
        return metadata.fits(candidate, signature)

    def complete(
        self,
        bundle: Bundle,
        candidate: Candidate,
        signatures: Iterable[CandidateSignature],
        issuer: StatementSigner,
        now: float,
    ) -> Bundle | None:
        """See the port."""
        return metadata.complete(bundle, candidate, signatures, issuer, now)

    def renewed(self, bundle: Bundle, issuer: StatementSigner, now: float) -> Bundle | None:
        """See the port."""
        return metadata.renewed(bundle, issuer, now)

    def _files(self, bundle: Bundle) -> Files:
        if self._read is None or self._read[0] != bundle:
            self._read = bundle, verified(bundle, metadata.pin_of(bundle))
        return self._read[1]

    def _open(self, signed: SignedDecision) -> Decision:
        known = self._opened.get(signed)
        if known is None:
            known = open_decision(signed)
            if len(self._opened) >= 2 * MOST_DECISIONS:
                self._opened.clear()
            self._opened[signed] = known
        return known
