"""The counters as a scraper reads them."""

import re

from felloe.domain.requests import Usage
from felloe.gateway import Metrics

LINE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"\\\n]*",?)+\})? -?[0-9.e+-]+|# (HELP|TYPE) [a-z_]+ .+')


def samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_requests_tokens_and_errors_are_counted() -> None:
    metrics = Metrics()
    metrics.request_ended("chat", "ok", 1.0)
    metrics.request_ended("chat", "ok", 2.0)
    metrics.request_ended("embedding", "overloaded", 0.001)
    metrics.used("chat", Usage(prompt=5, completion=7, cached=3))
    metrics.stream_failed("replica_lost")
    read = samples(metrics)
    assert read['felloe_requests_total{kind="chat",code="ok"}'] == 2
    assert read['felloe_requests_total{kind="embedding",code="overloaded"}'] == 1
    assert read['felloe_tokens_total{kind="chat",direction="completion"}'] == 7
    assert read['felloe_stream_errors_total{code="replica_lost"}'] == 1
    assert read['felloe_request_seconds_sum{kind="chat"}'] == 3


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.006, 1000.0):
        metrics.first_token("completion", seconds)
    read = samples(metrics)
    name = "felloe_time_to_first_token_seconds"
    assert read[name + '_bucket{kind="completion",le="0.005"}'] == 2
    assert read[name + '_bucket{kind="completion",le="0.01"}'] == 3
    assert read[name + '_bucket{kind="completion",le="60.0"}'] == 3
    assert read[name + '_bucket{kind="completion",le="+Inf"}'] == 4
    assert read[name + '_count{kind="completion"}'] == 4


def test_gauges_are_read_when_asked() -> None:
    metrics = Metrics()
    waiting = 3.0
    metrics.gauge("felloe_waiting_requests", "Requests in the queue.", lambda: waiting)
    metrics.active_streams += 1
    waiting = 5.0
    read = samples(metrics)
    assert read["felloe_waiting_requests"] == 5
    assert read["felloe_active_streams"] == 1


def test_a_code_from_elsewhere_cannot_become_a_label() -> None:
    metrics = Metrics()
    metrics.request_ended("chat", 'what the "user" wrote\n', 0.1)
    metrics.stream_failed("some text")
    text = metrics.render().decode()
    assert "user" not in text
    assert "some text" not in text
    assert 'code="internal"' in text
