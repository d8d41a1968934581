"""A candidate that cannot stand in for what serves never gets a client, unless that was allowed, which is recorded."""

import json
import signal

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, server, until

DUAL, IN_PLACE = "100MiB", "960MiB"
ASK = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
ANSWER = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def document(*, must_have=("prompt",)):
    """An OpenAPI document, as a framework makes it of an app."""
    body = {"required": True, "content": {"application/json": {"schema": {**ASK, "required": [*must_have]}}}}
    answers = {"200": {"content": {"application/json": {"schema": ANSWER}}}}
    return {"openapi": "3.1.0", "paths": {"/complete": {"post": {"requestBody": body, "responses": answers}}}}


def told_by(directory, name, files):
    """What the test model called `name` tells, at TELLS."""
    for path, content in files.items():
        file = directory / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"at:{directory / name}"


def contract(name, text):
    return f"[models.{name}.contract]\n{text}\n"


def api_model(directory, name, *, make=model, memory=DUAL, extra='openapi = "/openapi.json"', api=None, **env):
    tells = told_by(directory, name, {"openapi.json": document() if api is None else api})
    return make(name, memory=memory, extra=contract(name, extra), TELLS=tells, **env)


NEEDS_MORE = document(must_have=("prompt", "seed"))
SENTENCE = "POST /complete: request /seed must be sent now"


def test_what_both_models_declare_is_compared_before_anything_is_loaded():
    a = model("a", extra=contract("a", 'features = "v7"\ntokenizer = "t1"'))
    b = model("b", extra=contract("b", 'features = "v8"'))
    with Daemon([a, b]) as daemon:
        for method in ("plan", "swap"):
            with pytest.raises(Refused) as refused:
                daemon.call(method, service="chat", to="b")
            assert refused.value.code == "CONTRACT_BROKEN"
            assert len(refused.value.details["differences"]) == 1
        assert daemon.call("history") == []
        plan = daemon.call("plan", service="chat", to="b", allow_breaking=True)
        record = daemon.swap("b", allow_breaking=True)
        assert record["phase"] == "Soaking"
        assert record["allow_breaking"] is True
        assert record["differences"] == plan["differences"] == refused.value.details["differences"]


@pytest.mark.parametrize("make", [model, server])
@pytest.mark.parametrize(("strategy", "memory"), [("dual", DUAL), ("in-place", IN_PLACE)])
def test_a_candidate_that_breaks_the_schema_is_found_and_touches_nobody(tmp_path, make, strategy, memory):
    a = api_model(tmp_path, "a", make=make)
    b = api_model(tmp_path, "b", make=make, memory=memory, api=NEEDS_MORE)
    with Daemon([a, b]) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("b")
        assert (record["phase"], record["strategy"]) == ("Failed", strategy)
        assert (record["error"]["code"], record["error"]["step"]) == ("CONTRACT_BROKEN", "verify")
        assert record["differences"] == record["error"]["details"]["differences"] == [SENTENCE]
        assert SENTENCE in record["error"]["message"]
        daemon.wait_healthy()
        crowd.more(50)
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}


def test_what_is_allowed_is_swapped_to_and_recorded(tmp_path):
    with Daemon([api_model(tmp_path, "a"), api_model(tmp_path, "b", api=NEEDS_MORE)]) as daemon:
        record = daemon.swap("b", allow_breaking=True)
        assert (record["phase"], record["allow_breaking"], record["differences"]) == ("Soaking", True, [SENTENCE])
        assert daemon.model() == "b"
        assert daemon.call("show", id=record["id"])["differences"] == [SENTENCE]


def test_equal_interfaces_are_no_difference_and_neither_is_one_that_only_grew(tmp_path):
    grown = document()
    grown["paths"]["/more"] = grown["paths"]["/complete"]
    with Daemon([api_model(tmp_path, "a"), api_model(tmp_path, "b", api=grown)]) as daemon:
        record = daemon.swap("b")
        assert (record["phase"], record["allow_breaking"], record["differences"]) == ("Soaking", False, [])


def test_what_serves_is_known_although_it_does_not_answer(tmp_path):
    models = [api_model(tmp_path, "a"), api_model(tmp_path, "b", api=NEEDS_MORE)]
    with Daemon(models, service='drain_timeout = "0.1s"') as daemon:
        with pytest.raises(TimeoutError):
            daemon.get("/hang?what=all", timeout=0.5)
        record = daemon.swap("b", strategy="dual")
        assert record["error"]["code"] == "CONTRACT_BROKEN"


def test_a_contract_that_is_written_later_counts_for_what_serves(tmp_path):
    tells = told_by(tmp_path, "a", {"openapi.json": document()})
    b = api_model(tmp_path, "b", memory=IN_PLACE, api=NEEDS_MORE)
    with Daemon([model("a", TELLS=tells)]) as daemon:
        pid = daemon.get("/")[2]["pid"]
        daemon.write([api_model(tmp_path, "a"), b])
        daemon.call("reload")
        record = daemon.swap("b", strategy="in-place")  # it has made room by the time that it is compared
        assert (record["error"]["code"], record["differences"]) == ("CONTRACT_BROKEN", [SENTENCE])
        daemon.wait_healthy()
        assert daemon.get("/")[2]["pid"] != pid


def test_tensors_models_and_endpoints_of_servers_are_asked_for(tmp_path):
    ids = {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
    logits = {"name": "logits", "datatype": "FP32", "shape": [-1, 2]}
    says = {
        "a": {"v2/models/m": {"inputs": [ids], "outputs": [logits]}, "v1/models": {"data": [{"id": "x"}, {"id": "y"}]}},
        "b": {
            "v2/models/m": {"inputs": [{**ids, "shape": [-1, 128]}], "outputs": []},
            "v1/models": {"data": [{"id": "x"}]},
        },
    }
    asks = 'v2 = "m"\nmodels = "/v1/models"\nendpoints = ["POST /x", "GET /gone"]'
    models = [server(n, extra=contract(n, asks), TELLS=told_by(tmp_path, n, files)) for n, files in says.items()]
    with Daemon(models) as daemon:
        record = daemon.swap("b")
        assert record["error"]["code"] == "CONTRACT_BROKEN"
        assert record["differences"] == [
            "input 'ids' takes [-1, 128] now, was [-1, -1]",
            "output 'logits' is gone",
            "there is no model 'y' any more",
            "GET /gone is declared, and answered 404: {}",
        ]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("no JSON", "what GET /openapi.json answers is not JSON"),
        ({"swagger": "2.0"}, "is no OpenAPI 3 document"),
        ('"' + "x" * (5 << 20) + '"', "answered more than 4 MiB"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_candidate_that_does_not_tell_what_it_should_is_not_believed(tmp_path, told, why):
    with Daemon([api_model(tmp_path, "a"), api_model(tmp_path, "b", api=told)]) as daemon:
        record = daemon.swap("b")
        assert record["error"]["code"] == "CONTRACT_BROKEN"
        assert why in record["error"]["message"]


def test_a_first_start_goes_on_although_nothing_is_told(tmp_path):
    with Daemon([api_model(tmp_path, "a", api="nothing")]) as daemon:
        assert daemon.model() == "a"


def test_going_back_is_not_judged_by_what_came_later(tmp_path):
    a = api_model(tmp_path, "a", extra='features = "v7"\nopenapi = "/openapi.json"', api=NEEDS_MORE)
    b = api_model(tmp_path, "b", extra='features = "v8"\nopenapi = "/openapi.json"')
    with Daemon([a, b], service='soak = "0s"') as daemon:
        assert daemon.wait(daemon.swap("b", allow_breaking=True)["id"], ["Succeeded"])["to"]["model"] == "b"
        until(lambda: daemon.service()["swap"] is None, what="the end of the swap")
        back = daemon.wait(daemon.call("rollback", service="chat")["id"], ["Succeeded", "Failed"])
        assert (back["phase"], back["to"]["model"], back["differences"]) == ("Succeeded", "a", [])


def test_a_daemon_that_is_killed_while_the_candidate_proves_itself_compares_after_all(tmp_path):
    b = api_model(tmp_path, "b", api=NEEDS_MORE, PROBE_S="0.8")
    with Daemon([api_model(tmp_path, "a"), b]) as daemon, Crowd(daemon.port) as crowd:
        swap = daemon.call("swap", service="chat", to="b")
        verifying = lambda: any(s["name"] == "verify" for s in daemon.call("show", id=swap["id"])["steps"])  # noqa: E731
        until(verifying, what="verify")
        daemon.stop(signal.SIGKILL)
        daemon.start(healthy=False)
        record = daemon.wait(swap["id"], ("Failed", "Soaking", "Canceled"))
        assert (record["phase"], record["error"]["code"]) == ("Failed", "CONTRACT_BROKEN")
        crowd.more(50)
        crowd.check()
