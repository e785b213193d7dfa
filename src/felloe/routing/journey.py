"""What became of one request so far: which replicas failed it, and whether and where it goes on."""

from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.requests import InferenceRequest
from felloe.routing import rules
from felloe.routing.progress import Progress
from felloe.routing.rules import Wanted
from felloe.routing.targets import Target

_SHORTEST_DEADLINE = 0.001


class _Rest(NamedTuple):
    """How often in a row the way to a node broke, until when it is left alone, and which record it had then."""

    cuts: int
    until: float
    issued_at: float


class Journey:
    """The state of one request in the router; decides without a clock, `now` is passed in.

    A node that failed is not asked again until it publishes a newer record, as it does when its engine or the whole
    node has started anew, and when it has a new line. When nobody else is left, nodes that look alive get one second
    chance. Where only the way broke, the node is asked again at once if it was answering, for it has read the prompt
    already, and else after a short rest.

    `promised` tells that a slot of this node is meant for it, `load_by` until when it waits for the model to be loaded.
    """

    def __init__(self, request: InferenceRequest, deadline_at: float, patience: float) -> None:
        self.request = request
        self.deadline_at = deadline_at
        self.progress = Progress()
        self.wanted = Wanted(request.model, rules.needed_capabilities(request))
        self.tried = False
        self.first_piece_due = True
        self.delivered_at = 0.0
        self.promised = False
        self.load_by: float | None = None
        self._patience = patience
        self._waiting_since: float | None = None
        self._excluded: dict[NodeId, float] = {}
        self._resting: dict[NodeId, _Rest] = {}
        self._forgiven = False
        self._failures = 0
        self._barren = 0
        self._cuts = 0
        self._refusals = 0
        self._number_at_start = 0
        self._now = 0.0
        self._retry_after: float | None = None
        self._last_error: FelloeError | None = None

    def next_request(self, now: float) -> InferenceRequest:
        """What to ask the next replica: the time that is left, and where it goes on."""
        left = max(_SHORTEST_DEADLINE, self.deadline_at - now)
        return replace(self.request, deadline=left, resume=self.progress.resume(), wait=None)

    def begin(self) -> None:
        """An attempt starts."""
        self.tried = True
        self.first_piece_due = True
        self._number_at_start = self.progress.number

    def first_piece(self, target: Target, now: float) -> float | None:
        """The attempt at `target` brings its first piece. Returns how long the client saw nothing, after a break."""
        self.first_piece_due = False
        # From now on only this very model may go on.
        self.wanted = self.wanted._replace(digest=target.replica.model.digest)
        self._waiting_since = self.load_by = None
        self._refusals = 0
        return now - self.delivered_at if self.progress.begun else None

    def excludes(self, node: NodeId, issued_at: float) -> bool:
        """Whether `node`, whose record was issued then, has failed this request already."""
        failed_at = self._excluded.get(node)
        if failed_at is not None and issued_at <= failed_at:
            return True
        rest = self._resting.get(node)
        return rest is not None and rest.until > self._now and issued_at <= rest.issued_at

    def look(self, now: float) -> None:
        """A replica is chosen now."""
        self._now = now

    def failed(self, target: Target, issued_at: float, error: FelloeError, now: float) -> None:
        """The attempt at `target` failed. Raises `error` if it is final, else the request goes on elsewhere."""
        self._last_error = error
        if error.code == "line_lost":
            self._cut_off(target.node, issued_at, now)
        else:
            self._excluded[target.node] = issued_at
        if error.code == "context_length_exceeded":
            # Another replica of the model may have been loaded with longer slots.
            self.wanted = self.wanted._replace(context=target.replica.context + 1)
            return
        if error.code in rules.LOSSES:
            self._count_loss(error.code)
        else:
            self._refusals += 1
        if error.code == "overloaded":
            self._retry_after = min(self._retry_after or rules.MOST_RETRY_AFTER, error.retry_after or 1.0)
        retries = rules.should_retry(
            error.code, failures=self._failures, barren=self._barren, cuts=self._cuts, refusals=self._refusals
        )
        if not retries:
            raise self._final(error)

    def _count_loss(self, code: str) -> None:
        if self._has_progressed():
            self._failures += 1
            self._barren = self._cuts = 0
        elif code == "line_lost":
            self._cuts += 1
        else:
            self._failures += 1
            self._barren += 1

    def _cut_off(self, node: NodeId, issued_at: float, now: float) -> None:
        if self._has_progressed():
            self._resting.pop(node, None)
            return
        before = self._resting.get(node)
        cuts = 1 if before is None else before.cuts + 1
        self._resting[node] = _Rest(cuts, now + rules.nap(cuts), issued_at)

    def _has_progressed(self) -> bool:
        return self.progress.number > self._number_at_start

    def _final(self, error: FelloeError) -> FelloeError:
        if error.code == "line_lost":
            return FelloeError("replica_lost", error.detail)
        if error.code == "overloaded":
            return FelloeError(error.code, error.detail, retry_after=self._retry_after)
        return error

    def wait(self, now: float) -> float:
        """Nobody can be asked now: seconds to wait for a change of the roster. Raises when that is not worth while."""
        if self._last_error is not None and self._last_error.code == "context_length_exceeded":
            raise self._last_error
        rests = [rest.until - now for rest in self._resting.values() if rest.until > now]
        if self._retry_after is not None and not self.progress.begun and not rests:
            detail = f"every replica of {self.request.model} that was asked is busy"
            raise FelloeError("overloaded", detail, retry_after=self._retry_after)
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited >= self._patience:
            raise self._nobody_left()
        if waited >= self._patience / 2 and not self._forgiven:
            self._forgiven = True
            self._excluded.clear()
            return 0.0
        left = self._patience / 2 - waited if waited < self._patience / 2 else self._patience - waited
        return min(left, *rests) if rests else left

    def _nobody_left(self) -> FelloeError:
        model = self.request.model
        last = "" if self._last_error is None else f"; the last one failed with {self._last_error.code}"
        if self.progress.begun:
            return FelloeError("replica_lost", f"no replica of {model} is left to go on with the answer{last}")
        return FelloeError("no_replica", f"no replica of {model} is ready{last}")
