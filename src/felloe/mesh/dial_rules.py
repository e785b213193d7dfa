"""Which hub is dialled next, when, and how long a connected one may be silent. Pure: numbers are passed in."""

from collections.abc import Callable, Sequence

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 5.0
LEAST_PATIENCE_SECONDS = 1.5
MOST_PATIENCE_SECONDS = 5.0
_SLOWER = 4.0


def redial_delay(fruitless: int, random: float) -> float:
    """Seconds to wait after `fruitless` rounds in a row that gave no lasting session; `random` is in [0, 1).

    The whole delay is random, so that those whom one failure has put in step fall out of it again.
    """
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(fruitless, 16)) * random


def dial_order(
    urls: Sequence[str], random: Callable[[], float], *, nearest: str | None = None, lost: str | None = None
) -> list[str]:
    """The order of one round: `nearest` first, the others shuffled, the hub that was `lost` last."""
    shuffled = sorted(urls, key=lambda _: random())
    return sorted(shuffled, key=lambda url: (url == lost, url != nearest))


def pong_patience(slowest: float) -> float:
    """How many seconds of silence after a ping are too many where the slowest of the recent round trips took so long.

    On a quick line a frozen hub is known soon; a line that often stalls is given the time that it takes.
    """
    return min(MOST_PATIENCE_SECONDS, max(LEAST_PATIENCE_SECONDS, _SLOWER * slowest))
