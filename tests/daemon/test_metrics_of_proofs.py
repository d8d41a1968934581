"""What the endpoint tells of a swap that is proved in stages: copies, shares, the stage, and requests by revision."""

import threading

from support.daemon_host import model, until
from support.scraped import Scraped

STAGES = """
[strategies.careful]
kind = "guarded"
steps = [25]
ends = "manual"
step_deadline = "1h"
[strategies.careful.shadow]
share = "50%"
"""


class Asking:
    """One client after the other, for as long as it lasts."""

    def __init__(self, daemon):
        self.daemon, self.sent, self._ending = daemon, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._ending.is_set():
            assert self.daemon.get("/")[0] == 200
            self.sent += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join(30)


def test_copies_shares_and_stages_are_told_by_revision():
    with Scraped([model("a"), model("b"), STAGES]) as daemon, Asking(daemon) as asking:
        record = daemon.call("swap", service="chat", to="b", strategy="careful")
        daemon.comes(0.5, "swapd_shadow_share_ratio", revision=2, model="b")
        until(lambda: daemon.value("swapd_shadow_requests_total", result="copied", model="b"), what="copies")
        assert (daemon.value("swapd_swap_stage"), daemon.value("swapd_swap_stages")) == (0, 2)
        assert daemon.value("swapd_swap_id") == record["id"]
        daemon.call("promote", service="chat")
        daemon.comes(0.25, "swapd_split_set_ratio", revision=2, model="b")
        assert daemon.value("swapd_split_set_ratio", revision=1) == 0.75
        until(lambda: (daemon.value("swapd_requests_total", revision=2) or 0) >= 20, what="requests of the candidate")
        assert 0.2 < daemon.value("swapd_split_actual_ratio", revision=2) < 0.3
        assert daemon.value("swapd_swap_stage") == 1
        assert daemon.value("swapd_swap_phase", phase="Progressing") == 1
        assert daemon.value("swapd_hand_overs_total", outcome="done") >= 1
        counted = daemon.value("swapd_requests_total", code="2xx")
        assert counted <= asking.sent + 1
        daemon.call("promote", service="chat", full=True)
        daemon.wait(record["id"], ("Soaking",))
        assert daemon.value("swapd_requests_total", code="2xx") >= counted
        assert "metrics." not in daemon.output.read_text().replace("metrics.served", "")
