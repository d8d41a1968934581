"""etc/alerts.yml and etc/grafana.json: they name metrics and labels that exist, and a real Prometheus takes their
expressions. Needs promtool (Debian: prometheus) for the latter; without it those tests are skipped, and say so."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.metrics_values import everything

from swapd.core.metrics import BY_NAME, MetricKind
from swapd.host.metrics import render

ETC = Path(__file__).parents[1] / "etc"
ALERTS = (ETC / "alerts.yml").read_text("utf-8")
BOARD = json.loads((ETC / "grafana.json").read_text("utf-8"))
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def panels():
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def board_expressions():
    told = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [*told, *(each["expr"] for each in BOARD["annotations"]["list"])]


def metric_of(name):
    stem, _, end = name.rpartition("_")
    histogram = end in ("bucket", "sum", "count") and stem in BY_NAME and BY_NAME[stem].kind is MetricKind.HISTOGRAM
    return BY_NAME.get(stem if histogram else name)


def unknown(text):
    """Names of metrics, and labels in braces or after `by` and `on`, that swapd does not tell."""
    for name in re.findall(r"\bswapd_[a-z_]+", text):
        if metric_of(name) is None:
            yield name
    for name, selector in re.findall(r"\b(swapd_[a-z_]+)\{([^}]*)\}", text):
        for label in re.findall(r"(\w+)\s*[=!]~?\s*\"", selector):
            if metric_of(name) is not None and label not in metric_of(name).labels:
                yield f"{name}{{{label}}}"
    labels = {"le", "instance", *(label for metric in BY_NAME.values() for label in metric.labels)}
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", text):
        yield from {label.strip() for label in listed.split(",")} - labels


def test_the_alerts_name_what_there_is():
    assert list(unknown(ALERTS)) == []
    assert len(re.findall(r"- alert: Swapd", ALERTS)) >= 12


@pytest.mark.parametrize("expression", board_expressions())
def test_the_board_names_what_there_is(expression):
    assert list(unknown(expression)) == []


def test_the_check_finds_a_name_that_does_not_exist():
    text = 'sum by (nobody) (swapd_requests_total{models="a"}) + swapd_swap_cutover_seconds_max'
    assert set(unknown(text)) == {"nobody", "swapd_requests_total{models}", "swapd_swap_cutover_seconds_max"}


def test_the_board_is_whole():
    assert BOARD["title"] == "swapd"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in target["expr"] or label == "instance" or label in labels_of(target["expr"]), target
    assert {each["name"] for each in BOARD["templating"]["list"]} == {"datasource", "service"}


def labels_of(expression):
    return {label for name in re.findall(r"\bswapd_[a-z_]+", expression) for label in metric_of(name).labels}


def promtool(*arguments, **more):
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_takes_the_alerts():
    assert "SUCCESS" in promtool("check", "rules", ETC / "alerts.yml")


@needs_promtool
def test_promtool_takes_every_expression_of_the_board(tmp_path):
    rules = [
        {"record": f"x{n}", "expr": each.replace("$__rate_interval", "5m").replace("$service", "chat")}
        for n, each in enumerate(board_expressions())
    ]
    (tmp_path / "board.json").write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "board.json")


def series(text, values):
    return {"series": text, "values": values}


FIRE = {
    "SwapdAbsent": ([], "3m"),
    "SwapdRestarting": ([series("swapd_start_time_seconds", "1 1 2 3 4 4 4 4")], "6m"),
    "SwapdJournalFailing": ([series("swapd_journal_up", "0x10")], "5m"),
    "SwapdServiceUnavailable": ([series('swapd_service_health{service="chat",health="Unavailable"}', "1x10")], "5m"),
    "SwapdServiceDegraded": ([series('swapd_service_health{service="chat",health="Degraded"}', "1x30")], "20m"),
    "SwapdClientsHeld": (
        [
            series('swapd_service_holding{service="chat"}', "1x10"),
            series('swapd_front_held_requests{service="chat"}', "3x10"),
        ],
        "5m",
    ),
    "SwapdCrashLoop": ([series('swapd_service_crash_loop{service="chat"}', "1x10")], "5m"),
    "SwapdWorkersDying": (
        [series('swapd_worker_exits_total{service="chat",kind="asgi",code="WORKER_EXITED"}', "0 0 1 2 3 4 5 5 5 5 5")],
        "9m",
    ),
    "SwapdServicePaused": ([series('swapd_service_paused{service="chat"}', "1x10")], "5m"),
    "SwapdSwapWaits": ([series('swapd_swap_paused{service="chat"}', "1x30")], "20m"),
    "SwapdSwapFailed": (
        [series('swapd_swaps_total{service="chat",strategy="dual",outcome="failed"}', "0 0 0 1 1 1 1")],
        "5m",
    ),
    "SwapdCandidateFails": ([series('swapd_swap_verdict{service="chat",verdict="fail"}', "1x10")], "5m"),
    "SwapdRequestsFail": (
        [
            series('swapd_requests_failed_total{service="chat",revision="1",model="a"}', "0+10x30"),
            series('swapd_requests_total{service="chat",revision="1",model="a",code="2xx"}', "0+90x30"),
        ],
        "20m",
    ),
    "SwapdDeviceDown": ([series('swapd_device_up{device="gpu0",kind="nvml"}', "0x10")], "5m"),
    "SwapdDeviceMemoryLow": (
        [
            series('swapd_device_memory_free_bytes{device="gpu0"}', "100x20"),
            series('swapd_device_memory_headroom_bytes{device="gpu0"}', "512x20"),
        ],
        "10m",
    ),
    "SwapdNotificationsLost": (
        [series('swapd_notifications_total{notify="pager",outcome="dropped"}', "0 0 0 5 5 5 5")],
        "5m",
    ),
}
WELL = [
    series('swapd_build_info{version="1"}', "1x60"),
    series("swapd_start_time_seconds", "5x60"),
    series("swapd_journal_up", "1x60"),
    series('swapd_service_health{service="chat",health="Healthy"}', "1x60"),
    series('swapd_service_health{service="chat",health="Degraded"}', "0x60"),
    series('swapd_service_health{service="chat",health="Unavailable"}', "0x60"),
    series('swapd_service_holding{service="chat"}', "0x60"),
    series('swapd_front_held_requests{service="chat"}', "0x60"),
    series('swapd_service_crash_loop{service="chat"}', "0x60"),
    series('swapd_service_paused{service="chat"}', "0x60"),
    series('swapd_swap_paused{service="chat"}', "0x60"),
    series('swapd_swaps_total{service="chat",strategy="dual",outcome="succeeded"}', "0+1x60"),
    series('swapd_swap_verdict{service="chat",verdict="fail"}', "0x60"),
    series('swapd_requests_failed_total{service="chat",revision="1",model="a"}', "0+1x60"),
    series('swapd_requests_total{service="chat",revision="1",model="a",code="2xx"}', "0+900x60"),
    series('swapd_device_up{device="gpu0",kind="nvml"}', "1x60"),
    series('swapd_device_memory_free_bytes{device="gpu0"}', "5000x60"),
    series('swapd_device_memory_headroom_bytes{device="gpu0"}', "512x60"),
    series('swapd_notifications_total{notify="pager",outcome="delivered"}', "0+1x60"),
]


def counted(alert, expected):
    return {"expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})', "exp_samples": expected}


@needs_promtool
def test_each_alert_fires_for_what_it_is_about_and_none_when_all_is_well(tmp_path):
    names = re.findall(r"- alert: (\w+)", ALERTS)
    assert sorted(FIRE) == sorted(names)
    one = [{"labels": "{}", "value": 1}]
    tests = [
        {"interval": "1m", "input_series": given, "promql_expr_test": [{**counted(name, one), "eval_time": at}]}
        for name, (given, at) in FIRE.items()
    ]
    none = [{**counted(name, []), "eval_time": "50m"} for name in names]
    tests.append({"interval": "1m", "input_series": WELL, "promql_expr_test": none})
    document = {"rule_files": [str(ETC / "alerts.yml")], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "test.json").write_text(json.dumps(document))
    promtool("test", "rules", tmp_path / "test.json")


@needs_promtool
def test_promtool_finds_no_fault_with_what_is_served():
    promtool("check", "metrics", input=render(everything()).decode())
