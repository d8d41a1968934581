"""Secrets do not get through, in whatever spelling; everything else does."""

from types import SimpleNamespace

import pytest

from swapd.core.errors import LOAD_FAILED, Problem
from swapd.core.events import OpDone, OpFailed, TimerFired, WorkerExited, WorkerHung
from swapd.core.redact import Redactor, secrets_of

SECRET = "sk-live-0123456789"


@pytest.mark.parametrize(
    ("value", "text", "masked"),
    [
        (SECRET, f"no access with {SECRET}!", "no access with ***!"),
        (SECRET, f"{SECRET} {SECRET}", "*** ***"),
        (SECRET, "no access", "no access"),
        ("abc12", "abc12 is too short to be told from words", "abc12 is too short to be told from words"),
        ("", "an empty value", "an empty value"),
        ("two  words", "ValueError: two words", "ValueError: ***"),
        ("first line\nsecond line\n", "first line second line", "*** ***"),
        ('{"key": "a\\nb"}', 'KeyError: \'{"key": "a\\\\nb"}\'', "KeyError: '***'"),
        ('say "please"', '{"got": "say \\"please\\""}', '{"got": "***"}'),
        ("pass/word+=", "GET /v1?key=pass%2Fword%2B%3D", "GET /v1?key=***"),
        ("größer", "gr\\u00f6\\u00dfer", "***"),
        (SECRET, "it answered 500: sk-live-0123…", "it answered 500: ***…"),
        (SECRET, "RuntimeError: sk-live-0123… (app.py:3); last: …", "RuntimeError: ***… (app.py:3); last: …"),
        (SECRET, "sk-live-0123 is not all of it", "sk-live-0123 is not all of it"),
    ],
)
def test_a_value_is_masked_however_it_is_spelled(value, text, masked):
    assert Redactor([value]).text(text) == masked


def test_of_two_values_the_longer_one_is_masked_whole():
    assert Redactor(["secret", "secret-and-more"]).text("secret-and-more, secret") == "***, ***"


def test_values_of_before_a_reload_stay_masked():
    assert Redactor(["old-value"]).also(["new-value"]).text("old-value new-value") == "*** ***"


def test_nothing_is_masked_without_secrets():
    assert Redactor().text("all of it…") == "all of it…"


def test_an_event_keeps_its_code_and_figures_and_loses_the_secret():
    problem = Problem(LOAD_FAILED, f"raised {SECRET}", {"got": {"body": [SECRET]}, SECRET: 7})
    redactor = Redactor([SECRET])
    ends = [kind(1.0, "chat-1", problem, (SECRET,)) for kind in (WorkerExited, WorkerHung)]
    for event in (OpFailed(1.0, 3, problem, (f"a {SECRET}", "b")), *ends):
        masked = redactor.event(event)
        assert masked.problem == Problem(LOAD_FAILED, "raised ***", {"got": {"body": ["***"]}, SECRET: 7})
        assert masked.log_tail[0] in ("a ***", "***")
    compared = redactor.event(OpDone(1.0, 3, {"differences": [f"input {SECRET} is gone"], "used_bytes": 7}))
    assert compared.result == {"differences": ["input *** is gone"], "used_bytes": 7}
    assert redactor.event(TimerFired(1.0, "chat")) == TimerFired(1.0, "chat")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("API_KEY", True),
        ("hf_token", True),
        ("Secret2", True),
        ("DB_PASSWORD", True),
        ("PASSWD", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("MONKEY", False),
        ("TOKENIZER", False),
        ("MAX_TOKENS", False),
        ("KEYBOARD_LAYOUT", False),
        ("NAME", False),
    ],
)
def test_a_variable_is_a_secret_by_a_word_of_its_name(name, secret):
    model = SimpleNamespace(env={name: "value-of-it"}, env_file_values={"ANY": "value-of-file"}, command=())
    found = secrets_of(SimpleNamespace(models={"a": model}, notify={}))
    assert found == ({"value-of-it", "value-of-file"} if secret else {"value-of-file"})


def test_an_option_of_a_command_is_a_secret_by_a_word_of_its_name():
    command = ("serve", "--api-key", "one", "--hf-token=two", "--max-tokens", "20", "--ssl-keyfile=f", "--key")
    model = SimpleNamespace(env={}, env_file_values={}, command=command)
    assert secrets_of(SimpleNamespace(models={"a": model}, notify={})) == {"one", "two", ""}
