"""Requests that were under way when the engine died: a request that kills engines must not come again and again.

Holds keyed digests in memory only, so neither a prompt nor anything that could confirm a guess of one is kept.
"""

import hashlib
import secrets
from collections.abc import Callable

import msgspec

from felloe.domain.requests import InferenceRequest

_MOST_SUSPECTS = 256


class Suspects:
    """Counts, for each request, the crashes of the last `window` seconds before which it had got no token.

    A request that goes on elsewhere, or that its asker sends again, is recognised by what it asks.
    """

    def __init__(self, window: float, clock: Callable[[], float]) -> None:
        self._window = window
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._at_hand: dict[bytes, float] = {}
        self._crashes: dict[bytes, list[float]] = {}

    def broken_off(self, request: InferenceRequest) -> None:
        """`request` broke off without a token. Whether that is held against it is said when its engine is buried."""
        if len(self._at_hand) < _MOST_SUSPECTS:
            self._at_hand[self._digest(request)] = self._clock()

    def engine_buried(self, *, blame: bool) -> None:
        """The engine of the requests that broke off is gone; with `blame` each of them may have been the cause."""
        now = self._clock()
        for digest, at in self._at_hand.items():
            if blame and now - at <= self._window:
                self._crashes[digest] = [*self._recent(digest), now]
        self._at_hand.clear()
        while len(self._crashes) > _MOST_SUSPECTS:
            del self._crashes[next(iter(self._crashes))]

    def crashes(self, request: InferenceRequest) -> int:
        """How many recent crashes `request` may have caused; costs nothing while there was none."""
        return len(self._recent(self._digest(request))) if self._crashes else 0

    def _recent(self, digest: bytes) -> list[float]:
        now = self._clock()
        return [at for at in self._crashes.get(digest, ()) if now - at <= self._window]

    def _digest(self, request: InferenceRequest) -> bytes:
        asked = msgspec.json.encode((request.kind, request.body), order="deterministic")
        return hashlib.blake2b(asked, key=self._key, digest_size=16).digest()
