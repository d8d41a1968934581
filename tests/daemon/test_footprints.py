"""What is learned of a model's need: from what it is made of, as long as it lives, and how right the plan was."""

import os
import sqlite3

import pytest
from support.daemon_host import Daemon, model
from support.gpu_host import GIB


def plan(daemon, to):
    return daemon.call("plan", service="chat", to=to)


def test_a_new_file_under_an_old_name_is_not_judged_by_the_old_one(gpus, tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"first")
    b = gpus.model("b", holds=8, needs=0, extra=f'weights = ["{weights}"]')
    with gpus.daemon([gpus.model("a"), b]) as daemon:
        assert plan(daemon, "b")["need_source"] == "estimated"
        daemon.swap("b")
        daemon.swap("a")
        assert (plan(daemon, "b")["need_source"], plan(daemon, "b")["need_bytes"]) == ("learned", int(8.4 * GIB) + 1)
        weights.write_bytes(b"second")
        planned = plan(daemon, "b")
        assert (planned["need_source"], planned["last_forecast"]) == ("estimated", None)
        weights.write_bytes(b"first")
        assert plan(daemon, "b")["need_source"] == "learned"


def test_a_row_that_somebody_has_changed_is_learned_anew(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=8, needs=9)]) as daemon:
        daemon.swap("b")
        daemon.swap("a")
        assert plan(daemon, "b")["last_forecast"] is not None
        with sqlite3.connect(f"{daemon.dir}/s/journal.db", timeout=30) as journal:
            journal.execute("UPDATE footprint SET body = '[]'")
        assert plan(daemon, "b")["last_forecast"] is None


def test_a_plan_tells_how_wrong_the_last_one_was(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=5, needs=8)]) as daemon:
        assert plan(daemon, "b")["last_forecast"] is None
        daemon.swap("b")
        daemon.swap("a")
        seen = {"planned_bytes": 8 * GIB, "source": "declared", "seen_bytes": 5 * GIB}
        assert plan(daemon, "b")["last_forecast"] == seen


def test_a_model_that_grows_while_it_serves_is_planned_with_what_it_has_grown_to(gpus):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=5, needs=6)]) as daemon:
        daemon.swap("b")
        gpus.hold(daemon.get()[2]["pid"], 9)
        daemon.call("devices")
        gpus.hold(daemon.get()[2]["pid"], 7)
        daemon.swap("a")
        planned = plan(daemon, "b")
        assert (planned["need_bytes"], planned["need_source"]) == (9 * GIB, "learned")
        assert planned["last_forecast"] == {"planned_bytes": 6 * GIB, "source": "declared", "seen_bytes": 9 * GIB}


def test_a_load_that_fails_teaches_that_it_takes_at_least_so_much(gpus):
    bad = gpus.model("bad", holds=8, needs=4, FAIL="probe", PROBE_S="0.6")
    unsaid = gpus.model("unsaid", holds=8, needs=0, FAIL="probe", PROBE_S="0.6")
    with gpus.daemon([gpus.model("a"), bad, unsaid]) as daemon:
        for name, need in (("bad", (8 * GIB, "learned")), ("unsaid", (None, "unknown"))):
            assert daemon.swap(name)["phase"] == "Failed"
            planned = plan(daemon, name)
            assert (planned["need_bytes"], planned["need_source"]) == need
            assert planned["last_forecast"] is None


def test_what_was_learned_is_known_to_the_next_daemon():
    with Daemon([model("a"), model("b", HOLD_MB="200")]) as daemon:
        daemon.swap("b")
        daemon.swap("a")
        before = plan(daemon, "b")
        daemon.stop()
        daemon.start()
        assert plan(daemon, "b")["last_forecast"]["planned_bytes"] == before["last_forecast"]["planned_bytes"]
        assert plan(daemon, "b")["need_bytes"] > 200 << 20


def test_a_plan_has_every_figure_that_it_was_decided_by(gpus, other):
    with gpus.daemon([gpus.model("a"), gpus.model("b", holds=12)]) as daemon:
        gpus.hold(other.pid, 3)
        planned = plan(daemon, "b")
        [device] = planned["memory"]
        [worker] = device["workers"]
        assert (worker["model"], worker["reserved_bytes"], worker["used_bytes"]) == ("a", 10 * GIB, 10 * GIB)
        assert device["foreign"] == [{"pid": other.pid, "bytes": 3 * GIB, "name": f"/usr/bin/process-{other.pid}"}]
        now, then, after = (planned[f"available_{when}bytes"] for when in ("", "then_", "after_"))
        assert (now, then, after) == (int(10.5 * GIB), int(20.5 * GIB), int(8.5 * GIB))
        assert (planned["outage_terms"]["load_s"], planned["outage_terms"]["warm_s"]) == (None, None)
        assert (planned["rollback"], planned["rollback_later"]) == ("cold", "cold")
        daemon.swap("b")
        daemon.swap("a")
        planned = plan(daemon, "b")
        terms = planned["outage_terms"]
        assert terms["load_s"] > 0
        assert planned["expected_outage_s"] == pytest.approx(sum(terms.values()))


def test_what_the_hosts_memory_cannot_hold_is_neither_staged_nor_parked_and_the_plan_says_so(gpus, tmp_path):
    """Sparse files of a terabyte, of which a plan reads next to nothing."""
    extras = {}
    for name in ("old", "new"):
        weights = tmp_path / f"{name}.safetensors"
        weights.touch()
        try:
            os.truncate(weights, 1 << 40)
        except OSError:
            pytest.skip("the file system has no sparse files of this size")
        extras[name] = f'weights = ["{weights}"]'
    new = gpus.model("new", "Stages", holds=16, extra=extras["new"] + "\nstage = true")
    with gpus.daemon(
        [gpus.model("a", "Parks", holds=14, extra=extras["old"]), new, gpus.model("b", holds=16)]
    ) as daemon:
        why = plan(daemon, "new")["why"]
        assert "by stopping a" in why
        assert (
            "new is not staged, which takes 1024.0 GiB and a is not parked, which takes 1024.0 GiB: the host's" in why
        )
        why = plan(daemon, "b")["why"]
        assert "; a is not parked" in why
        assert "staged" not in why


@pytest.mark.parametrize("name", ["other.safetensors", "other.safetensors.index.json"])
def test_a_declared_model_beside_which_a_damaged_file_lies_serves(gpus, tmp_path, name):
    damaged = tmp_path / name
    damaged.write_bytes(bytes(100))
    with gpus.daemon([gpus.model("a"), gpus.model("b", extra=f'weights = ["{damaged}"]')]) as daemon:
        assert daemon.swap("b")["phase"] == "Soaking"
