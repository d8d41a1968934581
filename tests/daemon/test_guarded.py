"""`--strategy guarded`, unattended: real models that are good, slow, wrong or failing, each judged by real requests."""

import http.client
import json
import socket
import threading
import time

import pytest
from support.daemon_host import APPS, DEADLINE_S, Daemon, until

RULES = '["error_rate < 1%", "p95 <= 1.2 x stable", "agreement >= 98%"]'
GUARDED = """
[strategies.careful]
kind = "guarded"
steps = [50]
step_time = "2s"
step_deadline = "60s"
[strategies.careful.shadow]
share = "100%"
time = "2s"
compare = "label"
concurrency = 4
noise = "50%"
[strategies.by-hand]
kind = "canary"
steps = [50]
step_time = "0s"
ends = "manual"
"""
PATIENCE_S = 120.0


def judged(name, **env):
    values = ", ".join(f'{key} = "{value}"' for key, value in {"NAME": name, **env}.items())
    return f"""
[models.{name}]
engine = "asgi"
app = "judged_app:app"
directory = "{APPS}"
device_memory = "100MiB"
env = {{ {values} }}
"""


class Clients:
    """Closed loops that ask for labels, each answer compared with the old model's; they never retry."""

    def __init__(self, port, count=4):
        self.port, self.statuses, self.models, self.errors = port, [], [], []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, number):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        turn = 0
        while not self._ending.is_set():
            turn += 1
            try:
                connection.request("POST", "/classify", json.dumps({"text": f"{number} {turn % 500}"}))
                answer = connection.getresponse()
                body = json.loads(answer.read())
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                connection.close()
                continue
            self.statuses.append(answer.status)
            self.models.append(body.get("id", "?").partition("-")[0])
            time.sleep(0.005)
        connection.close()


ENDS = ("Soaking", "Failed", "Canceled", "Paused")


def deliver(strategy="careful", phases=ENDS, rules=RULES, **env):
    with Daemon([judged("a"), judged("b", **env), GUARDED], service=f"rules = {rules}\nsoak = '60s'") as daemon:
        daemon.patience_s = PATIENCE_S
        with Clients(daemon.port) as clients:
            until(lambda: len(clients.statuses) > 100, what="answers")
            record = daemon.call("swap", service="chat", to="b", strategy=strategy)
            record = daemon.wait(record["id"], phases)
            clients.models.clear()
            until(lambda: len(clients.models) > 50, what="answers afterwards")
            serving = set(clients.models[-20:])
        assert not clients.errors, clients.errors[:3]
        return record, serving, clients


def test_a_good_model_is_promoted_by_itself():
    record, serving, clients = deliver()
    assert record["phase"] == "Soaking", record["reason"]
    assert serving == {"b"}
    assert set(clients.statuses) == {200}
    stages = [(s["name"], s["status"]) for s in record["steps"] if "%" in s["name"]]
    assert stages == [("shadow 100%", "done"), ("canary 50%", "done")]


@pytest.mark.parametrize(
    ("env", "stage", "rule"),
    [
        ({"LATENCY_MS": "20"}, "", "p95"),
        ({"WRONG_EVERY": "20"}, "shadow 100%", "agreement"),
        ({"ERROR_EVERY": "20"}, "shadow 100%", "error_rate"),
        ({"SCHEMA": "klass"}, "shadow 100%", "agreement"),
    ],
    ids=["slow", "wrong", "failing", "another schema"],
)
def test_a_bad_model_is_sent_back_by_itself_and_no_client_notices(env, stage, rule):
    record, serving, clients = deliver(**env)
    assert (record["phase"], record["error"]["code"]) == ("Failed", "ANALYSIS_FAILED"), record["reason"]
    assert stage in record["reason"]
    assert rule in record["reason"]
    assert serving == {"a"}
    assert set(clients.statuses) == {200}


@pytest.mark.parametrize(
    ("env", "rule"),
    [({"ERROR_EVERY": "5", "ERROR_AFTER": "100"}, "error_rate"), ({"LEAK_MS": "4"}, "p95")],
    ids=["failing later", "leaking"],
)
def test_a_model_that_gets_worse_in_its_soak_is_sent_back_by_itself(env, rule):
    record, serving, _ = deliver("dual", ("Succeeded", "Failed", "Canceled"), **env)
    assert (record["phase"], record["error"]["code"]) == ("Failed", "ANALYSIS_FAILED"), record["reason"]
    assert "in its soak" in record["reason"]
    assert rule in record["reason"]
    assert record["cutover_ms"] is not None
    assert record["return_cutover_ms"] is not None
    assert serving == {"a"}


def test_a_model_that_gets_worse_while_its_swap_waits_for_somebody_is_sent_back():
    record, serving, _ = deliver("by-hand", ("Succeeded", "Failed", "Canceled"), ERROR_EVERY="5", ERROR_AFTER="100")
    assert (record["phase"], record["error"]["code"]) == ("Failed", "ANALYSIS_FAILED"), record["reason"]
    assert "error_rate" in record["reason"]
    assert serving == {"a"}


def test_a_query_that_no_prometheus_answers_keeps_no_other_rule_from_being_judged():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_greet, args=(listener,), daemon=True).start()
        query = f'{{ query = "x", url = "http://127.0.0.1:{listener.getsockname()[1]}", is = "< 1" }}'
        record, serving, _ = deliver(rules=f'[{query}, "error_rate < 1%"]', ERROR_EVERY="5")
        listener.shutdown(socket.SHUT_RDWR)
    assert (record["phase"], record["error"]["code"]) == ("Failed", "ANALYSIS_FAILED"), record["reason"]
    assert "error_rate" in record["reason"]
    assert serving == {"a"}


def _greet(listener):
    """As one that speaks another protocol."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
