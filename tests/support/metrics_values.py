"""A value for every metric that there is."""

from swapd.core.metrics import METRICS, MetricKind, Values


def everything():
    values = Values()
    for metric in METRICS:
        labels = {label: f"a {label}" for label in metric.labels}
        if metric.kind is MetricKind.HISTOGRAM:
            values.spread(metric.name, **labels).add(metric.bounds, 0.3)
        else:
            values.set(metric.name, 1, **labels)
    return values
