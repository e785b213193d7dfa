"""What the router counts for the metrics: never any text, and no label that a client can choose."""

from bisect import bisect_left
from collections import deque

from msgspec import Struct, field

GAP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECENT = 1024


class RouterStats(Struct):
    """Counts since the node started.

    `local` and `remote` count attempts, `cold` waits for a model that nobody served. `resumed` counts answers that went
    on at another replica; `gap_buckets` how long their clients saw nothing, not cumulated, for the upper bounds
    `GAP_BUCKETS` (seconds) and beyond.
    """

    requests: int = 0
    local: int = 0
    remote: int = 0
    cold: int = 0
    resumed: int = 0
    retried: int = 0
    broken: int = 0
    gap_seconds: float = 0.0
    gap_buckets: list[int] = field(default_factory=lambda: [0] * (len(GAP_BUCKETS) + 1))
    recent_gaps: deque[float] = field(default_factory=lambda: deque[float](maxlen=_RECENT))

    def record_gap(self, seconds: float) -> None:
        """An answer went on after `seconds` without a piece."""
        self.resumed += 1
        self.gap_seconds += seconds
        self.gap_buckets[bisect_left(GAP_BUCKETS, seconds)] += 1
        self.recent_gaps.append(seconds)
