"""docs/control.md and docs/cli.md say what is, and their examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.control_daemon import DEADLINE_S, FakeDaemon
from support.control_values import plan, swap_record

from swapd.cli import main as cli
from swapd.core import errors
from swapd.wire import control

DOCS = Path(__file__).parents[2] / "docs"
CONTROL = (DOCS / "control.md").read_text()
CLI = (DOCS / "cli.md").read_text()


def section(heading: str) -> str:
    found = re.search(rf"^### `{heading}`\n(.*?)(?=^##)", CONTROL, re.S | re.M)
    assert found is not None, f"docs/control.md has no section on {heading}"
    return found[1]


@pytest.mark.parametrize("name", sorted(control.METHODS))
def test_every_method_and_parameter_is_documented(name):
    told = section(name).replace("\n", " ")
    for parameter, what in control.METHODS[name].params.items():
        assert f"`{parameter}`" in told, parameter
        if name != "cancel":  # service or id
            assert (f"[`{parameter}`]" in told) != what.required, parameter


def test_nothing_is_documented_that_does_not_exist():
    assert set(re.findall(r"^### `(\w+)`", CONTROL, re.M)) == set(control.METHODS)


def test_every_error_code_is_documented():
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
    table = CONTROL.partition("## Error codes")[2]
    assert set(re.findall(r"`([A-Z_]+)`", table)) == codes


def test_every_event_of_the_source_is_documented():
    source = "\n".join(path.read_text() for path in (DOCS.parent / "swapd").glob("*/*.py"))
    published = set(re.findall(r'publish\(\s*"([a-z_.]+)"', source))
    assert published
    assert published <= set(re.findall(r"^\| `([a-z_.]+)` \|", CONTROL, re.M))


def test_every_verb_is_documented():
    assert set(re.findall(r"^\| `([a-z-]+)", CLI, re.M)) == set(cli.EXAMPLES)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    answers = {"plan": plan(), "swap": swap_record(phase="Preparing"), "show": swap_record(phase="Soaking")}
    with FakeDaemon(tmp_path, answers) as made:
        yield made


def run_example(kind: str, daemon: FakeDaemon) -> str:
    found = re.search(rf"^```python {kind}\n(.*?)^```", CONTROL, re.S | re.M)
    assert found is not None
    script = found[1].replace("ipc:///run/swapd/control.sock", daemon.endpoint)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_raw_example_swaps(daemon):
    assert run_example("raw", daemon) == "42\n"
    assert daemon.calls[0][:2] == ("swap", {"service": "chat", "to": "b"})


def test_the_raw_example_tells_a_refusal_by_its_code(daemon):
    del daemon.answers["swap"]
    assert run_example("raw", daemon) == "NOT_SUPPORTED\n"


def test_the_clients_example_waits_for_the_outcome(daemon):
    assert run_example("client", daemon).splitlines() == [plan()["why"], "Soaking 0.84"]
    assert ("swap", {"service": "chat", "to": "b", "reason": "retrained"}) in [call[:2] for call in daemon.calls]
