"""Which events are told, what they say, and what is wrong with a [notify.NAME]."""

import json

import pytest
from support.config_tables import SMALL, parsed

from swapd.core.config import NotifyConfig
from swapd.core.config_parse import parse_config
from swapd.core.config_views import NOW, diff_config, redacted
from swapd.core.notices import is_wanted, message, pause_s
from swapd.core.redact import secrets_of

URL = "https://hooks.example.org/services/T0/B0/abcdefghijkl"


def notify(*on, **more):
    return NotifyConfig(name="x", on=on, **more)


def with_notify(**keys):
    return {**SMALL, "notify": {"pager": {"on": ["swap.finished"], **keys}}}


@pytest.mark.parametrize(
    ("on", "event", "body", "wanted"),
    [
        ("swap.finished", "swap.finished", {"phase": "Failed"}, True),
        ("swap.finished", "swap.phase", {"phase": "Failed"}, False),
        ("swap.paused", "swap.phase", {"phase": "Paused"}, True),
        ("swap.paused", "swap.phase", {"phase": "Soaking"}, False),
        ("swap.failed", "swap.finished", {"phase": "Failed"}, False),
        ("swap.phase", "swap.phase", {"phase": "Soaking"}, True),
        ("service.unavailable", "service.health", {"health": "Unavailable"}, True),
        ("service.unavailable", "service.health", {"health": "Healthy"}, False),
        ("device.changed", "device.changed", {"device": "gpu0"}, True),
    ],
)
def test_an_event_is_told_to_whom_it_was_asked_for(on, event, body, wanted):
    assert is_wanted(notify(on), event, body) is wanted


def test_services_narrow_it_and_devices_are_of_none():
    chosen = notify("service.health", "device.changed", services=("chat",))
    assert is_wanted(chosen, "service.health", {"service": "chat"})
    assert not is_wanted(chosen, "service.health", {"service": "other"})
    assert is_wanted(chosen, "device.changed", {"device": "gpu0"})


def test_a_message_has_an_id_and_a_line_for_people():
    body = {"swap_id": 3, "service": "chat", "phase": "Paused", "reason": "b fails its rules"}
    told = json.loads(message("ab-1", "swap.phase", body, 5.0, "h"))
    assert told == {**body, "id": "ab-1", "event": "swap.phase", "at": 5.0, "host": "h", "text": told["text"]}
    assert told["text"] == "chat: swap 3 Paused: b fails its rules"
    assert "gpu0" in json.loads(message("1", "device.changed", {"device": "gpu0", "state": "lost"}, 1, "h"))["text"]


def test_pauses_double_up_to_a_minute():
    assert [pause_s(n) for n in (1, 2, 3, 7, 50)] == [1, 2, 4, 60, 60]


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({}, "notify.pager", "says not whom to tell"),
        ({"url": URL, "command": ["/bin/true"]}, "notify.pager.command", "leave the other out"),
        ({"url": "hooks.example.org"}, "notify.pager.url", "is no address"),
        ({"url": "http://u:p@h/"}, "notify.pager.url", "headers_file"),
        ({"url": "http://h:99999/"}, "notify.pager.url", "is no address"),
        ({"url": "http://h/a b"}, "notify.pager.url", "is no address"),
        ({"command": ["tell"]}, "notify.pager.command[0]", "whole path"),
        ({"command": "tell me"}, "notify.pager.command", "no shell"),
        ({"command": ["/t"], "headers_file": "/x"}, "notify.pager.headers_file", "leave it out"),
        ({"url": URL, "on": ["swap.paussed"]}, "notify.pager.on[0]", "swap.paused"),
        ({"url": URL, "on": []}, "notify.pager.on", "events such as"),
        ({"url": URL, "services": ["chad"]}, "notify.pager.services", 'did you mean "chat"?'),
        ({"url": URL, "attempts": 0}, "notify.pager.attempts", ""),
    ],
)
def test_each_mistake_is_told_with_its_key(keys, key, words):
    problems = parse_config(with_notify(**keys), file="/f")
    assert isinstance(problems, list)
    [problem] = problems
    assert problem.key == key
    assert words in problem.message


def test_a_webhook_s_path_and_a_command_s_options_are_shown_nowhere():
    config = parsed(with_notify(url=URL))
    assert redacted(config)["notify"]["pager"]["url"] == "https://hooks.example.org/…"
    assert "abcdefghijkl" not in json.dumps(redacted(config)) + repr(config)
    assert URL in secrets_of(config)
    config = parsed(with_notify(command=["/bin/tell", "--token", "hunter22"]))
    assert "hunter22" not in json.dumps(redacted(config)) + repr(config)
    assert "hunter22" in secrets_of(config)


def test_a_short_path_is_no_secret_that_would_be_masked_in_every_log():
    assert not {"events", "/events"} & secrets_of(parsed(with_notify(url="http://h/events")))


def test_a_change_counts_at_once():
    [change] = diff_config(parsed(with_notify(url=URL)), parsed(with_notify(url=URL + "x")))
    assert (change.key, change.effect, change.live) == ("notify.pager.url", NOW, True)
    assert "abcdefghijkl" not in str(change)
