"""Verdicts: what each rule says of which evidence, in which words, and what does not fool them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from swapd.core.evidence import in_order, tails
from swapd.core.figures import milliseconds, percent, plain
from swapd.core.rules import parse_rule
from swapd.core.verdict import Evidence, Outcome, Shadow, judge
from swapd.core.window import Histogram, Slice, Window

PASS, FAIL, OPEN = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def window(seed: int, requests: int, slower: float = 1.0, fails: float = 0.0, into: Window | None = None) -> Window:
    """Lognormal around 120 ms, p95 273 ms; first bytes at half of it, and 30 tokens a second."""
    chance, made = random.Random(seed), into or Window()
    for _ in range(requests):
        took = 0.12 * slower * math.exp(chance.gauss(0.0, 0.5))
        made.add(took, failed=chance.random() < fails, first_byte=took / 2, tokens_per_s=3.6 / took)
    return made


def steady(requests: int, seconds: float, failed: int = 0) -> Window:
    """All alike, failures spread evenly."""
    made = Window()
    for number in range(requests):
        made.add(seconds, failed=failed > 0 and number % (requests // failed) == 0)
    return made


def seen(candidate: Window, stable: Window, **more) -> Evidence:
    return Evidence(candidate, stable, **{"elapsed_s": 120.0, **more})


def ask(text: str | dict[str, str], evidence: Evidence):
    """What one rule says."""
    return judge([parse_rule(text)], evidence).rules[0]


GOOD = window(1, 2000)
STABLE = window(2, 8000)


# --- the verdict ---------------------------------------------------------------------------------------------


def test_no_traffic_is_inconclusive_whatever_others_measure():
    rules = [parse_rule("error_rate < 1%"), parse_rule({"query": "x", "is": "< 1"})]
    verdict = judge(rules, seen(Window(), STABLE, values={"x < 1": 5.0}))
    assert (verdict.outcome, verdict.text) == (OPEN, "the candidate has had no request yet")
    assert (verdict.progress.seen, verdict.progress.expected_s) == (0, None)
    none_needed = seen(Window(), STABLE, values={"x < 1": 5.0}, min_requests=0)
    assert judge(rules[1:], none_needed).outcome is OPEN


def test_a_candidate_that_keeps_all_rules_passes():
    rules = [parse_rule(text) for text in ("error_rate < 1%", "p95 <= 1.2 x stable", "p95 < 400ms")]
    verdict = judge(rules, seen(GOOD, STABLE))
    assert (verdict.outcome, verdict.text) == (PASS, "all rules are kept after 2,000 requests")
    assert verdict.note == ""


def test_one_broken_rule_fails_it_and_is_told():
    rules = [parse_rule(text) for text in ("error_rate < 1%", "p95 <= 1.2 x stable")]
    verdict = judge(rules, seen(window(3, 412, slower=1.35), window(4, 7804)))
    assert verdict.outcome is FAIL
    assert verdict.text == (
        "p95 <= 1.2 x stable: p95 344 ms against 271 ms of the stable: 1.27 times, more than 1.2;"
        " 412 and 7,804 requests"
    )


def test_without_rules_enough_requests_pass_and_a_row_of_failures_does_not():
    assert judge([], seen(window(1, 49), STABLE)).outcome is OPEN
    assert judge([], seen(window(1, 50), STABLE)).outcome is PASS
    broken = window(1, 400)
    for _ in range(10):
        broken.add(0.1, failed=True)
    verdict = judge([], seen(broken, STABLE))
    assert (verdict.outcome, verdict.text) == (FAIL, "consecutive_errors < 10: 10 requests failed in a row")


def test_a_rule_about_failures_in_a_row_takes_the_place_of_the_guard():
    broken = Window()
    for _ in range(4):
        broken.add(0.1, failed=True)
    broken.add(0.1)  # a look comes only now
    assert judge([parse_rule("consecutive_errors < 4")], seen(broken, STABLE)).outcome is FAIL
    assert judge([parse_rule("consecutive_errors < 20")], seen(broken, STABLE)).outcome is OPEN
    assert len(judge([parse_rule("consecutive_errors < 20")], seen(broken, STABLE)).rules) == 1


def test_progress_is_that_of_the_rule_that_takes_longest():
    rules = [parse_rule(text) for text in ("p95 <= 1.2 x stable", "error_rate < 1%")]
    verdict = judge(rules, seen(steady(100, 0.1), STABLE, elapsed_s=20.0))
    assert (verdict.progress.seen, verdict.progress.needed) == (100, 470)  # ln 50 of evidence without a failure
    assert verdict.progress.expected_s == 74
    assert verdict.text == (
        "100 of at least 470 requests; error_rate < 1%: 0 % failed (0 of 100), not yet surely less than 1 %"
    )
    done = judge(rules, seen(steady(470, 0.1), STABLE))
    assert (done.outcome, done.progress.seen, done.progress.needed) == (PASS, 470, 470)


def test_a_verdict_is_json():
    rules = [parse_rule(text) for text in ("p95 <= 1.2 x stable", "error_rate <= 2 x stable", "agreement >= 98%")]
    for evidence in (seen(Window(), Window()), seen(GOOD, STABLE), seen(window(1, 30), Window(), elapsed_s=0.0)):
        told = json.loads(json.dumps(judge(rules, evidence).to_json(), allow_nan=False))
        assert told["outcome"] in ("pass", "inconclusive")
        assert [rule["rule"] for rule in told["rules"]][:3] == [rule.text for rule in rules]


def test_a_stable_that_is_slower_than_before_is_told():
    verdict = judge([], seen(GOOD, window(5, 4000, slower=1.3), before=window(6, 4000)))
    assert verdict.note == (
        "the stable itself is 1.29 times slower than before (p50 156 ms against 120 ms):"
        " it shares the device with the candidate"
    )
    assert judge([], seen(GOOD, STABLE, before=window(6, 4000))).note == ""
    assert judge([], seen(GOOD, window(5, 9000, slower=1.06), before=window(6, 9000))).note == ""  # not worth it
    assert judge([], seen(GOOD, Window(), before=window(6, 4000))).note == ""


# --- failures ------------------------------------------------------------------------------------------------


def test_failures_are_told_with_their_counts():
    found = ask("error_rate < 1%", seen(steady(900, 0.1, failed=18), STABLE))
    assert (found.outcome, found.text) == (FAIL, "2 % failed (18 of 900), more than 1 %")
    found = ask("error_rate < 1%", seen(steady(900, 0.1, failed=1), STABLE))
    assert (found.outcome, found.text) == (PASS, "0.111 % failed (1 of 900), less than 1 %")


def test_total_failure_is_seen_in_a_few_requests():
    broken = Window()
    for _ in range(6):
        broken.add(0.1, status=500, failed=True)
    assert ask("error_rate < 1%", seen(broken, STABLE, elapsed_s=1.0)).outcome is FAIL


def test_failures_that_begin_late_are_not_hidden_by_those_that_went_well():
    leaking = window(1, 20_000)
    assert ask("error_rate < 1%", seen(leaking, STABLE)).outcome is PASS
    window(2, 2500, fails=0.04, into=leaking)
    assert leaking.failed / leaking.requests < 0.005
    found = ask("error_rate < 1%", seen(leaking, STABLE))
    assert found.outcome is FAIL
    assert found.text.startswith("of the last 2,020 requests 4.36 % failed (88 of 2,020), more than 1 %")


def test_failures_are_compared_with_the_stables():
    found = ask("error_rate <= 2 x stable", seen(steady(900, 0.1, failed=18), steady(8000, 0.1, failed=8)))
    assert found.outcome is FAIL
    assert found.text == "2 % failed (18 of 900) against 0.1 % of the stable (8 of 8,000): 20 times, more than 2"
    as_bad = ask("error_rate <= 2 x stable", seen(steady(2000, 0.1, failed=40), steady(8000, 0.1, failed=160)))
    assert (as_bad.outcome, as_bad.text[-20:]) == (PASS, "): 1 times, within 2")


def test_a_stable_that_never_fails_is_no_reason_to_fail_one_that_hardly_does():
    found = ask("error_rate <= 2 x stable", seen(steady(3000, 0.1, failed=1), steady(3000, 0.1)))
    assert found.outcome is PASS
    assert found.text.endswith("(0 of 3,000): surely less than 0.5 %, and so little is not compared")
    unknown = ask("error_rate <= 2 x stable", seen(steady(300, 0.1, failed=1), steady(300, 0.1)))
    assert (unknown.outcome, unknown.text[-36:]) == (OPEN, ", not yet surely within 2 times that")


def test_late_failures_are_compared_with_the_stables_late_ones():
    leaking, stable = window(1, 8000), window(2, 24_000, fails=0.001)
    window(3, 1500, fails=0.05, into=leaking)
    window(4, 4500, fails=0.001, into=stable)
    found = ask("error_rate <= 10 x stable", seen(leaking, stable))
    assert (found.outcome, found.text[:12]) == (FAIL, "of the last ")
    shared = window(2, 24_000, fails=0.001)
    window(4, 4500, fails=0.05, into=shared)
    assert ask("error_rate <= 10 x stable", seen(leaking, shared)).outcome is not FAIL


# --- latencies -----------------------------------------------------------------------------------------------


def test_a_bound_of_its_own():
    found = ask("p95 < 200ms", seen(window(1, 400), STABLE))
    assert found.outcome is FAIL
    assert found.text == "p95 271 ms of 400 requests, more than 200 ms"
    assert ask("p95 < 400ms", seen(window(1, 400), STABLE)).outcome is PASS
    assert ask("p95 < 273ms", seen(window(1, 400), STABLE)).outcome is OPEN
    assert ask("p95 < 200ms", seen(window(1, 40), STABLE)).outcome is OPEN  # fewer than min_requests


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("ttfb_p95 < 200ms", 1.0, 2.0),
        ("ttfb_p95 <= 1.2 x stable", 1.0, 1.4),
        ("tokens_per_s >= 0.9 x stable", 1.0, 1.3),
        ("tokens_per_s > 25", 1.0, 1.5),
        ("p50 <= 1.1 x stable", 1.0, 1.3),
        ("p99 <= 1.5 x stable", 1.0, 2.0),
        ("p95 <= 0.9 x stable", 0.7, 1.1),
    ],
)
def test_every_measure_has_its_side(rule, good, bad):
    assert ask(rule, seen(window(3, 2000, slower=good), STABLE)).outcome is PASS
    assert ask(rule, seen(window(3, 2000, slower=bad), STABLE)).outcome is FAIL


def test_a_tail_that_is_slower_fails_though_the_middle_is_not():
    chance, slow = random.Random(7), Window()
    for _ in range(1500):
        slow.add(0.12 * math.exp(chance.gauss(0.0, 0.5)) * (4.0 if chance.random() < 0.1 else 1.0))
    found = ask("p95 <= 1.2 x stable", seen(slow, STABLE))
    assert found.outcome is FAIL
    assert ask("p50 <= 1.2 x stable", seen(slow, STABLE)).outcome is PASS


def test_cold_caches_at_the_start_do_not_fail_a_candidate():
    cold = window(1, 20, slower=5.0)
    for look in range(100):
        window(100 + look, 10, into=cold)
        evidence = seen(cold, STABLE, elapsed_s=look + 1.0)
        assert ask("p95 <= 1.2 x stable", evidence).outcome is not FAIL
        assert ask("p95 < 330ms", evidence).outcome is not FAIL


def test_one_pause_does_not_fail_a_candidate():
    paused = window(1, 300)
    window(2, 30, slower=8.0, into=paused)
    for look in range(60):
        window(100 + look, 10, into=paused)
        evidence = seen(paused, STABLE, elapsed_s=look + 30.0)
        assert ask("p95 <= 1.2 x stable", evidence).outcome is not FAIL
        assert ask("p95 < 330ms", evidence).outcome is not FAIL


def test_a_candidate_that_becomes_slower_fails_though_it_was_fast_for_long():
    leaking, stable = window(1, 6000), window(2, 18_000)
    assert ask("p95 <= 1.2 x stable", seen(leaking, stable)).outcome is PASS
    assert ask("p95 < 400ms", seen(leaking, stable)).outcome is PASS
    window(3, 1800, slower=2.0, into=leaking)
    window(4, 6000, into=stable)
    found = ask("p95 <= 1.2 x stable", seen(leaking, stable))
    assert found.outcome is FAIL
    assert found.text.startswith("of the last ")
    found = ask("p95 < 400ms", seen(leaking, stable))
    assert found.outcome is FAIL
    assert "took longer than 400 ms" in found.text


def test_what_makes_both_slower_fails_neither():
    leaking, stable = window(1, 6000), window(2, 18_000)
    window(3, 1800, slower=2.0, into=leaking)
    window(4, 5400, slower=2.0, into=stable)
    assert ask("p95 <= 1.2 x stable", seen(leaking, stable)).outcome is not FAIL


def test_a_bound_that_the_stable_breaks_beside_the_candidate_is_not_the_candidates_fault():
    slow, crowded = window(3, 800, slower=1.6), window(4, 3000, slower=1.6)
    assert ask("p95 < 300ms", seen(slow, crowded)).outcome is FAIL
    assert ask("p95 < 300ms", seen(slow, crowded, before=window(5, 3000, slower=1.6))).outcome is FAIL
    found = ask("p95 < 300ms", seen(slow, crowded, before=window(5, 3000)))
    assert found.outcome is OPEN
    assert found.text.endswith("; the stable breaks it too, which kept it before they shared the device")


def test_a_stable_that_serves_no_more_is_taken_as_it_was():
    """The soak: all requests are the candidate's."""
    found = ask("p95 <= 1.2 x stable", seen(window(3, 1000, slower=1.4), Window(), before=STABLE))
    assert found.outcome is FAIL
    assert "of the stable before: 1." in found.text
    nobody = ask("p95 <= 1.2 x stable", seen(GOOD, Window()))
    assert (nobody.outcome, nobody.text) == (OPEN, "no request of the stable was seen")


def test_the_last_look_takes_what_there_is():
    few = seen(window(3, 90, slower=1.4), STABLE)
    later = [ask("p95 <= 1.2 x stable", replace(few, last_look=last)).outcome for last in (False, True)]
    assert later == [OPEN, FAIL]
    good = seen(window(3, 70), STABLE)
    assert [ask("p95 <= 1.3 x stable", replace(good, last_look=last)).outcome for last in (False, True)] == [OPEN, PASS]


# --- answers, copies, queries --------------------------------------------------------------------------------


def copied(compared: int, agreed: int, noise: int | None = 0, noise_agreed: int = 0, **more) -> Evidence:
    return seen(Window(), STABLE, shadow=Shadow(compared, agreed, 0, noise, noise_agreed, **more))


def test_answers_are_judged_above_the_stables_own_noise():
    found = ask("agreement >= 0.98", copied(3000, 2850, 1500, 1498))
    assert found.outcome is FAIL
    assert found.text == (
        "95 % of 3,000 answers agreed, against 99.9 % of 1,500 for which the stable was asked twice: 0.951 of that,"
        " less than 0.98"
    )
    assert ask("agreement >= 0.98", copied(3000, 2850, 1500, 1425)).outcome is PASS
    assert ask("agreement >= 0.98", copied(3000, 2850, 0)).outcome is OPEN  # it may all be noise
    found = ask("agreement >= 98%", copied(3000, 2850, None))
    assert (found.outcome, found.text) == (FAIL, "95 % of 3,000 answers agreed, less than 98 %")
    assert ask("agreement >= 98%", copied(30, 30, 3, 3)).outcome is OPEN


def test_without_a_shadow_answers_are_not_judged_and_hold_nothing_up():
    verdict = judge([parse_rule("agreement >= 98%"), parse_rule("error_rate < 1%")], seen(GOOD, STABLE))
    assert verdict.outcome is PASS
    assert [rule.outcome for rule in verdict.rules] == [None, PASS, PASS]


def test_copies_are_compared_with_what_the_stable_takes_when_the_same_process_asks_it_again():
    """Which is longer here than what clients wait."""
    same, slower = window(1, 900, slower=2.0).latency, window(2, 900, slower=2.8).latency
    assert ask("p95 <= 1.2 x stable", copied(900, 900, latency=same, noise_latency=same)).outcome is PASS
    found = ask("p95 <= 1.2 x stable", copied(900, 900, latency=slower, noise_latency=same))
    assert (found.outcome, found.figures["stable_requests"]) == (FAIL, 900)
    few = ask("p95 <= 1.2 x stable", copied(900, 900, latency=slower, noise_latency=window(1, 40).latency))
    assert few.outcome is None, "clients' requests will tell"


def test_copies_that_fail_count_and_a_row_of_them_cannot_be_seen():
    shadow = Shadow(compared=500, agreed=500, failed=30)
    verdict = judge([parse_rule("error_rate < 1%")], seen(Window(), STABLE, shadow=shadow))
    assert verdict.outcome is FAIL
    assert verdict.rules[0].text == "5.66 % failed (30 of 530), more than 1 %"
    assert verdict.rules[1].outcome is None
    assert judge([], seen(Window(), STABLE, shadow=Shadow(49, 49))).outcome is OPEN
    good = judge([parse_rule("error_rate < 1%")], seen(Window(), STABLE, shadow=Shadow(600, 600)))
    assert (good.outcome, good.text) == (PASS, "the rule is kept after 600 copies of requests")


@pytest.mark.parametrize(
    ("value", "outcome", "text"),
    [
        (0.05, PASS, "the query's value is 0.05, which is < 0.1"),
        (0.1, FAIL, "the query's value is 0.1, not < 0.1"),
        (None, OPEN, "the query has no value"),
        (math.nan, OPEN, "the query has no value"),
    ],
)
def test_a_query_is_judged_by_its_value(value, outcome, text):
    rule = {"query": "x", "is": "< 0.1"}
    found = ask(rule, seen(GOOD, STABLE, values={"x < 0.1": value}))
    assert (found.outcome, found.text) == (outcome, text)
    early = ask(rule, seen(window(1, 20), STABLE, values={"x < 0.1": value}))
    assert early.outcome is OPEN


def test_a_shadow_is_read_from_a_gates_stats():
    told = {
        **{"copied": 9, "dropped": 1, "compared": 7, "agreed": 6, "failed": 1, "samples": [], "throttled": 0.2},
        **{"noise": {"compared": 3, "agreed": 2, "latency": {"390": 8}}, "latency": {"400": 7}},
    }
    shadow = Shadow.from_json(told)
    assert (shadow.compared, shadow.agreed, shadow.failed) == (7, 6, 1)
    assert (shadow.noise_compared, shadow.noise_agreed) == (3, 2)
    assert (shadow.latency, shadow.noise_latency) == (Histogram({400: 7}), Histogram({390: 8}))
    assert Shadow.from_json({**told, "noise": None}).noise_compared is None
    with pytest.raises(ValueError, match="counts"):
        Shadow.from_json({**told, "agreed": -1})


# --- what they are made of -----------------------------------------------------------------------------------


def test_slices_are_told_apart_by_time():
    slices = [Slice(10, 0, Histogram({number: 10})) for number in range(8)]
    assert [dict(part) for part in in_order(slices, 4)] == [
        {0: 10, 1: 10},
        {2: 10, 3: 10},
        {4: 10, 5: 10},
        {6: 10, 7: 10},
    ]
    assert in_order(slices[:3], 4) == []
    assert in_order([], 4) == []


def test_ends_that_are_compared_are_of_the_same_time():
    tens, ten_and_some = [Slice(10)] * 8, [Slice(16)] * 4 + [Slice(9)]
    ours, theirs = tails(tens, ten_and_some, 0.25)
    assert (len(ours), len(theirs)) == (3, 2)  # 38 % and 34 %, rather than 25 % and 34 %
    assert [len(end) for end in tails(tens, [Slice(500)], 0.25)] == [4, 1]
    assert [len(end) for end in tails(tens, [], 0.25)] == [8, 0]
    assert [len(end) for end in tails([Slice()], [Slice()], 0.25)] == [1, 1]


def test_a_figure_is_told_apart_from_its_bound():
    assert milliseconds(0.2001, 0.2) == "200.1 ms"
    assert milliseconds(0.23149) == "231 ms"
    assert milliseconds(0.00421) == "4.21 ms"
    assert milliseconds(1.532) == "1.53 s"
    assert percent(0.00999999999, 0.01) == "1 %"  # as far as it goes
    assert percent(0.00996, 0.01) == "0.996 %"
    assert plain(1.2003, 1.2) == "1.2003"
    assert plain(1234567.0) == "1,234,567"
