"""When to try a source again, and how long to wait before. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime

from felloe.catalog.sources.settings import Limits

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


class Interrupted(Exception):
    """A failure that may pass. `code` is the error of the catalogue that it becomes when it does not.

    `retry_after` is what the server asks for, in seconds.
    """

    def __init__(self, reason: str, *, code: str = "source_failed", retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.retry_after = retry_after


def is_passing(status: int) -> bool:
    """Whether an HTTP status speaks of a state that may pass."""
    return status in _RETRIED


def retry_after(header: str, now: float) -> float | None:
    """The wait in seconds that a Retry-After header asks for (seconds or a date, RFC 9110), None when it is unclear."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)


def pause(failures: int, asked: float | None, limits: Limits) -> float | None:
    """Seconds to wait after the nth failure in a row (from 1); None: give up."""
    if failures >= limits.tries or (asked is not None and asked > limits.longest_wait_seconds):
        return None
    own = min(limits.longest_pause_seconds, limits.first_pause_seconds * 2 ** (failures - 1))
    return max(own, asked or 0.0)
