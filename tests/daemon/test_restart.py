"""`model` of a service was changed while the daemon was down: a swap to it, once what served before serves again. Or
its name was: it is the same service."""

import os
import signal

import pytest
from support.daemon_host import Crowd, Daemon, model, server, until

A, B, C = model("a"), model("b"), model("c")


def change(daemon, old, new):
    text = daemon.config.read_text()
    assert f'\nmodel = "{old}"' in text
    daemon.config.write_text(text.replace(f'\nmodel = "{old}"', f'\nmodel = "{new}"'))


def last_swap(daemon, *phases):
    def arrived():
        records = daemon.call("history")
        return records[0] if records and records[0]["phase"] in phases else None

    return until(arrived, what=f"a swap in {phases}")


def told(daemon, word):
    return daemon.output.read_text().count(word)


def test_the_changed_model_is_swapped_to_and_recorded():
    with Daemon([A, B, C]) as daemon:
        daemon.swap("b")
        daemon.stop()
        change(daemon, "a", "c")
        daemon.start()
        record = last_swap(daemon, "Soaking")
        assert (record["from"]["model"], record["to"]["model"]) == ("b", "c")
        assert (record["actor"], record["asked_reason"]) == ("swapd", "the configuration changed")
        assert daemon.model() == "c"
        assert daemon.service()["drift"] is None
        daemon.stop()
        daemon.start()
        assert daemon.model() == "c"
        assert len(daemon.call("history")) == 2


def test_one_that_fails_leaves_the_old_one_serving_and_is_not_tried_at_each_start():
    with Daemon([A, model("bad", FAIL="probe")]) as daemon:
        daemon.stop()
        change(daemon, "a", "bad")
        daemon.start()
        with Crowd(daemon.port) as crowd:
            record = last_swap(daemon, "Failed")
            crowd.more()
        crowd.check()
        assert record["error"]["code"] == "PROBE_FAILED"
        assert daemon.model() == "a"
        assert daemon.service()["drift"] == "config bad, running a (#1)"
        daemon.stop()
        assert told(daemon, "service.swap_follows") == 1
        daemon.start()
        assert daemon.model() == "a"
        assert daemon.service()["drift"] == "config bad, running a (#1)"
        assert told(daemon, "service.swap_follows") == 1


def test_one_that_is_refused_is_logged_and_not_asked_for_at_each_start():
    with Daemon([A, model("big", memory="2GiB")]) as daemon:
        daemon.stop()
        change(daemon, "a", "big")
        daemon.start()
        until(lambda: told(daemon, "service.swap_refused service=chat to=big"), what="the refusal")
        assert daemon.service()["drift"] == "config big, running a (#1)"
        daemon.stop()
        daemon.start()
        assert daemon.call("history") == []
        assert told(daemon, "service.swap_follows") == 1


def test_it_is_begun_although_the_old_model_does_not_start_any_more():
    with Daemon([A, C]) as daemon:
        daemon.stop()
        change(daemon, "a", "c")
        daemon.config.write_text(daemon.config.read_text().replace(A, model("a", FAIL="load")))
        daemon.start(healthy=False)
        record = last_swap(daemon, "Soaking", "Succeeded")
        assert (record["from"], record["to"]["model"]) == (None, "c")
        assert daemon.model() == "c"


def test_the_new_model_starts_directly_where_the_old_one_is_gone_from_the_configuration():
    with Daemon([A, C]) as daemon:
        daemon.stop()
        change(daemon, "a", "c")
        daemon.config.write_text(daemon.config.read_text().replace(A, ""))
        daemon.start()
        assert daemon.model() == "c"
        assert daemon.call("history") == []


def with_a_that_loads_for_ever(daemon):
    daemon.config.write_text(daemon.config.read_text().replace(A, model("a", LOAD_S=600)))


def test_a_daemon_that_dies_before_the_swap_has_begun_begins_it_at_its_next_start():
    with Daemon([A, C]) as daemon:
        daemon.stop()
        change(daemon, "a", "c")
        good = daemon.config.read_text()
        with_a_that_loads_for_ever(daemon)
        daemon.start(healthy=False)
        assert daemon.service()["drift"].startswith("config c, running a (#")
        daemon.stop(signal.SIGKILL)
        assert told(daemon, "swap.created") == 0
        daemon.config.write_text(good)
        daemon.start()
        assert last_swap(daemon, "Soaking")["to"]["model"] == "c"


def test_an_operators_swap_before_it_takes_its_place():
    with Daemon([A, B, C]) as daemon:
        daemon.stop()
        change(daemon, "a", "c")
        with_a_that_loads_for_ever(daemon)
        daemon.start(healthy=False)
        assert daemon.swap("b")["phase"] in ("Soaking", "Succeeded")
        until(lambda: told(daemon, "service.swap_superseded service=chat to=c"), what="the swap given up")
        assert [r["to"]["model"] for r in daemon.call("history")] == ["b"]
        assert daemon.service()["drift"].startswith("config c, running b (#")


# --- another name -------------------------------------------------------------------------------------------------

KINDS = {"direct": (model, ""), "gate": (model, 'front = "gate"'), "server": (server, "")}


def get_another_name(daemon, old, new, how):
    daemon.config.write_text(daemon.config.read_text().replace(f"[services.{old}]", f"[services.{new}]"))
    ready = told(daemon, "daemon.ready")
    if how == "kill":
        daemon.stop(signal.SIGKILL)
        daemon.start(healthy=False)
    else:
        daemon.process.send_signal(signal.SIGUSR2)
    until(lambda: told(daemon, "daemon.ready") > ready, what="the next daemon")
    daemon.wait_healthy(new)


def serving(daemon):
    return {w["id"]: w["pid"] for w in daemon.call("workers") if w["state"] in ("serving", "quiesced")}


@pytest.mark.parametrize("how", ["kill", "successor"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_gets_another_name_is_the_same_and_costs_its_clients_nothing(kind, how):
    make, service = KINDS[kind]
    with Daemon([make("a"), make("b")], service=service) as daemon:
        with Crowd(daemon.port) as crowd:
            daemon.swap("b")
            before = serving(daemon)
            get_another_name(daemon, "chat", "talk", how)
            assert [s["name"] for s in daemon.call("status")["services"]] == ["talk"]
            assert serving(daemon) == before
            crowd.mark()
            daemon.call("rollback", service="talk")
            until(lambda: daemon.model() == "a", what="the old model, which the soak has kept")
            crowd.mark()
            daemon.swap("b", service="talk")
            crowd.more(20)
        crowd.check()
        assert daemon.get()[1] == 3, "its numbers go on"
        assert {w["service"] for w in daemon.call("workers")} == {"talk"}


def test_another_name_is_known_without_a_journal_as_well_and_with_other_settings_of_its_models():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        daemon.write([model("a", SIZE="2"), model("b", SIZE="2")])
        get_another_name(daemon, "chat", "talk", "kill")
        with Crowd(daemon.port) as crowd:
            daemon.stop(signal.SIGKILL)
            for path in (daemon.dir / "s").glob("journal.db*"):
                path.unlink()
            daemon.start(healthy=False)
            daemon.wait_healthy("talk")
            assert daemon.service("talk")["model"] == "b"
            crowd.more(20)
        crowd.check()


def test_settings_that_a_revision_was_made_with_are_known_under_another_name():
    with Daemon([A, B]) as daemon:
        daemon.write([model("a", SIZE="2"), B])
        get_another_name(daemon, "chat", "talk", "kill")
        pid = next(w["pid"] for w in daemon.call("workers") if w["model"] == "a")
        before = daemon.get()[1]
        os.kill(pid, signal.SIGKILL)
        until(
            lambda: {w["pid"] for w in daemon.call("workers")} and pid not in serving(daemon).values(), what="its end"
        )
        daemon.wait_healthy("talk")
        assert daemon.get()[1] == before, "the same revision, with its own settings"
