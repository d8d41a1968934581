"""Rules as text: what each says, and what is told where it says nothing."""

from __future__ import annotations

import pytest

from swapd.core.rules import Metric, NotARule, Rule, parse_rule


@pytest.mark.parametrize(
    ("text", "metric", "bound", "relative", "quantile"),
    [
        ("error_rate < 1%", Metric.ERROR_RATE, 0.01, False, 0.5),
        ("error_rate<=0.01", Metric.ERROR_RATE, 0.01, False, 0.5),
        ("error_rate <= 2 x stable", Metric.ERROR_RATE, 2.0, True, 0.5),
        ("p50 < 200ms", Metric.LATENCY, 0.2, False, 0.5),
        ("p95 < 1.5s", Metric.LATENCY, 1.5, False, 0.95),
        ("p99 ≤ 2 s", Metric.LATENCY, 2.0, False, 0.99),
        ("ttfb_p95 < 300ms", Metric.FIRST_BYTE, 0.3, False, 0.95),
        ("p95 <= 1.2 x stable", Metric.LATENCY, 1.2, True, 0.95),
        ("P95 <= 1.2x Stable", Metric.LATENCY, 1.2, True, 0.95),
        ("p95 <= 1.2 \u00d7 stable", Metric.LATENCY, 1.2, True, 0.95),
        ("ttfb_p50 <= 1.1 * stable", Metric.FIRST_BYTE, 1.1, True, 0.5),
        ("agreement >= 0.98", Metric.AGREEMENT, 0.98, False, 0.5),
        ("agreement >= 98%", Metric.AGREEMENT, 0.98, False, 0.5),
        ("tokens_per_s >= 0.9 x stable", Metric.TOKENS_PER_S, 0.9, True, 0.5),
        ("tokens_per_s > 30", Metric.TOKENS_PER_S, 30.0, False, 0.5),
        ("consecutive_errors < 5", Metric.CONSECUTIVE_ERRORS, 5.0, False, 0.5),
    ],
)
def test_a_rule_is_read(text, metric, bound, relative, quantile):
    rule = parse_rule(text)
    assert (rule.metric, rule.relative, rule.quantile) == (metric, relative, quantile)
    assert rule.bound == pytest.approx(bound)
    assert parse_rule(rule.to_config()) == rule  # as it is frozen with a swap


def test_a_rule_is_told_as_it_was_written_and_tidy():
    assert parse_rule("  P95<=1.2  x stable ").text == "p95 <= 1.2 x stable"
    assert parse_rule("agreement ≥ 98%").text == "agreement >= 98%"


@pytest.mark.parametrize(
    ("text", "name"), [("p99 < 1s", "p99"), ("ttfb_p50 < 1s", "ttfb_p50"), ("error_rate < 1%", "error_rate")]
)
def test_a_rule_names_what_it_measures(text, name):
    assert parse_rule(text).name == name


def test_a_query_is_a_rule():
    table = {"query": "sum(rate(x[1m])) > 3", "url": "http://127.0.0.1:9090", "is": "<=0.1"}
    rule = parse_rule(table)
    assert rule == Rule(
        Metric.QUERY, "sum(rate(x[1m])) > 3 <= 0.1", 0.1, True, inclusive=True, query=table["query"], url=table["url"]
    )
    assert parse_rule(rule.to_config()) == rule
    assert parse_rule({"query": "x", "is": "> -1e3"}).bound == -1000


def test_only_an_inclusive_bound_is_kept_by_the_bound():
    assert parse_rule({"query": "x", "is": "<= 1"}).holds(1.0)
    assert not parse_rule({"query": "x", "is": "< 1"}).holds(1.0)
    assert parse_rule({"query": "x", "is": "> 1"}).holds(2.0)
    assert not parse_rule({"query": "x", "is": ">= 1"}).holds(0.5)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (3, "expected a rule such as"),
        ("fast", '"fast" is not a rule: write one such as "error_rate < 1%"'),
        ("", "is not a rule"),
        ("p96 < 1s", "the percentiles are p50, p90, p95, p99"),
        ("latency < 1s", "known are error_rate, p50"),
        ("error rate < 1%", "is not a rule"),
        ("errorrate < 1%", 'did you mean "error_rate"?'),
        ("p95 > 200ms", 'p95 is bounded from above: write "p95 < 200ms"'),
        ("p95 = 200ms", 'write "p95 < 200ms"'),
        ("agreement < 98%", 'agreement is bounded from below: write "agreement >= 98%"'),
        ("p95 < 200", 'write "200s"'),
        ("p95 < 0ms", "a bound of more than 0"),
        ("p95 < fast", "expected a duration"),
        ("p95 <= 1.2 x", 'or a multiple of the stable\'s: "p95 <= 1.2 x stable"'),
        ("p95 <= 1.2 of stable", 'write "p95 <= 1.2 x stable"'),
        ("p95 <= 0 x stable", "out of range"),
        ("error_rate < 1", "between 0% and 100%"),
        ("error_rate < 2", 'a share of 1: write "error_rate < 2%"'),
        ("error_rate <= 0%", 'write "error_rate < 0.1%"'),
        ("error_rate < 200%", "between 0% and 100%"),
        ("error_rate <= 1 x stable", "write at least 1.05"),
        ("agreement >= 100%", 'write "agreement >= 99.9%"'),
        ("agreement >= 98", 'write "agreement >= 98%"'),
        ("agreement >= 0.9 x stable", 'with the stable already: write "agreement >= 98%"'),
        ("consecutive_errors < 2.5", 'write "consecutive_errors < 5"'),
        ("consecutive_errors < 2 x stable", "whatever the stable does"),
        ("consecutive_errors < 5%", "without %"),
        ("tokens_per_s > fast", "is not a number"),
        ("tokens_per_s > 0", "a bound of more than 0"),
        ({"query": "x"}, "needs `is` as a string"),
        ({"is": "< 1"}, "needs `query` as a string"),
        ({"query": "x", "is": "< 1", "every": "1s"}, '"every" is not known'),
        ({"query": "x", "is": "1"}, "does not say what the value must be"),
        ({"query": "x", "is": "< 1%"}, "does not say what the value must be"),
        ({"query": "x", "is": "< 1", "url": "prometheus:9090"}, "url is the address of a Prometheus"),
    ],
)
def test_what_is_no_rule_is_told_what_would_be_one(wrong, told):
    with pytest.raises(NotARule) as raised:
        parse_rule(wrong)
    assert told in str(raised.value)
    assert str(raised.value).isprintable()


def test_what_is_told_is_one_line():
    with pytest.raises(NotARule) as raised:
        parse_rule("p95 <\n\x1b[31m 1.2 stable")
    assert str(raised.value).isprintable()
