"""Counts in Prometheus' text form."""

import re

from gpt_modules.serving.engine import Counts
from gpt_modules.serving.metrics import BOUNDS, Histogram, Metrics

LINE = re.compile(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"\n\\]*"(,\w+="[^"\n\\]*")*\})? [-+0-9.e]+')


def test_a_histogram_counts_what_is_at_most_a_bound():
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] + 1e-9, 1e9):
        histogram.add(seconds)
    lines = histogram.lines("h", "Help.")
    assert 'h_bucket{le="0.01"} 2' in lines
    assert 'h_bucket{le="0.03"} 3' in lines
    assert 'h_bucket{le="+Inf"} 4' in lines
    assert "h_count 4" in lines


def test_every_line_is_one_that_is_read():
    metrics = Metrics()
    metrics.answered("/v1/completions", 200)
    metrics.answered("/v1/completions", 200)
    text = metrics.text(Counts())
    assert 'gpt_requests_total{path="/v1/completions",status="200"} 2' in text
    assert text.endswith("\n")
    assert all(LINE.fullmatch(line) for line in text.splitlines())
