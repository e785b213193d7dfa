"""Counters of this gateway, written as Prometheus text (exposition format 0.0.4).

Labels come from fixed sets (the kind of request, codes of the error catalogue), so they never hold what a user wrote.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from felloe.domain.errors import CATALOGUE
from felloe.domain.requests import Kind, Usage

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Gauge(Struct, frozen=True):
    name: str
    help: str
    read: Callable[[], float]


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(_BOUNDS, value)] += 1
        self.sum += value


class Metrics:
    """The one owner of the gateway's counters; used from one event loop."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[Kind, str]] = Counter()
        self._tokens: Counter[tuple[Kind, str]] = Counter()
        self._stream_errors: Counter[str] = Counter()
        self._first_token: dict[Kind, _Histogram] = {}
        self._seconds: dict[Kind, _Histogram] = {}
        self._gauges: list[_Gauge] = []
        self.active = 0
        self.active_streams = 0

    def request_ended(self, kind: Kind, code: str, seconds: float) -> None:
        """Count an inference request; `code` is `ok`, `client_gone` or one of the error catalogue."""
        self._requests[kind, _safe(code)] += 1
        self._seconds.setdefault(kind, _Histogram()).observe(seconds)

    def first_token(self, kind: Kind, seconds: float) -> None:
        """Note how long the first piece of an answer took."""
        self._first_token.setdefault(kind, _Histogram()).observe(seconds)

    def used(self, kind: Kind, usage: Usage) -> None:
        """Count the tokens of an answer."""
        self._tokens[kind, "prompt"] += usage.prompt
        self._tokens[kind, "cached"] += usage.cached
        self._tokens[kind, "completion"] += usage.completion

    def stream_failed(self, code: str) -> None:
        """Count a stream that failed after its first byte."""
        self._stream_errors[_safe(code)] += 1

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Show a number that another part owns; it is read at each scrape."""
        self._gauges.append(_Gauge(name, help_text, read))

    def render(self) -> bytes:
        """Everything as Prometheus text."""
        lines: list[str] = []
        _write_counter(lines, "felloe_requests_total", "Inference requests by outcome.", "code", self._requests)
        _write_counter(lines, "felloe_tokens_total", "Tokens by direction.", "direction", self._tokens)
        _write_head(lines, "felloe_stream_errors_total", "Streams that failed after their first byte.", "counter")
        for code, count in sorted(self._stream_errors.items()):
            lines.append(f'felloe_stream_errors_total{{code="{code}"}} {count}')
        first_token = "felloe_time_to_first_token_seconds"  # noqa: S105 a metric's name, no secret
        _write_histograms(lines, first_token, "Until an answer's first piece.", self._first_token)
        _write_histograms(lines, "felloe_request_seconds", "Until an answer's end.", self._seconds)
        own = [
            _Gauge("felloe_active_requests", "Inference requests being answered.", lambda: self.active),
            _Gauge("felloe_active_streams", "Answers being streamed.", lambda: self.active_streams),
        ]
        for gauge in own + self._gauges:
            _write_head(lines, gauge.name, gauge.help, "gauge")
            lines.append(f"{gauge.name} {gauge.read():g}")
        return ("\n".join(lines) + "\n").encode()


def _safe(code: str) -> str:
    return code if code in CATALOGUE or code in ("ok", "client_gone") else "internal"


def _write_head(lines: list[str], name: str, help_text: str, kind: str) -> None:
    lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _write_counter(lines: list[str], name: str, help_text: str, label: str, counter: Counter[tuple[Kind, str]]) -> None:
    _write_head(lines, name, help_text, "counter")
    for (kind, value), count in sorted(counter.items()):
        lines.append(f'{name}{{kind="{kind}",{label}="{value}"}} {count}')


def _write_histograms(lines: list[str], name: str, help_text: str, histograms: dict[Kind, _Histogram]) -> None:
    _write_head(lines, name, help_text, "histogram")
    for kind, histogram in sorted(histograms.items()):
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), histogram.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{kind="{kind}",le="{bound}"}} {total}')
        lines.append(f'{name}_sum{{kind="{kind}"}} {histogram.sum:.6f}')
        lines.append(f'{name}_count{{kind="{kind}"}} {total}')
