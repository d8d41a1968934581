"""docs/metrics.md names every metric, with its kind, its labels and its meaning."""

from pathlib import Path

from swapd.core.metrics import METRICS

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def row(metric):
    labels = ", ".join(metric.labels)
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.text} |"


def test_the_page_has_every_metric_and_no_other():
    told = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `swapd_")]
    assert told == [row(metric) for metric in METRICS], "docs/metrics.md must have:\n" + "\n".join(map(row, METRICS))
