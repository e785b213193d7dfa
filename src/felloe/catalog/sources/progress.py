"""How far a pull is, how fast it goes and when it will be done."""

from collections import deque

from msgspec import Struct

_WINDOW_SECONDS = 5.0
_REPORT_SECONDS = 0.2


class PullProgress(Struct, frozen=True, kw_only=True):
    """Bytes of all files together; `rate` in bytes a second over the last five, `eta` in seconds (0: unknown).

    `file` is the one that comes now; `note` says why nothing comes.
    """

    done: int = 0
    total: int = 0
    file: str = ""
    rate: float = 0.0
    eta: float = 0.0
    note: str = ""


class Meter:
    """Turns lengths of files into reports; `now` is in seconds of one steady clock."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._file = ""
        self._lengths: dict[str, int] = {}
        self._samples: deque[tuple[float, int]] = deque()
        self._came = 0
        self._next = 0.0

    def expect(self, sizes: dict[str, int]) -> None:
        """The files to come and their sizes in bytes; 0 where nobody knows yet."""
        self._sizes = dict(sizes)

    def length(self, file: str, length: int, size: int, now: float) -> PullProgress | None:
        """Note that `length` of `size` bytes of `file` are here; a report when one is due."""
        grown = length - self._lengths.get(file, length)
        ends = length == size and self._lengths.get(file) != size
        self._file, self._sizes[file], self._lengths[file] = file, size, length
        # What an earlier pull brought, and what is dropped, says nothing of the speed.
        self._came += max(0, grown)
        self._samples.append((now, self._came))
        while self._samples[0][0] < now - _WINDOW_SECONDS and len(self._samples) > 2:
            self._samples.popleft()
        if now < self._next and not ends:
            return None
        self._next = now + _REPORT_SECONDS
        return self._report()

    def waiting(self, note: str) -> PullProgress:
        """A report that says why nothing comes."""
        report = self._report()
        return PullProgress(done=report.done, total=report.total, file=report.file, note=note)

    def _report(self) -> PullProgress:
        done, total = sum(self._lengths.values()), sum(self._sizes.values())
        (began, before), (ended, after) = (self._samples or [(0.0, 0)])[0], (self._samples or [(0.0, 0)])[-1]
        rate = (after - before) / (ended - began) if ended > began else 0.0
        eta = (total - done) / rate if rate > 0 else 0.0
        return PullProgress(done=done, total=total, file=self._file, rate=round(rate, 1), eta=round(eta, 1))
