"""A daemon whose metrics are served, and what a scrape of them says."""

from __future__ import annotations

import http.client

from prometheus_client.parser import text_string_to_metric_families
from support.daemon_host import Daemon, free_port, until


class Scraped(Daemon):
    """With an endpoint."""

    def __init__(self, models, **more):
        self.metrics_port = free_port()
        super().__init__(models, daemon=f'metrics = "127.0.0.1:{self.metrics_port}"', **more)

    def text(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=20)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        except ConnectionRefusedError:
            return ""
        finally:
            connection.close()

    def scrape(self):
        """{(sample's name, labels as sorted pairs): value}"""
        families = text_string_to_metric_families(self.text())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    def value(self, name, **labels):
        """The sum of what has these labels; None: there is no such series."""
        wanted = {key: str(value) for key, value in labels.items()}.items()
        found = [v for (sample, pairs), v in self.scrape().items() if sample == name and wanted <= dict(pairs).items()]
        return sum(found) if found else None

    def comes(self, goal, name, **labels):
        until(lambda: self.value(name, **labels) == goal, what=f"{name} {labels} = {goal}")
