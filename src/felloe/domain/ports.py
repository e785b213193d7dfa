"""Where siblings meet: small interfaces that capabilities offer each other, wired by the composition root."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from felloe.domain.approval import Approvals, Bundle, Candidate, CandidateSignature, Listing, SignedDecision
from felloe.domain.ids import ModelName
from felloe.domain.requests import Done, InferenceRequest, Piece
from felloe.domain.roster import Replica, Roster

Deliver = Callable[[Piece], Awaitable[None] | None]
"""Takes the next piece of an answer, in order.

None means: more may come at once. An awaitable means that the reader is behind: it must be awaited before the next
piece is delivered. It is called in the event loop, but not always in the task that asked, because a piece goes from
the socket it came from to the socket it goes to without a task switch. What it raises ends the answer with that error.
"""


class Answers(Protocol):
    """Anything that answers inference requests: an engine, a set of engines, a router over a whole network."""

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        """Deliver every piece, then return the accounts; raise `FelloeError` on failure.

        Nothing is delivered after it returned or raised. Cancelling the asking task cancels the work at once.
        """
        ...


class Replicas(Answers, Protocol):
    """The replicas of this node."""

    def replicas(self) -> tuple[Replica, ...]:
        """What is loaded here now, whatever its state."""
        ...

    def find(self, model: ModelName) -> Replica | None:
        """The ready replica for `model`, if there is one."""
        ...


class Rosters(Protocol):
    """The one owner of the roster snapshot."""

    def snapshot(self) -> Roster:
        """The newest snapshot; never waits."""
        ...

    def on_change(self, callback: Callable[[Roster], None]) -> None:
        """Call `callback` in the event loop after each change."""
        ...


class StatementSigner(Protocol):
    """Holds an Ed25519 key and signs with it."""

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """The raw signature, 64 bytes."""
        ...


class CatalogMaker(Protocol):
    """Works on catalogues for those who must not know how they are made. Pure, but takes milliseconds.

    Bundles are taken as verified against the network's pin by whoever made them what they are; a damaged one raises
    `catalog_refused`.
    """

    def listing(self, envelope: bytes) -> Listing:
        """What there is to approve in a signed manifest. Raises `bad_manifest`."""
        ...

    def approvals(self, bundle: Bundle) -> Approvals:
        """What a bundle says, whatever its dates."""
        ...

    def check_decision(self, bundle: Bundle, signed: SignedDecision, now: float) -> None:
        """Raise `catalog_refused`, `not_curator` or `invalid_value` unless the decision may change something."""
        ...

    def counts(self, bundle: Bundle, signed: SignedDecision) -> bool:
        """Whether a decision still speaks of what is."""
        ...

    def by(self, signed: SignedDecision) -> bytes:
        """The raw key of who decided; empty for what is no proper decision."""
        ...

    def candidate(
        self, bundle: Bundle, decisions: Iterable[SignedDecision], issuer: bytes, issued_at: int
    ) -> Candidate | None:
        """What curators are to sign next; None when nothing is to be changed."""
        ...

    def fits(self, candidate: Candidate, signature: CandidateSignature) -> bool:
        """Whether a signature is one over this candidate, by somebody who has a part in it."""
        ...

    def complete(
        self,
        bundle: Bundle,
        candidate: Candidate,
        signatures: Iterable[CandidateSignature],
        issuer: StatementSigner,
        now: float,
    ) -> Bundle | None:
        """The next bundle, when enough curators have signed the candidate and `issuer` is whom it names for hubs."""
        ...

    def renewed(self, bundle: Bundle, issuer: StatementSigner, now: float) -> Bundle | None:
        """The same catalogue with fresh dates, when a day has passed and `issuer` may give them; None otherwise."""
        ...
