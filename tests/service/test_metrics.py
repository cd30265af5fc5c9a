"""Numbers and log lines of the service, with a clock of our own."""

import logging

import pytest

from lewis_core.listener.metrics import ServiceMetrics
from lewis_core.listener.schemas import CacheStatistics


def test_numbers_are_what_prometheus_reads():
    metrics = ServiceMetrics(lambda: 3, clock=lambda: 0.0)
    for status, took_s in ((200, 0.02), (200, 0.3), (503, 0.001), (200, 400.0)):
        metrics.count_request("/v1/score", status, took_s)
    metrics.count_call("score", 40)
    lines = metrics.render().splitlines()
    assert 'lewis_requests_total{path="/v1/score",status="200"} 3' in lines
    assert "lewis_errors_total 1" in lines
    assert "lewis_queue_length 3" in lines
    assert 'lewis_rows_total{kind="score"} 40' in lines
    assert 'lewis_request_seconds_bucket{le="0.01"} 1' in lines  # 0.001
    assert 'lewis_request_seconds_bucket{le="0.5"} 3' in lines  # and 0.02, 0.3
    assert 'lewis_request_seconds_bucket{le="300.0"} 3' in lines
    assert 'lewis_request_seconds_bucket{le="+Inf"} 4' in lines  # and 400
    assert "lewis_request_seconds_sum 400.321000" in lines
    assert "lewis_request_seconds_count 4" in lines


def test_one_log_line_a_second_and_none_for_probes(caplog):
    caplog.set_level(logging.INFO, "lewis_core")
    now = [0.0]
    metrics = ServiceMetrics(clock=lambda: now[0])
    for tenth in range(41):  # 4 s
        now[0] = tenth / 10
        metrics.count_request("/readyz", 503, 0.1)
    assert caplog.messages == []
    metrics.count_request("/v1/score", 200, 0.1)
    metrics.count_request("/v1/score", 500, 0.1)
    assert caplog.messages == ["1 requests, 0 errors in the last 4.0 s, 0 waiting"]
    now[0] = 5.5
    metrics.count_call("score", 8)
    metrics.count_request("/readyz", 200, 0.1)
    assert caplog.messages[1:] == ["1 requests, 1 errors, 8 rows of score in the last 1.5 s, 0 waiting"]


@pytest.mark.parametrize("name", ["vision", "prompt"])
def test_caches_are_shown(name):
    cache = CacheStatistics(entries=3, num_bytes=600, max_bytes=1000, hits=30, misses=10, evictions=7)
    lines = ServiceMetrics(**{f"{name}_cache": lambda: cache}).render().splitlines()
    assert f"lewis_{name}_cache_hits_total 30" in lines
    assert f"lewis_{name}_cache_misses_total 10" in lines
    assert f"lewis_{name}_cache_evictions_total 7" in lines
    assert f"lewis_{name}_cache_hit_rate 0.750000" in lines
    assert f"lewis_{name}_cache_bytes 600" in lines
    assert f"lewis_{name}_cache_max_bytes 1000" in lines
    assert f"lewis_{name}_cache_images 3" in lines
    assert "_cache" not in ServiceMetrics().render()
