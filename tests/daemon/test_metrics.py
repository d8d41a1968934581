"""The Prometheus endpoint of a real daemon: over swaps, a restart of the daemon, and an address that is taken."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess

import pytest
from support.daemon_host import Crowd, Daemon, free_port, model, server, until
from support.scraped import Scraped

from swapd.core.errors import SwapdError
from swapd.core.metrics import BY_NAME, METRICS, SECONDS
from swapd.host.prometheus import value_of

PROMETHEUS = shutil.which("prometheus")


def base_names(scraped):
    for name, _ in scraped:
        yield next(each for each in (name, name.rsplit("_", 1)[0]) if each in BY_NAME)


def test_requests_through_a_gate_are_counted_by_revision_over_a_swap_and_nothing_goes_back():
    with Scraped([server("a"), server("b")], service='soak = "0s"') as daemon:
        seen = {}

        def look():
            scraped = daemon.scrape()
            for (name, labels), value in scraped.items():
                if name.endswith(("_total", "_bucket", "_count", "_sum")):
                    assert value >= seen.get((name, labels), 0.0), (name, labels)
            seen.update(scraped)

        for _ in range(20):
            assert daemon.get("/")[0] == 200
        daemon.comes(20, "swapd_requests_total", service="chat", revision=1, model="a", code="2xx")
        look()
        assert daemon.swap("b")["phase"] in ("Soaking", "Succeeded")
        for _ in range(5):
            assert daemon.get("/")[0] == 200
        daemon.comes(5, "swapd_requests_total", service="chat", revision=2, model="b", code="2xx")
        daemon.comes(1, "swapd_swaps_total", service="chat", strategy="dual", outcome="succeeded")
        look()
        assert daemon.value("swapd_requests_total", revision=1) == 20
        assert daemon.value("swapd_request_duration_seconds_count", revision=2) == 5
        assert 0 < daemon.value("swapd_request_duration_seconds_sum", revision=2) < 60
        assert daemon.value("swapd_swap_cutover_seconds_count", service="chat", strategy="dual") == 1
        assert daemon.value("swapd_swap_phase", service="chat") is None
        assert daemon.value("swapd_service_health", health="Healthy") == 1
        assert daemon.value("swapd_service_info", model="b", front="gate") == 1
        assert daemon.value("swapd_device_memory_total_bytes", device="host") == 1 << 30
        assert daemon.value("swapd_device_memory_reserved_bytes") == 100 * (1 << 20)
        assert daemon.value("swapd_worker_memory_reserved_bytes", model="b") == 100 * (1 << 20)
        assert daemon.value("swapd_journal_up") == 1
        assert daemon.value("swapd_tables_total", outcome="done") >= 2
        assert set(base_names(seen)) <= {metric.name for metric in METRICS}
        assert daemon.value("swapd_worker_starts_total", kind="gate", outcome="done") == 1
        assert "metrics.bug" not in daemon.output.read_text()


def test_a_daemon_that_is_killed_counts_from_zero_and_nothing_of_before_again():
    with Scraped([server("a")]) as daemon:
        for _ in range(7):
            daemon.get("/")
        daemon.comes(7, "swapd_requests_total", code="2xx")
        began = daemon.value("swapd_start_time_seconds")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        until(lambda: (daemon.value("swapd_start_time_seconds") or 0) > began, what="the next daemon's metrics")
        until(lambda: daemon.value("swapd_front_connections", service="chat") is not None, what="the front's figures")
        sent = 0
        while not (counted := daemon.value("swapd_requests_total", code="2xx")):
            assert daemon.get("/")[0] == 200
            sent += 1
        assert counted <= sent


def test_a_direct_service_tells_what_its_front_knows():
    with Scraped([model("a")]) as daemon:
        for _ in range(3):
            daemon.get("/")
        daemon.comes(3, "swapd_front_requests_total", service="chat", front="direct")
        assert daemon.value("swapd_requests_total") is None
        assert daemon.value("swapd_service_info", front="direct", model="a") == 1


def test_clients_notice_nothing_of_scrapes():
    with Scraped([model("a"), model("b")]) as daemon, Crowd(daemon.port) as crowd:
        for _ in range(20):
            daemon.text()
        assert daemon.swap("b")["phase"] == "Soaking"
        assert daemon.value("swapd_swap_phase", service="chat", phase="Soaking") == 1
        assert daemon.value("swapd_swap_phase", service="chat") == 1
        crowd.more()
    crowd.check()


def test_a_worker_that_dies_is_counted():
    with Scraped([model("a")]) as daemon:
        [worker] = [each for each in daemon.call("workers") if each["role"] == "stable"]
        os.kill(worker["pid"], signal.SIGKILL)
        daemon.comes(1, "swapd_worker_exits_total", service="chat", kind="asgi")
        daemon.wait_healthy()
        daemon.comes(2, "swapd_worker_starts_total", service="chat", kind="asgi", outcome="done")


def test_an_address_that_is_taken_keeps_no_service_down_and_is_tried_again():
    daemon = Scraped([model("a")])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.metrics_port))
        taken.listen()
        with daemon:
            assert daemon.get("/")[0] == 200
            until(lambda: "metrics.not_served" in daemon.output.read_text(), what="a line in the log")
            taken.close()
            daemon.comes(1, "swapd_journal_up")


def test_it_can_be_a_unix_socket():
    daemon = Daemon([model("a")])
    path = daemon.dir / "m.sock"
    daemon.write([model("a")], daemon=f'metrics = "unix:{path}"')
    with daemon:
        until(path.exists, what="the socket")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_scrapes_it(tmp_path):
    with Scraped([server("a")]) as daemon:
        for _ in range(5):
            daemon.get("/")
        daemon.comes(5, "swapd_requests_total")
        target = {"job_name": "swapd", "static_configs": [{"targets": [f"127.0.0.1:{daemon.metrics_port}"]}]}
        (tmp_path / "p.yml").write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [target]}))
        port = free_port()
        told = [f"--config.file={tmp_path}/p.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "out").open("wb") as output:
            process = subprocess.Popen(
                [PROMETHEUS, *told, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output
            )
        try:
            until(lambda: asked(port, "up") == 1, what="a scrape that it takes")
            until(lambda: asked(port, "sum(swapd_requests_total)") == 5, what="the count")
            assert asked(port, "count(swapd_request_duration_seconds_bucket)") == len(SECONDS) + 1
        finally:
            process.kill()
            process.wait()


def asked(port, query):
    """By swapd's own reader of a Prometheus."""
    try:
        return asyncio.run(value_of(f"http://127.0.0.1:{port}", query))
    except SwapdError:
        return None
